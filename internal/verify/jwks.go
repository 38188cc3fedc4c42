package verify

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
)

const (
	// fetchTimeout bounds one fetch of the keys, discovery included.
	fetchTimeout = discovery.Timeout
	// Where the issuer gives a max-age, keys are fetched again after it, within
	// these bounds.
	minInterval = time.Minute
	maxInterval = 15 * time.Minute
	// After a failed fetch the next is due after minBackoff, and after twice as
	// long each time, up to maxBackoff.
	minBackoff = time.Second
	maxBackoff = time.Minute
	// demandInterval is how much time passes between the beginnings of two
	// fetches of which the second was caused by a token. Whoever invents kids
	// causes no more.
	demandInterval = 10 * time.Second
	// A token with an unknown kid waits so long for the fetch that it shares
	// with others.
	unknownKeyWait = time.Second
	// Before the keys were ever loaded every token waits, as long as a fetch may
	// take.
	firstLoadWait = fetchTimeout
	// maxKeyWaiters is how many tokens of one issuer wait for its keys at a time;
	// more are not decided. It is half of the calls that a connection may have
	// open by default: the tokens of other issuers, and those whose keys are known,
	// come over the same connection and must not wait behind them. The very first
	// fetch is waited for by all, because the tokens are good ones then, mostly, and
	// it ends.
	maxKeyWaiters = 125
)

// keySource holds the keys of one issuer and keeps them fresh. Looking up a
// known kid is a load and a look into a map; whatever is slow, or goes wrong, is
// in the one goroutine that [keySource.run] is in.
type keySource struct {
	cfg     IssuerConfig
	client  *http.Client
	logger  *slog.Logger
	metrics issuerMetrics

	state   atomic.Pointer[state]
	wanted  chan struct{} // asks run for a fetch, which the answer to a token depends on
	waiting atomic.Int64  // tokens, for the end of a fetch
	runs    chan struct{} // holds one while run runs

	loading sync.Mutex // held by the one fetch under way
}

// state is what is known of an issuer's keys. It is immutable and replaced as a
// whole, at the beginning and at the end of each fetch.
type state struct {
	keys      jose.Keys
	skipped   []jose.Skipped
	loadedAt  time.Time // when the fetch that brought them began; zero: never loaded
	keptUntil time.Time // by when it is known here if the issuer has removed one

	fetchAt  time.Time // when the last fetch began; zero: none did
	underway bool      // it has not ended
	err      error     // why the last that ended failed; nil: it did not
	failures int       // in a row
	nextAt   time.Time // when the next is due

	replaced chan struct{} // closed when another state is in its place
}

func newKeySource(cfg IssuerConfig, client *http.Client, logger *slog.Logger, metrics *metrics) *keySource {
	s := &keySource{
		cfg:     cfg,
		client:  client,
		logger:  logger.With("issuer", cfg.Issuer),
		metrics: metrics.of(cfg.Issuer),
		wanted:  make(chan struct{}, 1),
		runs:    make(chan struct{}, 1),
	}
	s.state.Store(&state{replaced: make(chan struct{})})
	return s
}

// find returns the key for a token with this kid and alg, and by when it is known
// here if the issuer has removed it. The key may be for other algorithms. The error
// is a [*Rejection], an [*UnavailableError] or that of ctx.
func (s *keySource) find(ctx context.Context, kid, algorithm string) (*jose.Key, time.Time, error) {
	known := s.state.Load()
	if key := known.keys.Find(kid, algorithm); key != nil && !s.stale(known) {
		return key, known.keptUntil, nil
	}
	if known.underway || known.mayFetch() {
		var err error
		if known, err = s.await(ctx, known); err != nil {
			return nil, time.Time{}, err
		}
	}
	switch key := known.keys.Find(kid, algorithm); {
	case s.stale(known):
		return nil, time.Time{}, s.unavailable(known)
	case key != nil:
		return key, known.keptUntil, nil
	case known.err != nil:
		// The issuer may have published the key since its keys were last seen.
		return nil, time.Time{}, s.unavailable(known)
	default:
		return nil, time.Time{}, reject(UnknownKey, "The token's key (kid) is not among the usable ones that its issuer publishes.")
	}
}

// findSingle is find for a token without kid, which only the single key of an
// issuer can have signed. It never causes a fetch: the token does not say that there
// is a new key. It waits for one that is under way if there are no keys to use.
func (s *keySource) findSingle(ctx context.Context, algorithm string) (*jose.Key, time.Time, error) {
	known := s.state.Load()
	if s.stale(known) && known.underway {
		var err error
		if known, err = s.await(ctx, known); err != nil {
			return nil, time.Time{}, err
		}
	}
	key := known.keys.Find("", algorithm)
	switch {
	case s.stale(known):
		return nil, time.Time{}, s.unavailable(known)
	case key == nil:
		return nil, time.Time{}, reject(UnknownKey, "The token's header names no key (kid), and its issuer has not exactly one usable key.")
	}
	return key, known.keptUntil, nil
}

