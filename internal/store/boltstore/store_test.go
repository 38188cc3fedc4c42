package boltstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/boltstore"
	"github.com/cezzis/tokenbroker/internal/store/storetest"
)

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), "broker.db") }

// more is a number of rounds, and a larger one where there is time.
func more(rounds, long int) int {
	if os.Getenv("TOKENBROKER_LONG") != "" {
		return long
	}
	return rounds
}

// openBolt opens a store that the test closes, unless it did so before.
func openBolt(t testing.TB, config boltstore.Config) *boltstore.Store {
	t.Helper()
	b, err := boltstore.Open(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, b) })
	return b
}

func closeStore(t testing.TB, s io.Closer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBolt(t *testing.T) {
	storetest.Run(t, storetest.Harness{
		Open:    func(t *testing.T) storetest.Store { return openBolt(t, boltstore.Config{Path: newPath(t)}) },
		Advance: time.Sleep,
		Bubble:  true,
	})
}

func sizedPut(key string, size int, ttl time.Duration) store.Put {
	return store.Put{Key: key, Number: 1, Value: bytes.Repeat([]byte("v"), size), TTL: ttl}
}

func applyPuts(t testing.TB, s store.Store, puts ...store.Put) error {
	t.Helper()
	_, err := s.Apply(t.Context(), store.Change{Puts: puts})
	return err
}

func held(t testing.TB, s store.Store, keys ...string) string {
	t.Helper()
	entries, err := s.Get(t.Context(), keys...)
	if err != nil {
		t.Fatal(err)
	}
	var held []string
	for i, entry := range entries {
		if entry.Number != 0 {
			held = append(held, keys[i])
		}
	}
	return fmt.Sprint(held)
}

func TestBoltFileIsPrivate(t *testing.T) {
	path := newPath(t)
	openBolt(t, boltstore.Config{Path: path})
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestBoltReopensWithItsValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := boltstore.Config{Path: newPath(t)}
		b := openBolt(t, config)
		claim := store.Claim{Key: "lease", Owner: "a", Counter: "fences", Floor: 41, TTL: time.Hour}
		lease, _, err := claimLease(t.Context(), b, claim)
		if err != nil {
			t.Fatal(err)
		}
		if err := applyPuts(t, b, sizedPut("never", 10, 0), sizedPut("hour", 10, time.Hour), sizedPut("minute", 10, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Raise(t.Context(), "epoch", 7, 0); err != nil {
			t.Fatal(err)
		}
		closeStore(t, b)

		time.Sleep(30 * time.Minute) // lifetimes go on meanwhile
		b = openBolt(t, config)
		if got := held(t, b, "never", "hour", "minute", "epoch", "fences"); got != "[never hour epoch fences]" {
			t.Errorf("holds %v", got)
		}
		if entries, err := b.Get(t.Context(), "hour"); err != nil || entries[0].TTL != 30*time.Minute {
			t.Errorf("of an hour %v are left, %v", entries[0].TTL, err)
		}
		if held, err := b.Renew(t.Context(), lease, time.Hour); err != nil || !held {
			t.Errorf("the lease is lost: %v, %v", held, err)
		}
		if _, acquired, err := claimLease(t.Context(), b, store.Claim{Key: "lease", Owner: "b", Counter: "fences", TTL: time.Hour}); err != nil || acquired {
			t.Errorf("a held lease was granted: %v, %v", acquired, err)
		}
		if next, _, err := claimLease(t.Context(), b, store.Claim{Key: "other", Owner: "b", Counter: "fences", TTL: time.Hour}); err != nil || next.Fence <= lease.Fence {
			t.Errorf("fence %d after %d, %v", next.Fence, lease.Fence, err)
		}
	})
}

func TestFullBoltDropsTheSoonestExpiry(t *testing.T) {
	b := openBolt(t, boltstore.Config{Path: newPath(t), MaxBytes: 8000})
	for _, p := range []store.Put{sizedPut("soon", 1000, time.Minute), sizedPut("later", 1000, time.Hour), sizedPut("never", 1000, 0), sizedPut("sooner", 1000, time.Second)} {
		if err := applyPuts(t, b, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := applyPuts(t, b, sizedPut("large", 5000, time.Hour)); err != nil {
		t.Fatal(err)
	}
	if got := held(t, b, "sooner", "soon", "later", "never", "large"); got != "[later never large]" {
		t.Errorf("kept %v", got)
	}
}

func TestFullBoltKeepsLastingValues(t *testing.T) {
	config := boltstore.Config{Path: newPath(t), MaxBytes: 3700}
	b := openBolt(t, config)
	lease, _, err := claimLease(t.Context(), b, store.Claim{Key: "lease", Owner: "a", Counter: "fences", TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := applyPuts(t, b, sizedPut("never", 3000, 0)); err != nil {
		t.Fatal(err)
	}
	closeStore(t, b)
	b = openBolt(t, config) // it knows how full it is

	if err := applyPuts(t, b, sizedPut("small", 10, time.Hour), sizedPut("large", 3000, time.Hour)); !errors.Is(err, store.ErrFull) {
		t.Errorf("a write without room: %v", err)
	}
	if _, err := b.Acquire(t.Context(), store.Claim{Key: strings.Repeat("k", 250), Owner: strings.Repeat("o", 250), Counter: "fences", TTL: time.Hour}); !errors.Is(err, store.ErrFull) {
		t.Errorf("a lease without room: %v", err)
	}
	if _, err := b.Raise(t.Context(), strings.Repeat("e", 256), 0, 1); !errors.Is(err, store.ErrFull) {
		t.Errorf("a counter without room: %v", err)
	}
	if got := held(t, b, "never", "small", "large", "fences"); got != "[never fences]" {
		t.Errorf("holds %v", got)
	}
	if held, err := b.Renew(t.Context(), lease, time.Hour); err != nil || !held {
		t.Errorf("a full store lost a lease: %v, %v", held, err)
	}
	if err := applyPuts(t, b, store.Put{Key: "never", Number: 2, Value: []byte(strings.Repeat("w", 3000))}); err != nil {
		t.Errorf("overwriting in place needs no room: %v", err)
	}
}

// The limit is so low that the writes succeed only if what expired was freed.
func TestBoltFreesExpiredValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBolt(t, boltstore.Config{Path: newPath(t), MaxBytes: 2000})
		for i := range 300 {
			claim := store.Claim{Key: fmt.Sprintf("lease %d", i), Owner: strings.Repeat("o", 250), Counter: "fences", TTL: time.Second}
			if _, err := b.Acquire(t.Context(), claim); err != nil {
				t.Fatalf("after %d leases: %v", i, err)
			}
			if err := applyPuts(t, b, sizedPut(fmt.Sprintf("value %d", i), 1000, time.Second)); err != nil {
				t.Fatalf("after %d values: %v", i, err)
			}
			time.Sleep(time.Second)
		}
	})
}

// Without room being short, writes alone must free what nobody overwrites.
func TestBoltFileDoesNotGrowByExpiredValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := newPath(t)
		b := openBolt(t, boltstore.Config{Path: path})
		size := func() int64 {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return info.Size()
		}
		var early int64
		for i := range 600 {
			puts := make([]store.Put, store.MaxPuts)
			for j := range puts {
				puts[j] = sizedPut(fmt.Sprintf("value %d.%d", i, j), 2000, time.Minute)
			}
			if err := applyPuts(t, b, puts...); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if i == 150 {
				early = size()
			}
		}
		if late := size(); late > 2*early {
			t.Errorf("the file grew from %d to %d bytes while what lives stayed the same", early, late)
		}
	})
}

