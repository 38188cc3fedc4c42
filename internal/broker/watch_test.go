package broker_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// self is who watches in tests that are not about callers.
func self() (*policy.Caller, error) { return policy.Self(), nil }

// watch is a watch that is under way and what it was sent.
type watch struct {
	mu    sync.Mutex
	sent  []broker.Answer
	ended chan error
	leave context.CancelFunc
}

func startWatch(t *testing.T, r *replica, ask broker.Ask) *watch {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watch{ended: make(chan error, 1), leave: cancel}
	go func() {
		w.ended <- r.Watch(ctx, self, ask, func(answer broker.Answer) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.sent = append(w.sent, answer)
			return nil
		})
	}()
	t.Cleanup(cancel)
	return w
}

func (w *watch) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sent)
}

func (w *watch) last() broker.Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sent[len(w.sent)-1]
}

// expect waits a moment and then checks how many tokens came, and that all
// watches have the same.
func expect(t *testing.T, count int, watches ...*watch) {
	t.Helper()
	time.Sleep(200 * time.Millisecond)
	for i, w := range watches {
		if got := w.count(); got != count {
			t.Fatalf("watch %d was sent %d tokens, want %d", i, got, count)
		}
		if w.last().Token.SHA256 != watches[0].last().Token.SHA256 {
			t.Fatalf("watch %d has another token than watch 0", i)
		}
	}
}

func TestWatch_tokensOfOtherReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 3)
		ask := broker.Ask{Client: "orders"}
		var watches []*watch
		for _, replica := range r.all {
			watches = append(watches, startWatch(t, replica, ask), startWatch(t, replica, ask))
		}
		expect(t, 1, watches...)

		rejected := watches[0].last().Token.SHA256
		if _, err := r.all[1].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Rejected: &rejected}); err != nil {
			t.Fatal(err)
		}
		expect(t, 2, watches...)

		if err := r.all[2].Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		expect(t, 3, watches...)

		time.Sleep(85 * time.Second) // nobody else asks, and the token is due
		expect(t, 4, watches...)
		if got := r.fetches(); got != 4 {
			t.Errorf("4 tokens cost %d fetches", got)
		}
	})
}

func TestWatch_refreshesItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		w := startWatch(t, r.all[0], broker.Ask{Client: "orders", Audience: audienceNo(1)})
		begun := time.Now()
		for time.Since(begun) < 10*time.Minute {
			time.Sleep(time.Second)
			if left := time.Until(w.last().Token.ExpiresAt); left < 10*time.Second {
				t.Fatalf("the watch was left with a token of %v", left)
			}
		}
		if sent := w.count(); sent < 7 || sent > 9 {
			t.Errorf("%d tokens of 100 s in 10 minutes", sent)
		}
		for time.Until(w.last().Token.ExpiresAt) < 90*time.Second { // until no fetch is under way
			time.Sleep(time.Second)
		}
		sent := w.count()
		if r.fetches() != sent {
			t.Errorf("%d tokens cost %d fetches", sent, r.fetches())
		}
		w.leave()
		time.Sleep(10 * time.Minute)
		if r.fetches() != sent {
			t.Error("a token that nobody watches any more was fetched again")
		}
	})
}

func TestWatch_slowCallerGetsTheLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		var sent []broker.Answer
		go func() {
			_ = r.all[0].Watch(t.Context(), self, broker.Ask{Client: "orders"}, func(answer broker.Answer) error {
				sent = append(sent, answer)
				if len(sent) == 1 {
					time.Sleep(time.Hour)
				}
				return nil
			})
		}()
		other := startWatch(t, r.all[0], broker.Ask{Client: "orders"})
		time.Sleep(time.Hour + time.Second)
		synctest.Wait()
		if len(sent) != 2 && len(sent) != 3 { // one more if the next came in the last second
			t.Fatalf("the slow watcher was sent %d tokens", len(sent))
		}
		if other.count() < 40 || sent[len(sent)-1].Token.SHA256 != other.last().Token.SHA256 {
			t.Errorf("of %d tokens the slow watcher did not get the last one", other.count())
		}
	})
}

func TestWatch_lostMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.idp.SetLifetime(time.Hour)
		w := startWatch(t, r.all[0], broker.Ask{Client: "orders"})
		time.Sleep(time.Second)
		r.all[0].link.deaf.Store(true)
		rejected := w.last().Token.SHA256
		r.all = r.all[1:]
		r.everybody(1, broker.Ask{Client: "orders"})
		r.everybody(1, broker.Ask{Client: "orders", Rejected: &rejected})
		time.Sleep(31 * time.Second)
		if w.count() != 2 {
			t.Errorf("the watch was sent %d tokens", w.count())
		}
	})
}

func TestWatch_manyShareOneToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		var watches []*watch
		for range 1000 {
			watches = append(watches, startWatch(t, r.all[0], broker.Ask{Client: "orders"}))
		}
		expect(t, 1, watches...)
		calls := r.all[0].link.calls.Load()
		if err := r.all[1].Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		expect(t, 2, watches...)
		if got := r.all[0].link.calls.Load() - calls; got > 40 {
			t.Errorf("a purge cost the replica %d calls of the store", got)
		}
		if r.fetches() != 2 {
			t.Errorf("%d fetches", r.fetches())
		}
	})
}

func TestWatch_tokenIsNotEvicted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startWith(t, nil, 64)
		watched := broker.Ask{Client: "orders", Audience: audienceNo(0)}
		w := startWatch(t, &replica{Broker: f.Broker}, watched)
		time.Sleep(time.Second)
		first := w.last()
		for i := range 2000 {
			_, _ = f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1 + i%49), Scopes: []string{"read"}, Resources: []string{fmt.Sprint(i)}})
		}
		if answer := f.mustGet(t, watched); answer.Origin != broker.OriginMemory || answer.Token != first.Token {
			t.Errorf("the watched token came from %v", answer.Origin)
		}
	})
}

func TestWatch_endsWithAReason(t *testing.T) {
	ask := broker.Ask{Client: "orders"}
	for name, test := range map[string]struct {
		end    func(r *replicas, w *watch)
		code   apierror.Code
		reason string
	}{
		"the caller leaves":    {func(_ *replicas, w *watch) { w.leave() }, apierror.Canceled, apierror.ReasonCallerGaveUp},
		"the replica stops":    {func(r *replicas, _ *watch) { r.all[0].stop() }, apierror.Unavailable, apierror.ReasonShuttingDown},
		"no token can be kept": {func(r *replicas, _ *watch) { r.idp.SetDown(true) }, apierror.Unavailable, apierror.ReasonIdPUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startReplicas(t, 1)
				w := startWatch(t, r.all[0], ask)
				time.Sleep(time.Second)
				test.end(r, w)
				begun := time.Now()
				wantError(t, <-w.ended, test.code, test.reason)
				if test.reason == apierror.ReasonIdPUnavailable && time.Since(begun) < 85*time.Second {
					t.Error("the watch ended although its token was good")
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		err := r.all[0].Watch(t.Context(), self, broker.Ask{Client: "unknown"}, nil)
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
	})
}
