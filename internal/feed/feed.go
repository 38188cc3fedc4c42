// Package feed reads the secrets of clients from where other programs keep them, and
// supplies new values to the histories that the replicas share. One replica at a time reads
// a source; it holds a lease in the store.
package feed

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/secretsource"
	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// interval is the pause between two looks for sources to read. A look does no I/O.
	interval = time.Second
	// firstRetry is the pause after the first failure. It doubles with each further one, up
	// to the interval of the source.
	firstRetry = 5 * time.Second
	// heldPause is the longest pause between two claims of a lease that another replica has.
	heldPause = 10 * time.Second
	// waitPause is the pause while a value waits for a version that is being proved.
	waitPause = 10 * time.Second
	// togetherAtMost bounds the sources that a replica reads at the same time.
	togetherAtMost = 8

	storeTimeout = 10 * time.Second
)

// Config configures a Feeder.
type Config struct {
	// Sets returns the secrets with a source.
	Sets func() []*credential.Set
	// Store has the leases.
	Store  store.Store
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: no metrics.
	Registerer prometheus.Registerer
}

// Feeder reads the sources. It is safe for concurrent use.
type Feeder struct {
	cfg    Config
	places chan struct{}
	work   sync.WaitGroup

	mu     sync.Mutex
	states map[*secretsource.Source]*state
}

// state is the state of one source. mu of the Feeder guards it, except lease and pause,
// which belong to the read that is running.
type state struct {
	running bool
	next    time.Time

	lease store.Lease // fence 0: this replica does not hold it
	pause time.Duration

	read, failed uint64 // reads
	readAt       time.Time
	failingSince time.Time // zero: the last read succeeded
}

// New returns a Feeder. It reads nothing.
func New(cfg Config) *Feeder {
	f := &Feeder{cfg: cfg, places: make(chan struct{}, togetherAtMost), states: map[*secretsource.Source]*state{}}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(collector{f})
	}
	return f
}

// Run reads the sources at their intervals until ctx ends.
func (f *Feeder) Run(ctx context.Context) {
	for {
		f.look(ctx)
		if !backoff.Sleep(ctx, nil, interval) {
			break
		}
	}
	f.work.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.states {
		f.release(s)
	}
}

// look begins to read the sources that are due, and forgets those that are no longer
// configured.
func (f *Feeder) look(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, configured := time.Now(), map[*secretsource.Source]bool{}
	for _, set := range f.cfg.Sets() {
		source := set.Supplied
		configured[source] = true
		s := f.states[source]
		if s == nil {
			s = &state{}
			f.states[source] = s
		}
		if s.running || now.Before(s.next) {
			continue
		}
		s.running = true
		f.work.Go(func() { f.turn(ctx, set, s) })
	}
	for source, s := range f.states {
		if !configured[source] && !s.running {
			delete(f.states, source)
			f.work.Go(func() { f.release(s) })
		}
	}
}

// turn takes one turn with a source, and sets the time of the next one.
func (f *Feeder) turn(ctx context.Context, set *credential.Set, s *state) {
	f.places <- struct{}{}
	wait := f.try(ctx, set, s)
	<-f.places
	f.mu.Lock()
	defer f.mu.Unlock()
	s.running, s.next = false, time.Now().Add(wait)
}

// try reads a source if no other replica does, and supplies its value. It returns the time
// until the next turn.
func (f *Feeder) try(ctx context.Context, set *credential.Set, s *state) time.Duration {
	source := set.Supplied
	// A replica on which the source fails has no lease, so that another one reads it. It
	// tries again without the lease until the failure has ended.
	if !f.failing(s) {
		if held, err := f.hold(ctx, set, s); err != nil || !held {
			return min(source.Every, heldPause)
		}
	}
	reading, cancel := context.WithTimeout(ctx, source.Timeout)
	value, err := source.Read(reading)
	cancel()
	if ctx.Err() != nil {
		return 0
	}
	if err != nil {
		return f.failed(set, s, err)
	}
	storing, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	waits, err := set.Supply(storing, value)
	switch {
	case errors.Is(err, credential.ErrUnfit):
		return f.failed(set, s, err)
	case err != nil: // the store has its own findings
		f.cfg.Logger.Warn("the value of a secret's source could not be stored; it is read again", "client", set.Client, "source", source.Name, "error", err)
		return min(source.Every, firstRetry)
	}
	f.succeeded(set, s)
	if waits {
		return min(source.Every, waitPause)
	}
	return source.Every - mathrand.N(source.Every/20+1) //nolint:gosec // it spreads the reads of several sources
}

