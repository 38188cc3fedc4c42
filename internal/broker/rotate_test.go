package broker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// startManaged starts n replicas of a broker whose client's secret operators
// bring. The IdP takes the secret "one".
func startManaged(t testing.TB, n int) *replicas {
	t.Helper()
	r := startReplicas(t, 0)
	r.takes("one")
	for range n {
		r.start(broker.ClientConfig{Managed: true})
	}
	return r
}

// takes has the IdP take these secrets and no others.
func (r *replicas) takes(secrets ...string) {
	values := make([]redact.String, len(secrets))
	for i, s := range secrets {
		values[i] = redact.New(s)
	}
	r.idp.SetSecrets("abc", values...)
}

// refusals counts how often the IdP refused a secret.
func (r *replicas) refusals(value string) int {
	_, refused := r.idp.Attempts("abc", redact.New(value))
	return refused
}

// idOf is the ID of the version with a value.
func idOf(value string) string { return secret.NewVersion(sha256Of, redact.New(value)).ID }

// rotation is one with a request ID of its own.
func rotationTo(value string) rotation.NewSecret {
	return rotation.NewSecret{Change: change("rotate to " + value), Secret: redact.New(value)}
}

func change(request string) rotation.Change {
	return rotation.Change{Client: "orders", Request: request}
}

// rotate rotates by a call to the first replica, which must succeed.
func (r *replicas) rotate(asked rotation.NewSecret) rotation.Result {
	r.t.Helper()
	made, err := rotation.New(r.all[0], nil).Rotate(r.t.Context(), policy.Self(), asked)
	if err != nil {
		r.t.Fatalf("RotateSecret: %v", err)
	}
	return made
}

// rotatedIn says how far the failed change of a secret got.
func rotatedIn(t *testing.T, err error) rotation.Result {
	t.Helper()
	failed, ok := errors.AsType[*rotation.Error](err)
	if !ok {
		t.Fatalf("%v does not say how far the change got", err)
	}
	return failed.Result
}

// steps are the names of what was done, with a mark for what failed.
func steps(made rotation.Result) string {
	var names []string
	for _, step := range made.Steps {
		if !step.OK {
			step.Name += "!"
		}
		names = append(names, step.Name)
	}
	return strings.Join(names, " ")
}

// expectSecrets checks what each replica says of the versions, newest first, such
// as "two:current one:previous".
func (r *replicas) expectSecrets(want string) {
	r.t.Helper()
	synctest.Wait()
	for i, replica := range r.all {
		if got := secretsOf(r.t, replica); got != want {
			r.t.Errorf("replica %d has %q, want %q", i, got, want)
		}
	}
}

func secretsOf(t testing.TB, r *replica) string {
	t.Helper()
	status, err := r.Client(t.Context(), policy.Self(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, v := range status.Versions {
		name := v.ID
		for _, value := range []string{"one", "two", "three", "four", "wrong", "right"} {
			if v.ID == idOf(value) {
				name = value
			}
		}
		all = append(all, name+":"+v.State.String())
	}
	return strings.Join(all, " ")
}

// listed is what a replica says of the client from memory.
func listed(r *replica) broker.ClientStatus {
	all, err := r.Clients(context.Background(), policy.Self())
	if err != nil {
		panic(err) // the caller may do everything
	}
	return all[0]
}

// expire lets the tokens that are held end.
func expire() { time.Sleep(101 * time.Second) }

func TestManagedClientWithoutASecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		_, err := r.all[1].Get(t.Context(), policy.Self(), orders())
		told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonNoSecret)
		if !strings.Contains(told.Message, "`broker secret rotate orders`") {
			t.Errorf("it says %q", told.Message)
		}
		status, err := r.all[1].Client(t.Context(), policy.Self(), "orders")
		if err != nil || status.State != broker.ClientNoSecret {
			t.Errorf("%+v, %v", status, err)
		}
		if r.fetches() != 0 {
			t.Error("the IdP was asked without a secret")
		}
		made := r.rotate(rotationTo("one"))
		if steps(made) != "stage prove activate" || made.Version.ID != idOf("one") || made.Version.State != secret.Current || made.Version.CreatedBy != policy.Self().Name() {
			t.Errorf("%+v", made)
		}
		time.Sleep(100 * time.Millisecond)
		r.sameToken(r.everybody(10, orders()))
		if got := r.fetches(); got != 1 {
			t.Errorf("%d fetches: the token of the proof was wasted", got)
		}
		r.expectSecrets("one:current")
	})
}

