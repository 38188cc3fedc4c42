package redisstore_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

func TestRedisInspect(t *testing.T) {
	server := redistest.Start(t, redistest.Options{AppendOnly: true, Config: []string{"maxmemory 100mb", "maxmemory-policy noeviction"}, ACL: []string{
		aclLine("+info", "+time"), strings.Replace(aclLine(), "tokenbroker", "minimal", 1),
	}, Password: testPassword})
	open := func(user string) *redisstore.Store {
		return openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}, Username: user, Password: passwordSource(t, testPassword)})
	}
	behind := func() time.Time { return time.Now().Add(-2 * time.Minute) }

	full := open("tokenbroker")
	got, err := full.Inspect(t.Context())
	if err != nil || len(got.Servers) != 1 || got.Servers[0].Limit != 100<<20 || got.Servers[0].Used == 0 || got.Servers[0].Version == "" || !got.Servers[0].AppendOnly {
		t.Errorf("Inspect = %+v, %v", got, err)
	}
	if len(got.Settings) != 1 || !strings.Contains(got.Settings[0].Fact, "noeviction") || got.Settings[0].Advice == "" {
		t.Errorf("settings: %+v", got.Settings)
	}
	clocks, err := full.Clocks(t.Context(), behind)
	if ahead := clocks[server.Addr()]; err != nil || ahead > -110*time.Second || ahead < -130*time.Second {
		t.Errorf("a clock 2 minutes behind: %v, %v", clocks, err)
	}
	if rights, err := full.NeedlessRights(t.Context()); err != nil || len(rights) != 0 {
		t.Errorf("needless rights: %q, %v", rights, err)
	}

	minimal := open("minimal")
	if _, err := minimal.Inspect(t.Context()); !errors.Is(err, redisstore.ErrNoInfo) {
		t.Errorf("without +info: %v", err)
	}
	if _, err := minimal.Clocks(t.Context(), time.Now); err == nil || !strings.Contains(err.Error(), "may not run TIME") {
		t.Errorf("without +time: %v", err)
	}
	if rights, err := open("").NeedlessRights(t.Context()); err != nil || len(rights) != 2 {
		t.Errorf("needless rights of a user with all: %q, %v", rights, err)
	}
}

func TestRedisInspect_cluster(t *testing.T) {
	t.Parallel()
	cluster := redistest.StartCluster(t, redistest.Options{})
	r := openPatient(t, redisstore.Config{Addresses: cluster.Addrs(), Cluster: true})
	got, err := r.Inspect(t.Context())
	if err != nil || len(got.Servers) < 2 {
		t.Errorf("Inspect = %+v, %v", got, err)
	}
	if clocks, err := r.Clocks(t.Context(), time.Now); err != nil || len(clocks) != len(got.Servers) {
		t.Errorf("Clocks = %v, %v", clocks, err)
	}
	if rights, err := r.NeedlessRights(t.Context()); err != nil || len(rights) != 2 {
		t.Errorf("NeedlessRights = %q, %v", rights, err)
	}
}
