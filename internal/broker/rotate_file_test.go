package broker_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// startFiles starts n replicas that have the secret "one" in a file of their own.
func startFiles(t testing.TB, n int) *replicas {
	t.Helper()
	r := startReplicas(t, 0)
	r.takes("one")
	for range n {
		r.add("one")
	}
	return r
}

// writes puts another value into the replica's file.
func (r *replica) writes(t testing.TB, value string) {
	t.Helper()
	testkit.WriteFile(t, r.path, value+"\n")
}

// polls is how long it takes until a changed file counts.
const polls = 20*time.Second + 500*time.Millisecond

func TestFile_changeIsProvedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 3)
		r.everybody(5, orders())
		time.Sleep(time.Second)
		r.expectSecrets("one:current")
		r.takes("one", "two")
		for _, replica := range r.all {
			replica.writes(t, "two")
		}
		before := r.fetches()
		time.Sleep(polls)
		r.expectSecrets("two:current one:previous")
		if got := r.fetches() - before; got != 1 {
			t.Errorf("%d fetches for one proof", got)
		}
		r.takes("two")
		expire()
		r.everybody(5, orders())
		if got := r.refusals("one"); got != 0 {
			t.Errorf("the old one was sent %d times", got)
		}
		status, _ := r.all[0].Client(t.Context(), policy.Self(), "orders")
		if v := status.Versions[0]; !strings.HasPrefix(v.CreatedBy, "file:") || !v.Here {
			t.Errorf("%+v", v)
		}
	})
}

// Replicas see a change of their files at times of their own. Who is behind goes on
// with the old value, and undoes nothing.
func TestFile_replicasChangeInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 3)
		r.everybody(1, orders())
		r.takes("one", "two")
		for i, replica := range r.all {
			replica.writes(t, "two")
			time.Sleep(polls)
			r.expectSecrets("two:current one:previous")
			for j, other := range r.all {
				status, _ := other.Client(t.Context(), policy.Self(), "orders")
				if here := status.Versions[0].Here; here != (j <= i) {
					t.Errorf("replica %d knows the new value: %v, when %d have it", j, here, i+1)
				}
				if _, err := other.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(3*i + j)}); err != nil {
					t.Errorf("replica %d: %v", j, err)
				}
			}
		}
		if r.refusals("one")+r.refusals("two") != 0 {
			t.Error("the IdP refused something")
		}
		// One that starts with the old file, as from a mount that never changes.
		stale := r.add("one")
		time.Sleep(5 * time.Minute)
		if _, err := stale.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(20)}); err != nil {
			t.Error(err)
		}
		r.expectSecrets("two:current one:previous")
		if got, _ := stale.Client(t.Context(), policy.Self(), "orders"); got.InUse != idOf("one") || !got.Fallback {
			t.Errorf("the stale replica: %+v", got)
		}
	})
}

func TestFile_rollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 2)
		r.everybody(1, orders())
		r.takes("one", "two", "three")
		for _, step := range []struct{ value, want string }{
			{"two", "two:current one:previous"},
			{"one", "two:previous one:current"},
			{"three", "three:current two:retired one:previous"},
			{"two", "two:current three:previous one:retired"},
		} {
			for _, replica := range r.all {
				replica.writes(t, step.value)
			}
			time.Sleep(polls)
			r.expectSecrets(step.want)
			expire()
			r.everybody(2, orders())
			if got, _ := r.all[1].Client(t.Context(), policy.Self(), "orders"); got.InUse != idOf(step.value) {
				t.Errorf("%s: in use is %s", step.value, got.InUse)
			}
		}
	})
}

// A wrong value in the file is tried at 0 s, 30 s, 2.5 min, 7.5 min and every 10 min,
// by all replicas together, and nobody notices.
func TestFile_wrongValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 3)
		r.everybody(1, orders())
		for _, replica := range r.all {
			replica.writes(t, "wrong")
		}
		time.Sleep(polls)
		for range 36 { // an hour
			r.everybody(2, orders())
			time.Sleep(100 * time.Second)
		}
		r.expectSecrets("wrong:pending one:current")
		if got := r.refusals("wrong"); got < 6 || got > 9 {
			t.Errorf("the IdP saw the wrong secret %d times in an hour", got)
		}
		if got := r.refusals("one"); got != 0 {
			t.Errorf("the right one was refused %d times", got)
		}
		for _, replica := range r.all {
			replica.writes(t, "one")
		}
		time.Sleep(polls)
		r.expectSecrets("one:current")
	})
}

// An IdP with one secret: the file is changed first, which is refused at first, and
// the IdP much later.
func TestFile_changedBeforeTheIdP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 3)
		r.everybody(1, orders())
		for _, replica := range r.all {
			replica.writes(t, "two")
		}
		for range 20 {
			r.everybody(2, orders())
			time.Sleep(100 * time.Second)
		}
		until := refreshed(r)
		r.takes("two")
		for time.Now().Before(until.Add(time.Minute)) {
			r.everybody(2, orders())
			time.Sleep(250 * time.Millisecond)
		}
		r.expectSecrets("two:current one:previous")
	})
}

