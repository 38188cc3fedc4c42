// Package policy decides who may ask a broker for what. It is pure: a [Policy] is
// made of a configuration once, and then answers from memory, without I/O, the
// same for the same question.
//
// Everything is denied that is not granted. A caller is one of those that are
// configured, or nobody. What a grant leaves open is not "anything" but what the
// client or the issuer that it is about is configured with; anything is asked
// for by "*". A question is admitted if one grant admits all of it: grants are
// not mixed. A question that names no scopes is for those of the client's default
// scopes that one grant admits.
//
// A denial says the same of what does not exist and of what is another's.
package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"unique"
)

// Any stands for everything in a grant.
const Any = "*"

// Config is what a Policy is made of. Its parts are not changed and may be kept.
type Config struct {
	Callers []CallerConfig
	Roles   map[string]Role
	// Clients are those that exist, with the values that they are configured
	// with, by name.
	Clients map[string]Own
	// Issuers are those that exist, with the audiences that they are configured
	// with.
	Issuers map[string][]string
}

// Own are the values that a client is configured with: what it is asked for where
// a question leaves them open, and what a grant is for where it leaves them open.
type Own struct {
	Audience  string
	Resources []string
	Scopes    []string
}

// CallerConfig is a caller: how it is recognised, and what it may.
type CallerConfig struct {
	Name string
	Match
	Roles []string
	// Limits of this caller. Nil: those of all.
	Limits *Limits
}

// Limits bound what one caller may ask for at a time. The package only keeps
// them; who serves calls holds callers to them.
type Limits struct {
	// PerSecond is how many calls a second it may make in the long run, Burst how
	// many at once. Zero: as many as it likes.
	PerSecond float64
	Burst     int
	// Concurrent is how many calls it may have under way, Watches how many watches.
	// Zero: as many as it likes.
	Concurrent, Watches int
}

// Role is a set of grants.
type Role struct {
	Get    []GetGrant
	Verify []VerifyGrant
	Admin  []AdminGrant
}

// GetGrant lets a caller have tokens of a client.
type GetGrant struct {
	// Client is a client's name, or Any.
	Client string
	// Audiences, Resources and Scopes are what may be asked for, and scopes what
	// the IdP may grant. Empty: the client's own. Any as the only item: anything,
	// scopes that nobody here has heard of included.
	Audiences []string
	Resources []string
	Scopes    []string
}

// VerifyGrant lets a caller have tokens of an issuer verified.
type VerifyGrant struct {
	// Issuer is an issuer, byte for byte, or Any.
	Issuer string
	// Audiences are those that tokens may be verified for. Empty: the issuer's own.
	// Any as the only item: anything.
	Audiences []string
}

// AdminGrant lets a caller do what operators do.
type AdminGrant struct {
	Actions []Action
	// Clients that may be acted upon. Empty, or Any: all, and those which are gone.
	Clients []string
}

// Action is something that operators do.
type Action string

// The actions. Each is an RPC of AdminService.
const (
	ListClients      Action = "list_clients"
	GetClient        Action = "get_client"
	RotateSecret     Action = "rotate_secret"
	ActivateSecret   Action = "activate_secret"
	RollbackSecret   Action = "rollback_secret"
	RetireSecret     Action = "retire_secret"
	ExportSecret     Action = "export_secret"
	ImportSecret     Action = "import_secret"
	PurgeTokens      Action = "purge_tokens"
	RevokeTokens     Action = "revoke_tokens"
	ListRevocations  Action = "list_revocations"
	DeleteRevocation Action = "delete_revocation"
	// AnyAction stands for all of them.
	AnyAction Action = Any
)

// Actions returns all actions in the order of the API.
func Actions() []Action {
	return []Action{
		ListClients, GetClient, RotateSecret, ActivateSecret, RollbackSecret, RetireSecret, ExportSecret, ImportSecret,
		PurgeTokens, RevokeTokens, ListRevocations, DeleteRevocation,
	}
}

// Policy says who may ask for what. It is immutable and safe for concurrent use.
type Policy struct {
	callers  map[string]*Caller
	uris     map[string]*Caller
	patterns []pattern // of URIs, the longest first
	dns      map[string]*Caller
	subjects map[string]*subjects // by issuer
	uids     map[uint32]*Caller
}