func TestRotation_overlapFailsNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 3)
		r.rotate(rotationTo("one"))
		r.takes("one", "two")
		before := r.fetches()
		made := r.rotate(rotationTo("two"))
		if steps(made) != "stage prove activate" {
			t.Errorf("steps: %s", steps(made))
		}
		r.expectSecrets("two:current one:previous")
		if got := r.fetches() - before; got != 1 {
			t.Errorf("%d fetches for the proof", got)
		}
		r.takes("two")
		expire()
		r.everybody(10, orders())
		if r.refusals("one") != 0 {
			t.Error("the old secret was sent although the new one was in force")
		}
	})
}

func TestRotation_wrongSecretFailsNoCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 3)
		r.rotate(rotationTo("one"))
		_, err := rotation.New(r.all[1], nil).Rotate(t.Context(), policy.Self(), rotationTo("wrong"))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		if got := rotatedIn(t, err); steps(got) != "stage prove! retire" || got.Version.State != secret.Retired {
			t.Errorf("%+v", got)
		}
		r.expectSecrets("wrong:retired one:current")
		for range 20 { // many lifetimes of a token
			expire()
			r.everybody(5, orders())
		}
		if got := r.refusals("wrong"); got != 1 {
			t.Errorf("the IdP saw the wrong secret %d times", got)
		}
		// The call again does not try it again.
		_, err = rotation.New(r.all[2], nil).Rotate(t.Context(), policy.Self(), rotationTo("wrong"))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		if got := r.refusals("wrong"); got != 1 {
			t.Errorf("the same call sent the wrong secret again")
		}
		// Another one does, for the IdP may know it by now.
		r.takes("one", "wrong")
		asked := rotationTo("wrong")
		asked.Request = "another"
		r.rotate(asked)
		r.expectSecrets("wrong:current one:previous")
	})
}

func TestRotation_unprovedStaysStaged(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		oauth  string
		code   apierror.Code
	}{
		"in trouble":   {http.StatusServiceUnavailable, "", apierror.Unavailable},
		"throttling":   {http.StatusTooManyRequests, "", apierror.ResourceExhausted},
		"other scopes": {http.StatusBadRequest, "invalid_scope", apierror.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startManaged(t, 2)
				r.rotate(rotationTo("one"))
				r.takes("one", "two")
				r.idp.FailNext(2, tt.status, tt.oauth, nil)
				_, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), rotationTo("two"))
				told, _ := errors.AsType[*apierror.Error](err)
				if told == nil || told.Code != tt.code || steps(rotatedIn(t, err)) != "stage prove!" {
					t.Fatalf("%v, %+v", err, told)
				}
				r.expectSecrets("two:pending one:current")
				r.idp.FailNext(0, 0, "", nil)
				time.Sleep(time.Minute)
				r.everybody(5, orders()) // with the old one: nobody noticed
				// The same call goes on where it was.
				if made := r.rotate(rotationTo("two")); steps(made) != "stage prove activate" {
					t.Errorf("steps: %s", steps(made))
				}
				r.expectSecrets("two:current one:previous")
			})
		})
	}
}

// An IdP with a single secret: the new one is staged, then changed at the IdP. For
// a while neither may work.
func TestRotation_singleSecretIdP(t *testing.T) {
	for dead, lifetime := range map[time.Duration]time.Duration{0: time.Minute, 3 * time.Second: time.Minute, 30 * time.Second: 10 * time.Minute} {
		t.Run(dead.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startManaged(t, 3)
				r.idp.SetLifetime(lifetime)
				r.rotate(rotationTo("one"))
				asked := rotationTo("two")
				asked.StageOnly = true
				if made := r.rotate(asked); steps(made) != "stage" || made.Version.State != secret.Pending {
					t.Errorf("%+v", made)
				}
				r.everybody(5, orders())
				if good, _ := r.idp.Attempts("abc", redact.New("two")); good != 0 {
					t.Error("it was proved although it was to be staged only")
				}
				until := refreshed(r)
				r.takes()
				time.AfterFunc(dead, func() { r.takes("two") })
				for time.Now().Before(until) { // all the while callers ask
					r.everybody(2, orders())
					time.Sleep(250 * time.Millisecond)
				}
				r.expectSecrets("two:current one:previous")
				if got := r.refusals("one"); got > 4 {
					t.Errorf("the IdP saw the old secret %d times", got)
				}
				if got := r.refusals("two"); got > 3 {
					t.Errorf("the IdP saw the new secret %d times before it took it", got)
				}
			})
		})
	}
}