// hold claims or renews the lease of a source.
func (f *Feeder) hold(ctx context.Context, set *credential.Set, s *state) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	source := set.Supplied
	ttl := source.Every + max(source.Every/2, source.Timeout+storeTimeout+2*interval)
	if s.lease.Fence > 0 {
		held, err := f.cfg.Store.Renew(ctx, s.lease, ttl)
		if held || err != nil {
			return held, err
		}
		s.lease = store.Lease{}
	}
	key := set.Keys.Supply + ":" + source.Digest
	claimed, err := f.cfg.Store.Acquire(ctx, store.Claim{Key: key, Owner: rand.Text(), Counter: key + ":fences", TTL: ttl})
	s.lease = claimed.Lease
	return claimed.Lease.Fence > 0, err
}

// release ends the lease of a source, if this replica holds it: another replica reads it
// then.
func (f *Feeder) release(s *state) {
	if s.lease.Fence == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	_, _ = f.cfg.Store.Apply(ctx, store.Change{Release: s.lease, Quiet: true}) // otherwise it expires
	s.lease = store.Lease{}
}

func (f *Feeder) failing(s *state) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !s.failingSince.IsZero()
}

// failed records a failure of the source, and returns the time until the next try. The log
// has the first failure of several.
func (f *Feeder) failed(set *credential.Set, s *state, err error) time.Duration {
	f.release(s)
	s.pause = min(max(2*s.pause, firstRetry), set.Supplied.Every)
	f.mu.Lock()
	s.failed++
	first := s.failingSince.IsZero()
	if first {
		s.failingSince = time.Now()
	}
	f.mu.Unlock()
	if first {
		f.cfg.Logger.Error("a secret cannot be read from its source; the value read before stays in use", "client", set.Client, "source", set.Supplied.Name, "error", err)
	}
	return s.pause
}

func (f *Feeder) succeeded(set *credential.Set, s *state) {
	s.pause = 0
	f.mu.Lock()
	s.read++
	s.readAt = time.Now()
	since := s.failingSince
	s.failingSince = time.Time{}
	f.mu.Unlock()
	if !since.IsZero() {
		f.cfg.Logger.Info("a secret can be read from its source again", "client", set.Client, "source", set.Supplied.Name, "failed_for", time.Since(since).Round(time.Millisecond))
	}
}

// FailingSince is since when a source cannot be read by this replica. Zero: it can, or
// another replica reads it.
func (f *Feeder) FailingSince(source *secretsource.Source) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.states[source]; s != nil {
		return s.failingSince
	}
	return time.Time{}
}

// collector exports the state of the sources at collection time.
type collector struct{ feeder *Feeder }

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	readsDesc = prometheus.NewDesc("tokenbroker_secret_source_reads_total",
		"Reads of the source of a client's secret (exec, vault) by this replica, by result: ok or failed. One replica at a time reads a source.", []string{"client", "result"}, nil)
	failingDesc = prometheus.NewDesc("tokenbroker_secret_source_failing",
		"1 while this replica cannot read the source of a client's secret, so that the value from before stays in use, else 0.", []string{"client"}, nil)
	readAtDesc = prometheus.NewDesc("tokenbroker_secret_source_read_timestamp_seconds",
		"When this replica last read the source of a client's secret, in seconds of the epoch; absent if it never did.", []string{"client"}, nil)
)

func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{readsDesc, failingDesc, readAtDesc} {
		out <- desc
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	sets := c.feeder.cfg.Sets()
	c.feeder.mu.Lock()
	defer c.feeder.mu.Unlock()
	for _, set := range sets {
		s := c.feeder.states[set.Supplied]
		if s == nil { // a counter begins at 0
			s = &state{}
		}
		out <- prometheus.MustNewConstMetric(readsDesc, prometheus.CounterValue, float64(s.read), set.Client, "ok")
		out <- prometheus.MustNewConstMetric(readsDesc, prometheus.CounterValue, float64(s.failed), set.Client, "failed")
		failing := 0.0
		if !s.failingSince.IsZero() {
			failing = 1
		}
		out <- prometheus.MustNewConstMetric(failingDesc, prometheus.GaugeValue, failing, set.Client)
		if !s.readAt.IsZero() {
			out <- prometheus.MustNewConstMetric(readAtDesc, prometheus.GaugeValue, float64(s.readAt.Unix()), set.Client)
		}
	}
}
