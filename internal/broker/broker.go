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

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Bounds of the flows.
const (
	// FlightTimeout bounds a fetch including all of its waits.
	FlightTimeout = credential.FetchTimeout
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
	applied       store.Signal // fired when setup was replaced
	setting       sync.Mutex   // held during a replacement of setup
	entries       *shards
	store         *store.Metered
	mac           secret.MAC
	subscriptions *store.Subscriptions
	revoked       *revocation.Set
	secrets       *credential.Fleet
	audit         *audit.Log
	log           *slog.Logger
	metrics       *metrics

	// Flights end with this context, not with their callers' contexts.
	flying  context.Context //nolint:containedctx // it is the lifetime of the Broker's own work, ended by Close
	stop    context.CancelFunc
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
	secrets       *credential.Set
	about         About
	own           idp.Request
	entry         *entry // of own
	keys          clientKeys
	subscriptions []*store.Subscription // report purges and changes of secrets
	outcomes      outcomes

	// failure is a failure that concerns all requests of the client: throttling.
	failure backoff.Slot
	// epoch and fence are the highest values seen.
	epoch, fence atomic.Uint64
	// changed is fired when the tokens were purged.
	changed store.Signal
	purges  store.Coalescer
	// asked: a token of this client was requested.
	asked atomic.Bool

	mu    sync.Mutex
	probe chan struct{} // closed at the end of the fetch that tries the secret; nil: no such fetch
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
	if cfg.MAC == nil {
		cfg.MAC = secret.NewMAC()
	}
	b := &Broker{
		store:         store.NewMetered(cfg.Store, cfg.Logger),
		mac:           cfg.MAC,
		subscriptions: store.NewSubscriptions(),
		entries:       newShards(cfg.MaxEntries),
		audit:         cfg.Audit,
		log:           cfg.Logger,
		metrics:       newMetrics(),
	}
	b.revoked = revocation.New(revocation.Config{
		Store: b.store, Tag: "{" + b.name("revocations") + "}", Marker: cfg.Marker, PutBack: cfg.PutBack, Logger: cfg.Logger,
	})
	b.flying, b.stop = context.WithCancel(context.Background())
	b.secrets = &credential.Fleet{
		Store: b.store, Changes: store.ChangeCount{Store: b.store, Key: "{" + b.name("secrets") + "}changes"}, MAC: b.mac,
		Spawn: b.spawn, Lifetime: b.flying, Audit: b.audit, Log: b.log,
	}
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
	c.keys = clientKeysOf(b.mac, c.name, c.idp.Fingerprint())
	c.secrets = b.secrets.New(credential.Config{
		Client: c.name, IdP: c.idp, Source: cfg.Secret, Managed: cfg.Managed, Check: cfg.CheckSecret,
		Keys:       credential.Keys{History: c.keys.secrets, Proof: c.keys.proof, Refusals: c.keys.refusals},
		Prove:      func(ctx context.Context, v *credential.Version) *apierror.Error { return b.prove(ctx, c, v) },
		DropTokens: func(ctx context.Context) *apierror.Error { return b.dropTokens(ctx, c) },
	})
	c.entry = b.newEntry(c, keyOf(c.name, c.own), c.own)
	c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(func() { c.purges.Run(b.spawn, func() { b.lookAtCounters(b.flying, c) }) }, c.keys.epoch))
	if c.secrets.Kept() {
		c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(c.secrets.Reload, c.keys.secrets))
	}
	return c
}

func (b *Broker) newEntry(c *client, k key, ask idp.Request) *entry {
	return &entry{client: c, ask: ask, name: b.name("question", []byte(c.keys.config), k[:])}
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
	b.stop()
	b.working.Wait()
	b.eachEntry((*entry).evicted)
}