// refreshed waits until the token that is held is due, and returns when it has
// ended.
func refreshed(r *replicas) (ends time.Time) {
	held := r.everybody(1, orders())[0]
	time.Sleep(time.Until(held.RefreshAt) + time.Second)
	return held.Token.ExpiresAt
}

func TestFallback_retriesWithBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 3)
		r.idp.SetLifetime(2 * time.Second) // a fetch every second or two
		r.rotate(rotationTo("one"))
		r.takes("one", "two")
		r.rotate(rotationTo("two"))
		r.takes("one") // it flaps
		begun := time.Now()
		var tried []time.Duration
		for seen := 0; time.Since(begun) < 100*time.Second; time.Sleep(100 * time.Millisecond) {
			r.everybody(2, orders())
			if got := r.refusals("two"); got > seen {
				seen = got
				tried = append(tried, time.Since(begun).Round(time.Second))
			}
		}
		if len(tried) != 4 {
			t.Fatalf("tried at %v", tried)
		}
		for i, least := range []time.Duration{5 * time.Second, 15 * time.Second, 45 * time.Second} {
			if gap := tried[i+1] - tried[i]; gap < least || gap > least+4*time.Second {
				t.Errorf("tried at %v, want pauses of 5, 15 and 45 s", tried)
			}
		}
		r.expectSecrets("two:current one:previous")
		for _, replica := range r.all {
			status, err := replica.Client(t.Context(), policy.Self(), "orders")
			if err != nil || status.InUse != idOf("one") || status.State != broker.ClientOK {
				t.Errorf("%+v, %v", status, err)
			}
			if status.Fallback {
				t.Error("an alert within the time that the IdP may take")
			}
		}
		time.Sleep(time.Minute)
		r.everybody(1, orders())
		if status, _ := r.all[0].Client(t.Context(), policy.Self(), "orders"); !status.Fallback {
			t.Error("no alert after two minutes on the previous secret")
		}
		r.takes("two")
		time.Sleep(2 * time.Minute) // its next try
		r.everybody(1, orders())
		time.Sleep(3 * time.Second)
		r.everybody(1, orders())
		if status, _ := r.all[0].Client(t.Context(), policy.Self(), "orders"); status.Fallback || status.InUse != idOf("two") {
			t.Errorf("afterwards: %+v", status)
		}
	})
}

func TestRollback_reachesAllReplicas(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		t.Run(fmt.Sprintf("messages are lost: %v", deaf), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startManaged(t, 3)
				r.takes("one", "two")
				r.rotate(rotationTo("one"))
				r.rotate(rotationTo("two"))
				for _, replica := range r.all {
					replica.link.deaf.Store(deaf)
				}
				made, err := rotation.New(r.all[0], nil).Rollback(t.Context(), policy.Self(), change("back"))
				if err != nil || steps(made) != "prove activate" || made.Version.ID != idOf("one") {
					t.Fatalf("%+v, %v", made, err)
				}
				time.Sleep(5*time.Second + 200*time.Millisecond)
				for i, replica := range r.all {
					// Status of all clients is from memory.
					if got := listed(replica).Versions[1]; got.ID != idOf("one") || got.State != secret.Current {
						t.Errorf("replica %d: %+v", i, got)
					}
				}
				// The same call again does not go back and forth.
				if _, err := rotation.New(r.all[1], nil).Rollback(t.Context(), policy.Self(), change("back")); err != nil {
					t.Error(err)
				}
				r.expectSecrets("two:previous one:current")
				expire()
				r.everybody(2, orders())
				if got, _ := r.all[2].Client(t.Context(), policy.Self(), "orders"); got.InUse != idOf("one") {
					t.Errorf("in use: %+v", got)
				}
			})
		})
	}
}

func TestRollback_toADeadSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.rotate(rotationTo("one"))
		_, err := rotation.New(r.all[0], nil).Rollback(t.Context(), policy.Self(), change("1"))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonNoPreviousSecret)
		r.takes("one", "two")
		r.rotate(rotationTo("two"))
		r.takes("two")
		_, err = rotation.New(r.all[0], nil).Rollback(t.Context(), policy.Self(), change("2"))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		r.expectSecrets("two:current one:previous")
	})
}

