// Package jwks keeps the signing keys of an issuer fresh. It loads its JWK set from a URL, a
// file or a URL in the issuer's metadata, and finds the key of a token in it.
package jwks

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	// fetchTimeout bounds one fetch of the keys, discovery included.
	fetchTimeout = discovery.Timeout
	// minInterval and maxInterval bound the time between regular fetches, whatever
	// max-age the issuer sends.
	minInterval = time.Minute
	maxInterval = 15 * time.Minute
	// After a failed fetch the next is due after minBackoff, which doubles with each
	// further failure up to maxBackoff.
	minBackoff = time.Second
	maxBackoff = time.Minute
	// demandInterval is the minimum time between the starts of two fetches if a token
	// causes the second. It limits the requests that a flood of invented kids causes.
	demandInterval = 10 * time.Second
	// unknownKeyWait is how long a token with an unknown kid waits for the shared
	// fetch.
	unknownKeyWait = time.Second
	// firstLoadWait is how long a token waits if the keys were never loaded.
	firstLoadWait = fetchTimeout
	// maxWaiters bounds the tokens of one issuer that wait for its keys at a time;
	// further ones get an [UnavailableError]. It is half of the calls that a connection
	// may have open by default, so that tokens of other issuers and tokens with known
	// keys get through on the same connection. The first fetch has no such bound: most
	// tokens are valid then, and fetchTimeout bounds the wait.
	maxWaiters = 125
)

// Source holds the keys of one issuer. Finding a known kid costs an atomic load and a map lookup. All slow work runs in one goroutine, that of
// [Source.Run]. It is safe for concurrent use.
type Source struct {
	issuer  string
	cfg     Config
	logger  *slog.Logger
	metrics Metrics

	state   atomic.Pointer[state]
	demand  chan context.Context // holds one value while a token needs a fetch: the span of its call
	waiting atomic.Int64         // tokens that wait for the end of a fetch
	running chan struct{}        // holds one value while run is running

	fetchLock sync.Mutex // held during a fetch
}

// state describes the keys of an issuer. It is immutable, and replaced as a whole at
// the start and at the end of each fetch.
type state struct {
	keys       jose.Keys
	skipped    []jose.Skipped
	loadedAt   time.Time // start of the last successful fetch; zero: never loaded
	freshUntil time.Time // by then a key that the issuer removes is removed here too

	fetchAt  time.Time // start of the last fetch; zero: no fetch yet
	fetching bool      // that fetch has not ended
	err      error     // of the last finished fetch
	failures int       // consecutive
	nextAt   time.Time // when the next fetch is due

	replaced chan struct{} // closed when another state replaces this one
}

// New returns a source without keys, which sends no request before [Source.Run],
// [Source.Refresh] or [Source.Find]. The configuration must pass [Config.Check].
func New(issuer string, cfg Config, logger *slog.Logger, metrics Metrics) *Source {
	s := &Source{
		issuer:  issuer,
		cfg:     cfg,
		logger:  logger.With("issuer", issuer),
		metrics: metrics,
		demand:  make(chan context.Context, 1),
		running: make(chan struct{}, 1),
	}
	s.state.Store(&state{replaced: make(chan struct{})})
	return s
}

// Key is a published key of an issuer.
type Key struct {
	*jose.Key

	FreshUntil time.Time // by then the key is no longer found here if the issuer removes it
}

// Find returns the key with this kid. If several keys share the kid, it prefers one
// that permits the algorithm; the caller checks that the key does. Without a kid it
// returns the issuer's single key. The error is [ErrUnknownKey], an [*UnavailableError]
// or that of ctx.
func (s *Source) Find(ctx context.Context, kid, algorithm string) (Key, error) {
	if kid == "" {
		return s.findSingle(ctx, algorithm)
	}
	current := s.state.Load()
	if key := current.keys.Find(kid, algorithm); key != nil && !s.stale(current) {
		return Key{key, current.freshUntil}, nil
	}
	if current.fetching || current.mayFetch() {
		var err error
		if current, err = s.await(ctx, current); err != nil {
			return Key{}, err
		}
	}
	switch key := current.keys.Find(kid, algorithm); {
	case s.stale(current):
		return Key{}, s.unavailable(current)
	case key != nil:
		return Key{key, current.freshUntil}, nil
	case current.err != nil:
		// The issuer may have published the key after the last successful fetch.
		return Key{}, s.unavailable(current)
	default:
		return Key{}, ErrUnknownKey
	}
}

// findSingle is Find for a token without kid, which can only be verified if the issuer
// has a single key. It never causes a fetch, because such a token is no sign of a new
// key. If no usable keys are loaded, it waits for a fetch in progress.
func (s *Source) findSingle(ctx context.Context, algorithm string) (Key, error) {
	current := s.state.Load()
	if s.stale(current) && current.fetching {
		var err error
		if current, err = s.await(ctx, current); err != nil {
			return Key{}, err
		}
	}
	key := current.keys.Find("", algorithm)
	switch {
	case s.stale(current):
		return Key{}, s.unavailable(current)
	case key == nil:
		return Key{}, ErrUnknownKey
	}
	return Key{key, current.freshUntil}, nil
}

