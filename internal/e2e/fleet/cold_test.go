package fleet

import (
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Twenty replicas are what the machine bears, so what needs as many shares them,
// and nothing runs beside it.
func TestTwentyReplicasFetchOnce(t *testing.T) {
	fast, slow, down, throttling := harness.SimpleIdP(t, time.Hour), harness.SimpleIdP(t, time.Hour), harness.SimpleIdP(t, time.Hour), harness.SimpleIdP(t, time.Hour)
	config := harness.ClientsConfig(t, map[string]*harness.CountingIdP{"fast": fast, "slow": slow, "down": down, "throttling": throttling})
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 20, redisConfig(t, "", server.Addr())+config)

	for _, cold := range []struct {
		name  string
		idp   *harness.CountingIdP
		delay time.Duration
	}{
		{"fast", fast, 300 * time.Millisecond},
		{"slow", slow, 5 * time.Second}, // longer than the lease
	} {
		cold.idp.SetDelay(cold.delay)
		begun := time.Now()
		all := askAll(t, f.Replicas, 100, cold.name).Good(t, cold.name)
		t.Logf("cold, IdP at %v: %v; all done after %v", cold.delay, all.Took(), time.Since(begun).Round(time.Millisecond))
		all.OneToken(t, cold.name)
		if got := cold.idp.Calls(); got != 1 {
			t.Errorf("IdP at %v: 2000 cold callers cost %d calls", cold.delay, got)
		}
	}

	t.Run("and leave alone one that fails", func(t *testing.T) {
		t.Parallel()
		down.FailNext(1<<30, http.StatusServiceUnavailable, "", nil)
		demand := startLoad(t, f.Replicas, 5, 20*time.Millisecond, "down")
		rest(t, 10*time.Second)
		calls := down.Calls()
		down.FailNext(0, 0, "", nil)
		recovers(t, f, "down")
		failedOnly(t, demand, codes.Unavailable)
		t.Logf("IdP at 503 for 10 s: %d calls; the callers' %v", calls, demand.Took)
		if calls > 10 {
			t.Errorf("an IdP that fails was called %d times in 10 s", calls)
		}
	})
	t.Run("and obey one that throttles", func(t *testing.T) {
		t.Parallel()
		throttling.FailNext(1<<30, http.StatusTooManyRequests, "", http.Header{"Retry-After": {"5"}})
		demand := startLoad(t, f.Replicas, 5, 20*time.Millisecond, "throttling")
		rest(t, 11*time.Second)
		throttling.FailNext(0, 0, "", nil)
		recovers(t, f, "throttling")
		failedOnly(t, demand, codes.ResourceExhausted)
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
func recovers(t *testing.T, f *Fleet, name string) {
	t.Helper()
	for _, r := range f.Replicas {
		testkit.Eventually(t, name+" is served again", func() bool { return r.Ask(t, name).Wrong() == nil })
	}
}

// failedOnly fails the test unless calls failed, and with this code only.
func failedOnly(t *testing.T, l *Load, code codes.Code) {
	t.Helper()
	l.End()
	delete(l.Codes, codes.OK)
	if len(l.Codes) != 1 || l.Codes[code] == 0 {
		t.Errorf("want %v only, got %v: %s", code, l.Codes, strings.Join(l.Firsts, "; "))
	}
}

func TestFleetTriesADeadSecretOnce(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 5, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	idp.SetSecrets("abc", redact.New("another"))
	idp.SetDelay(300 * time.Millisecond)
	asking := make(chan AnswerList)
	for _, audience := range harness.Audiences(50) {
		go func() { asking <- askAll(t, f.Replicas, 2, "orders", client.WithAudience(audience)) }()
	}
	for range 50 {
		for _, a := range <-asking {
			if status.Code(a.Err) != codes.FailedPrecondition {
				t.Fatalf("a client whose secret is dead: %v", a.Err)
			}
		}
	}
	if got := idp.Calls(); got != 1 {
		t.Errorf("the IdP saw %d attempts", got)
	}
}

func TestLeaseOfAKilledReplicaExpires(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 5, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	idp.SetDelay(5 * time.Second)
	holder, others := f.Replicas[0], f.Replicas[1:]
	go holder.Ask(t, "orders")
	testkit.Eventually(t, "the holder of the lease is at the IdP", func() bool { return idp.Calls() == 1 })
	asking := make(chan AnswerList)
	go func() { asking <- askAll(t, others, 100, "orders") }()
	rest(t, time.Second) // it renews its lease meanwhile
	holder.Process.Stop(t, os.Kill)
	died := time.Now()
	all := (<-asking).Good(t, "callers of the others")
	t.Logf("done %v after the holder of the lease was killed, IdP at 5 s: %v", time.Since(died).Round(time.Millisecond), all.Took())
	all.OneToken(t, "callers of the others")
	if got := idp.Calls(); got != 2 {
		t.Errorf("the IdP was called %d times, want once by the dead and once by the living", got)
	}
	if took := time.Since(died); took > 3*time.Second+5*time.Second+5*time.Second {
		t.Errorf("it took %v, which is more than the lease and the IdP take", took)
	}
}
