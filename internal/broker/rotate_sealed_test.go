package broker_test

import (
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// ringFile is a ring of sealing keys that all replicas read.
type ringFile struct {
	t    testing.TB
	path string
	ring *sealed.Ring
	file *sealed.RingFile
}

func newRingFile(t testing.TB) *ringFile {
	t.Helper()
	r := &ringFile{t: t, path: filepath.Join(t.TempDir(), "ring.json"), ring: sealed.GenerateRing()}
	if err := sealed.WriteRing(r.path, r.ring); err != nil {
		t.Fatal(err)
	}
	file, err := sealed.OpenRing(r.path)
	if err != nil {
		t.Fatal(err)
	}
	r.file = file
	return r
}

// write puts a ring in the place of the original one of the file, which nobody
// has used.
func (r *ringFile) write(ring *sealed.Ring, err error) {
	r.t.Helper()
	if err == nil {
		err = sealed.WriteRing(r.path, ring)
	}
	if err == nil {
		r.file, err = sealed.OpenRing(r.path)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.ring = ring
}

// becomes puts another ring in force.
func (r *ringFile) becomes(ring *sealed.Ring, err error) {
	r.t.Helper()
	if err == nil {
		err = sealed.WriteRing(r.path, ring)
	}
	for range 2 {
		if err == nil {
			_, err = r.file.Reload()
		}
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.ring = ring
}

func TestSecretsAreResealedWithANewKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newRingFile(t)
		r := startReplicas(t, 0)
		r.seal = func(s store.Store) store.Store { return sealed.New(s, keys.file) }
		r.takes("one", "two")
		for range 2 {
			r.start(broker.ClientConfig{Managed: true})
		}
		r.rotate(rotationTo("one"))
		r.rotate(rotationTo("two"))
		generation := listed(r.all[0]).Generation

		old := keys.ring.Primary()
		added, fresh := keys.ring.Add()
		keys.becomes(added, nil)
		keys.becomes(keys.ring.Promote(fresh))
		time.Sleep(time.Minute + time.Second) // nobody asks for anything
		keys.becomes(keys.ring.Drop(old))

		// A replica that never had the old key.
		r.start(broker.ClientConfig{Managed: true})
		time.Sleep(time.Second)
		r.expectSecrets("two:current one:previous")
		if got := listed(r.all[2]).Generation; got != generation {
			t.Errorf("generation %d after %d: sealing anew is no change", got, generation)
		}
		r.everybody(2, orders())
	})
}

func TestUnreadableSecretsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keys := newRingFile(t)
		r := startReplicas(t, 0)
		r.seal = func(s store.Store) store.Store { return sealed.New(s, keys.file) }
		r.takes("one", "two")
		r.start(broker.ClientConfig{Managed: true})
		r.rotate(rotationTo("one"))

		old := keys.ring.Primary()
		added, fresh := keys.ring.Add()
		both, err := added.Promote(fresh)
		if err != nil {
			t.Fatal(err)
		}
		keys.becomes(both.Drop(old)) // too early: the secret is sealed with it

		late := r.start(broker.ClientConfig{Managed: true})
		time.Sleep(time.Second)
		_, err = late.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)})
		if told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretsUnreadable); !strings.Contains(told.Message, "put the sealing key") {
			t.Errorf("it says %q", told.Message)
		}
		_, err = rotation.New(late, nil).Rotate(t.Context(), policy.Self(), rotationTo("two"))
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonSecretsUnreadable)
		r.all = r.all[:1]
		expire()
		r.everybody(2, orders()) // who knows the secret goes on

		keys.becomes(both, nil)
		time.Sleep(time.Minute + time.Second)
		if _, err := late.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)}); err != nil {
			t.Errorf("with the key: %v", err)
		}
	})
}