// trusts reports whether a key is among those that a token finds without a fetch,
// and until when it is known to be. It is this very Key, or it is another: what is
// remembered under a key goes with it. A token that names no key needs one that is
// the only one.
func (s *keySource) trusts(key *jose.Key, named bool) (keptUntil time.Time, trusted bool) {
	known := s.state.Load()
	return known.keptUntil, known.keys.Has(key) && (named || known.keys.Single()) && !s.stale(known)
}

func (s *keySource) stale(known *state) bool { return time.Since(known.loadedAt) > s.cfg.MaxStale }

// loaded reports whether the issuer's keys were ever loaded.
func (s *state) loaded() bool { return !s.loadedAt.IsZero() }

// mayFetch reports whether a token may cause a fetch.
func (s *state) mayFetch() bool { return time.Since(s.fetchAt) >= demandInterval }

// await asks for a fetch, unless one is under way, and waits for its end, which
// all who wait share. If too many do so already it does not wait.
func (s *keySource) await(ctx context.Context, known *state) (*state, error) {
	if !known.underway {
		select {
		case s.wanted <- struct{}{}:
		default: // somebody asked already
		}
	}
	defer s.waiting.Add(-1)
	first := !known.loaded() && known.failures == 0
	if s.waiting.Add(1) > maxKeyWaiters && !first {
		return nil, s.unavailable(known)
	}
	wait := unknownKeyWait
	if !known.loaded() {
		wait = firstLoadWait
	}
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		select {
		case <-known.replaced:
		case <-limit.C:
			return nil, s.unavailable(known)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if known = s.state.Load(); !known.underway {
			return known, nil
		}
	}
}

func (s *keySource) unavailable(known *state) error {
	next := earliest(known.nextAt, known.fetchAt.Add(demandInterval))
	return &UnavailableError{
		Issuer:     s.cfg.Issuer,
		RetryAfter: min(max(time.Until(next), minBackoff), maxBackoff),
		Err:        known.err,
	}
}

// run fetches the keys at once, unless there are some, when they are due,
// and when a token asks for it, until ctx ends. If another run is under way, it
// waits for its end.
func (s *keySource) run(ctx context.Context) {
	select {
	case s.runs <- struct{}{}:
		defer func() { <-s.runs }()
	case <-ctx.Done():
		return
	}
	if s.state.Load().loaded() {
		s.rest(ctx)
	}
	for ctx.Err() == nil {
		_ = s.refresh(ctx) // what came of it is in the state
		s.rest(ctx)
	}
}

// rest returns when the keys are to be fetched, or ctx ends.
func (s *keySource) rest(ctx context.Context) {
	due := time.NewTimer(time.Until(s.state.Load().nextAt))
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-due.C:
			return
		case <-s.wanted:
			// Somebody may have asked just before a fetch that has ended since.
			if s.state.Load().mayFetch() {
				return
			}
		}
	}
}

// refresh loads the keys once. A failure keeps those that there are.
func (s *keySource) refresh(ctx context.Context) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	before := s.state.Load()
	begun := *before
	begun.fetchAt, begun.underway = time.Now(), true
	s.publish(begun)

	set, maxAge, err := s.load(ctx)
	if s.hasOnlyOpaque(before, err) {
		set, err = jose.Set{}, nil
	}
	ended := begun
	ended.underway, ended.err = false, err
	if err != nil {
		ended.failures++
		ended.nextAt = time.Now().Add(backoff(ended.failures))
	} else {
		ended.failures = 0
		ended.keys, ended.skipped, ended.loadedAt = set.Keys.Reuse(before.keys), set.Skipped, begun.fetchAt
		ended.nextAt = begun.fetchAt.Add(s.interval(maxAge))
		ended.keptUntil = ended.nextAt.Add(fetchTimeout)
	}
	s.publish(ended)
	s.report(before, &ended)
	return err
}

// hasOnlyOpaque: the issuer publishes no keys, never did, and is asked about its
// tokens: those that look signed are not its own, and nothing is amiss.
func (s *keySource) hasOnlyOpaque(before *state, err error) bool {
	return errors.Is(err, errNoKeys) && s.cfg.Introspection != nil && before.keys.Len() == 0
}

// publish is called by the one who holds loading.
func (s *keySource) publish(next state) {
	next.replaced = make(chan struct{})
	close(s.state.Swap(&next).replaced)
}

// interval is the time between regular fetches, up to a tenth less than it
// should be, so that a fleet does not fetch in step.
func (s *keySource) interval(maxAge time.Duration) time.Duration {
	interval := s.cfg.RefreshInterval
	if maxAge >= 0 {
		interval = min(max(maxAge, minInterval), maxInterval)
	}
	// One failure must not make the keys stale.
	interval = min(interval, s.cfg.MaxStale/2)
	return interval - rand.N(interval/10)
}

func backoff(failures int) time.Duration {
	wait := min(minBackoff<<min(failures-1, 10), maxBackoff)
	return wait - wait/10 + rand.N(wait/5)
}
