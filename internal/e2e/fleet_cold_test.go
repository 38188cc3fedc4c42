package e2e_test

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Twenty replicas are what the machine bears, so what needs as many shares them,
// and nothing runs beside it.
func TestTwentyReplicasAskTheIdPAsOne(t *testing.T) {
	fast, slow, down, throttling := simpleIdP(t, time.Hour), simpleIdP(t, time.Hour), simpleIdP(t, time.Hour), simpleIdP(t, time.Hour)
	config := clientsConfig(t, map[string]*countingIdP{"fast": fast, "slow": slow, "down": down, "throttling": throttling})
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 20, redisConfig(t, "", server.Addr())+config)

	for _, cold := range []struct {
		name  string
		idp   *countingIdP
		delay time.Duration
	}{
		{"fast", fast, 300 * time.Millisecond},
		{"slow", slow, 5 * time.Second}, // longer than the lease
	} {
		cold.idp.SetDelay(cold.delay)
		begun := time.Now()
		all := everybody(t, f.replicas, 100, cold.name).good(t, cold.name)
		t.Logf("cold, IdP at %v: %v; all done after %v", cold.delay, all.took(), time.Since(begun).Round(time.Millisecond))
		all.oneToken(t, cold.name)
		if got := cold.idp.calls(); got != 1 {
			t.Errorf("IdP at %v: 2000 cold callers cost %d calls", cold.delay, got)
		}
	}

	t.Run("and leave alone one that fails", func(t *testing.T) {
		t.Parallel()
		down.FailNext(1<<30, http.StatusServiceUnavailable, "", nil)
		demand := startLoad(t, f.replicas, 5, 20*time.Millisecond, "down")
		rest(t, 10*time.Second)
		calls := down.calls()
		down.FailNext(0, 0, "", nil)
		f.recovers(t, "down")
		demand.failedOnly(t, codes.Unavailable)
		t.Logf("IdP at 503 for 10 s: %d calls; the callers' %v", calls, demand.took)
		if calls > 10 {
			t.Errorf("an IdP that fails was called %d times in 10 s", calls)
		}
	})
	t.Run("and obey one that throttles", func(t *testing.T) {
		t.Parallel()
		throttling.FailNext(1<<30, http.StatusTooManyRequests, "", http.Header{"Retry-After": {"5"}})
		demand := startLoad(t, f.replicas, 5, 20*time.Millisecond, "throttling")
		rest(t, 11*time.Second)
		throttling.FailNext(0, 0, "", nil)
		f.recovers(t, "throttling")
		demand.failedOnly(t, codes.ResourceExhausted)
		asked := throttling.TokenRequests()
		if len(asked) < 3 {
			t.Errorf("an IdP that throttles was called %d times only", len(asked))
		}
		for i := range asked[1:] {
			apart := asked[i+1].At.Sub(asked[i].At)
			t.Logf("IdP at 429 with Retry-After 5: called again after %v", apart)
			if apart < 5*time.Second {
				t.Errorf("call %d came %v after one that was told to wait for 5 s", i+1, apart)
			}
		}
	})
}

// recovers waits until every replica serves a client again.
func (f *fleet) recovers(t *testing.T, name string) {
	t.Helper()
	for _, r := range f.replicas {
		testkit.Eventually(t, name+" is served again", func() bool { return r.ask(t, name).wrong() == nil })
	}
}

// failedOnly fails the test unless calls failed, and with this code only.
func (l *load) failedOnly(t *testing.T, code codes.Code) {
	t.Helper()
	l.end()
	delete(l.codes, codes.OK)
	if len(l.codes) != 1 || l.codes[code] == 0 {
		t.Errorf("want %v only, got %v: %s", code, l.codes, strings.Join(l.firsts, "; "))
	}
}

func TestAFleetTriesADeadSecretOnce(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 5, redisConfig(t, "", server.Addr())+clientsConfig(t, map[string]*countingIdP{"orders": idp}))
	idp.SetSecrets("abc", redact.New("another"))
	idp.SetDelay(300 * time.Millisecond)
	asking := make(chan answerList)
	for _, audience := range audiences(50) {
		go func() { asking <- everybody(t, f.replicas, 2, "orders", client.WithAudience(audience)) }()
	}
	for range 50 {
		for _, a := range <-asking {
			if status.Code(a.err) != codes.FailedPrecondition {
				t.Fatalf("a client whose secret is dead: %v", a.err)
			}
		}
	}
	if got := idp.calls(); got != 1 {
		t.Errorf("the IdP saw %d attempts", got)
	}
}

func TestTheLeaseOfAKilledReplicaPassesOn(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 5, redisConfig(t, "", server.Addr())+clientsConfig(t, map[string]*countingIdP{"orders": idp}))
	idp.SetDelay(5 * time.Second)
	holder, others := f.replicas[0], f.replicas[1:]
	go holder.ask(t, "orders")
	testkit.Eventually(t, "the holder of the lease is at the IdP", func() bool { return idp.calls() == 1 })
	asking := make(chan answerList)
	go func() { asking <- everybody(t, others, 100, "orders") }()
	rest(t, time.Second) // it renews its lease meanwhile
	holder.process.stop(t, os.Kill)
	died := time.Now()
	all := (<-asking).good(t, "callers of the others")
	t.Logf("done %v after the holder of the lease was killed, IdP at 5 s: %v", time.Since(died).Round(time.Millisecond), all.took())
	all.oneToken(t, "callers of the others")
	if got := idp.calls(); got != 2 {
		t.Errorf("the IdP was called %d times, want once by the dead and once by the living", got)
	}
	if took := time.Since(died); took > 3*time.Second+5*time.Second+5*time.Second {
		t.Errorf("it took %v, which is more than the lease and the IdP take", took)
	}
}
