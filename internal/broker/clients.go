package broker

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/store"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/token"
)

// About is the part of a client's configuration that operators see.
type About struct {
	ClientID string
	// Issuer or TokenURL is empty. TokenURL has no query, which may hold a key.
	Issuer, TokenURL string
	// Auth is the authentication method, such as client_secret_basic.
	Auth string
	// Secret is the reference to its secret, such as file:/run/secrets/orders.
	Secret string
}

// outcomes are the latest results of fetches of a client, as far as this replica knows.
type outcomes struct {
	// good is the entry of a recent successful request.
	good atomic.Pointer[entry]
	// served describes the newest token from the IdP.
	served atomic.Pointer[served]
	failed atomic.Pointer[lastFailure]
}

type served struct {
	fence   uint64
	at      time.Time
	version string // version of the secret
}

// obtained records a token that the IdP issued to any replica.
func (c *client) obtained(e *entry, tok *token.Token) {
	c.secrets.Issued(tok)
	for {
		before := c.outcomes.served.Load()
		if before != nil && before.fence >= tok.Fence {
			return
		}
		if c.outcomes.served.CompareAndSwap(before, &served{tok.Fence, tok.MintedAt, tok.SecretVersion}) {
			c.outcomes.good.Store(e)
			return
		}
	}
}

// lastSuccess returns when the IdP last issued a token; zero: never, as far as is known.
func (c *client) lastSuccess() time.Time {
	if last := c.outcomes.served.Load(); last != nil {
		return last.at
	}
	return time.Time{}
}

// ClientState is the status of a client.
type ClientState int

// The states.
const (
	ClientIdle      ClientState = iota + 1 // no token was requested yet
	ClientOK                               // the last fetch succeeded
	ClientFailing                          // the last fetch failed; a held token may still serve
	ClientRefused                          // the IdP refuses the client's secrets
	ClientThrottled                        // the IdP throttles the client
	ClientNoSecret                         // it has no secret to authenticate with
)

// ClientStatus is a client and its status, as this replica sees it.
type ClientStatus struct {
	Name  string
	About About
	State ClientState
	// Versions are newest first.
	Versions []credential.VersionStatus
	// Generation of the secret's history: replicas that differ have not seen a change yet.
	Generation uint64
	// InUse is the version that obtained the newest token. Empty: not known.
	InUse string
	// Fallback: InUse is not the current version, and the time for propagation is over.
	Fallback bool
	// Of the token for the client's own audience and scopes; zero: no token is cached.
	TokenExpiresAt, NextRefreshAt time.Time
	// Zero: never.
	LastSuccess, LastFailure time.Time
	LastError                string
	// Resolved: a fetch has succeeded since the last failure.
	Resolved bool
	// BackoffUntil is the earliest time of the next request to the IdP. Zero: at once.
	BackoffUntil time.Time
}

// Clients returns the clients that the caller may list, sorted by name. The error is always
// an [*apierror.Error].
func (b *Broker) Clients(ctx context.Context, caller *policy.Caller) ([]ClientStatus, error) {
	var listed []*client
	clients := b.setup.Load().clients
	for _, name := range slices.Sorted(maps.Keys(clients)) {
		if caller.MayDo(policy.ListClients, name) {
			listed = append(listed, clients[name])
		}
	}
	b.lookAtFailures(ctx, listed...)
	now := time.Now()
	statuses := make([]ClientStatus, len(listed))
	for i, c := range listed {
		statuses[i] = c.status(now)
	}
	var err error
	if len(statuses) == 0 && !caller.MayDo(policy.ListClients, "") {
		err = authz.NotPermitted(caller, policy.ListClients, "")
	}
	b.actions.Record(ctx, caller, policy.ListClients, err, audit.Event{})
	return statuses, err
}

// Client returns one client. The error is always an [*apierror.Error].
func (b *Broker) Client(ctx context.Context, caller *policy.Caller, name string) (ClientStatus, error) {
	c := b.client(name)
	var err error
	if c == nil || !caller.MayDo(policy.GetClient, name) {
		err = authz.NotPermitted(caller, policy.GetClient, name)
	}
	b.actions.Record(ctx, caller, policy.GetClient, err, audit.Event{Client: name})
	if err != nil {
		return ClientStatus{}, err
	}
	if c.secrets.Kept() {
		b.secrets.Load(ctx, c.secrets) // so that a caller sees its own latest change
	}
	b.lookAtFailures(ctx, c)
	return c.status(time.Now()), nil
}

func (c *client) status(now time.Time) ClientStatus {
	u := c.secrets.View()
	s := ClientStatus{
		Name: c.name, About: c.about, State: c.state(u, now), Versions: u.DescribeAll(), Generation: u.History.Generation,
		LastSuccess: c.lastSuccess(), Fallback: c.fallback(u),
	}
	if last := c.outcomes.served.Load(); last != nil {
		s.InUse = last.version
	}
	if tok := c.entry.token.Load(); c.entry.usable(tok, now, 0) {
		s.TokenExpiresAt, s.NextRefreshAt = tok.ExpiresAt, tok.RefreshAt
	}
	if f := c.outcomes.failed.Load(); f != nil {
		s.LastFailure, s.LastError, s.Resolved = f.at, f.message, c.unresolved() == nil
	}
	if t := c.entry.activeFailure(now); t != nil {
		s.BackoffUntil = t.Until
	}
	return s
}

