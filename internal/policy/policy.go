// Package policy identifies callers and authorizes their requests. It is pure: a
// [Policy] is built from a configuration, does no I/O, and returns the same result
// for the same request.
//
// The default is deny: a caller has the grants of its roles only. A grant that leaves a
// value open means the configured value of the client or issuer; only "*" means any
// value. One grant must allow the whole request, because grants are not combined.
// A request without scopes is narrowed to those default scopes of the client that
// one grant allows.
//
// The result for a client that does not exist is the same as for one that the caller
// has no grant for.
package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"unique"
)

// Any stands for all values in a grant.
const Any = "*"

// Config configures a Policy. The Policy does not modify it and does not keep it.
type Config struct {
	Callers []CallerConfig
	Roles   map[string]Role
	// Clients are the defaults of all clients, by name.
	Clients map[string]Defaults
	// Issuers are the configured audiences of all issuers.
	Issuers map[string][]string
}

// Defaults are the configured values of a client. They apply to requests and to
// grants that leave the value open.
type Defaults struct {
	Audience  string
	Resources []string
	Scopes    []string
	// Exchanges reports that the client requests tokens on behalf of subjects only. Only
	// ExchangeGrants apply to it, never GetGrants, not even those for Any.
	Exchanges bool
}

// CallerConfig configures a caller: how it is identified, and its permissions.
type CallerConfig struct {
	Name string
	Match
	Roles []string
	// Limits of this caller, or nil for the common limits.
	Limits *Limits
}

// Limits bound the load of one caller. This package only stores them; the servers
// enforce them.
type Limits struct {
	// PerSecond is the rate of a token bucket in calls per second, and Burst its size.
	// Zero means no limit.
	PerSecond float64
	Burst     int
	// Concurrent bounds the calls in progress, and Watches the open watches. Zero
	// means no limit.
	Concurrent, Watches int
}

// Role is a set of grants.
type Role struct {
	Get      []GetGrant
	Exchange []ExchangeGrant
	Verify   []VerifyGrant
	Admin    []AdminGrant
}

// GetGrant allows a caller to get tokens of a client.
type GetGrant struct {
	// Client is the name of a client, or Any.
	Client string
	// Audiences, Resources and Scopes are the values that a request may name. Scopes
	// also bound what the IdP may grant. An empty list means the client's Defaults. A
	// list with the single item Any means all values, including scopes that the
	// configuration does not mention.
	Audiences []string
	Resources []string
	Scopes    []string
}

// VerifyGrant allows a caller to verify tokens of an issuer.
type VerifyGrant struct {
	// Issuer is the identifier of an issuer, compared byte for byte, or Any.
	Issuer string
	// Audiences are the audiences that a verified token may have. An empty list means
	// the issuer's configured audiences, and the single item Any means all.
	Audiences []string
}

// AdminGrant allows a caller to perform admin actions.
type AdminGrant struct {
	Actions []Action
	// Clients to which the actions may apply. An empty list or Any means all clients,
	// including removed ones.
	Clients []string
}

// Action is an admin action, which is an RPC of AdminService.
type Action string

// The actions.
const (
	ListClients      Action = "list_clients"
	GetClient        Action = "get_client"
	GetStatus        Action = "get_status"
	RotateSecret     Action = "rotate_secret"
	ActivateSecret   Action = "activate_secret"
	RollbackSecret   Action = "rollback_secret"
	RetireSecret     Action = "retire_secret"
	ExportSecret     Action = "export_secret"
	ImportSecret     Action = "import_secret"
	RotateKey        Action = "rotate_key"
	ListKeys         Action = "list_keys"
	PurgeTokens      Action = "purge_tokens"
	RevokeTokens     Action = "revoke_tokens"
	ListRevocations  Action = "list_revocations"
	DeleteRevocation Action = "delete_revocation"
	// AnyAction stands for all actions.
	AnyAction Action = Any
)

// Actions returns all actions in the order of the API.
func Actions() []Action {
	return []Action{
		ListClients, GetClient, GetStatus, RotateSecret, ActivateSecret, RollbackSecret, RetireSecret, ExportSecret, ImportSecret,
		RotateKey, ListKeys, PurgeTokens, RevokeTokens, ListRevocations, DeleteRevocation,
	}
}

// Policy holds the callers with their permissions. It is immutable and safe for
// concurrent use.
type Policy struct {
	callers  map[string]*Caller
	uris     map[string]*Caller
	patterns []pattern // of URIs, longest first
	dns      map[string]*Caller
	subjects map[string]*subjects // by issuer
	uids     map[uint32]*Caller
}