// New makes a Policy. Whatever refers to what does not exist grants nothing: who
// reads configurations tells of it.
func New(cfg Config) *Policy {
	p := &Policy{
		callers: map[string]*Caller{}, uris: map[string]*Caller{}, dns: map[string]*Caller{},
		subjects: map[string]*subjects{}, uids: map[uint32]*Caller{},
	}
	for _, c := range cfg.Callers {
		made := newCaller(c, &cfg)
		p.callers[c.Name] = made
		p.admit(c.Match, made)
	}
	slices.SortFunc(p.patterns, func(a, b pattern) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	return p
}

// Named returns the caller of that name, nil if there is none.
func (p *Policy) Named(name string) *Caller { return p.callers[name] }

// Names returns the names of all callers, sorted.
func (p *Policy) Names() []string { return slices.Sorted(maps.Keys(p.callers)) }

// Caller is who asks: one of those who are configured, and what it may, by the
// policy that it is of. It is immutable and safe for concurrent use. A nil Caller
// is nobody and may nothing.
type Caller struct {
	name   string
	id     unique.Handle[string] // of name
	limits *Limits
	get    map[string][]*getGrant
	verify map[string][]string // by issuer: audiences; nil: any
	admin  map[Action]*scope
	self   bool
}

// Self is the broker itself, when it asks on nobody's behalf: it may everything.
func Self() *Caller {
	const name = "the broker itself"
	return &Caller{name: name, id: unique.Make(name), self: true}
}

func newCaller(cfg CallerConfig, all *Config) *Caller {
	c := &Caller{
		name: cfg.Name, id: unique.Make(cfg.Name), limits: cfg.Limits,
		get: map[string][]*getGrant{}, verify: map[string][]string{}, admin: map[Action]*scope{},
	}
	for _, name := range cfg.Roles {
		role := all.Roles[name]
		for i := range role.Get {
			c.grantGet(&role.Get[i], all.Clients)
		}
		for _, grant := range role.Verify {
			c.grantVerify(grant, all.Issuers)
		}
		for _, grant := range role.Admin {
			c.grantAdmin(grant)
		}
	}
	return c
}

// Name is what the configuration calls the caller; "nobody" where there is none.
func (c *Caller) Name() string {
	if c == nil {
		return "nobody"
	}
	return c.name
}

// ID stands for the name where callers are told apart often: it costs nothing to
// compare, and is the same for a caller of that name in another policy. Nobody has
// none: do not ask a nil Caller.
func (c *Caller) ID() unique.Handle[string] { return c.id }

// Limits of this caller alone; nil: those of all.
func (c *Caller) Limits() *Limits {
	if c == nil {
		return nil
	}
	return c.limits
}

func (c *Caller) grantGet(grant *GetGrant, clients map[string]Own) {
	for name, own := range clients {
		if grant.Client != name && grant.Client != Any {
			continue
		}
		full := grant.resolve(own)
		c.get[name] = append(c.get[name], &full)
	}
}

// resolve fills in what a grant leaves open.
func (g *GetGrant) resolve(own Own) getGrant {
	var audience []string
	if own.Audience != "" {
		audience = []string{own.Audience}
	}
	made := getGrant{
		audiences: newScope(g.Audiences, audience),
		resources: newScope(g.Resources, own.Resources),
		scopes:    newScope(g.Scopes, own.Scopes),
		named:     len(g.Scopes) > 0,
		defaults:  sortedSet(own.Scopes),
	}
	made.kept = made.scopes.those(made.defaults)
	return made
}

func (c *Caller) grantVerify(grant VerifyGrant, issuers map[string][]string) {
	for issuer, own := range issuers {
		if grant.Issuer != issuer && grant.Issuer != Any {
			continue
		}
		allowed := newScope(grant.Audiences, own)
		if before, granted := c.verify[issuer]; granted {
			allowed = allowed.and(scope{all: before == nil, values: before})
		}
		if allowed.all {
			allowed.values = nil
		}
		c.verify[issuer] = allowed.values
	}
}

func (c *Caller) grantAdmin(grant AdminGrant) {
	actions := grant.Actions
	if slices.Contains(actions, AnyAction) {
		actions = Actions()
	}
	for _, action := range actions {
		granted := grant.clients()
		if before := c.admin[action]; before != nil {
			granted = before.and(granted)
		}
		c.admin[action] = &granted
	}
}

// clients are those that may be acted upon.
func (g *AdminGrant) clients() scope {
	if len(g.Clients) == 0 {
		return scope{all: true}
	}
	return newScope(g.Clients, nil)
}

// getGrant is a grant with all that it leaves open filled in.
type getGrant struct {
	audiences, resources, scopes scope
	// named reports that the grant lists scopes itself.
	named bool
	// kept are the client's default scopes that the grant admits, and defaults all
	// of them: the result of narrow, computed once.
	defaults, kept []string
}

// scope is a set of values, or all that there are.
type scope struct {
	all    bool
	values []string // sorted
}

// newScope returns the values that a grant lists, or own if it lists none. Only a
// grant can mean everything: own values are taken literally.
func newScope(granted, own []string) scope {
	switch {
	case slices.Contains(granted, Any):
		return scope{all: true}
	case len(granted) == 0:
		return scope{values: sortedSet(own)}
	default:
		return scope{values: sortedSet(granted)}
	}
}

func sortedSet(values []string) []string {
	return slices.Compact(slices.Sorted(slices.Values(values)))
}

func (s *scope) and(other scope) scope {
	if s.all || other.all {
		return scope{all: true}
	}
	return scope{values: sortedSet(slices.Concat(s.values, other.values))}
}

// those returns the values that are in the scope.
func (s *scope) those(values []string) []string {
	var found []string
	for _, value := range values {
		if s.has(value) {
			found = append(found, value)
		}
	}
	return found
}

func (s *scope) has(value string) bool {
	if s.all {
		return true
	}
	_, found := slices.BinarySearch(s.values, value)
	return found
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