func TestFallback_skipsCompromised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 3)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		r.rotate(rotationTo("two"))
		before := r.sameToken(r.everybody(2, orders()))
		asked := rotationTo("three")
		asked.Compromised = true
		made := r.rotate(asked)
		if steps(made) != "stage prove activate purge" {
			t.Errorf("steps: %s", steps(made))
		}
		r.expectSecrets("three:current two:retired one:retired")
		time.Sleep(100 * time.Millisecond)
		if after := r.sameToken(r.everybody(2, orders())); after == before {
			t.Error("a token of the compromised secret is handed out")
		}
		r.takes("one", "two") // the IdP refuses the new one, and would take the old ones
		expire()
		_, err := r.all[1].Get(t.Context(), policy.Self(), orders())
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
	})
}

func TestRotation_expectedVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		asked := rotationTo("two")
		asked.Expected = idOf("three")
		_, err := rotation.New(r.all[1], nil).Rotate(t.Context(), policy.Self(), asked)
		if told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretChanged); told.Metadata["current_version"] != idOf("one") {
			t.Errorf("metadata: %v", told.Metadata)
		}
		r.expectSecrets("one:current")
		asked.Expected, asked.Request = idOf("one"), "another"
		r.rotate(asked)
		back := change("back")
		back.Expected = idOf("one")
		_, err = rotation.New(r.all[0], nil).Rollback(t.Context(), policy.Self(), back)
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretChanged)
		r.expectSecrets("two:current one:previous")
	})
}

func TestRotation_repeatedRequestID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 3)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		r.rotate(rotationTo("two"))
		fetches, status := r.fetches(), listed(r.all[0])
		for _, replica := range r.all {
			made, err := rotation.New(replica, nil).Rotate(t.Context(), policy.Self(), rotationTo("two"))
			if err != nil || made.Version.ID != idOf("two") || made.Version.State != secret.Current {
				t.Errorf("%+v, %v", made, err)
			}
		}
		made := r.rotate(rotationTo("one")) // long done: it is the previous one by now
		if made.Version.ID != idOf("one") || made.Version.State != secret.Previous {
			t.Errorf("%+v", made)
		}
		if got := listed(r.all[0]); got.Generation != status.Generation || r.fetches() != fetches {
			t.Errorf("generation %d after %d, %d fetches", got.Generation, status.Generation, r.fetches()-fetches)
		}
		asked := rotationTo("three")
		asked.Request = rotationTo("two").Request
		_, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), asked)
		if told := wantError(t, err, apierror.InvalidArgument, apierror.ReasonInvalidRequest); told.Field != "request_id" {
			t.Errorf("field %q", told.Field)
		}
		r.expectSecrets("two:current one:previous")
	})
}

func TestStage_onePendingSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		asked := rotationTo("two")
		asked.StageOnly = true
		r.rotate(asked)
		_, err := rotation.New(r.all[1], nil).Rotate(t.Context(), policy.Self(), rotationTo("three"))
		if told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretStaged); !strings.Contains(told.Message, idOf("two")) {
			t.Errorf("it says %q", told.Message)
		}
		if _, err := rotation.New(r.all[1], nil).Retire(t.Context(), policy.Self(), idOf("one"), change("r1")); err == nil {
			t.Error("the secret in force was retired")
		}
		_, err = rotation.New(r.all[1], nil).Retire(t.Context(), policy.Self(), "unknown", change("r2"))
		wantError(t, err, apierror.NotFound, apierror.ReasonNoSuchSecret)
		_, err = rotation.New(r.all[1], nil).Activate(t.Context(), policy.Self(), "unknown", change("r3"))
		wantError(t, err, apierror.NotFound, apierror.ReasonNoSuchSecret)
		made, err := rotation.New(r.all[1], nil).Activate(t.Context(), policy.Self(), "", change("a1"))
		if err != nil || made.Version.ID != idOf("two") || steps(made) != "prove activate" {
			t.Fatalf("%+v, %v", made, err)
		}
		_, err = rotation.New(r.all[1], nil).Activate(t.Context(), policy.Self(), "", change("a3"))
		if told := wantError(t, err, apierror.NotFound, apierror.ReasonNoSuchSecret); !strings.Contains(told.Message, "no secret is staged") {
			t.Errorf("it says %q", told.Message)
		}
		if made, err = rotation.New(r.all[0], nil).Activate(t.Context(), policy.Self(), idOf("two"), change("a4")); err != nil || made.Version.State != secret.Current {
			t.Errorf("activating what is in force: %+v, %v", made, err)
		}
		if made, err = rotation.New(r.all[0], nil).Retire(t.Context(), policy.Self(), idOf("one"), change("r4")); err != nil || made.Version.State != secret.Retired {
			t.Errorf("%+v, %v", made, err)
		}
		r.expectSecrets("two:current one:retired")
		_, err = rotation.New(r.all[0], nil).Activate(t.Context(), policy.Self(), idOf("one"), change("a2"))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonNoSuchSecret)
	})
}

