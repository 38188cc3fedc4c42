// Package discovery finds out what an issuer publishes about itself: where its
// token endpoint and its keys are (OpenID Connect Discovery 1.0, RFC 8414). It
// believes a document only if that names the issuer it was asked for, and it
// refuses endpoints that would take a secret over plain http, or that are not on
// the public Internet while the issuer is, when they are to be used. They may be on other hosts than the
// issuer: those of many are.
//
// It is also the home of the manners that all HTTP of the broker keeps towards
// issuers: connections to public addresses alone unless others are meant, no
// redirects, bounded time, bounded bodies, and errors that show nothing of what
// a peer wrote.
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
	// hardly ever move; when one does, an hour is short enough.
	maxAge = time.Hour
	// refusedAge is how long metadata is used that names an endpoint which is
	// refused: the issuer may correct it.
	refusedAge = time.Minute
	// After a failure the issuer is left alone: at first for minBackoff, then
	// for twice as long each time, up to maxBackoff.
	minBackoff = time.Second
	maxBackoff = 30 * time.Second
)

// Config says whose metadata to find.
type Config struct {
	// Issuer is the issuer's identifier, an https URL, exactly as the issuer
	// writes it. It must pass [CheckURL].
	Issuer string
	// AllowHTTP lets the issuer and its endpoints be plain http on hosts that
	// are not loopback.
	AllowHTTP bool
	// AllowPrivate lets the issuer and its endpoints be at private and loopback
	// addresses. Without it they may be at loopback ones if the issuer is.
	AllowPrivate bool
	// HTTP is made by [Network.ClientFor], with the same leave. Nil: a client of
	// its own.
	HTTP *http.Client
}

// Metadata is what an issuer says about itself.
type Metadata struct {
	Issuer                string
	TokenEndpoint         Endpoint
	JWKSURI               Endpoint
	IntrospectionEndpoint Endpoint
	// MTLS are for clients that present a certificate (RFC 8705 section 5). An
	// endpoint without an alias is the usual one.
	MTLS Endpoints
}

// Endpoints are those that a client authenticates at.
type Endpoints struct {
	Token         Endpoint
	Introspection Endpoint
}

// Endpoint is one that an issuer's metadata may name. A flaw in it matters to
// those who use this endpoint only.
type Endpoint struct {
	url     string
	refused *Error // why the url is not used; nil: it passes [CheckURL]
}

// URL returns "" if the metadata names no such endpoint. The error is an [*Error]
// that says why the one that it names is refused.
func (e Endpoint) URL() (string, error) {
	if e.refused != nil {
		return "", e.refused
	}
	return e.url, nil
}

func (e Endpoint) or(other Endpoint) Endpoint {
	if e == (Endpoint{}) {
		return other
	}
	return e
}

func (m *Metadata) endpoints() []*Endpoint {
	return []*Endpoint{&m.TokenEndpoint, &m.JWKSURI, &m.IntrospectionEndpoint, &m.MTLS.Token, &m.MTLS.Introspection}
}

// keep puts the endpoints that were found before in place of those that are
// refused now, as the whole metadata is kept while it cannot be replaced.
func (m *Metadata) keep(before *Metadata) *Metadata {
	if before == nil {
		return m
	}
	known := before.endpoints()
	for i, e := range m.endpoints() {
		if e.refused != nil && known[i].url != "" {
			*e = *known[i]
		}
	}
	return m
}

// Issuer knows the metadata of one issuer, from the first time it is asked. It
// is safe for concurrent use.
type Issuer struct {
	cfg   Config
	state atomic.Pointer[state]

	mu     sync.Mutex
	flight chan struct{} // closed when the search under way has published; nil: none is
}

// state is what was learned so far. It is immutable.
type state struct {
	metadata *Metadata // nil: never found
	err      *Error    // why the last search failed; nil: it did not
	failures int       // in a row
	due      time.Time // no search begins before
}

// New returns an Issuer. It sends nothing yet.
func New(cfg Config) *Issuer {
	if cfg.HTTP == nil {
		cfg.HTTP = NewNetwork(nil).ClientFor(cfg.Issuer, cfg.AllowPrivate)
	}
	i := &Issuer{cfg: cfg}
	i.state.Store(&state{})
	return i
}

// URL returns the issuer, as it was configured.
func (i *Issuer) URL() string { return i.cfg.Issuer }

// Metadata returns the issuer's metadata. The first call waits until it is
// found, at most [Timeout], or until ctx ends; it is then kept for an hour, or a
// minute if one of its endpoints is refused, and replaced in the background, and kept for longer while it cannot be replaced.
// A failed search is remembered for a moment, so that calls in a row are one
// request. The error is always an [*Error].
func (i *Issuer) Metadata(ctx context.Context) (Metadata, error) {
	known := i.state.Load()
	if time.Now().Before(known.due) {
		return known.answer()
	}
	flight := i.join(ctx)
	if known.metadata == nil && flight != nil {
		select {
		case <-flight:
		case <-ctx.Done():
			return Metadata{}, &Error{
				Unreachable: true,
				text:        fmt.Sprintf("the metadata of the issuer %s did not come in time: %v", Printable(i.cfg.Issuer), ctx.Err()),
				cause:       ctx.Err(),
			}
		}
	}
	return i.state.Load().answer()
}

// join starts a search unless one is under way, and returns the channel that is
// closed at its end. Nil: somebody else's search ended just now.
func (i *Issuer) join(ctx context.Context) <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.flight == nil && !time.Now().Before(i.state.Load().due) {
		i.flight = make(chan struct{})
		go i.search(tracing.Detached(context.Background(), ctx), i.flight)
	}
	return i.flight
}

// search runs apart from the callers' contexts: the first to leave must not
// take the answer from the others.
func (i *Issuer) search(apart context.Context, flight chan struct{}) {
	ctx, cancel := context.WithTimeout(apart, Timeout)
	defer cancel()
	metadata, err := i.find(ctx)
	i.state.Store(i.state.Load().next(metadata, err, time.Now()))
	i.mu.Lock()
	i.flight = nil
	i.mu.Unlock()
	close(flight)
}

func (s *state) next(metadata *Metadata, err *Error, now time.Time) *state {
	if err == nil {
		age := maxAge
		for _, e := range metadata.endpoints() {
			if e.refused != nil {
				age = refusedAge
			}
		}
		return &state{metadata: metadata.keep(s.metadata), due: now.Add(age)}
	}
	backoff := min(minBackoff<<min(s.failures, 5), maxBackoff)
	return &state{metadata: s.metadata, err: err, failures: s.failures + 1, due: now.Add(backoff)}
}

func (s *state) answer() (Metadata, error) {
	if s.metadata == nil {
		return Metadata{}, s.err
	}
	return *s.metadata, nil
}
