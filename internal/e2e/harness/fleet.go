package harness

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

// ClientsConfig is the section clients of a broker's configuration.
func ClientsConfig(t *testing.T, clients map[string]*CountingIdP) string {
	t.Helper()
	section := strings.Builder{}
	section.WriteString("clients:\n")
	for name, idp := range clients {
		section.WriteString("  " + name + ": " + idp.Config(t) + "\n")
	}
	return section.String()
}

const RedisPassword = "a-password-of-Redis"

// RedisOptions are those of a Redis in which the broker has the rights that it
// says it needs, and no more.
func RedisOptions() redistest.Options {
	return redistest.Options{ACL: []string{strings.Replace(redisstore.ACLExample, "PASSWORD", RedisPassword, 1) + " " + redisstore.ACLCluster}}
}

// RedisConfig is the section store of a broker's configuration. More settings
// of redis end with a comma.
func RedisConfig(t *testing.T, more string, addresses ...string) string {
	t.Helper()
	return fmt.Sprintf("store:\n  redis: {%s username: tokenbroker, password: %q, addresses: [\"%s\"]}\n  sealing_keys: %q\n",
		more, "file:"+WriteFile(t, "redis-password", RedisPassword), strings.Join(addresses, `", "`), "file:"+MakeRing(t))
}

// MakeRing makes a ring of sealing keys as an operator does.
func MakeRing(t *testing.T) (path string) {
	t.Helper()
	res := Run(t, "ring", "new")
	if res.Code != 0 {
		t.Fatalf("ring new: %v", res)
	}
	return WriteFile(t, "ring.json", res.Stdout)
}

// Fleet is replicas of a broker that run with one configuration.
type Fleet struct {
	Config   string // all but listen
	Replicas []*Replica
}

// Replica is one of them, and two connections to it.
type Replica struct {
	*Broker

	clock time.Duration // by which its clock is ahead
	conns [2]*client.Client
	turn  atomic.Uint32
}

// ClockVariable sets the clock of a broker that was built to have it set.
const ClockVariable = "CLOCK_AHEAD_SECONDS"

// StartFleet starts n replicas at once and waits until all are ready and
// connected.
func StartFleet(t *testing.T, n int, config string) *Fleet {
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
		r := &Replica{Broker: NewBroker(t, f.Config), clock: clock}
		r.Launch(t, binary, ClockVariable+"="+strconv.FormatInt(int64(clock.Seconds()), 10))
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
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	request := &tokenbrokerv1.PurgeTokensRequest{ClientName: name, RequestId: strconv.FormatInt(time.Now().UnixNano(), 10)}
	if _, err := tokenbrokerv1.NewAdminServiceClient(r.API(t)).PurgeTokens(ctx, request); err != nil {
		t.Fatalf("purge of %s: %v", name, err)
	}
}

// Metrics is what the replica tells of itself.
func (b *Broker) Metrics(t *testing.T) string {
	t.Helper()
	response, err := Fetch(t, &http.Client{Timeout: Patience}, http.MethodGet, "http://"+b.Ops+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Metric is the value of a series, such as name{label="value"}.
func (b *Broker) Metric(t *testing.T, series string) float64 {
	t.Helper()
	for line := range strings.Lines(b.Metrics(t)) {
		if text, found := strings.CutPrefix(line, series+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("there is no metric %s", series)
	return 0
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

// Rest is for the time that a load needs.
func Rest(t *testing.T, d time.Duration) {
	t.Helper()
	if !Wait(t.Context(), d) {
		t.Fatal(t.Context().Err())
	}
}

// Logged reports whether the replica has logged a line that holds all words.
func (b *Broker) Logged(words ...string) bool {
	for line := range strings.Lines(b.Process.Output.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			return true
		}
	}
	return false
}

// Long skips a test that takes minutes, unless it is asked for.
func Long(t *testing.T) {
	t.Helper()
	if !IsLong() {
		t.Skip("takes minutes: make test-long")
	}
}

func IsLong() bool { return os.Getenv("TOKENBROKER_LONG") != "" }

// AddWith starts one more replica, with a configuration of its own.
func (f *Fleet) AddWith(t *testing.T, config string) *Replica {
	t.Helper()
	r := &Replica{Broker: NewBroker(t, config)}
	r.Launch(t, "broker")
	r.Await(t)
	r.Connect(t)
	f.Replicas = append(f.Replicas, r)
	return r
}
