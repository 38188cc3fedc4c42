package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// addEnv starts one more replica, with a secret from its environment.
func (r *replicas) addEnv(t *testing.T, value string) *replica {
	t.Helper()
	const name = "TOKENBROKER_TEST_SECRET"
	t.Setenv(name, value) // it is read once, at the start
	ref, err := secret.ParseRef("env:" + name)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := secret.OpenKeyed(ref, sha256Of)
	if err != nil {
		t.Fatal(err)
	}
	made := r.start(broker.ClientConfig{Secret: ring})
	made.source = ring
	return made
}

// startEnv starts n replicas that have the secret "one" in their environments.
func startEnv(t *testing.T, n int) *replicas {
	t.Helper()
	r := startReplicas(t, 0)
	r.takes("one")
	for range n {
		r.addEnv(t, "one")
	}
	return r
}

// restart ends a replica and starts one with another value in its place.
func (r *replicas) restart(t *testing.T, i int, value string) {
	t.Helper()
	r.all[i].stop()
	r.ended += r.all[i].link.histories.Load()
	r.addEnv(t, value)
	last := len(r.all) - 1
	r.all[i], r.all = r.all[last], r.all[:last]
}

// histories is how many histories were written to the store.
func (r *replicas) histories() int64 {
	written := r.ended
	for _, replica := range r.all {
		written += replica.link.histories.Load()
	}
	return written
}

func TestEnvSecret_noHistoryInTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startEnv(t, 3)
		for range 5 {
			r.everybody(3, orders())
			expire()
		}
		r.restart(t, 0, "one") // with the same value
		r.everybody(3, orders())
		time.Sleep(10 * time.Minute)
		r.everybody(3, orders())
		r.expectSecrets("one:current")
		if got := r.histories(); got != 0 {
			t.Errorf("%d histories were written", got)
		}
		if got, _ := r.all[0].Client(t.Context(), policy.Self(), "orders"); got.Generation != 0 || got.InUse != idOf("one") || got.Fallback {
			t.Errorf("%+v", got)
		}
	})
}

// Half of the replicas are restarted with another value, which the IdP takes: it is proved once and put in
// force. The others go on with theirs, undo nothing, and a replica that starts with the old value
// does not either.
func TestEnvSecret_changedByRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startEnv(t, 4)
		r.everybody(2, orders())
		r.takes("one", "two")
		r.restart(t, 0, "two")
		r.restart(t, 1, "two")
		if got := r.histories(); got != 0 {
			t.Errorf("%d histories were written before a second version was known", got)
		}
		expire()
		before := r.fetches()
		r.everybody(5, orders())
		time.Sleep(6 * time.Second)
		if got := r.fetches() - before; got > 2 { // for the callers, and for the proof
			t.Errorf("the second version cost %d fetches", got)
		}
		r.expectSecrets("two:current one:previous")
		for i, replica := range r.all {
			for j := range 3 {
				if _, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(3*i + j)}); err != nil {
					t.Errorf("replica %d: %v", i, err)
				}
			}
		}
		r.restart(t, 3, "one")
		for range 10 {
			expire()
			r.everybody(2, orders())
		}
		r.expectSecrets("two:current one:previous")
		if got, _ := r.all[3].Client(t.Context(), policy.Self(), "orders"); got.Versions[0].Here {
			t.Error("a replica knows a value that it does not have")
		}
		// The IdP ends the old secret: half of the fleet has nothing else, and asks seldom.
		r.takes("two")
		for range 36 { // an hour
			for _, replica := range r.all[:2] {
				if _, err := replica.Get(t.Context(), policy.Self(), orders()); err != nil {
					t.Error(err)
				}
			}
			_, _ = r.all[2].Get(t.Context(), policy.Self(), orders())
			_, _ = r.all[3].Get(t.Context(), policy.Self(), orders())
			time.Sleep(100 * time.Second)
		}
		if got := r.refusals("one"); got > 12 {
			t.Errorf("the IdP saw the old secret %d times in an hour", got)
		}
		if got := r.refusals("two"); got != 0 {
			t.Errorf("the new one was refused %d times", got)
		}
	})
}

// A wrong value costs the IdP few attempts by all restarted replicas together, and those that have the
// right one are not affected.
func TestEnvSecret_wrongAfterRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startEnv(t, 4)
		r.everybody(1, orders())
		r.restart(t, 0, "wrong")
		r.restart(t, 1, "wrong")
		for range 36 { // an hour
			for i, replica := range r.all {
				_, err := replica.Get(t.Context(), policy.Self(), orders())
				if right := i >= 2; err != nil && right {
					t.Error(err)
				} else if err != nil {
					wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
				}
			}
			time.Sleep(100 * time.Second)
		}
		if got := r.refusals("wrong"); got < 1 || got > 9 {
			t.Errorf("the IdP saw the wrong secret %d times in an hour", got)
		}
		if got := r.refusals("one"); got != 0 {
			t.Errorf("the right one was refused %d times", got)
		}
		for i, want := range map[int]string{0: "wrong:pending one:current", 2: "one:current"} {
			if got := secretsOf(t, r.all[i]); got != want {
				t.Errorf("replica %d has %q, want %q", i, got, want)
			}
		}
	})
}

// A store that kept the proof of the old value serves a broker that was alone, too.
func TestEnvSecret_singleReplicaKeepsHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startEnv(t, 1)
		r.everybody(1, orders())
		r.takes("two")
		r.restart(t, 0, "two")
		expire()
		r.everybody(1, orders())
		time.Sleep(time.Second)
		r.expectSecrets("two:current one:previous")
	})
}

// While the store takes no writes each replica goes by its own value. Nobody is worse off afterwards.
func TestEnvSecret_readOnlyStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startEnv(t, 2)
		r.everybody(1, orders())
		r.takes("one", "two")
		r.restart(t, 0, "two")
		for _, replica := range r.all {
			replica.link.state.Store(full)
		}
		for range 3 {
			expire()
			r.everybody(2, orders())
		}
		for _, replica := range r.all {
			replica.link.state.Store(good)
		}
		for range 3 {
			expire()
			r.everybody(2, orders())
		}
		if r.refusals("one")+r.refusals("two") != 0 {
			t.Error("the IdP refused something")
		}
		// Both have obtained tokens, so nobody can tell which of them is the newer one.
		if got := r.histories(); got != 0 {
			t.Errorf("%d histories were written", got)
		}
	})
}