// The other way round: the IdP first. What fails until the file is changed ends at
// once when it is.
func TestFile_changedAfterTheIdP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 2)
		r.everybody(1, orders())
		r.takes("two")
		expire()
		_, err := r.all[0].Get(t.Context(), policy.Self(), orders())
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		if status, _ := r.all[0].Client(t.Context(), policy.Self(), "orders"); status.State != broker.ClientRefused {
			t.Errorf("%+v", status)
		}
		for _, replica := range r.all {
			replica.writes(t, "two")
		}
		time.Sleep(polls)
		r.everybody(2, orders())
		r.expectSecrets("two:current one:previous")
	})
}

func TestDirectory_previousValueAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 0)
		r.takes("one")
		dir := t.TempDir()
		put := func(name, value string) {
			t.Helper()
			testkit.WriteFile(t, filepath.Join(dir, name), value)
		}
		put("current", "one")
		ref, err := secret.ParseRef("file:" + dir)
		if err != nil {
			t.Fatal(err)
		}
		startOne := func() *replica {
			source, err := secret.OpenKeyed(ref, sha256Of)
			if err != nil {
				t.Fatal(err)
			}
			return r.start(broker.ClientConfig{Secret: source})
		}
		first := startOne()
		r.everybody(1, orders())
		first.stop()
		// While no broker runs the next secret is put beside the old one.
		put("current", "two")
		put("previous", "one")
		expire()
		r.all = nil
		startOne()
		r.everybody(1, orders())
		time.Sleep(time.Second)
		r.expectSecrets("two:pending one:current")
		r.takes("two")
		expire()
		r.everybody(1, orders())
		time.Sleep(time.Second)
		r.expectSecrets("two:current one:previous")
	})
}

func TestFile_commandsNameTheFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 1)
		asked := rotationTo("two")
		_, err := rotation.New(r.all[0], nil).Rotate(t.Context(), policy.Self(), asked)
		told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretNotManaged)
		if !strings.Contains(told.Message, r.all[0].path) {
			t.Errorf("it says %q", told.Message)
		}
		for _, call := range []func() (rotation.Result, error){
			func() (rotation.Result, error) {
				return rotation.New(r.all[0], nil).Activate(t.Context(), policy.Self(), "", change("1"))
			},
			func() (rotation.Result, error) {
				return rotation.New(r.all[0], nil).Rollback(t.Context(), policy.Self(), change("2"))
			},
			func() (rotation.Result, error) {
				return rotation.New(r.all[0], nil).Retire(t.Context(), policy.Self(), "x", change("3"))
			},
		} {
			_, err := call()
			wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretNotManaged)
		}
		if good, refused := r.idp.Attempts("abc", redact.New("two")); good+refused != 0 {
			t.Error("it was tried")
		}
	})
}

// What cannot be a secret of the client, such as half a key, is not sent.
func TestFile_invalidValueIsNotTried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		check := func(value redact.String) error {
			if strings.Contains(value.Reveal(), "wrong") {
				return errors.New("it is not a key")
			}
			return nil
		}
		r := startReplicas(t, 0)
		r.takes("one", "wrong")
		path := writeSecret(t, "one")
		ref, _ := secret.ParseRef("file:" + path)
		source, err := secret.OpenKeyed(ref, sha256Of)
		if err != nil {
			t.Fatal(err)
		}
		file := r.start(broker.ClientConfig{Secret: source, CheckSecret: check})
		file.path = path
		r.everybody(1, orders())
		file.writes(t, "wrong")
		time.Sleep(polls)
		expire()
		r.everybody(1, orders())
		r.expectSecrets("wrong:pending one:current")

		managed := startReplicas(t, 0)
		managed.takes("one", "wrong")
		managed.start(broker.ClientConfig{Managed: true, CheckSecret: check})
		_, err = rotation.New(managed.all[0], nil).Rotate(t.Context(), policy.Self(), rotationTo("wrong"))
		if told := wantError(t, err, apierror.InvalidArgument, apierror.ReasonInvalidRequest); told.Field != "secret" {
			t.Errorf("field %q", told.Field)
		}
		managed.expectSecrets("")
		for _, idp := range []*replicas{r, managed} {
			if good, refused := idp.idp.Attempts("abc", redact.New("wrong")); good+refused != 0 {
				t.Error("it was sent")
			}
		}
	})
}

// A replica that has only a value which was retired says so.
func TestFile_retiredValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 1)
		r.takes("one", "two", "three")
		r.everybody(1, orders())
		for _, value := range []string{"two", "three"} {
			r.all[0].writes(t, value)
			time.Sleep(polls)
			r.everybody(1, orders())
		}
		r.expectSecrets("three:current two:previous one:retired")
		stale := r.add("one")
		time.Sleep(100 * time.Millisecond)
		_, err := stale.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)})
		if told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretUnusable); !strings.Contains(told.Message, stale.path) {
			t.Errorf("it says %q", told.Message)
		}
		if _, err := stale.Get(t.Context(), policy.Self(), orders()); err != nil { // what others obtained it may use
			t.Error(err)
		}
	})
}

// Without the store each replica goes by its own file.
func TestFile_changedWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startFiles(t, 2)
		r.everybody(1, orders())
		time.Sleep(time.Second)
		for _, replica := range r.all {
			replica.link.state.Store(away)
			replica.writes(t, "two")
		}
		r.takes("two")
		time.Sleep(polls)
		expire()
		r.everybody(2, orders())
		for _, replica := range r.all {
			replica.link.state.Store(good)
		}
		expire()
		r.everybody(2, orders())
		time.Sleep(time.Second)
		r.expectSecrets("two:current one:previous")
	})
}
