package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
)

// loses replaces the store by an empty one, and makes it the one of newcomers.
func (r *replicas) loses() {
	r.shared = store.NewMemory(store.MemoryConfig{})
	for _, replica := range r.all {
		replica.link.to.Store(r.shared)
	}
}

func (r *replicas) purge(by *replica) {
	r.t.Helper()
	if err := by.Purge(r.t.Context(), policy.Self(), purgeOf("orders")); err != nil {
		r.t.Fatal(err)
	}
}

// A purge that was acknowledged drops the tokens of every replica within 5 s, whatever
// the store has lost just before, and whoever takes the purge.
func TestPurge_afterLostCounters(t *testing.T) {
	for name, c := range map[string]struct {
		purge  func(r *replicas, epoch uint64)
		within time.Duration
	}{
		"by a replica that knows the epoch":      {func(r *replicas, _ uint64) { r.purge(r.all[0]) }, 5 * time.Second},
		"by one that was not there for the last": {func(r *replicas, _ uint64) { r.purge(r.all[2]) }, 5 * time.Second},
		"by a replica that has just started":     {func(r *replicas, _ uint64) { r.purge(r.add("right")) }, 5 * time.Second},
		// Those who have seen a higher epoch find that out with one look, and a replica that
		// has not with the next.
		"by one whose clock is behind the others": {func(r *replicas, _ uint64) { r.opens(1) }, 10 * time.Second},
		"by one whose clock is a little behind":   {func(r *replicas, epoch uint64) { r.opens(epoch - 1) }, 10 * time.Second},
	} {
		for _, before := range []int{1, 3} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := startReplicas(t, 3)
					r.everybody(1, broker.Ask{Client: "orders"})
					for range before {
						r.purge(r.all[1])
						r.all[2].link.state.Store(refused) // from the second purge on
					}
					time.Sleep(6 * time.Second)
					r.all[2].link.state.Store(good)
					for _, replica := range r.all {
						replica.link.deaf.Store(true)
					}
					old := r.everybody(1, broker.Ask{Client: "orders"})
					r.loses()
					c.purge(r, old[0].Token.Epoch)
					time.Sleep(c.within + 100*time.Millisecond)
					for i, answer := range r.everybody(1, broker.Ask{Client: "orders"}) {
						for _, before := range old {
							if answer.Token.SHA256 == before.Token.SHA256 {
								t.Errorf("replica %d serves a token of before the purge, of epoch %d", i, answer.Token.Epoch)
							}
						}
					}
				})
			})
		}
	}
}

// So does one after an epoch that is higher than the clock of whoever purges.
func TestPurge_clockOfAReplicaIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 3)
		r.everybody(1, broker.Ask{Client: "orders"})
		r.purge(r.all[1])
		r.clockAhead()
		old := r.everybody(1, broker.Ask{Client: "orders"})
		r.loses()
		r.purge(r.all[0])
		time.Sleep(6 * time.Second)
		for i, answer := range r.everybody(1, broker.Ask{Client: "orders"}) {
			if answer.Token.Epoch <= old[i].Token.Epoch {
				t.Errorf("replica %d: epoch %d follows %d", i, answer.Token.Epoch, old[i].Token.Epoch)
			}
		}
	})
}

// The replica that purges drops its tokens with the acknowledgement, although its clock
// is behind the epoch that the store has lost, and the store fails right after.
func TestPurge_afterLossCountsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.everybody(1, broker.Ask{Client: "orders"})
		r.purge(r.all[1])
		r.clockAhead()
		old := r.everybody(1, broker.Ask{Client: "orders"})[0]
		r.loses()
		r.all[0].link.writesLeft.Store(4) // the record of the purge and the epoch are written, and nothing after that
		r.purge(r.all[0])
		if answer := r.mustGetFrom(r.all[0], broker.Ask{Client: "orders"}); answer.Token.SHA256 == old.Token.SHA256 {
			t.Errorf("a token of before the purge, of epoch %d", answer.Token.Epoch)
		}
	})
}

