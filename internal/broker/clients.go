package broker

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
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

// fares is the status of a client, as far as this replica knows.
type fares struct {
	// good is the entry of a recent successful request.
	good atomic.Pointer[entry]
	// served describes the newest token from the IdP.
	served atomic.Pointer[served]
	failed atomic.Pointer[lastFailure]
}

type served struct {
	fence uint64
	at    time.Time
	with  string // version of the secret
}

// obtained records a token that the IdP issued to any replica.
func (c *client) obtained(e *entry, tok *token.Token) {
	if v := c.secrets.now().named(tok.SecretVersion); v != nil {
		v.refused.Succeeded(tok.Fence)
		atLeast(&v.usedAt, tok.MintedAt.UnixNano())
	}
	for {
		before := c.fares.served.Load()
		if before != nil && before.fence >= tok.Fence {
			return
		}
		if c.fares.served.CompareAndSwap(before, &served{tok.Fence, tok.MintedAt, tok.SecretVersion}) {
			c.fares.good.Store(e)
			return
		}
	}
}

func atLeast(to *atomic.Int64, value int64) {
	for {
		before := to.Load()
		if before >= value || to.CompareAndSwap(before, value) {
			return
		}
	}
}

// lastSuccess returns when the IdP last issued a token; zero: never, as far as is known.
func (c *client) lastSuccess() time.Time {
	if last := c.fares.served.Load(); last != nil {
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

// SecretVersion describes a version of a secret for operators.
type SecretVersion struct {
	ID        string
	State     secret.State
	Since     time.Time // when the state began
	CreatedAt time.Time
	CreatedBy string
	// LastSuccess is when it last obtained a token. RefusedAt is when it was last refused,
	// with no success since, as far as this replica knows. Zero: never. A version that was
	// retired because it was refused keeps RefusedAt.
	LastSuccess, RefusedAt time.Time
	// Here: this replica knows the value.
	Here bool
}

// ClientStatus is a client and its status, as this replica sees it.
type ClientStatus struct {
	Name  string
	About About
	State ClientState
	// Versions are newest first.
	Versions []SecretVersion
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
	found := make([]ClientStatus, len(listed))
	for i, c := range listed {
		found[i] = c.status(now)
	}
	var err error
	if len(found) == 0 && !caller.MayDo(policy.ListClients, "") {
		err = mayNotDo(caller, policy.ListClients, "")
	}
	b.acted(ctx, caller, policy.ListClients, err, audit.Event{})
	return found, err
}

// Client returns one client. The error is always an [*apierror.Error].
func (b *Broker) Client(ctx context.Context, caller *policy.Caller, name string) (ClientStatus, error) {
	c := b.client(name)
	var err error
	if c == nil || !caller.MayDo(policy.GetClient, name) {
		err = mayNotDo(caller, policy.GetClient, name)
	}
	b.acted(ctx, caller, policy.GetClient, err, audit.Event{Client: name})
	if err != nil {
		return ClientStatus{}, err
	}
	if c.secrets.kept() {
		b.lookAtSecrets(ctx, c) // so that a caller sees its own latest change
	}
	b.lookAtFailures(ctx, c)
	return c.status(time.Now()), nil
}

func (c *client) status(now time.Time) ClientStatus {
	u := c.secrets.now()
	s := ClientStatus{
		Name: c.name, About: c.about, State: c.state(u, now), Versions: u.describeAll(), Generation: u.history.Generation,
		LastSuccess: c.lastSuccess(), Fallback: c.fallback(u),
	}
	if last := c.fares.served.Load(); last != nil {
		s.InUse = last.with
	}
	if tok := c.entry.token.Load(); c.entry.usable(tok, now, 0) {
		s.TokenExpiresAt, s.NextRefreshAt = tok.ExpiresAt, tok.RefreshAt
	}
	if f := c.fares.failed.Load(); f != nil {
		s.LastFailure, s.LastError, s.Resolved = f.at, f.message, c.unresolved() == nil
	}
	if t := c.entry.activeFailure(now); t != nil {
		s.BackoffUntil = t.Until
	}
	return s
}

func (c *client) state(u *usable, now time.Time) ClientState {
	throttled := func(t *backoff.Failure) bool { return t.Active(now) && t.Class == idp.Throttled }
	failure := c.unresolved()
	switch {
	case c.secretless() != nil:
		return ClientNoSecret
	case throttled(c.failure.Load()):
		return ClientThrottled
	case c.recovered(u):
		return ClientOK
	case u.failing(), failure.counts(u) && failure.class == idp.CredentialRefused:
		return ClientRefused
	case c.entry.failing(), failure.counts(u):
		return ClientFailing
	case c.fares.served.Load() == nil:
		return ClientIdle
	default:
		return ClientOK
	}
}

// fallback reports whether the newest token was obtained with a version other than the
// current one, although the current one has had time to propagate.
func (c *client) fallback(u *usable) bool {
	last := c.fares.served.Load()
	current, there := u.history.In(secret.Current)
	return there && last != nil && last.with != current.ID && last.at.Sub(current.Since) >= propagation
}

// describeAll describes all known versions, newest first.
func (u *usable) describeAll() []SecretVersion {
	var all []SecretVersion
	for _, v := range u.all() {
		if _, recorded := u.history.Find(v.ID); !recorded { // only a source has it
			all = append(all, u.describe(v.ID))
		}
	}
	for _, record := range u.history.Versions {
		all = append(all, u.describe(record.ID))
	}
	return all
}

// describe describes one version.
func (u *usable) describe(id string) SecretVersion {
	told := SecretVersion{ID: id}
	if record, there := u.history.Find(id); there {
		told.State, told.Since, told.CreatedAt, told.CreatedBy = record.State, record.Since, record.CreatedAt, record.CreatedBy
		told.RefusedAt = record.RefusedAt
	}
	v := u.named(id)
	if v == nil {
		return told
	}
	told.Here = true
	if told.State == 0 || v == u.pending {
		told.State, told.Since = u.stateOf(v), v.SeenAt
	}
	if told.CreatedAt.IsZero() {
		told.CreatedAt = v.SeenAt
	}
	if at := v.usedAt.Load(); at > 0 {
		told.LastSuccess = time.Unix(0, at)
	}
	if t := v.refused.Load(); t != nil {
		told.RefusedAt = t.At
	}
	return told
}
