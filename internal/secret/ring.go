package secret

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// PollInterval is how often files are read again. Reading by content, and not
// by notifications, is what survives the symlink swaps of Kubernetes.
const PollInterval = 10 * time.Second

// Ring follows a source. What it holds was read twice in a row, because a file
// may be seen half written. Current and Versions are safe for concurrent use and
// do no I/O.
type Ring struct {
	ref      Ref
	source   Source
	mac      MAC
	versions atomic.Pointer[[]Version]

	mu   sync.Mutex
	seen []redact.String // what was read last
}

// Open reads the secret once, so that a wrong reference is found at the start.
// Its version IDs mean something within this process only.
func Open(ref Ref) (*Ring, error) { return OpenKeyed(ref, NewMAC()) }

// NewMAC returns a keyed hash with a key of its own.
func NewMAC() MAC {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return func(data []byte) [sha256.Size]byte {
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write(data)
		return [sha256.Size]byte(mac.Sum(nil))
	}
}

// OpenKeyed is Open with the keyed hash that version IDs are taken from: those
// who share its key, which must be secret, give the same value the same ID.
func OpenKeyed(ref Ref, mac MAC) (*Ring, error) {
	source, err := ref.Source()
	if err != nil {
		return nil, err
	}
	values, err := source.Read(context.Background())
	if err != nil {
		return nil, err
	}
	r := &Ring{ref: ref, source: source, mac: mac, seen: values}
	r.publish(values)
	return r, nil
}

// Current returns the version that is to be in force.
func (r *Ring) Current() Version { return (*r.versions.Load())[0] }

// Versions returns all that the source has, Current first. They must not be
// changed.
func (r *Ring) Versions() []Version { return *r.versions.Load() }

// Ref returns where the secret comes from.
func (r *Ring) Ref() Ref { return r.ref }

// Reload reads the source again and takes what it holds once the same was read
// twice in a row. It reports whether something changed. On an error, as for a file
// that is missing or empty, what was read before stays.
func (r *Ring) Reload(ctx context.Context) (changed bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	values, err := r.source.Read(ctx)
	if err != nil {
		r.seen = nil
		return false, err
	}
	settled := slices.EqualFunc(values, r.seen, redact.String.Equal)
	r.seen = values
	if !settled || slices.EqualFunc(r.Versions(), values, func(v Version, value redact.String) bool { return v.Value.Equal(value) }) {
		return false, nil
	}
	r.publish(values)
	return true, nil
}

func (r *Ring) publish(values []redact.String) {
	versions := make([]Version, len(values))
	for i, value := range values {
		versions[i] = NewVersion(r.mac, value)
	}
	r.versions.Store(&versions)
}

// Follows reports whether the source may change while the process runs.
func (r *Ring) Follows() bool { return r.ref.kind == kindFile }

// Poll reloads the rings whose sources may change every PollInterval until ctx
// ends, and tells what came of it: err is nil where something changed. Each time
// it asks anew which rings there are.
func Poll(ctx context.Context, rings func() []*Ring, tell func(ring *Ring, err error)) {
	ticker := time.NewTicker(PollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, ring := range rings() {
			if !ring.Follows() {
				continue
			}
			if changed, err := ring.Reload(ctx); changed || err != nil {
				tell(ring, err)
			}
		}
	}
}