// Trusts reports whether Find would return the same *Key without a fetch, and until
// when it is fresh. Keys are compared by identity, so that cached facts end with the key
// that verified them. A token without kid (named is false) needs a single key.
func (s *Source) Trusts(key *jose.Key, named bool) (freshUntil time.Time, trusted bool) {
	current := s.state.Load()
	return current.freshUntil, current.keys.Has(key) && (named || current.keys.Single()) && !s.stale(current)
}

func (s *Source) stale(current *state) bool {
	return time.Since(current.loadedAt) > s.cfg.MaxStale
}

// loaded reports whether the issuer's keys were ever loaded.
func (s *state) loaded() bool { return !s.loadedAt.IsZero() }

// mayFetch reports whether a token may cause a fetch.
func (s *state) mayFetch() bool { return time.Since(s.fetchAt) >= demandInterval }

// await requests a fetch unless one is in progress, and waits for its end. All waiting
// tokens share that fetch. If too many are waiting, it fails at once.
func (s *Source) await(ctx context.Context, current *state) (*state, error) {
	if !current.fetching {
		select {
		case s.demand <- tracing.Detached(context.Background(), ctx):
		default: // a request is pending already
		}
	}
	defer s.waiting.Add(-1)
	first := !current.loaded() && current.failures == 0
	if s.waiting.Add(1) > maxWaiters && !first {
		return nil, s.unavailable(current)
	}
	wait := unknownKeyWait
	if !current.loaded() {
		wait = firstLoadWait
	}
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		select {
		case <-current.replaced:
		case <-limit.C:
			return nil, s.unavailable(current)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if current = s.state.Load(); !current.fetching {
			return current, nil
		}
	}
}

func (s *Source) unavailable(current *state) error {
	wait := min(time.Until(current.nextAt), time.Until(current.fetchAt.Add(demandInterval)))
	return &UnavailableError{RetryAfter: min(max(wait, minBackoff), maxBackoff), Err: current.err}
}

// Run keeps the keys fresh until ctx ends. It fetches them at once unless they are
// loaded, whenever they are due, and when a token needs a fetch. If another run is in
// progress, it first waits for its end.
func (s *Source) Run(ctx context.Context) {
	select {
	case s.running <- struct{}{}:
		defer func() { <-s.running }()
	case <-ctx.Done():
		return
	}
	cause := ctx
	if s.state.Load().loaded() {
		cause = s.waitUntilDue(ctx)
	}
	for ctx.Err() == nil {
		_ = s.Refresh(tracing.Detached(ctx, cause)) // the state holds the error
		cause = s.waitUntilDue(ctx)                 //nolint:fatcontext // it is a context of the token that was waited for, and does not grow
	}
}

// waitUntilDue returns when the next fetch is due, when a token may cause a fetch and
// needs one, or when ctx ends. The result has the span of the call that presented such a
// token, if any.
func (s *Source) waitUntilDue(ctx context.Context) (cause context.Context) {
	due := time.NewTimer(time.Until(s.state.Load().nextAt))
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx
		case <-due.C:
			return ctx
		case cause := <-s.demand:
			// The demand may be older than the last fetch, and then met.
			if s.state.Load().mayFetch() {
				return cause
			}
		}
	}
}

// Refresh fetches the keys once. If that fails, the current keys stay.
func (s *Source) Refresh(ctx context.Context) error {
	s.fetchLock.Lock()
	defer s.fetchLock.Unlock()
	before := s.state.Load()
	started := *before
	started.fetchAt, started.fetching = time.Now(), true
	s.publish(started)

	set, maxAge, err := s.load(ctx)
	if errors.Is(err, errNoKeys) && s.cfg.Optional && before.keys.Len() == 0 {
		set, err = jose.Set{}, nil
	}
	finished := started
	finished.fetching, finished.err = false, err
	if err != nil {
		finished.failures++
		finished.nextAt = time.Now().Add(backoff(finished.failures))
	} else {
		finished.failures = 0
		finished.keys, finished.skipped, finished.loadedAt = set.Keys.Reuse(before.keys), set.Skipped, started.fetchAt
		finished.nextAt = started.fetchAt.Add(s.interval(maxAge))
		finished.freshUntil = finished.nextAt.Add(fetchTimeout)
	}
	s.publish(finished)
	s.report(before, &finished)
	return err
}

// publish replaces the state. The caller holds s.fetchLock.
func (s *Source) publish(next state) {
	next.replaced = make(chan struct{})
	close(s.state.Swap(&next).replaced)
}

// interval returns the time until the next regular fetch. It is shortened at random by
// up to a tenth, so that the replicas of a fleet do not fetch at the same moment.
func (s *Source) interval(maxAge time.Duration) time.Duration {
	interval := s.cfg.RefreshInterval
	if maxAge >= 0 {
		interval = min(max(maxAge, minInterval), maxInterval)
	}
	// A single failed fetch must not make the keys stale.
	interval = min(interval, s.cfg.MaxStale/2)
	return interval - rand.N(interval/10)
}

// Status returns the status of the keys.
func (s *Source) Status() Status {
	current := s.state.Load()
	return Status{
		Issuer: s.issuer, Keys: current.keys.Len(), Skipped: len(current.skipped),
		LoadedAt: current.loadedAt, MaxStale: s.cfg.MaxStale, NextAt: current.nextAt, Err: current.err,
	}
}

func backoff(failures int) time.Duration {
	wait := min(minBackoff<<min(failures-1, 10), maxBackoff)
	return wait - wait/10 + rand.N(wait/5)
}
