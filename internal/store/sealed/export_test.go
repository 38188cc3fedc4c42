package sealed

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// SealedForGood is how many bytes sealing adds to a value without an end.
const SealedForGood = Overhead - endSize

// WithInner is the sealed store over another inner one.
func WithInner(s *Store, inner store.Store) *Store { return New(inner, s.rings) }

// Inner is what the store seals in.
func Inner(s *Store) store.Store { return s.inner }

func BenchmarkSealAndOpen(b *testing.B) {
	ring := GenerateRing()
	s := &Store{}
	value := make([]byte, 2048)
	b.ReportAllocs()
	b.SetBytes(int64(len(value)))
	for b.Loop() {
		if e := s.open(ring, "tb{client}key", store.Entry{Number: 1, Value: ring.seal("tb{client}key", 1, time.Now().Add(time.Hour), value)}); e.Number != 1 {
			b.Fatal("not opened")
		}
	}
}