// Two operators at once, at different replicas: one of them wins, and the other is
// told.
func TestRotation_concurrent(t *testing.T) {
	for run := range 50 {
		synctest.Test(t, func(t *testing.T) {
			r := startManaged(t, 2)
			r.takes("one", "two", "three")
			r.rotate(rotationTo("one"))
			type outcome struct {
				value string
				err   error
			}
			outcomes := make(chan outcome, 2)
			for i, value := range []string{"two", "three"} {
				go func() {
					time.Sleep(time.Duration(run*i) * time.Millisecond)
					_, err := rotation.New(r.all[i], nil).Rotate(t.Context(), policy.Self(), rotationTo(value))
					outcomes <- outcome{value, err}
				}()
			}
			last, won := "", 0
			for range 2 {
				if got := <-outcomes; got.err == nil {
					last = got.value
					won++
				}
			}
			time.Sleep(100 * time.Millisecond)
			status := listed(r.all[0])
			current := slices.IndexFunc(status.Versions, func(v credential.VersionStatus) bool { return v.State == secret.Current })
			if won == 0 || status.Versions[current].ID != idOf(last) {
				t.Errorf("run %d: %d won, in force is %s, the last one brought %s", run, won, secretsOf(t, r.all[0]), last)
			}
			if secretsOf(t, r.all[0]) != secretsOf(t, r.all[1]) {
				t.Errorf("run %d: the replicas differ: %s, %s", run, secretsOf(t, r.all[0]), secretsOf(t, r.all[1]))
			}
		})
	}
}

func TestRotation_needsTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.rotate(rotationTo("one"))
		r.all[0].link.state.Store(away)
		r.takes("one", "two")
		_, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), rotationTo("two"))
		wantError(t, err, apierror.Unavailable, apierror.ReasonStoreUnavailable)
		expire()
		r.everybody(2, orders()) // what is known goes on
		r.all[0].link.state.Store(good)
		time.Sleep(2 * time.Second)
		r.rotate(rotationTo("two"))
		r.expectSecrets("two:current one:previous")
	})
}

// What the store has lost, whoever knows it puts back: at once when it is looked at,
// within 5 s though nobody asks.
func TestLostSecretsAreRestored(t *testing.T) {
	for name, forget := range map[string]func(r *replicas){
		"nobody asks":   func(*replicas) {},
		"somebody asks": func(r *replicas) { r.everybody(3, orders()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startManaged(t, 3)
				r.takes("one", "two")
				r.rotate(rotationTo("one"))
				old := r.shared
				r.rotate(rotationTo("two"))
				r.shared = store.NewMemory(store.MemoryConfig{})
				for _, replica := range r.all {
					replica.link.to.Store(r.shared)
				}
				_ = old.Close()
				forget(r)
				time.Sleep(5*time.Second + 500*time.Millisecond)
				late := r.start(broker.ClientConfig{Managed: true})
				if _, err := late.Get(t.Context(), policy.Self(), orders()); err != nil {
					t.Errorf("a replica that is new: %v", err)
				}
				r.expectSecrets("two:current one:previous")
			})
		})
	}
}

// A store that came back with an older state does not undo a rotation.
func TestOlderHistoryIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two")
		r.rotate(rotationTo("one"))
		// The state of a backup: a fleet of its own made the first steps as well.
		backup := store.NewMemory(store.MemoryConfig{})
		r.rotate(rotationTo("two"))
		now := r.shared
		r.shared = backup
		other := r.start(broker.ClientConfig{Managed: true})
		if _, err := rotation.New(other, nil).Rotate(t.Context(), policy.Self(), rotationTo("one")); err != nil {
			t.Fatal(err)
		}
		other.stop()
		r.all = r.all[:2]
		for _, replica := range r.all {
			replica.link.to.Store(backup)
		}
		_ = now
		time.Sleep(6 * time.Second)
		r.expectSecrets("two:current one:previous")
		late := r.start(broker.ClientConfig{Managed: true})
		time.Sleep(time.Second)
		if got := secretsOf(t, late); got != "two:current one:previous" {
			t.Errorf("a new replica: %s", got)
		}
	})
}
