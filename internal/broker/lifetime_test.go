package broker_test

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// prolonging is a store that says of every value that it lives longer than it was
// put there for, as Redis does when its clock is set back.
type prolonging struct {
	store.Store

	by time.Duration
}

func (p prolonging) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := p.Store.Get(ctx, keys...)
	p.prolong(entries)
	return entries, err
}

func (p prolonging) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	claimed, err := p.Store.Acquire(ctx, claim)
	p.prolong(claimed.Entries)
	return claimed, err
}

func (p prolonging) prolong(entries []store.Entry) {
	for i := range entries {
		if entries[i].TTL > 0 {
			entries[i].TTL += p.by
		}
	}
}

// startProlonged starts replicas with a sealed store that prolongs what is in it.
func startProlonged(t *testing.T, n int, by time.Duration) *replicas {
	t.Helper()
	keys := newRingFile(t)
	r := startReplicas(t, 0)
	r.seal = func(s store.Store) store.Store { return sealed.New(prolonging{s, by}, keys.file) }
	for range n {
		r.add("right")
	}
	return r
}

// A token ends when it ends, whatever the store says of it.
func TestTokenExpiresWithItsEnvelope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startProlonged(t, 3, time.Hour)
		first, err := r.all[0].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		shared, err := r.all[1].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		if shared.Token.SHA256 != first.Token.SHA256 || shared.Token.UsableUntil.After(first.Token.UsableUntil.Add(time.Millisecond)) {
			t.Errorf("read by another replica it is usable until %v, not %v", shared.Token.UsableUntil, first.Token.UsableUntil)
		}
		time.Sleep(time.Until(first.Token.UsableUntil) + time.Millisecond)
		for i, replica := range r.all {
			if answer, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err != nil || answer.Token.SHA256 == first.Token.SHA256 {
				t.Errorf("replica %d serves a token past its use, until %v (%v)", i, answer.Token, err)
			}
		}
	})
}

// Nor does a failure: a client is not kept from its IdP for longer than the IdP, or
// the backoff, says.
func TestFailureExpiresWithItsEnvelope(t *testing.T) {
	for name, fail := range map[string]struct {
		status int
		code   string
		wait   time.Duration
	}{
		"throttling":         {http.StatusTooManyRequests, "", 40 * time.Second},
		"a refused secret":   {http.StatusUnauthorized, "invalid_client", 30 * time.Second},
		"a refused question": {http.StatusBadRequest, "invalid_scope", time.Minute},
		"an IdP that fails":  {http.StatusInternalServerError, "", 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startProlonged(t, 2, time.Hour)
				r.idp.FailNext(1, fail.status, fail.code, http.Header{"Retry-After": {"40"}})
				if _, err := r.all[0].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err == nil {
					t.Fatal("no failure")
				}
				if _, err := r.all[1].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err == nil {
					t.Error("the failure is not shared")
				}
				time.Sleep(fail.wait + 100*time.Millisecond)
				if _, err := r.all[1].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err != nil {
					t.Errorf("after it is over: %v", err)
				}
			})
		})
	}
}

// ahead is a sealed store as a replica sees it whose clock is ahead.
type ahead struct {
	store.Store

	by time.Duration
}

func (a ahead) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	entries, err := a.Store.Get(ctx, keys...)
	a.shorten(entries)
	return entries, err
}

func (a ahead) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	claimed, err := a.Store.Acquire(ctx, claim)
	a.shorten(claimed.Entries)
	return claimed, err
}

func (a ahead) shorten(entries []store.Entry) {
	for i, entry := range entries {
		switch {
		case entry.TTL > a.by:
			entries[i].TTL, entries[i].Excess = entry.TTL-a.by, entry.Excess+a.by
		case entry.TTL > 0:
			entries[i] = store.Entry{}
		}
	}
}

// Throttling is obeyed to its end by a replica whose clock is ahead.
func TestThrottling_clocksDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newRingFile(t)
		r := startReplicas(t, 0)
		r.seal = func(s store.Store) store.Store { return sealed.New(s, keys.file) }
		r.add("right")
		r.seal = func(s store.Store) store.Store { return ahead{sealed.New(s, keys.file), 90 * time.Second} }
		r.add("right")
		r.idp.FailNext(1, http.StatusTooManyRequests, "", http.Header{"Retry-After": {"40"}})
		_, err := r.all[0].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
		for range 39 {
			_, err := r.all[1].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)})
			wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Second)
		if _, err := r.all[1].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)}); err != nil {
			t.Errorf("after the throttling: %v", err)
		}
	})
}