func TestBoltCallersShareASync(t *testing.T) {
	b := openBolt(t, boltstore.Config{Path: newPath(t)})
	const callers, each = 64, 20
	var told sync.WaitGroup
	for i := range callers {
		told.Go(func() {
			for n := range each {
				if _, err := b.Raise(t.Context(), fmt.Sprintf("counter %d", i), 0, 1); err != nil {
					t.Errorf("raise %d: %v", n, err)
				}
			}
		})
	}
	told.Wait()
	if commits := boltstore.Commits(b); commits > callers*each/4 {
		t.Errorf("%d calls at once took %d transactions", callers*each, commits)
	}
}

func TestBoltWritesOnlyChanges(t *testing.T) {
	b := openBolt(t, boltstore.Config{Path: newPath(t)})
	if _, err := b.Acquire(t.Context(), store.Claim{Key: "lease", Owner: "a", Counter: "fences", TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := applyPuts(t, b, sizedPut("value", 10, time.Hour)); err != nil {
		t.Fatal(err)
	}
	before := boltstore.Commits(b)
	if _, acquired, err := claimLease(t.Context(), b, store.Claim{Key: "lease", Owner: "b", Counter: "fences", TTL: time.Hour}); err != nil || acquired {
		t.Fatalf("acquired %v, %v", acquired, err)
	}
	if err := applyPuts(t, b, sizedPut("value", 10, time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Raise(t.Context(), "fences", 1, 0); err != nil {
		t.Fatal(err)
	}
	if after := boltstore.Commits(b); after != before {
		t.Errorf("%d transactions for nothing", after-before)
	}
}

// A caller whose ctx ends leaves at once and owns its values again, though they
// may be on their way to the disk; the race detector watches. The values are
// large so that being on the way takes a while.
func TestBoltCallerMayCancel(t *testing.T) {
	b := openBolt(t, boltstore.Config{Path: newPath(t)})
	whole := bytes.Repeat([]byte("v"), store.MaxValue)
	var left atomic.Int32
	var callers sync.WaitGroup
	for i := range 4 {
		callers.Go(func() {
			for n := range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n)*50*time.Microsecond)
				value := bytes.Clone(whole)
				_, err := b.Apply(ctx, store.Change{Puts: []store.Put{{Key: fmt.Sprint("key ", i), Number: uint64(n) + 1, Value: value}}})
				cancel()
				clear(value)
				switch {
				case errors.Is(err, context.DeadlineExceeded):
					left.Add(1)
				case err != nil:
					t.Error(err)
				}
			}
		})
	}
	callers.Wait()
	for i := range 4 {
		entries, err := b.Get(t.Context(), fmt.Sprint("key ", i))
		if err != nil {
			t.Fatal(err)
		}
		if entries[0].Number != 0 && !bytes.Equal(entries[0].Value, whole) {
			t.Error("a value was changed on its way")
		}
	}
	if left.Load() == 0 {
		t.Error("nobody left early: the test does not test what it should")
	}
}

func TestBoltCloseUnderLoad(t *testing.T) {
	path := newPath(t)
	b := openBolt(t, boltstore.Config{Path: path})
	var callers sync.WaitGroup
	acknowledged := make([]uint64, 50)
	started := make(chan struct{}, len(acknowledged))
	for i := range acknowledged {
		callers.Go(func() {
			for first := true; ; first = false {
				count, err := b.Raise(t.Context(), fmt.Sprint("counter ", i), 0, 1)
				if errors.Is(err, store.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				acknowledged[i] = count
				if first {
					started <- struct{}{}
				}
			}
		})
	}
	for range acknowledged {
		<-started
	}
	closeStore(t, b)
	callers.Wait()
	b = openBolt(t, boltstore.Config{Path: path})
	for i, count := range acknowledged {
		entries, err := b.Get(t.Context(), fmt.Sprint("counter ", i))
		if err != nil || entries[0].Number != count {
			t.Errorf("counter %d is %d, acknowledged was %d, %v", i, entries[0].Number, count, err)
		}
	}
}

func BenchmarkBoltApply(b *testing.B) {
	value := bytes.Repeat([]byte("v"), 2000)
	apply := func(b *testing.B, s store.Store, i uint64) {
		p := store.Put{Key: fmt.Sprint("key ", i%10_000), Number: i, Value: value, TTL: time.Hour}
		if err := applyPuts(b, s, p); err != nil {
			b.Error(err)
		}
	}
	b.Run("alone", func(b *testing.B) {
		s := openBolt(b, boltstore.Config{Path: newPath(b)})
		for i := uint64(1); b.Loop(); i++ {
			apply(b, s, i)
		}
	})
	b.Run("crowd", func(b *testing.B) {
		s := openBolt(b, boltstore.Config{Path: newPath(b)})
		var n atomic.Uint64
		b.SetParallelism(50) // for each core
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				apply(b, s, n.Add(1))
			}
		})
	})
}

// claimLease returns the lease of a claim, and whether it was granted.
func claimLease(ctx context.Context, s store.Store, claim store.Claim) (store.Lease, bool, error) {
	claimed, err := s.Acquire(ctx, claim)
	return claimed.Lease, claimed.Acquired, err
}
