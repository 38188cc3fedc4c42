// Package broker is what a token broker decides: which token answers a question
// ([Broker.Get]), and whether a presented token is good ([Broker.Verify]). It
// knows no protocol of its callers; faces translate, this package answers with
// values and with [Error].
//
// It refuses to let one caller's question cost the IdP more than anybody
// else's: questions that mean the same share one token, one fetch and one
// failure, and a failure is answered from memory until it is time to try again.
package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Bounds of the flows.
const (
	// FlightTimeout bounds a fetch with all that it waits for.
	FlightTimeout = 25 * time.Second
	// ForcedInterval is how far apart fetches are that callers force while a
	// good token is held.
	ForcedInterval = 30 * time.Second
	// DefaultMaxEntries is how many tokens are held besides the clients' own
	// defaults.
	DefaultMaxEntries = 200_000

	// minRefreshHint is the nearest instant that callers are told to ask again.
	minRefreshHint = 5 * time.Second
	// rememberLifetime is how long the lifetime that an IdP gives is taken for
	// granted when a caller wants more.
	rememberLifetime = 5 * time.Minute
)

// Config is what a Broker is made of.
type Config struct {
	Clients []ClientConfig
	// Verifier answers Verify. Required.
	Verifier *verify.Verifier
	// MaxEntries bounds the tokens held besides the clients' own defaults.
	// Zero: DefaultMaxEntries.
	MaxEntries int
	// Logger is told of failures. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are counted but not shown.
	Registerer prometheus.Registerer
}

// ClientConfig is one OAuth client.
type ClientConfig struct {
	Name   string
	IdP    *idp.Client
	Secret *secret.Ring
	// Defaults for questions that leave them open.
	Audience  string
	Resources []string
	Scopes    []string
}

// Broker answers questions. All its methods are safe for concurrent use.
type Broker struct {
	clients  map[string]*client
	entries  *shards
	verifier *verify.Verifier
	log      *slog.Logger
	metrics  *metrics

	// flights end with this context, not with their callers'.
	flying  context.Context //nolint:containedctx // it is the lifetime of the Broker's own work, ended by Close
	land    context.CancelFunc
	flights sync.WaitGroup
	mu      sync.Mutex // orders flights.Add against Close
	closed  bool
}

// client is one OAuth client and what all its entries have in common.
type client struct {
	name   string
	idp    *idp.Client
	secret *secret.Ring
	own    idp.Request
	entry  *entry // of own

	// trouble that is not about one question: refused credentials, throttling.
	trouble atomic.Pointer[trouble]

	mu sync.Mutex
	// proven is the secret version that last obtained a token and was not
	// refused since. Until there is one, fetches go one at a time.
	proven string
	probe  *probe
}

// New makes a Broker. It asks no IdP anything yet.
func New(cfg Config) (*Broker, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = DefaultMaxEntries
	}
	b := &Broker{
		clients:  make(map[string]*client, len(cfg.Clients)),
		entries:  newShards(cfg.MaxEntries),
		verifier: cfg.Verifier,
		log:      cfg.Logger,
		metrics:  newMetrics(),
	}
	b.flying, b.land = context.WithCancel(context.Background())
	for _, c := range cfg.Clients {
		if b.clients[c.Name] != nil {
			return nil, fmt.Errorf("two clients are named %q", c.Name)
		}
		b.clients[c.Name] = newClient(c)
	}
	b.metrics.register(cfg.Registerer, b)
	return b, nil
}

func newClient(cfg ClientConfig) *client {
	c := &client{
		name:   cfg.Name,
		idp:    cfg.IdP,
		secret: cfg.Secret,
		own: idp.Request{
			Audience:  cfg.Audience,
			Resources: cfg.Resources,
			Scopes:    canonicalScopes(cfg.Scopes),
		},
	}
	c.entry = &entry{client: c, ask: c.own}
	return c
}

// Close ends all fetches and waits for them. Whoever waits for one is told that
// this replica shuts down.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.land()
	b.flights.Wait()
}
