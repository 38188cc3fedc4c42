// Package broker is what a token broker decides: which token answers a question
// ([Broker.Get]), and whether a presented token is good ([Broker.Verify]). It
// knows no protocol of its callers; APIs translate, this package answers with
// values and with [apierror.Error].
//
// It refuses to let one caller's question cost the IdP more than anybody
// else's: questions that mean the same share one token, one fetch and one
// failure, and a failure is answered from memory until it is time to try again.
package broker

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
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
	// maxRounds is how many flights a caller waits for whose first ones brought
	// tokens that are good, but not for this caller.
	maxRounds = 3
	// maxStagger spreads the refreshes of replicas that cannot ask each other.
	maxStagger = 500 * time.Millisecond
	// maxPurged is how often a fetch is made anew because its token was purged
	// while it was under way.
	maxPurged = 3
)

// Config is what a Broker is made of.
type Config struct {
	Setup

	// Store is what this replica shares with others. It is not closed. Nil: a
	// store of this broker's own, in memory.
	Store store.Store
	// MAC is the keyed hash that names things in the store; its key is secret,
	// and the same in all replicas. Nil: one of this process, which is enough for
	// a store that nobody shares.
	MAC func(data []byte) [32]byte
	// Marker shows whether the store is used with another ring. Nil: nothing is sealed.
	Marker revocation.Marker
	// PutBack is how long a replica that has just started waits for others to put back
	// the revocations that the store has lost; see [revocation.DefaultPutBack]. 0: nobody else uses
	// the store.
	PutBack time.Duration
	// Rings seal backups of secrets. Nil: there are none.
	Rings *sealed.RingFile
	// MaxEntries bounds the tokens held besides the clients' own defaults.
	// Zero: DefaultMaxEntries.
	MaxEntries int
	// Audit is where it is written down who was given what, and who was refused. It
	// is not closed. Nil: nowhere.
	Audit *audit.Log
	// Logger is told of failures. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are counted but not shown.
	Registerer prometheus.Registerer
}

// Setup is the part of a Broker's configuration that [Broker.Apply] replaces, as
// one.
type Setup struct {
	Clients []ClientConfig
	// Verifier answers Verify. Required.
	Verifier *verify.Verifier
	// Policy recognises callers. Nil: there are none.
	Policy *policy.Policy
}

// ClientConfig is one OAuth client.
type ClientConfig struct {
	Name string
	IdP  *idp.Client
	// Secret follows the source of the client's secret. Nil: the secret is Managed,
	// or none is needed.
	Secret *secret.Source
	// Managed: operators bring the secret (RotateSecret), and it is kept in the
	// store.
	Managed bool
	// CheckSecret says what is wrong with the form of a secret, if it cannot be one
	// of this client. Nil: any text will do.
	CheckSecret func(value redact.String) error
	// About is what operators are told of it.
	About About
	// Defaults for questions that leave them open.
	Audience  string
	Resources []string
	Scopes    []string
}

// Broker answers questions. All its methods are safe for concurrent use.
type Broker struct {
	setup         atomic.Pointer[setup]
	applied       signal     // fired when setup was replaced
	setting       sync.Mutex // held by the one who replaces setup
	entries       *shards
	store         *store.Metered
	names         names
	subscriptions *store.Subscriptions
	revoked       *revocation.Set
	changes       store.ChangeCount // of the histories of secrets
	rings         *sealed.RingFile  // nil: there are none
	audit         *audit.Log
	log           *slog.Logger
	metrics       *metrics

	// Flights end with this context, not with their callers'.
	flying  context.Context //nolint:containedctx // it is the lifetime of the Broker's own work, ended by Close
	land    context.CancelFunc
	working sync.WaitGroup
	mu      sync.Mutex // orders working.Go against Close
	closed  bool
}

// setup is what a Setup was made into. It is immutable.
type setup struct {
	clients  map[string]*client
	verifier *verify.Verifier
	policy   *policy.Policy
}

