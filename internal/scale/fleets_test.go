package scale_test

import (
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/verify"
)

const (
	// settled is the time after a start in which the replicas have read everything.
	settled = 30 * time.Second
	// atRest is the time of a measurement at rest, a multiple of all intervals but the
	// rare ones.
	atRest = 2 * time.Minute
	// underLoad is the time of a measurement with demand: two lifetimes of a token.
	underLoad = 2 * tokenLife
	// calm is the time before a change, more than all replicas need to see the last one.
	calm = 10 * time.Second
	// bound is the documented time for a change to reach all replicas if its events are
	// lost, and slack the time of the trips beside it.
	bound = 5 * time.Second
	slack = 500 * time.Millisecond
)

// result is the cost of a fleet of one size.
type result struct {
	Replicas int `json:"replicas"`
	// Cold: all replicas request all tokens at one instant.
	Cold cold `json:"cold"`
	// Rest: nothing is requested. Load: each replica needs each token all the time.
	Rest rates `json:"rest"`
	Load rates `json:"load"`
	// KeyFetches are requests for the IdP's keys from the start on, for one replica.
	KeyFetches float64 `json:"key_fetches"`
	// The changes reach all replicas by events, or without any event.
	Purge          spread `json:"purge"`
	Revocation     spread `json:"revocation"`
	Rotation       spread `json:"rotation"`
	LostPurge      spread `json:"lost_purge"`
	LostRevocation spread `json:"lost_revocation"`
	LostRotation   spread `json:"lost_rotation"`
}

type cold struct {
	Calls   int           `json:"idp_calls"`
	Trips   int64         `json:"trips"`
	Half    time.Duration `json:"p50"`
	Last    time.Duration `json:"max"`
	Slowest time.Duration `json:"slowest_trip"`
}

// rates are per second, for the whole fleet.
type rates struct {
	Calls    int     `json:"idp_calls"`
	Tokens   int     `json:"tokens"`
	Trips    float64 `json:"trips"`
	Messages float64 `json:"messages"`
	Bytes    float64 `json:"bytes"`
	Busy     float64 `json:"busy"` // share of the time in which Redis works
}

// spread is the time for a change to reach half of the replicas and all of them.
type spread struct {
	Half     time.Duration `json:"p50"`
	Last     time.Duration `json:"max"`
	Trips    int64         `json:"trips"`
	Messages int64         `json:"messages"`
}

func sizes() []int {
	if os.Getenv("TOKENBROKER_LONG") != "" {
		return []int{1, 3, 10, 30, 100, 300, 1000}
	}
	return []int{1, 3, 10, 30}
}

// The properties hold in each size, and the counts are those of the document.
func TestFleetsOfAllSizes(t *testing.T) {
	var committed, measured []result
	update := os.Getenv(updateVariable) != ""
	if !update {
		readJSON(t, fleetsFile, &committed)
	}
	for _, n := range sizes() {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			begun := time.Now()
			var got result
			synctest.Test(t, func(t *testing.T) { got = measure(t, n) })
			t.Logf("%+v, simulated in %v", got, time.Since(begun))
			measured = append(measured, got)
			for _, want := range committed {
				if want.Replicas == n {
					got.resembles(t, want)
				}
			}
		})
	}
	if update && os.Getenv("TOKENBROKER_LONG") != "" && !t.Failed() {
		writeJSON(t, fleetsFile, measured)
	}
}

// resembles fails the test if a count differs from a committed one by more than a tenth.
// Counts that depend on chance are not compared.
func (r result) resembles(t *testing.T, want result) {
	t.Helper()
	for _, one := range []struct {
		what      string
		got, want float64
	}{
		{"IdP calls of a cold fleet", float64(r.Cold.Calls), float64(want.Cold.Calls)},
		{"trips at rest", r.Rest.Trips, want.Rest.Trips},
		{"messages at rest", r.Rest.Messages, want.Rest.Messages},
		{"trips under load", r.Load.Trips, want.Load.Trips},
		{"messages of a revocation", float64(r.Revocation.Messages), float64(want.Revocation.Messages)},
	} {
		if math.Abs(one.got-one.want) > one.want/10 {
			t.Errorf("%s: %.2f, and %.2f in docs/sizing.md: run with TOKENBROKER_LONG=1 %s=1 if that is intended", one.what, one.got, one.want, updateVariable)
		}
	}
}

// measure lives through the life of a fleet.
func measure(t *testing.T, n int) result {
	r := newReplicas(t)
	r.start(1, 0)
	time.Sleep(settled)
	for i := range clients {
		r.rotate(clientName(i), 1)
	}
	time.Sleep(2 * tokenLife) // no token is left
	r.start(n-1, startSpread)
	time.Sleep(settled)
	got := result{Replicas: n}
	got.Cold = r.cold()
	time.Sleep(settled)
	got.Rest = r.rates(atRest, nil)
	got.Load = r.rates(underLoad, r.demand(2*time.Second))
	got.KeyFetches = float64(r.keys.Load()) / float64(n)
	got.Purge, got.Revocation, got.Rotation = r.purge("with events"), r.revoke("with events"), r.rotated(2)
	r.server.deaf.Store(true)
	got.LostPurge, got.LostRevocation, got.LostRotation = r.purge("without"), r.revoke("without"), r.rotated(3)
	return got
}

