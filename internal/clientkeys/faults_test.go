package clientkeys_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/clientkeys"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// slow rotates keys a hundred times as often as the defaults, so that the tests end soon.
var slow = credential.Made{Algorithm: "ES256", RotateEvery: 6 * time.Hour, PublishBefore: time.Hour}

// The replica that advances the key is killed at each of its writes, before the write or
// before its answer. The others continue.
func TestKeys_leaderKilledAtEachWrite(t *testing.T) {
	for n := range int64(14) {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d,after=%v", n+1, after), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, quick, cached)
					leader := w.start()
					w.ready()
					w.start()
					w.start()
					time.Sleep(2 * time.Second)
					leader.link.after = after
					atomic.StoreInt64(&leader.link.killAt, n+1)
					ctx, cancel := context.WithTimeout(t.Context(), 65*time.Second)
					defer cancel()
					var before int
					go func() {
						for !leader.link.dead.Load() {
							time.Sleep(100 * time.Millisecond)
						}
						leader.stop()
						w.mu.Lock()
						defer w.mu.Unlock()
						before = len(w.signed)
					}()
					w.load(ctx)
					w.check()
					if !leader.link.dead.Load() {
						t.Fatal("the replica was not killed")
					}
					if made := len(w.signed) - before; made < 3 {
						t.Errorf("%d new keys signed since the leader was killed", made)
					}
				})
			})
		}
	}
}

// The replicas put the keys back into a store that lost them, under load.
func TestKeys_storeLostAndRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, quick, cached)
		for range 3 {
			w.start()
		}
		w.ready()
		ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
		defer cancel()
		go func() {
			for range 5 {
				time.Sleep(9700 * time.Millisecond)
				w.shared.Store(store.NewMemory(store.MemoryConfig{}))
			}
		}()
		w.load(ctx)
		w.check()
		if len(w.signed) < 10 {
			t.Errorf("%d keys signed", len(w.signed))
		}
	})
}

// After the loss of the store and of all replicas there is a new key, which is used as soon
// as it is shown, and proved until the IdP has read it.
func TestKeys_afterTotalLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slow, time.Minute)
		w.start()
		w.ready()
		old := w.last
		for _, r := range w.all {
			r.stop()
		}
		w.shared.Store(store.NewMemory(store.MemoryConfig{}))
		begun := time.Now()
		w.start()
		w.start()
		w.ready()
		if took := time.Since(begun); took > 4*time.Minute {
			t.Errorf("the first token came after %v", took)
		}
		if w.last == old {
			t.Error("the old key signed")
		}
		w.check()
	})
}

// A key that the URL does not show is not used, however long that lasts.
func TestKeys_hiddenDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slow, time.Hour)
		r := w.start()
		w.start()
		w.ready()
		w.hidden.Store(true)
		time.Sleep(slow.RotateEvery)
		if got := r.states(); got != "pending current" {
			t.Fatalf("keys: %s", got)
		}
		status := r.keys.Status(r.Secrets("orders"))
		problems := status.Problem + w.all[1].keys.Status(w.all[1].Secrets("orders")).Problem
		if !strings.Contains(problems, "keys.example.com") || len(status.Keys) != 2 || !status.Keys[0].ShownAt.IsZero() {
			t.Errorf("%+v", status)
		}
		late := w.late(r)
		if !late.Overdue(time.Now()) || late.Obstacle != fleet.KeyNotShown || !late.Due.Equal(r.history().Versions[0].Since) {
			t.Errorf("delay while the URL does not show the key: %+v", late)
		}
		w.hidden.Store(false)
		time.Sleep(10 * time.Minute)
		if late := w.late(r); late != nil {
			t.Errorf("delay while the key is published: %+v", late)
		}
		if got := r.states(); got != "pending current" {
			t.Errorf("used before publish_before: %s", got)
		}
		time.Sleep(slow.PublishBefore)
		if got := r.states(); got != "current previous" {
			t.Errorf("keys after publish_before: %s", got)
		}
		for r.states() != "current" {
			time.Sleep(time.Second)
		}
		time.Sleep(clientkeys.Linger - 10*time.Second)
		if kids := kidsOf(t, r.serve()); len(kids) != 2 {
			t.Errorf("a key was unpublished before its last assertion expired: %v", kids)
		}
		time.Sleep(20 * time.Second)
		if got := r.states(); got != "current" || len(kidsOf(t, r.serve())) != 1 {
			t.Errorf("keys after twice publish_before: %s, %v", got, kidsOf(t, r.serve()))
		}
		w.check()
	})
}

