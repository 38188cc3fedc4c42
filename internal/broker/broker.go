// Package broker makes the decisions of a token broker: it selects the token for a
// request ([Broker.Get]) and verifies presented tokens ([Broker.Verify]). It is
// independent of the protocols of its callers; APIs translate its values and
// [apierror.Error].
//
// It keeps one caller's requests from costing the IdP more than another's: equivalent
// requests share one token, one fetch and one failure, and a failure is returned from
// memory until the time to retry.
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
	// FlightTimeout bounds a fetch including all of its waits.
	FlightTimeout = 25 * time.Second
	// ForcedInterval is the minimum time between fetches that callers force while a
	// good token is held.
	ForcedInterval = 30 * time.Second
	// DefaultMaxEntries is the maximum number of tokens held besides the clients'
	// defaults.
	DefaultMaxEntries = 200_000

	// minRefreshHint is the shortest time after which callers are advised to request
	// again.
	minRefreshHint = 5 * time.Second
	// rememberLifetime is how long the observed token lifetime of an IdP decides
	// requests for a longer one.
	rememberLifetime = 5 * time.Minute
	// maxRounds is the maximum number of flights that one caller waits for, if they
	// bring good tokens that do not suit this caller.
	maxRounds = 3
	// maxStagger spreads the refreshes of replicas that cannot coordinate.
	maxStagger = 500 * time.Millisecond
	// maxPurged bounds the attempts of a fetch whose tokens are purged while they are
	// fetched.
	maxPurged = 3
)

// Config configures a Broker.
type Config struct {
	Setup

	// Store is the state shared with other replicas. The Broker does not close it.
	// Nil: a private store in memory.
	Store store.Store
	// MAC is the keyed hash for names in the store; its key is secret and the same in
	// all replicas. Nil: a key of this process, which suffices for a store that is not
	// shared.
	MAC func(data []byte) [32]byte
	// Marker shows whether the store is used with another ring. Nil: nothing is
	// sealed.
	Marker revocation.Marker
	// PutBack is how long a replica that has just started waits for others to restore
	// the revocations that the store has lost; see [revocation.DefaultPutBack]. 0: the
	// store is not shared.
	PutBack time.Duration
	// Rings seal backups of secrets. Nil: no backups.
	Rings *sealed.RingFile
	// MaxEntries bounds the tokens held besides the clients' defaults. Zero:
	// DefaultMaxEntries.
	MaxEntries int
	// Audit records issued tokens and denied requests. The Broker does not close it.
	// Nil: no audit log.
	Audit *audit.Log
	// Logger receives failures. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are counted but not exposed.
	Registerer prometheus.Registerer
}

// Setup is the part of a Broker's configuration that [Broker.Apply] replaces as a
// whole.
type Setup struct {
	Clients []ClientConfig
	// Verifier serves Verify. Required.
	Verifier *verify.Verifier
	// Policy identifies and authorizes callers. Nil: there are no callers.
	Policy *policy.Policy
}

// ClientConfig is one OAuth client.
type ClientConfig struct {
	Name string
	IdP  *idp.Client
	// Secret follows the source of the client's secret. Nil: the secret is Managed, or
	// the client needs no secret.
	Secret *secret.Source
	// Managed: operators supply the secret (RotateSecret), and the store keeps it.
	Managed bool
	// CheckSecret returns an error for a secret of the wrong form for this client.
	// Nil: any text is accepted.
	CheckSecret func(value redact.String) error
	// About is the description for operators.
	About About
	// Defaults of requests that omit them.
	Audience  string
	Resources []string
	Scopes    []string
}

// Broker serves requests. All its methods are safe for concurrent use.
type Broker struct {
	setup         atomic.Pointer[setup]
	applied       signal     // fired when setup was replaced
	setting       sync.Mutex // held during a replacement of setup
	entries       *shards
	store         *store.Metered
	names         names
	subscriptions *store.Subscriptions
	revoked       *revocation.Set
	changes       store.ChangeCount // of the histories of secrets
	rings         *sealed.RingFile  // nil: no backups
	audit         *audit.Log
	log           *slog.Logger
	metrics       *metrics

	// Flights end with this context, not with their callers' contexts.
	flying  context.Context //nolint:containedctx // it is the lifetime of the Broker's own work, ended by Close
	land    context.CancelFunc
	working sync.WaitGroup
	mu      sync.Mutex // orders working.Go against Close
	closed  bool
}

// setup is the immutable state made from a Setup.
type setup struct {
	clients  map[string]*client
	verifier *verify.Verifier
	policy   *policy.Policy
}

// client is one OAuth client and the state that its entries share.
type client struct {
	name          string
	idp           *idp.Client
	secrets       *secrets
	about         About
	own           idp.Request
	entry         *entry // of own
	keys          clientKeys
	subscriptions []*store.Subscription // report purges and changes of secrets
	fares         fares

	// failure is a failure that concerns all requests of the client: throttling.
	failure backoff.Slot
	// epoch and fence are the highest values seen.
	epoch, fence atomic.Uint64
	// changed is fired when the tokens were purged.
	changed signal
	purges  store.Coalescer
	// asked: a token of this client was requested.
	asked atomic.Bool

	// verdict is fired when a secret obtained a token or was refused.
	verdict signal

	mu sync.Mutex
	// proven is the last secret version that obtained a token and was not refused
	// since. Without one, fetches go one at a time; after provenUntil a few go
	// together until one of them succeeds.
	proven       string
	provenUntil  time.Time
	provenBy     uint64        // fence of the fetch that proved it
	fetchedAlone uint64        // number of fetches without a lease since then
	probe        chan struct{} // closed at the end of the fetch that tries the secret; nil: no such fetch
}

// New makes a Broker. It sends no request to an IdP.
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
	c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(func() { c.purges.Run(b.spawn, func() { b.lookAtCounters(b.flying, c) }) }, c.keys.epoch))
	if c.secrets.kept() {
		c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(func() { c.secrets.news.Run(b.spawn, func() { b.lookAtSecrets(b.flying, c) }) }, c.keys.secrets))
	}
	return c
}

func (b *Broker) newEntry(c *client, k key, ask idp.Request) *entry {
	return &entry{client: c, ask: ask, name: b.names.question(c, k)}
}

// spawn runs work in a goroutine that Close awaits, unless the Broker is closed.
func (b *Broker) spawn(work func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.working.Go(work)
	return true
}

// Close ends all fetches and waits for them. Callers that wait for a fetch receive the
// error [ShuttingDown].
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.land()
	b.working.Wait()
	b.eachEntry((*entry).goes)
}
