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
		t.Errorf("%v allocations", n)
	}
}

// The floor of a hit is what no cache can do without: to look at what is held,
// and at the clock.
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

// mutexCache is what one writes without much thought.
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
type contestant struct {
	name string
	hits func(n int)
}

// BenchmarkHit compares in one run, for docs/client.md:
//
//	go test ./client -run '^$' -bench 'Hit$' -cpu 1,2
//
// Contestants take turns of some milliseconds, because machines are seldom quiet
// for longer, and the medians of their turns are what counts. With two
// CPUs, two goroutines take each turn together: what hits cost in CPU time must
// not grow then, whether or not the machine has two CPUs to spare.
func BenchmarkHit(b *testing.B) {
	const turn = 50_000
	contestants := contestants(b)
	wall, cpu := make([][]float64, len(contestants)), make([][]float64, len(contestants))
	for range b.N { // b.Loop does not obey -cpu in its first run
		for _, i := range rand.Perm(len(contestants)) {
			begun, used := time.Now(), cpuTime(b)
			together(contestants[i], turn)
			hits := float64(turn * runtime.GOMAXPROCS(0))
			wall[i] = append(wall[i], float64(time.Since(begun).Nanoseconds())/hits)
			cpu[i] = append(cpu[i], float64((cpuTime(b)-used).Nanoseconds())/hits)
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, c := range contestants {
		b.ReportMetric(median(wall[i]), "ns/"+c.name)
		b.ReportMetric(median(cpu[i]), "cpu-ns/"+c.name)
		b.ReportMetric(median(wall[i])/median(wall[0]), c.name+"/floor")
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// together has a goroutine on each CPU make hits.
func together(c contestant, hits int) {
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() { c.hits(hits) })
	}
	wg.Wait()
}

// cpuTime is what the process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func contestants(b *testing.B) []contestant {
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
	fail := func(bad bool) {
		if bad {
			b.Error("no token")
		}
	}
	return []contestant{
		{"floor", func(n int) {
			for range n {
				_, ok := floor.get()
				fail(!ok)
			}
		}},
		{"source", func(n int) {
			for range n {
				_, err := source.Token(ctx)
				fail(err != nil)
			}
		}},
		{"reuse", func(n int) {
			for range n {
				_, err := reused.Token()
				fail(err != nil)
			}
		}},
		{"mutex", func(n int) {
			for range n {
				_, ok := mutex.get()
				fail(!ok)
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