// client is one OAuth client and what all its entries have in common.
type client struct {
	name          string
	idp           *idp.Client
	secrets       *secrets
	about         About
	own           idp.Request
	entry         *entry // of own
	keys          clientKeys
	subscriptions []*store.Subscription // tell of purges, and of other secrets
	fares         fares

	// failure is a failure that concerns all requests of the client: throttling.
	failure backoff.Slot
	// epoch and fence are the highest that were seen.
	epoch, fence atomic.Uint64
	// changed is fired when the tokens were purged.
	changed signal
	purges  store.Coalescer
	// asked: somebody wanted a token of this client.
	asked atomic.Bool

	// verdict is fired when a secret obtained a token or was refused.
	verdict signal

	mu sync.Mutex
	// proven is the secret version that was the last to obtain a token and was not
	// refused since. Until there is one, fetches go one at a time; after provenUntil
	// a few go together until one of them succeeds.
	proven       string
	provenUntil  time.Time
	provenBy     uint64        // fence of the fetch that showed it
	fetchedAlone uint64        // number of fetches without a lease since then
	probe        chan struct{} // closed when the fetch that tries the secret is over; nil: none does
}

// New makes a Broker. It asks no IdP anything yet.
func New(cfg Config) (*Broker, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.MaxEntries <= 0 {
		cfg.MaxEntries = DefaultMaxEntries
	}
	if cfg.Store == nil {
		cfg.Store = store.NewMemory(store.MemoryConfig{})
	}
	b := &Broker{
		store:         store.NewMetered(cfg.Store, cfg.Logger),
		names:         newNames(cfg.MAC),
		subscriptions: store.NewSubscriptions(),
		entries:       newShards(cfg.MaxEntries),
		rings:         cfg.Rings,
		audit:         cfg.Audit,
		log:           cfg.Logger,
		metrics:       newMetrics(),
	}
	b.revoked = revocation.New(revocation.Config{
		Store: b.store, Tag: "{" + b.names.name("revocations") + "}", Marker: cfg.Marker, PutBack: cfg.PutBack, Logger: cfg.Logger,
	})
	b.changes.Store, b.changes.Key = b.store, "{"+b.names.name("secrets")+"}changes"
	b.flying, b.land = context.WithCancel(context.Background())
	b.subscriptions.Subscribe(func() { b.revoked.Wake(b.flying, b.spawn) }, b.revoked.Keys()...)
	b.setup.Store(&setup{})
	if err := b.Apply(cfg.Setup); err != nil {
		return nil, err
	}
	b.metrics.register(cfg.Registerer, b)
	return b, nil
}

func (b *Broker) newClient(cfg ClientConfig) *client {
	c := &client{
		name:  cfg.Name,
		idp:   cfg.IdP,
		about: cfg.About,
		own: idp.Request{
			Audience:  cfg.Audience,
			Resources: cfg.Resources,
			Scopes:    canonicalScopes(cfg.Scopes),
		},
	}
	c.keys = b.names.client(c.name, c.idp.Fingerprint())
	c.secrets = newSecrets(cfg, b.names.mac, c.keys.refusals)
	c.entry = b.newEntry(c, keyOf(c.name, c.own), c.own)
	c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(func() { c.purges.Run(b.spawn, func() { b.lookAtEpochs(b.flying, c) }) }, c.keys.epoch))
	if c.secrets.kept() {
		c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(func() { c.secrets.news.Run(b.spawn, func() { b.lookAtSecrets(b.flying, c) }) }, c.keys.secrets))
	}
	return c
}

func (b *Broker) newEntry(c *client, k key, ask idp.Request) *entry {
	return &entry{client: c, ask: ask, name: b.names.question(c, k)}
}

// spawn runs a part of the Broker's own work, unless the Broker is closed.
func (b *Broker) spawn(work func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.working.Go(work)
	return true
}

// Close ends all fetches and waits for them. Whoever waits for one is told that
// this replica shuts down.
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.land()
	b.working.Wait()
	b.eachEntry((*entry).goes)
}