// A key that the IdP does not accept is overdue from the time at which it may be used.
func TestKeys_notAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slow, 1000*time.Hour) // the IdP never reads the document again
		r := w.start()
		w.ready()
		since := r.history().Versions[0].Since
		due := since.Add(slow.RotateEvery)
		time.Sleep(time.Until(due.Add(-time.Minute)))
		if late := w.late(r); late != nil {
			t.Errorf("delay before the key is due: %+v", late)
		}
		time.Sleep(10 * time.Minute)
		if late := w.late(r); late == nil || late.Overdue(time.Now()) {
			t.Errorf("delay of ten minutes: %+v", late)
		}
		time.Sleep(time.Hour)
		late := w.late(r)
		if !late.Overdue(time.Now()) || late.Obstacle != fleet.KeyNotAccepted || late.Due.Sub(due).Abs() > time.Minute {
			t.Errorf("delay while the IdP refuses the key: %+v, due %v", late, due)
		}
		w.check()
	})
}

// A key is published for publish_before before its first use, and its successor replaces it
// after rotate_every.
func TestKeys_schedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slow, time.Hour)
		r := w.start()
		w.ready()
		since := r.history().Versions[0].Since
		time.Sleep(time.Until(since.Add(slow.RotateEvery - slow.PublishBefore - time.Minute)))
		if got := r.states(); got != "current" {
			t.Fatalf("too early: %s", got)
		}
		time.Sleep(2 * time.Minute)
		if got := r.states(); got != "pending current" {
			t.Fatalf("not published in time: %s", got)
		}
		time.Sleep(slow.PublishBefore - 2*time.Minute)
		if got := r.states(); got != "pending current" {
			t.Fatalf("used too early: %s", got)
		}
		time.Sleep(2 * time.Minute)
		if got := r.states(); got != "current previous" {
			t.Fatalf("not replaced in time: %s", got)
		}
		w.check()
	})
}

// A key that leaked is replaced at once, whatever the schedule says, and unpublished.
func TestRotateKey_compromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slow, cached)
		for range 3 {
			w.start()
		}
		w.ready()
		old := w.last
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		done := make(chan struct{})
		go func() { defer close(done); w.load(ctx) }()
		rotator := rotation.New(w.all[1], nil)
		rotator.Keys = w.all[1].keys
		made, err := rotator.RotateKey(t.Context(), policy.Self(), rotation.NewKey{Change: rotation.Change{Client: "orders", Request: "1"}, Compromised: true})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, step := range made.Steps {
			names = append(names, step.Name)
		}
		if want := []string{"stage", "publish", "prove", "activate", "purge"}; !slices.Equal(names, want) {
			t.Errorf("steps %v, want %v", names, want)
		}
		synctest.Wait()
		for i, r := range w.all {
			if kids := kidsOf(t, r.serve()); len(kids) != 1 || kids[0] == old {
				t.Errorf("replica %d publishes %v; the key that leaked is %s", i, kids, old)
			}
		}
		<-done
		if len(w.failures) > 0 {
			t.Errorf("failed calls: %v", w.failures[0])
		}
		again, err := rotator.RotateKey(t.Context(), policy.Self(), rotation.NewKey{Change: rotation.Change{Client: "orders", Request: "1"}, Compromised: true})
		if err != nil || again.Version.ID != made.Version.ID || len(slices.Collect(maps.Keys(w.signed))) != 2 {
			t.Errorf("repeated: %+v, %v", again, err)
		}
	})
}

// The operator's call ends before the URL shows the key. The broker continues by itself.
func TestRotateKey_compromisedAndInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slow, cached)
		r := w.start()
		w.ready()
		old := w.last
		w.hidden.Store(true)
		rotator := rotation.New(r, nil)
		rotator.Keys = r.keys
		ask := rotation.NewKey{Change: rotation.Change{Client: "orders", Request: "1"}, Compromised: true}
		if _, err := rotator.RotateKey(t.Context(), policy.Self(), ask); err == nil || !strings.Contains(err.Error(), "keys.example.com") {
			t.Fatalf("%v", err)
		}
		if got := r.states(); got != "pending current" {
			t.Errorf("keys: %s", got)
		}
		w.hidden.Store(false)
		time.Sleep(2 * time.Minute)
		if kids := kidsOf(t, r.serve()); r.states() != "current" || len(kids) != 1 || kids[0] == old {
			t.Errorf("keys: %s, published: %v", r.states(), kids)
		}
		made, err := rotator.RotateKey(t.Context(), policy.Self(), ask)
		if err != nil || made.Version.State != secret.Current {
			t.Errorf("resumed: %+v, %v", made, err)
		}
	})
}

// While the IdP refuses the key in use, a key that is not published yet is no fallback.
func TestKeys_noFallbackBeforePublication(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, slow, time.Hour)
		r := w.start()
		w.ready()
		w.hidden.Store(true)
		time.Sleep(slow.RotateEvery - slow.PublishBefore/2)
		if got := r.states(); got != "pending current" {
			t.Fatalf("keys: %s", got)
		}
		w.idp.FailNext(5, http.StatusUnauthorized, "invalid_client", nil)
		time.Sleep(3 * time.Second) // the token ends
		if _, err := r.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err == nil {
			t.Error("the IdP refuses the key, and there is a token")
		}
		if len(w.signed) != 1 {
			t.Errorf("%d keys signed: the staged one is not published", len(w.signed))
		}
	})
}
