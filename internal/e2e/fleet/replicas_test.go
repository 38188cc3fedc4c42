package fleet

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

const redisPassword = "a-password-of-Redis"

// redisOptions are those of a Redis in which the broker has the rights that it
// says it needs, and no more.
func redisOptions() redistest.Options {
	return redistest.Options{ACL: []string{strings.Replace(redisstore.ACLExample, "PASSWORD", redisPassword, 1) + " " + redisstore.ACLCluster}}
}

// redisConfig is the section store of a broker's configuration. More settings
// of redis end with a comma.
func redisConfig(t *testing.T, more string, addresses ...string) string {
	t.Helper()
	return fmt.Sprintf("store:\n  redis: {%s username: tokenbroker, password: %q, addresses: [\"%s\"]}\n  sealing_keys: %q\n",
		more, "file:"+harness.WriteFile(t, "redis-password", redisPassword), strings.Join(addresses, `", "`), "file:"+makeRing(t))
}

// makeRing makes a ring of sealing keys as an operator does.
func makeRing(t *testing.T) (path string) {
	t.Helper()
	res := harness.Run(t, "ring", "new")
	if res.Code != 0 {
		t.Fatalf("ring new: %v", res)
	}
	return harness.WriteFile(t, "ring.json", res.Stdout)
}

// Fleet is replicas of a broker that run with one configuration.
type Fleet struct {
	Config   string // all but listen
	Replicas []*Replica
}

// Replica is one of them, and two connections to it.
type Replica struct {
	*harness.Broker

	clock time.Duration // by which its clock is ahead
	conns [2]*client.Client
	turn  atomic.Uint32
}

// clockVariable sets the clock of a broker that was built to have it set.
const clockVariable = "CLOCK_AHEAD_SECONDS"

// startFleet starts n replicas at once and waits until all are ready and
// connected.
func startFleet(t *testing.T, n int, config string) *Fleet {
	t.Helper()
	f := &Fleet{Config: config}
	f.Add(t, n, "broker", 0)
	return f
}

// Add starts n more replicas, whose clocks are ahead of the test's. For that
// the binary must be clockBroker's.
func (f *Fleet) Add(t *testing.T, n int, binary string, clock time.Duration) []*Replica {
	t.Helper()
	var added []*Replica
	for range n {
		r := &Replica{Broker: harness.NewBroker(t, f.Config), clock: clock}
		r.Launch(t, binary, clockVariable+"="+strconv.FormatInt(int64(clock.Seconds()), 10))
		added = append(added, r)
	}
	for _, r := range added {
		r.Await(t)
		r.Connect(t)
	}
	f.Replicas = append(f.Replicas, added...)
	return added
}

// Connect makes the connections, so that no measurement counts that.
func (r *Replica) Connect(t *testing.T) {
	t.Helper()
	for i := range r.conns {
		c, err := client.New(r.Grpc, client.WithPlaintext())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if r.conns[i] != nil {
			_ = r.conns[i].Close() // to the process before
		}
		r.conns[i] = c
		if _, err := c.Token(t.Context(), "nobody"); err == nil {
			t.Fatal("a client that is not configured got a token")
		}
	}
}

// API is the generated client, for what package client does not offer.
func (r *Replica) API(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(r.Grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Purge purges the tokens of a client, by a call to this replica.
func (r *Replica) Purge(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	request := &tokenbrokerv1.PurgeTokensRequest{ClientName: name, RequestId: strconv.FormatInt(time.Now().UnixNano(), 10)}
	if _, err := tokenbrokerv1.NewAdminServiceClient(r.API(t)).PurgeTokens(ctx, request); err != nil {
		t.Fatalf("purge of %s: %v", name, err)
	}
}

// Sum adds up a series over the fleet.
func (f *Fleet) Sum(t *testing.T, series string) float64 {
	t.Helper()
	total := 0.0
	for _, r := range f.Replicas {
		total += r.Metric(t, series)
	}
	return total
}

// rest is for the time that a load needs.
func rest(t *testing.T, d time.Duration) {
	t.Helper()
	if !wait(t.Context(), d) {
		t.Fatal(t.Context().Err())
	}
}

// long skips a test that takes minutes, unless it is asked for.
func long(t *testing.T) {
	t.Helper()
	if !harness.IsLong() {
		t.Skip("takes minutes: make test-long")
	}
}

// AddWith starts one more replica, with a configuration of its own.
func (f *Fleet) AddWith(t *testing.T, config string) *Replica {
	t.Helper()
	r := &Replica{Broker: harness.NewBroker(t, config)}
	r.Launch(t, "broker")
	r.Await(t)
	r.Connect(t)
	f.Replicas = append(f.Replicas, r)
	return r
}