// A purge concerns tokens of an epoch that its replica has not heard of and that is
// higher than its clock.
func TestPurge_tokensOfAnUnknownEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.everybody(1, broker.Ask{Client: "orders"})
		r.purge(r.all[1])
		r.everybody(1, broker.Ask{Client: "orders"})
		r.all[0].link.deaf.Store(true)
		time.Sleep(6 * time.Second)
		r.opens(r.epoch() + 1_000_000_000)
		time.Sleep(100 * time.Millisecond)
		old := r.mustGetFrom(r.all[1], broker.Ask{Client: "orders"})
		r.purge(r.all[0])
		time.Sleep(100 * time.Millisecond)
		for i, answer := range r.everybody(1, broker.Ask{Client: "orders"}) {
			if answer.Token.Epoch <= old.Token.Epoch {
				t.Errorf("replica %d: epoch %d follows %d", i, answer.Token.Epoch, old.Token.Epoch)
			}
		}
	})
}

// The store loses the epoch, and keeps the record of an earlier purge. Another replica,
// which knows no epoch, purges. The earlier purge that is then made again must not hide
// that from the replicas that know a higher epoch.
func TestPurge_repeatedAfterLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.everybody(1, broker.Ask{Client: "orders"})
		earlier := purgeOf("orders")
		if err := r.all[1].Purge(t.Context(), policy.Self(), earlier); err != nil {
			t.Fatal(err)
		}
		r.purge(r.all[1])
		time.Sleep(6 * time.Second)
		old := r.everybody(1, broker.Ask{Client: "orders"})
		for _, replica := range r.all {
			replica.link.deaf.Store(true)
		}
		r.loses()
		if _, err := r.shared.Apply(t.Context(), store.Change{Puts: []store.Put{*r.all[1].link.purge.Load()}}); err != nil {
			t.Fatal(err)
		}
		r.opens(1)
		if err := r.all[0].Purge(t.Context(), policy.Self(), earlier); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		for i, answer := range r.everybody(1, broker.Ask{Client: "orders"}) {
			if answer.Token.Epoch <= old[i].Token.Epoch {
				t.Errorf("replica %d: epoch %d follows %d", i, answer.Token.Epoch, old[i].Token.Epoch)
			}
		}
	})
}

// opens stands for a purge by a replica that knows nothing: the epoch is 1, or so,
// although others have seen a higher one.
func (r *replicas) opens(epoch uint64) {
	r.t.Helper()
	key := *r.all[1].link.epoch.Load()
	if _, err := r.shared.Raise(r.t.Context(), key, epoch, 0); err != nil {
		r.t.Fatal(err)
	}
}

// clockAhead stands for a purge by a replica whose clock is ahead: the epoch that all
// replicas know afterwards is higher than their clocks.
func (r *replicas) clockAhead() {
	r.t.Helper()
	time.Sleep(6 * time.Second) // the purge before has reached all of them
	r.opens(r.epoch() + 1_000_000_000)
	time.Sleep(6 * time.Second)
	if epoch := r.epoch(); epoch <= uint64(time.Now().UnixMilli()) {
		r.t.Fatalf("the epoch is %d, which is not ahead of the clock", epoch)
	}
}

// epoch is that of the tokens that are handed out.
func (r *replicas) epoch() uint64 {
	r.t.Helper()
	return r.everybody(1, broker.Ask{Client: "orders"})[0].Token.Epoch
}

// A look that was under way while a purge was made is no sign of a loss.
func TestPurge_duringALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 3)
		for i := range 50 {
			for _, by := range r.all {
				go func() {
					_, _ = by.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i)})
				}()
			}
			r.purge(r.all[i%3])
			answer, err := r.all[i%3].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
			if err != nil {
				t.Fatal(err)
			}
			first := answer.Token.Epoch
			time.Sleep(6 * time.Second)
			if then := r.epoch(); then != first {
				t.Fatalf("round %d: a purge that nobody made: the epoch went from %d to %d", i, first, then)
			}
		}
	})
}