// New returns a Policy. It ignores grants that refer to a client, issuer or role that
// does not exist. The configuration is expected to be checked before.
func New(cfg Config) *Policy {
	p := &Policy{
		callers: map[string]*Caller{}, uris: map[string]*Caller{}, dns: map[string]*Caller{},
		subjects: map[string]*subjects{}, uids: map[uint32]*Caller{},
	}
	for _, c := range cfg.Callers {
		caller := newCaller(c, &cfg)
		p.callers[c.Name] = caller
		p.addMatch(c.Match, caller)
	}
	slices.SortFunc(p.patterns, func(a, b pattern) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	return p
}

// Named returns the caller with a name, or nil if there is none.
func (p *Policy) Named(name string) *Caller { return p.callers[name] }

// Names returns the names of all callers, sorted.
func (p *Policy) Names() []string { return slices.Sorted(maps.Keys(p.callers)) }

// Caller is a configured caller with its permissions under one Policy. It is
// immutable and safe for concurrent use. A nil Caller has no permissions.
type Caller struct {
	name   string
	id     unique.Handle[string] // of name
	limits *Limits
	get    map[string][]*getGrant
	// exchange has the grants by client.
	exchange map[string][]*exchangeGrant
	// subjects has the subject tokens that these grants admit, by client.
	subjects map[string]SubjectTokens
	verify   map[string][]string // audiences by issuer; nil means any
	admin    map[Action]*scope
	self     bool
}

// Self returns a caller with all permissions, for requests of the broker itself.
func Self() *Caller {
	const name = "the broker itself"
	return &Caller{name: name, id: unique.Make(name), self: true}
}

func newCaller(cfg CallerConfig, all *Config) *Caller {
	c := &Caller{
		name: cfg.Name, id: unique.Make(cfg.Name), limits: cfg.Limits,
		get: map[string][]*getGrant{}, exchange: map[string][]*exchangeGrant{}, subjects: map[string]SubjectTokens{}, verify: map[string][]string{}, admin: map[Action]*scope{},
	}
	for _, name := range cfg.Roles {
		role := all.Roles[name]
		for i := range role.Get {
			c.addGet(&role.Get[i], all.Clients)
		}
		for i := range role.Exchange {
			c.addExchange(&role.Exchange[i], all.Clients)
		}
		for _, grant := range role.Verify {
			c.addVerify(grant, all.Issuers)
		}
		for _, grant := range role.Admin {
			c.addAdmin(grant)
		}
	}
	return c
}

// Name returns the configured name, or "nobody" for a nil Caller.
func (c *Caller) Name() string {
	if c == nil {
		return "nobody"
	}
	return c.name
}

// ID returns a handle of the name that is cheap to compare. Callers of the same name
// in different policies have the same ID. ID panics for a nil Caller.
func (c *Caller) ID() unique.Handle[string] { return c.id }

// Limits returns the limits of this caller, or nil for the common limits.
func (c *Caller) Limits() *Limits {
	if c == nil {
		return nil
	}
	return c.limits
}

func (c *Caller) addGet(grant *GetGrant, clients map[string]Defaults) {
	for name, defaults := range clients {
		if grant.Client != name && grant.Client != Any || defaults.Exchanges {
			continue
		}
		resolved := grant.resolve(defaults)
		c.get[name] = append(c.get[name], &resolved)
	}
}

// resolve fills in the values that the grant leaves open.
func (g *GetGrant) resolve(defaults Defaults) getGrant {
	var audience []string
	if defaults.Audience != "" {
		audience = []string{defaults.Audience}
	}
	resolved := getGrant{
		audiences:   newScope(g.Audiences, audience),
		resources:   newScope(g.Resources, defaults.Resources),
		scopes:      newScope(g.Scopes, defaults.Scopes),
		listsScopes: len(g.Scopes) > 0,
		defaults:    sortedSet(defaults.Scopes),
	}
	resolved.narrowed = resolved.scopes.filter(resolved.defaults)
	return resolved
}

func (c *Caller) addVerify(grant VerifyGrant, issuers map[string][]string) {
	for issuer, audiences := range issuers {
		if grant.Issuer != issuer && grant.Issuer != Any {
			continue
		}
		allowed := newScope(grant.Audiences, audiences)
		if before, ok := c.verify[issuer]; ok {
			allowed = allowed.union(scope{all: before == nil, values: before})
		}
		if allowed.all {
			allowed.values = nil
		}
		c.verify[issuer] = allowed.values
	}
}

func (c *Caller) addAdmin(grant AdminGrant) {
	actions := grant.Actions
	if slices.Contains(actions, AnyAction) {
		actions = Actions()
	}
	for _, action := range actions {
		clients := grant.clients()
		if before := c.admin[action]; before != nil {
			clients = before.union(clients)
		}
		c.admin[action] = &clients
	}
}

func (g *AdminGrant) clients() scope {
	if len(g.Clients) == 0 {
		return scope{all: true}
	}
	return newScope(g.Clients, nil)
}

// getGrant is a GetGrant for one client, with the client's defaults filled in.
type getGrant struct {
	audiences, resources, scopes scope
	// listsScopes reports whether the GetGrant lists scopes itself.
	listsScopes bool
	// narrowed is the result of narrow for defaults, computed in advance.
	defaults, narrowed []string
}

// scope is a set of values, or the set of all values.
type scope struct {
	all    bool
	values []string // sorted
}

// newScope returns the values that a grant lists, or the configured ones if it lists
// none. Any has its special meaning in a grant only.
func newScope(granted, configured []string) scope {
	switch {
	case slices.Contains(granted, Any):
		return scope{all: true}
	case len(granted) == 0:
		return scope{values: sortedSet(configured)}
	default:
		return scope{values: sortedSet(granted)}
	}
}

func sortedSet(values []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(values)))
}

func (s *scope) union(other scope) scope {
	if s.all || other.all {
		return scope{all: true}
	}
	return scope{values: sortedSet(slices.Concat(s.values, other.values))}
}

// filter returns the values that are in the scope.
func (s *scope) filter(values []string) []string {
	var kept []string
	for _, value := range values {
		if s.has(value) {
			kept = append(kept, value)
		}
	}
	return kept
}

func (s *scope) has(value string) bool {
	if s.all {
		return true
	}
	_, ok := slices.BinarySearch(s.values, value)
	return ok
}

func (s *scope) hasAll(values []string) bool {
	if s.all {
		return true
	}
	for _, value := range values {
		if !s.has(value) {
			return false
		}
	}
	return true
}

func (s *scope) String() string {
	switch {
	case s.all:
		return "any"
	case len(s.values) == 0:
		return "none"
	default:
		return strings.Join(s.values, ", ")
	}
}
