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
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/cache"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/delegate"
	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/lease"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/secretsource"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/tokenkeys"
	"github.com/cezzis/tokenbroker/internal/tokenmetrics"
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
	// Private: no other replica uses Store, and its content ends with the process. Then
	// tokens are not put into it, because nobody would read the copies.
	Private bool
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
	// MaxSubjects bounds the tokens held on behalf of subjects. Zero: DefaultMaxSubjects.
	MaxSubjects int
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
	// Made configures the key that the broker makes; Managed is then true.
	Made credential.Made
	// Supplied is where another program keeps the secret, instead of operators; Managed is
	// then true. Nil: operators supply it.
	Supplied *secretsource.Source
	// CheckSecret returns an error for a secret of the wrong form for this client.
	// Nil: any text is accepted.
	CheckSecret func(value redact.String) error
	// Exchange configures the exchanges of a client, besides its IdP.
	Exchange delegate.Config
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
	entries       *cache.Cache[*entry]
	subjects      *cache.Cache[*entry] // on behalf of subjects
	store         *store.Metered
	private       bool // no other replica uses the store
	mac           secret.MAC
	subscriptions *store.Subscriptions
	leases        *lease.Leases
	revocations   *revocation.Service
	secrets       *credential.Fleet
	audit         *audit.Log
	actions       authz.Actions
	log           *slog.Logger
	metrics       *tokenmetrics.Metrics

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

func (s *setup) names() []string { return slices.Collect(maps.Keys(s.clients)) }

// client is one OAuth client and the state that its entries share.
type client struct {
	name          string
	idp           *idp.Client
	secrets       *credential.Set
	about         About
	own           idp.Request
	entry         *entry // of own
	keys          tokenkeys.Client
	delegate      *delegate.Client // nil: the client does not exchange
	exchange      delegate.Config
	subscriptions []*store.Subscription // report purges and changes of secrets

	// lastFailure is the last failed fetch on any replica, for operators.
	lastFailure backoff.LastSlot
	// good is the entry of a recent successful request.
	good atomic.Pointer[entry]
	// failure is a failure that concerns all requests of the client: throttling.
	failure   backoff.Slot
	counters  *epoch.Counters
	purges    store.Coalescer
	requested atomic.Bool // a token of this client was requested
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
		cfg.Store, cfg.Private = store.NewMemory(store.MemoryConfig{}), true
	}
	if cfg.MAC == nil {
		cfg.MAC = secret.NewMAC()
	}
	b := &Broker{
		store:         store.NewMetered(cfg.Store, cfg.Logger),
		private:       cfg.Private,
		mac:           cfg.MAC,
		subscriptions: store.NewSubscriptions(),
		entries:       cache.New[*entry](cfg.MaxEntries),
		subjects:      cache.New[*entry](cmp.Or(cfg.MaxSubjects, DefaultMaxSubjects)),
		audit:         cfg.Audit,
		log:           cfg.Logger,
		metrics:       tokenmetrics.New(),
	}
	b.leases = &lease.Leases{Store: b.store, Subscriptions: b.subscriptions}
	b.actions = authz.Actions{Audit: b.audit}
	b.revocations = &revocation.Service{
		Set: revocation.New(revocation.Config{
			Store: b.store, Tag: "{" + b.name("revocations") + "}", Marker: cfg.Marker, PutBack: cfg.PutBack, Logger: cfg.Logger,
		}),
		Actions: b.actions, MAC: b.mac, Logger: cfg.Logger,
		MaxTokenLife: func(issuer string) (time.Duration, bool) { return b.setup.Load().verifier.MaxTokenLife(issuer) },
	}
	b.flying, b.stop = context.WithCancel(context.Background())
	b.secrets = &credential.Fleet{
		Store: b.store, Changes: store.ChangeCount{Store: b.store, Key: "{" + b.name("secrets") + "}changes"}, MAC: b.mac,
		Spawn: b.spawn, Lifetime: b.flying, Audit: b.audit, Log: b.log,
	}
	revoked := b.revocations.Set
	b.subscriptions.Subscribe(func() { revoked.Wake(b.flying, b.spawn) }, revoked.Keys()...)
	b.setup.Store(&setup{})
	if err := b.Apply(cfg.Setup); err != nil {
		return nil, err
	}
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(b.metrics, b.store, b.revocations.Set, clientCollector{b})
	}
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
			Scopes:    idp.CanonicalScopes(cfg.Scopes),
		},
	}
	c.keys = tokenkeys.Of(b.mac, c.name, c.idp.Fingerprint())
	c.counters = &epoch.Counters{Store: b.store, EpochKey: c.keys.Epoch, FenceKey: c.keys.Fences}
	c.secrets = b.secrets.New(credential.Config{
		Client: c.name, IdP: c.idp, Source: cfg.Secret, Managed: cfg.Managed, Made: cfg.Made, Supplied: cfg.Supplied, Check: cfg.CheckSecret,
		Keys:        credential.Keys{History: c.keys.Secrets, Proof: c.keys.Proof, Refusals: c.keys.Refusals, Making: c.keys.Making, Supply: c.keys.Supply},
		ProvesByUse: cfg.Exchange.ProvesByUse,
		Prove:       func(ctx context.Context, v *credential.Version) *apierror.Error { return b.prove(ctx, c, v) },
		DropTokens: func(ctx context.Context) *apierror.Error {
			if err := c.counters.Advance(ctx); err != nil {
				return unconfirmedPurge(c, err)
			}
			return nil
		},
	})
	c.delegate, c.exchange = b.newDelegate(c, cfg.Exchange), cfg.Exchange
	c.entry = b.newEntry(c, c.own.Key(c.name), c.own)
	c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(func() { c.purges.Run(b.spawn, func() { epoch.Synchronize(b.flying, b.store, c.counters) }) }, c.keys.Epoch))
	if c.secrets.Kept() {
		c.subscriptions = append(c.subscriptions, b.subscriptions.Subscribe(c.secrets.Reload, c.keys.Secrets))
	}
	return c
}