// cold has all replicas request all tokens at once, when there is none.
func (r *replicas) cold() cold {
	before, calls, begun := r.server.counted(), r.calls(), time.Now()
	waits := make([]time.Duration, len(r.all)*clients)
	var asking sync.WaitGroup
	for i := range waits {
		asking.Go(func() {
			r.get(r.all[i/clients], clientName(i%clients))
			waits[i] = time.Since(begun)
		})
	}
	asking.Wait()
	slices.Sort(waits)
	counted := r.server.counted()
	got := cold{Calls: r.calls() - calls, Trips: counted.since(before).trips, Half: waits[len(waits)/2], Last: waits[len(waits)-1], Slowest: counted.slowest}
	if got.Calls != clients {
		r.t.Errorf("%d IdP calls for %d tokens", got.Calls, clients)
	}
	return got
}

func (r *replicas) calls() int { return r.idp.Requests(devidp.TokenPath) }

// rates measures for some time, with demand or without.
func (r *replicas) rates(lasts time.Duration, d *demand) rates {
	before, calls := r.server.counted(), r.calls()
	time.Sleep(lasts)
	counted := r.server.counted().since(before)
	got := rates{
		Calls: r.calls() - calls,
		Trips: float64(counted.trips) / lasts.Seconds(), Messages: float64(counted.messages) / lasts.Seconds(),
		Bytes: float64(counted.bytes) / lasts.Seconds(), Busy: counted.busy.Seconds() / lasts.Seconds(),
	}
	if d != nil {
		d.stop()
		got.Tokens = d.fresh()
		if got.Calls = r.calls() - calls; got.Calls != got.Tokens {
			r.t.Errorf("%d IdP calls for %d tokens", got.Calls, got.Tokens)
		}
	}
	return got
}

// purge purges the tokens of a client while all replicas hold a new one. It reaches a
// replica when that no longer hands out the old token.
func (r *replicas) purge(request string) spread {
	purge := func(request string) {
		if err := r.all[0].Purge(r.ctx, policy.Self(), broker.Purge{Client: clientName(0), Request: request}); err != nil {
			r.t.Errorf("purge: %v", err)
		}
	}
	purge("first " + request)
	time.Sleep(calm)
	for _, one := range r.all {
		r.get(one, clientName(0))
	}
	old, step := r.get(r.all[0], clientName(0)), r.step()
	return r.spread("purge", func() { purge(request) }, func(one *replica) time.Time {
		for {
			asked := time.Now()
			if r.get(one, clientName(0)) != old || r.ctx.Err() != nil {
				return asked
			}
			time.Sleep(step)
		}
	})
}

// revoke revokes a token that all replicas accept.
func (r *replicas) revoke(subject string) spread {
	now := time.Now()
	token := r.idp.Mint(map[string]any{
		"iss": issuer, "sub": subject, "client_id": "shop", "jti": subject, "aud": audience, "scope": "read",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
	for _, one := range r.all {
		if r.rejected(one, token) {
			r.t.Error("a good token is rejected")
		}
	}
	step := r.step()
	return r.spread("revocation", func() {
		if _, err := r.all[0].Revocations().Revoke(r.ctx, policy.Self(), revocation.Revocation{Issuer: issuer, Subject: subject, ExpiresAt: now.Add(24 * time.Hour)}, subject); err != nil {
			r.t.Errorf("revoke: %v", err)
		}
	}, func(one *replica) time.Time {
		for !r.rejected(one, token) && r.ctx.Err() == nil {
			time.Sleep(step)
		}
		return time.Now()
	})
}

func (r *replicas) rejected(one *replica, token redact.String) bool {
	result, err := one.Verify(r.ctx, policy.Self(), token, verify.Request{})
	if err != nil {
		r.t.Errorf("verify: %v", err)
		return true
	}
	return result.Rejection != nil
}

// rotated rotates the secret of a client, at an IdP that responds at once.
func (r *replicas) rotated(version int) spread {
	r.idp.SetDelay(0)
	defer r.idp.SetDelay(idpDelay)
	current := func(one *replica) string { return one.Secrets(clientName(0)).View().Current.ID }
	old, step := current(r.all[0]), r.step()
	return r.spread("rotation", func() { r.rotate(clientName(0), version) }, func(one *replica) time.Time {
		for current(one) == old && r.ctx.Err() == nil {
			time.Sleep(step)
		}
		return time.Now()
	})
}

// step is how often it is examined if a change has arrived.
func (r *replicas) step() time.Duration {
	if r.server.deaf.Load() {
		return 20 * time.Millisecond
	}
	return time.Millisecond
}

// spread makes a change and measures the time until it has arrived at each replica.
func (r *replicas) spread(what string, change func(), arrival func(*replica) time.Time) spread {
	time.Sleep(calm)
	before, begun := r.server.counted(), time.Now()
	took := make([]time.Duration, len(r.all))
	var waiting sync.WaitGroup
	for i, one := range r.all {
		waiting.Go(func() { took[i] = arrival(one).Sub(begun) })
	}
	change()
	waiting.Wait()
	time.Sleep(time.Second)
	counted := r.server.counted().since(before)
	slices.Sort(took)
	got := spread{Half: took[len(took)/2], Last: took[len(took)-1], Trips: counted.trips, Messages: counted.messages}
	if got.Last > bound+slack {
		r.t.Errorf("a %s takes %v to reach all replicas", what, got.Last)
	}
	return got
}
