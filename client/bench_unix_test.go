//go:build unix

package client_test

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestHitAllocatesNothing(t *testing.T) {
	source := brokertest.New(t).Client().TokenSource(name)
	mustToken(t, source)
	ctx := t.Context()
	if n := testing.AllocsPerRun(1000, func() { _, _ = source.Token(ctx) }); n != 0 {
		t.Errorf("Token: %v allocations", n)
	}
	wrapped := source.OAuth2()
	if n := testing.AllocsPerRun(1000, func() { _, _ = wrapped.Token() }); n != 0 {
		t.Errorf("OAuth2().Token: %v allocations", n)
	}
}

// floorCache does the least work of a hit: it loads the token and reads the clock.
type floorCache struct {
	held atomic.Pointer[floorToken]
}

type floorToken struct {
	text  string
	until time.Time
}

func (c *floorCache) get() (string, bool) {
	held := c.held.Load()
	return held.text, time.Now().Before(held.until)
}

// mutexCache is the simplest cache.
type mutexCache struct {
	mu    sync.Mutex
	text  string
	until time.Time
}

func (c *mutexCache) get() (string, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text, time.Now().Before(c.until)
}

// contestant makes n hits.
type benchCase struct {
	name string
	hits func(n int)
}

// BenchmarkHit compares in one run, for docs/client.md:
//
//	go test ./client -run '^$' -bench 'Hit$' -cpu 1,2
//
// The cases alternate in batches of some milliseconds, because machines are seldom
// quiet for longer, and the medians of the batches are reported. With two CPUs, two
// goroutines run each batch together: the CPU time of a hit must not grow, whether or
// not the machine has two CPUs to spare.
func BenchmarkHit(b *testing.B) {
	const batch = 50_000
	cases := benchCases(b)
	wall, cpu := make([][]float64, len(cases)), make([][]float64, len(cases))
	for range b.N { // b.Loop does not obey -cpu in its first run
		for _, i := range rand.Perm(len(cases)) {
			start, used := time.Now(), cpuTime(b)
			runParallel(cases[i], batch)
			hits := float64(batch * runtime.GOMAXPROCS(0))
			wall[i] = append(wall[i], float64(time.Since(start).Nanoseconds())/hits)
			cpu[i] = append(cpu[i], float64((cpuTime(b)-used).Nanoseconds())/hits)
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, c := range cases {
		b.ReportMetric(median(wall[i]), "ns/"+c.name)
		b.ReportMetric(median(cpu[i]), "cpu-ns/"+c.name)
		b.ReportMetric(median(wall[i])/median(wall[0]), c.name+"/floor")
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// runParallel makes hits in a goroutine for each CPU.
func runParallel(c benchCase, hits int) {
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() { c.hits(hits) })
	}
	wg.Wait()
}

// cpuTime returns the CPU time that the process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func benchCases(b *testing.B) []benchCase {
	b.Helper()
	source := brokertest.New(b).Client().TokenSource(name)
	ctx := b.Context()
	token, err := source.Token(ctx)
	if err != nil {
		b.Fatal(err)
	}
	until := token.ExpiresAt()
	var floor floorCache
	floor.held.Store(&floorToken{token.AccessToken(), time.Now().Add(time.Until(until))})
	mutex := mutexCache{text: token.AccessToken(), until: time.Now().Add(time.Until(until))}
	reused := oauth2.ReuseTokenSource(nil, oauth2.StaticTokenSource(&oauth2.Token{AccessToken: token.AccessToken(), Expiry: until}))
	wrapped := source.OAuth2()
	failIf := func(bad bool) {
		if bad {
			b.Error("no token")
		}
	}
	return []benchCase{
		{"floor", func(n int) {
			for range n {
				_, ok := floor.get()
				failIf(!ok)
			}
		}},
		{"source", func(n int) {
			for range n {
				_, err := source.Token(ctx)
				failIf(err != nil)
			}
		}},
		{"oauth2", func(n int) {
			for range n {
				_, err := wrapped.Token()
				failIf(err != nil)
			}
		}},
		{"reuse", func(n int) {
			for range n {
				_, err := reused.Token()
				failIf(err != nil)
			}
		}},
		{"mutex", func(n int) {
			for range n {
				_, ok := mutex.get()
				failIf(!ok)
			}
		}},
	}
}

func BenchmarkVerifier(b *testing.B) {
	broker := brokertest.New(b)
	v := broker.Client().Verifier()
	token := broker.Mint(brokertest.Claims{Scopes: []string{"read"}})
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(ctx, token); err != nil {
			b.Fatal(err)
		}
	}
}
