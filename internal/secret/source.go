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

// PollInterval is the time between two reads of a file. Polling the content detects
// the symlink swaps of Kubernetes, which file notifications miss.
const PollInterval = 10 * time.Second

// Source holds the values of a secret that comes from a file or an environment
// variable. It is safe for concurrent use. Only Reload does I/O.
type Source struct {
	ref      Ref
	reader   reader
	mac      MAC
	versions atomic.Pointer[[]Version]

	mu       sync.Mutex
	lastRead []redact.String
}

// Open reads the secret once, so that a wrong reference is an error at the start.
// The IDs of its versions are valid in this process only.
func Open(ref Ref) (*Source, error) { return OpenKeyed(ref, NewMAC()) }

// NewMAC returns a keyed hash with a random key.
func NewMAC() MAC {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	return func(data []byte) [sha256.Size]byte {
		mac := hmac.New(sha256.New, key)
		_, _ = mac.Write(data)
		return [sha256.Size]byte(mac.Sum(nil))
	}
}

// OpenKeyed is Open with the keyed hash for the IDs of versions. Its key must be
// secret. Processes that share it assign the same ID to the same value.
func OpenKeyed(ref Ref, mac MAC) (*Source, error) {
	r, err := ref.reader()
	if err != nil {
		return nil, err
	}
	values, err := r.read()
	if err != nil {
		return nil, err
	}
	s := &Source{ref: ref, reader: r, mac: mac, lastRead: values}
	s.publish(values)
	return s, nil
}

// Current returns the version to use.
func (s *Source) Current() Version { return (*s.versions.Load())[0] }

// Versions returns the current version and then the previous ones. The caller must
// not modify the slice.
func (s *Source) Versions() []Version { return *s.versions.Load() }

// Ref returns the reference to the secret.
func (s *Source) Ref() Ref { return s.ref }

// Reload reads the secret again and reports whether its versions changed. It uses
// new values after two equal reads in a row, because a single read may see a
// half-written file. After an error, such as a missing or empty file, the versions
// stay as they are.
func (s *Source) Reload() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	values, err := s.reader.read()
	if err != nil {
		s.lastRead = nil
		return false, err
	}
	readTwice := slices.EqualFunc(values, s.lastRead, redact.String.Equal)
	s.lastRead = values
	if !readTwice || slices.EqualFunc(s.Versions(), values, func(v Version, value redact.String) bool { return v.Value.Equal(value) }) {
		return false, nil
	}
	s.publish(values)
	return true, nil
}

func (s *Source) publish(values []redact.String) {
	versions := make([]Version, len(values))
	for i, value := range values {
		versions[i] = NewVersion(s.mac, value)
	}
	s.versions.Store(&versions)
}

// CanChange reports whether the value may change while the process runs.
func (s *Source) CanChange() bool { return s.ref.kind == kindFile }

// Poll reloads the sources that can change every PollInterval until ctx ends. It
// calls sources before each round, and notify for each source that changed, with a
// nil error, or that could not be read.
func Poll(ctx context.Context, sources func() []*Source, notify func(source *Source, err error)) {
	Every(ctx, func() {
		for _, source := range sources() {
			if !source.CanChange() {
				continue
			}
			if changed, err := source.Reload(); changed || err != nil {
				notify(source, err)
			}
		}
	})
}

// Every calls reload every PollInterval until ctx ends.
func Every(ctx context.Context, reload func()) {
	ticker := time.NewTicker(PollInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			reload()
		}
	}
}