func (b *Broker) newEntry(c *client, k idp.Key, ask idp.Request) *entry {
	return &entry{client: c, ask: ask, name: b.name("question", []byte(c.keys.Config), k[:])}
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
// error [tokenerror.ShuttingDown].
func (b *Broker) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.stop()
	b.working.Wait()
	b.eachEntry((*entry).Evicted)
}

// Apply replaces clients, issuers and policy together: a call uses either the old ones
// or the new ones, and a watch continues with the new ones. A client with the same
// IdP, Secret and settings keeps its tokens and failures; one with other settings
// keeps its purges. On an error the old setup stays.
func (b *Broker) Apply(next Setup) error {
	b.setting.Lock()
	defer b.setting.Unlock()
	before := b.setup.Load()
	created := &setup{clients: make(map[string]*client, len(next.Clients)), verifier: next.Verifier, policy: next.Policy}
	if created.policy == nil {
		created.policy = policy.New(policy.Config{})
	}
	named := map[string]bool{}
	for _, cfg := range next.Clients {
		if named[cfg.Name] {
			return fmt.Errorf("two clients are named %q", cfg.Name)
		}
		named[cfg.Name] = true
	}
	for _, cfg := range next.Clients {
		old := before.clients[cfg.Name]
		if old != nil && old.is(cfg) {
			created.clients[cfg.Name] = old
			continue
		}
		created.clients[cfg.Name] = b.newClient(cfg).after(old)
	}
	b.setup.Store(created)
	b.metrics.StartAtZero(created.names(), before.names())
	for name, old := range before.clients {
		if created.clients[name] != old {
			for _, subscription := range old.subscriptions {
				subscription.Close()
			}
			old.entry.Evicted()
		}
	}
	b.applied.Fire()
	return nil
}

// Rejudge makes every watch identify its caller again, after a change of the
// authorities that identify callers.
func (b *Broker) Rejudge() { b.applied.Fire() }

// is reports whether a client has this configuration.
func (c *client) is(cfg ClientConfig) bool {
	return c.idp == cfg.IdP && c.exchange == cfg.Exchange && c.secrets.Source == cfg.Secret && c.secrets.Managed == cfg.Managed && c.secrets.Made == cfg.Made && c.secrets.Supplied == cfg.Supplied && c.own.Audience == cfg.Audience &&
		slices.Equal(c.own.Resources, cfg.Resources) && slices.Equal(c.own.Scopes, idp.CanonicalScopes(cfg.Scopes))
}

// after takes over the state that belongs to the client's name, for as long as a
// client has that name, and the token if it is one for the same request to the same IdP.
func (c *client) after(old *client) *client {
	if old != nil {
		c.counters.Inherit(old.counters)
		c.secrets.Inherit(old.secrets)
		c.entry.after(old.entry)
	}
	return c
}