func (c *client) state(u *credential.View, now time.Time) ClientState {
	throttled := func(t *backoff.Failure) bool { return t.Active(now) && t.Class == idp.Throttled }
	failure := c.unresolved()
	switch {
	case c.secrets.Missing() != nil:
		return ClientNoSecret
	case throttled(c.failure.Load()):
		return ClientThrottled
	case c.recovered(u):
		return ClientOK
	case u.Failing(), failure.counts(u) && failure.class == idp.CredentialRefused:
		return ClientRefused
	case c.entry.failing(), failure.counts(u):
		return ClientFailing
	case c.outcomes.served.Load() == nil:
		return ClientIdle
	default:
		return ClientOK
	}
}

// fallback reports whether the newest token was obtained with a version other than the
// current one, although the current one has had time to propagate.
func (c *client) fallback(u *credential.View) bool {
	last := c.outcomes.served.Load()
	return last != nil && u.Outdated(last.version, last.at)
}

// failureMemory is how long replicas share the last failure of a client.
const failureMemory = 24 * time.Hour

// lastFailure is the last failed fetch of a client on any replica. It is for operators and
// delays no fetch.
type lastFailure struct {
	class   idp.Class
	version string // of the secret
	message string
	at      time.Time // by the clock of the replica that failed
	// fence of the failed fetch or, if resolved, of a later success.
	fence    uint64
	resolved bool
}

type storedFailure struct {
	Form     int       `json:"v"` // backoff.Form, which numbers the classes
	Class    idp.Class `json:"class"`
	Version  string    `json:"version"`
	Message  string    `json:"message"`
	At       time.Time `json:"at"`
	Resolved bool      `json:"resolved,omitempty"`
}

func (f *lastFailure) put(key string) store.Put {
	value, err := json.Marshal(storedFailure{backoff.Form, f.class, f.version, f.message, f.at, f.resolved})
	if err != nil {
		panic("broker: strings and times that JSON cannot hold")
	}
	return store.Put{Key: key, Number: f.fence, Value: value, TTL: failureMemory}
}

// failedAs records a failure with a version of the secret, and returns it for the other
// replicas.
func (c *client) failedAs(t *backoff.Failure, version string) store.Put {
	f := &lastFailure{class: t.Class, version: version, message: t.Err.Message, at: t.At, fence: t.Fence}
	c.keepNewer(f)
	return f.put(c.keys.lastFailure)
}

// resolvedBy records that a fetch succeeded after the last failure. It returns the store
// writes for the other replicas, empty if there was no failure.
func (c *client) resolvedBy(fence uint64) []store.Put {
	f := c.outcomes.failed.Load()
	if f == nil || f.resolved || f.fence > fence {
		return nil
	}
	resolved := *f
	resolved.fence, resolved.resolved = fence, true
	c.keepNewer(&resolved)
	return []store.Put{resolved.put(c.keys.lastFailure)}
}

// adoptLastFailure adopts the last failure from the store.
func (c *client) adoptLastFailure(stored store.Entry) {
	var s storedFailure
	if len(stored.Value) == 0 || json.Unmarshal(stored.Value, &s) != nil || s.Form != backoff.Form {
		return
	}
	c.keepNewer(&lastFailure{class: s.Class, version: s.Version, message: s.Message, at: s.At, fence: stored.Number, resolved: s.Resolved})
}

// keepNewer keeps the newer of two failures, by fence.
func (c *client) keepNewer(next *lastFailure) {
	for {
		before := c.outcomes.failed.Load()
		newer := before == nil || next.fence > before.fence || next.fence == before.fence && (next.resolved || !before.resolved)
		if !newer || c.outcomes.failed.CompareAndSwap(before, next) {
			return
		}
	}
}

// unresolved returns the last failure unless a fetch has succeeded since. A success that
// only its token reports counts too.
func (c *client) unresolved() *lastFailure {
	f := c.outcomes.failed.Load()
	if f == nil || f.resolved {
		return nil
	}
	if last := c.outcomes.served.Load(); last != nil && last.fence >= f.fence && last.at.After(f.at) {
		return nil
	}
	return f
}

// counts reports whether a failure affects the client, rather than only a new secret that
// was refused when it was proved.
func (f *lastFailure) counts(u *credential.View) bool {
	return f != nil && (f.class != idp.CredentialRefused || u.Current == nil || f.version == u.Current.ID)
}

// recovered reports whether the fleet has fetched a token since every failure that
// this replica remembers.
func (c *client) recovered(u *credential.View) bool {
	f := c.outcomes.failed.Load()
	if f == nil || !f.resolved {
		return false
	}
	remembered := []*backoff.Failure{c.entry.failure.Load(), c.failure.Load()}
	for _, v := range u.All() {
		remembered = append(remembered, v.Refusal())
	}
	return !slices.ContainsFunc(remembered, func(t *backoff.Failure) bool { return t != nil && t.Fence >= f.fence })
}

// lookAtFailures reads the last failures of clients. Without the store, this replica shows
// its own state.
func (b *Broker) lookAtFailures(ctx context.Context, clients ...*client) {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	store.GetEach(ctx, b.store, clients, store.MaxKeys, func(c *client) string { return c.keys.lastFailure }, (*client).adoptLastFailure)
}
