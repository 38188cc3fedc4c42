package e2e_test

import (
	"context"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/redistest"
)

// Callers report a token that their API refuses. That costs one replacement,
// however many report it, and one who reports whatever it gets does not cost the
// IdP more than a call in 30 s, nor the others anything.
func TestRejectedTokensAreReplacedOnceAndSeldom(t *testing.T) {
	t.Parallel()
	const interval = 30 * time.Second
	lasts := 10 * time.Second
	if isLong() {
		lasts = 75 * time.Second
	}
	idp := simpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 5, redisConfig(t, "", server.Addr())+clientsConfig(t, map[string]*countingIdP{"orders": idp}))
	held := everybody(t, f.replicas, 1, "orders").good(t, "at first")
	first := held.oneToken(t, "at first")
	idp.SetDelay(300 * time.Millisecond)

	others := startLoad(t, f.replicas, 3, 10*time.Millisecond, "orders")
	begun := time.Now()
	all := everybody(t, f.replicas, 20, "orders", client.WithRejected(held[0].token)).good(t, "those who report it")
	t.Logf("those who report it, IdP at 300 ms: %v", all.took())
	if all.oneToken(t, "those who report it") == first {
		t.Error("the rejected token was not replaced")
	}
	if got := idp.calls(); got != 2 {
		t.Errorf("100 reports of one token cost %d calls", got-1)
	}

	f.add(t, 1, "broker", 0) // which knows of no replacement, but for what the store says
	reports := f.reportsAll(t, all[0], lasts)
	calls := idp.calls()
	others.good(t, "the others")
	t.Logf("one who reports whatever it gets, %d times in %v: %d calls; the others: %v", reports, lasts, calls-2, others.took)
	if most := 2 + int(time.Since(begun)/interval); calls > most {
		t.Errorf("%d calls, at most %d are one in %v", calls, most, interval)
	}
	if isLong() && calls < 3 {
		t.Error("a rejected token was never replaced again")
	}
	if len(others.tokens) > calls || others.degraded > 0 {
		t.Errorf("the others saw %d tokens, %d times degraded", len(others.tokens), others.degraded)
	}
	requests := idp.TokenRequests()
	for i := 2; i < len(requests); i++ {
		if apart := requests[i].At.Sub(requests[i-1].At); apart < interval-time.Second {
			t.Errorf("two replacements were %v apart", apart)
		}
	}
}

// reportsAll rejects each token that it gets, at one replica after the other,
// and returns how often.
func (f *fleet) reportsAll(t *testing.T, last answer, lasts time.Duration) (reports int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), lasts)
	defer cancel()
	for wait(ctx, 10*time.Millisecond) {
		reports++
		last = f.replicas[reports%len(f.replicas)].ask(t, "orders", client.WithRejected(last.token))
		if err := last.wrong(); err != nil {
			t.Fatalf("report %d: %v", reports, err)
		}
	}
	return reports
}
