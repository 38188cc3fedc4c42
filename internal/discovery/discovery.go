// Package discovery fetches an issuer's metadata: the URLs of its token endpoint and its
// keys (OpenID Connect Discovery 1.0, RFC 8414). It accepts a document only if the
// document names the requested issuer. It refuses the use of an endpoint that would
// receive a secret over plain http, or that has a private address although the issuer
// is public. An endpoint may be on another host than the issuer, as is common.
//
// It also contains the rules for all HTTP requests to issuers: connections to public
// addresses only unless the configuration allows others, no redirects, bounded time,
// bounded bodies, and errors that quote nothing from a peer.
package discovery

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	// maxAge is how long metadata is used before it is fetched again. Endpoints
	// rarely change, so an hour is short enough.
	maxAge = time.Hour
	// invalidAge is maxAge for metadata with an invalid endpoint, which the issuer may
	// soon correct.
	invalidAge = time.Minute
	// After a failed search the next one waits for minBackoff, which doubles with each
	// further failure up to maxBackoff.
	minBackoff = time.Second
	maxBackoff = 30 * time.Second
)

// Config configures an [Issuer].
type Config struct {
	// Issuer is the issuer's identifier, an https URL, exactly as the issuer
	// publishes it. It must pass [CheckURL].
	Issuer string
	// AllowHTTP allows plain http for the issuer and its endpoints on hosts that are
	// not loopback.
	AllowHTTP bool
	// AllowPrivate allows private and loopback addresses for the issuer and its
	// endpoints. Without it, endpoints may be loopback if the issuer is.
	AllowPrivate bool
	// HTTP is the client for requests. Create it by [Network.ClientFor] with the same
	// AllowPrivate. Nil: a client of its own.
	HTTP *http.Client
}

// Metadata holds the parts of an issuer's metadata that the broker uses (RFC 8414
// section 2).
type Metadata struct {
	Issuer                string
	TokenEndpoint         Endpoint
	JWKSURI               Endpoint
	IntrospectionEndpoint Endpoint
	// MTLS are the endpoints for clients with a certificate (RFC 8705 section 5). An
	// endpoint without an alias equals the one above.
	MTLS Endpoints
}

// Endpoints are the endpoints at which a client authenticates.
type Endpoints struct {
	Token         Endpoint
	Introspection Endpoint
}

// Endpoint is an endpoint in an issuer's metadata. It carries its own error, so that an
// invalid endpoint affects only the callers that use it.
type Endpoint struct {
	url string
	err *Error // the url is invalid; nil: it passes [CheckURL]
}

// URL returns the endpoint's URL, or "" if the metadata does not name the endpoint. The
// error is an [*Error] if the named URL is refused.
func (e Endpoint) URL() (string, error) {
	if e.err != nil {
		return "", e.err
	}
	return e.url, nil
}

func (e Endpoint) orElse(other Endpoint) Endpoint {
	if e == (Endpoint{}) {
		return other
	}
	return e
}

func (m *Metadata) endpoints() []*Endpoint {
	return []*Endpoint{&m.TokenEndpoint, &m.JWKSURI, &m.IntrospectionEndpoint, &m.MTLS.Token, &m.MTLS.Introspection}
}

// keepValid replaces each endpoint that is invalid now by the valid one of before. In
// the same way, the whole metadata is used further while it cannot be fetched.
func (m *Metadata) keepValid(before *Metadata) *Metadata {
	if before == nil {
		return m
	}
	old := before.endpoints()
	for i, e := range m.endpoints() {
		if e.err != nil && old[i].url != "" {
			*e = *old[i]
		}
	}
	return m
}

// Issuer caches the metadata of one issuer. It is safe for concurrent use.
type Issuer struct {
	cfg   Config
	state atomic.Pointer[state]

	mu     sync.Mutex
	search chan struct{} // closed at the end of the search in progress; nil: none
}

// state is the result of the searches so far. It is immutable.
type state struct {
	metadata *Metadata // nil: never found
	err      *Error    // of the last search
	failures int       // consecutive
	due      time.Time // the earliest start of the next search
}

// New returns an Issuer. It sends no request before [Issuer.Metadata].
func New(cfg Config) *Issuer {
	if cfg.HTTP == nil {
		cfg.HTTP = NewNetwork(nil).ClientFor(cfg.Issuer, cfg.AllowPrivate)
	}
	i := &Issuer{cfg: cfg}
	i.state.Store(&state{})
	return i
}

// URL returns the configured issuer.
func (i *Issuer) URL() string { return i.cfg.Issuer }

// Metadata returns the issuer's metadata. The first call waits for a search, at most
// [Timeout] and at most until ctx ends. Later calls return the cached metadata at once.
// After an hour, or a minute if an endpoint is invalid, a call starts a search in the
// background; until it succeeds, the old metadata is used. A failed search is cached
// for 1 s to 30 s, so that calls in quick succession send one request. The error is
// always an [*Error].
func (i *Issuer) Metadata(ctx context.Context) (Metadata, error) {
	current := i.state.Load()
	if time.Now().Before(current.due) {
		return current.result()
	}
	search := i.join(ctx)
	if current.metadata == nil && search != nil {
		select {
		case <-search:
		case <-ctx.Done():
			return Metadata{}, &Error{
				Unreachable: true,
				text:        fmt.Sprintf("the metadata of the issuer %s did not arrive in time: %v", Printable(i.cfg.Issuer), ctx.Err()),
				cause:       ctx.Err(),
			}
		}
	}
	return i.state.Load().result()
}

// join starts a search unless one is in progress or none is due, and returns the channel
// that is closed at its end. It returns nil if another caller's search has just ended.
func (i *Issuer) join(ctx context.Context) <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.search == nil && !time.Now().Before(i.state.Load().due) {
		i.search = make(chan struct{})
		go i.runSearch(tracing.Detached(context.Background(), ctx), i.search)
	}
	return i.search
}

// runSearch runs on a context that is detached from its callers, so that a caller that
// gives up does not cancel the search for the others.
func (i *Issuer) runSearch(detached context.Context, done chan struct{}) {
	ctx, cancel := context.WithTimeout(detached, Timeout)
	defer cancel()
	metadata, err := i.find(ctx)
	i.state.Store(i.state.Load().next(metadata, err, time.Now()))
	i.mu.Lock()
	i.search = nil
	i.mu.Unlock()
	close(done)
}

func (s *state) next(metadata *Metadata, err *Error, now time.Time) *state {
	if err == nil {
		age := maxAge
		for _, e := range metadata.endpoints() {
			if e.err != nil {
				age = invalidAge
			}
		}
		return &state{metadata: metadata.keepValid(s.metadata), due: now.Add(age)}
	}
	backoff := min(minBackoff<<min(s.failures, 5), maxBackoff)
	return &state{metadata: s.metadata, err: err, failures: s.failures + 1, due: now.Add(backoff)}
}

func (s *state) result() (Metadata, error) {
	if s.metadata == nil {
		return Metadata{}, s.err
	}
	return *s.metadata, nil
}