// Policy returns the current policy, which identifies callers. Their permissions are
// in [policy.Caller].
func (b *Broker) Policy() *policy.Policy { return b.setup.Load().policy }

// StoreHealth returns the health of the store's servers.
func (b *Broker) StoreHealth() []store.Health { return b.store.Servers() }

// Revocations returns the revocations, for operators.
func (b *Broker) Revocations() *revocation.Service { return b.revocations }

// Actions authorizes and records the actions of operators.
func (b *Broker) Actions() authz.Actions { return b.actions }

// client returns the client with this name, or nil.
func (b *Broker) client(name string) *client { return b.setup.Load().clients[name] }

// Secrets returns the secret of a client; nil if there is no such client.
func (b *Broker) Secrets(name string) *credential.Set {
	if c := b.client(name); c != nil {
		return c.secrets
	}
	return nil
}

// MadeKeys returns the credentials whose keys the broker makes.
func (b *Broker) MadeKeys() []*credential.Set {
	return slices.DeleteFunc(b.keptSecrets(), func(s *credential.Set) bool { return !s.Made.Makes() })
}

// Supplied returns the secrets that the broker reads from where other programs keep them.
func (b *Broker) Supplied() []*credential.Set {
	return slices.DeleteFunc(b.keptSecrets(), func(s *credential.Set) bool { return s.Supplied == nil })
}

// Credentials returns the secret of a client. The error says that the caller may not
// perform the action on the client, that there is no such client, or that the audit log
// cannot record the action.
func (b *Broker) Credentials(caller *policy.Caller, action policy.Action, name string) (*credential.Set, *apierror.Error) {
	c, err := b.authorizeOn(caller, action, name)
	if err != nil {
		return nil, err
	}
	return c.secrets, nil
}

const (
	// epochInterval is the interval for reading the epochs, in case the event of a
	// purge was lost. It bounds how long a purged token is still handed out.
	epochInterval = 5 * time.Second
	// awayInterval is the same while the store does not respond, so that its return is
	// noticed even without requests.
	awayInterval = time.Second
	// awayRounds is the number of those intervals after which the other state is read
	// anyway.
	awayRounds = int(epochInterval / awayInterval)
	// watchRounds is the number of rounds after which the watched tokens are read as
	// well.
	watchRounds = 6
)

// Run keeps this replica up to date with the others until ctx ends. Without it
// replicas still share tokens, but notice purges and replacements by others late.
func (b *Broker) Run(ctx context.Context) {
	var parts sync.WaitGroup
	parts.Go(func() { b.listen(ctx) })
	parts.Go(func() { b.poll(ctx) })
	parts.Go(func() { b.sumUp(ctx) })
	parts.Go(func() { credential.PollSources(ctx, b.keptSecrets) })
	parts.Wait()
}

// listen passes the events of the store on to the subscriptions.
func (b *Broker) listen(ctx context.Context) {
	for key := range b.store.Subscribe(ctx) {
		b.subscriptions.Notify(key)
	}
}

// poll reads the store periodically, in case an event was lost.
func (b *Broker) poll(ctx context.Context) {
	_, _ = b.revocations.Set.View(ctx) // on an error they are read when needed
	b.secrets.Load(ctx, b.keptSecrets()...)
	wait := epochInterval
	for round := 1; backoff.Sleep(ctx, nil, wait); round++ {
		if wait = epochInterval; !epoch.Synchronize(ctx, b.store, b.activeCounters()...) {
			wait = awayInterval
			if round%awayRounds != 0 {
				continue // the rest may be on a server that responds, but it can wait
			}
		}
		b.revocations.Set.Poll(ctx, round)
		b.secrets.Poll(ctx, round, b.keptSecrets())
		for _, c := range b.setup.Load().clients {
			c.delegate.RefreshActor()
		}
		if round%watchRounds == 0 {
			b.lookAtWatched(ctx)
		}
	}
}

// keptSecrets returns the secrets that have a history.
func (b *Broker) keptSecrets() []*credential.Set {
	var kept []*credential.Set
	for _, c := range b.setup.Load().clients {
		if c.secrets.Kept() {
			kept = append(kept, c.secrets)
		}
	}
	return kept
}
