package broker_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/store"
)

// A rotation that began when one secret was current must not replace another one
// that an operator has made current since.
func TestRotation_concurrentActivation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		r.rotate(rotationTo("two"))
		r.idp.SetDelay(2 * time.Second)
		rolledBack := make(chan error, 1)
		go func() {
			_, err := rotation.New(r.all[0], nil).Rollback(t.Context(), policy.Self(), rotation.Change{Client: "orders", Request: "back"})
			rolledBack <- err
		}()
		time.Sleep(500 * time.Millisecond)
		_, err := rotation.New(r.all[1], nil).Rotate(t.Context(), policy.Self(), rotationTo("three"))
		told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretChanged)
		if err := <-rolledBack; err != nil {
			t.Fatal(err)
		}
		if told.Metadata["current_version"] != idOf("one") {
			t.Errorf("the error names %q as current", told.Metadata["current_version"])
		}
		r.expectSecrets("three:pending two:previous one:current")
	})
}

// A repeated call of a rotation that was interrupted does not replace a secret that an
// operator has made current in the meantime.
func TestRotation_resumedAfterARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		r.rotate(rotationTo("two"))
		interrupted := rotationTo("three")
		r.idp.FailNext(10, http.StatusServiceUnavailable, "", nil)
		if _, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), interrupted); err == nil {
			t.Fatal("the rotation was not interrupted")
		}
		r.idp.FailNext(0, 0, "", nil)
		time.Sleep(time.Minute)
		if _, err := rotation.New(r.all[1], nil).Rollback(t.Context(), policy.Self(), change("back")); err != nil {
			t.Fatal(err)
		}
		_, err := rotation.New(r.all[1], nil).Rotate(t.Context(), policy.Self(), interrupted)
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretChanged)
		r.expectSecrets("three:pending two:previous one:current")
		// Another rollback makes the first secret current again, which is a decision as well.
		if _, err := rotation.New(r.all[0], nil).Rollback(t.Context(), policy.Self(), change("forth")); err != nil {
			t.Fatal(err)
		}
		_, err = rotation.New(r.all[1], nil).Rotate(t.Context(), policy.Self(), interrupted)
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretChanged)
		r.expectSecrets("three:pending two:current one:previous")
	})
}

// A fetch proved a staged secret while the IdP refused the others. Before the replica makes
// it current, an operator activates it and rolls back. The replica must not undo that: the
// secret that it replaces is current again, but has been made current since.
func TestActivation_afterARollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		r.rotate(rotationTo("two"))
		r.idp.FailNext(10, http.StatusServiceUnavailable, "", nil)
		if _, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), rotationTo("three")); err == nil {
			t.Fatal("the rotation was not interrupted")
		}
		r.idp.FailNext(0, 0, "", nil)
		expire()
		r.takes("three")
		slow := r.all[0]
		r.idp.SetAnswer(func(_ http.ResponseWriter, request *http.Request) bool {
			if _, value, _ := request.BasicAuth(); value == "three" {
				slow.link.pause() // the activation takes long
			}
			return false
		})
		if _, err := slow.Get(t.Context(), policy.Self(), orders()); err != nil {
			t.Fatal(err)
		}
		r.idp.SetAnswer(nil)
		r.takes("one", "two", "three")
		operator := rotation.New(r.all[1], nil)
		if _, err := operator.Activate(t.Context(), policy.Self(), "", change("activate")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute) // a refused secret is not tried again for a while
		if _, err := operator.Rollback(t.Context(), policy.Self(), change("back")); err != nil {
			t.Fatal(err)
		}
		slow.link.resume()
		time.Sleep(10 * time.Second)
		r.expectSecrets("three:previous two:current one:retired")
	})
}

// A store that was restored from another fleet has a history that does not descend
// from ours, however many changes it counts: the secret in use stays usable.
func TestForeignHistoryKeepsTheSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startManaged(t, 2)
		r.takes("one", "two", "three")
		r.rotate(rotationTo("one"))
		foreign := store.NewMemory(store.MemoryConfig{})
		r.shared = foreign
		other := r.start(broker.ClientConfig{Managed: true})
		for _, value := range []string{"two", "three", "four"} {
			r.takes("one", value)
			if _, err := rotation.New(other, nil).Rotate(t.Context(), policy.Self(), rotationTo(value)); err != nil {
				t.Fatal(err)
			}
		}
		other.stop()
		r.all = r.all[:2]
		r.takes("one") // the IdP of this fleet
		for _, replica := range r.all {
			replica.link.to.Store(foreign)
		}
		time.Sleep(6 * time.Second)
		for range 5 {
			expire()
			r.everybody(3, orders())
		}
		for i, replica := range r.all {
			if got := secretsOf(t, replica); !strings.Contains(got, "one:current") && !strings.Contains(got, "one:previous") {
				t.Errorf("replica %d has %q", i, got)
			}
		}
	})
}
