package broker

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/lease"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
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
	// FailureClass is the class of the last failure.
	FailureClass idp.Class
	// Resolved: a fetch has succeeded since the last failure.
	Resolved bool
	// BackoffUntil is the earliest time of the next request to the IdP. Zero: at once.
	BackoffUntil time.Time
}

// Clients returns the clients that the caller may list, sorted by name. The error is always
// an [*apierror.Error].
func (b *Broker) Clients(ctx context.Context, caller *policy.Caller) ([]ClientStatus, error) {
	listed := b.setup.Load().sorted()
	listed = slices.DeleteFunc(listed, func(c *client) bool { return !caller.MayDo(policy.ListClients, c.name) })
	b.lookAtFailures(ctx, listed...)
	statuses := statusOf(listed, time.Now())
	var err error
	if len(statuses) == 0 && !caller.MayDo(policy.ListClients, "") {
		err = authz.NotPermitted(caller, policy.ListClients, "")
	}
	b.actions.Record(ctx, caller, policy.ListClients, err, audit.Event{})
	return statuses, err
}

// LocalClients returns the status of all clients, sorted by name, as far as this replica
// knows without the store.
func (b *Broker) LocalClients(now time.Time) []ClientStatus {
	return statusOf(b.setup.Load().sorted(), now)
}

// sorted returns the clients, sorted by name.
func (s *setup) sorted() []*client {
	return slices.SortedFunc(maps.Values(s.clients), func(a, b *client) int { return strings.Compare(a.name, b.name) })
}

func statusOf(clients []*client, now time.Time) []ClientStatus {
	statuses := make([]ClientStatus, len(clients))
	for i, c := range clients {
		statuses[i] = c.status(now)
	}
	return statuses
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
		Fallback: c.secrets.Fallback(),
	}
	if newest := c.secrets.Newest(); newest != nil {
		s.LastSuccess, s.InUse = newest.At, newest.Version
	}
	if tok := c.entry.token.Load(); c.entry.usable(tok, now, 0) {
		s.TokenExpiresAt, s.NextRefreshAt = tok.ExpiresAt, tok.RefreshAt
	}
	if f := c.lastFailure.Load(); f != nil {
		s.LastFailure, s.LastError, s.FailureClass, s.Resolved = f.At, f.Message, f.Class, c.secrets.Unresolved(f) == nil
	}
	if t := c.entry.activeFailure(now); t != nil {
		s.BackoffUntil = t.Until
	}
	return s
}

func (c *client) state(u *credential.View, now time.Time) ClientState {
	throttled := func(t *backoff.Failure) bool { return t.Active(now) && t.Class == idp.Throttled }
	last := c.lastFailure.Load()
	unresolved := c.secrets.Unresolved(last)
	switch {
	case c.secrets.Missing() != nil:
		return ClientNoSecret
	case throttled(c.failure.Load()):
		return ClientThrottled
	case u.Recovered(last, c.entry.failure.Load(), c.failure.Load()):
		return ClientOK
	case u.Failing(), u.AffectedBy(unresolved) && unresolved.Class == idp.CredentialRefused:
		return ClientRefused
	case c.entry.failing(), u.AffectedBy(unresolved):
		return ClientFailing
	case c.secrets.Newest() == nil:
		return ClientIdle
	default:
		return ClientOK
	}
}

// failedAs records a failure with a version of the secret, and returns it for the other
// replicas.
func (c *client) failedAs(t *backoff.Failure, version string) store.Put {
	last := &backoff.Last{Class: t.Class, Version: version, Message: t.Err.Message, At: t.At, Fence: t.Fence}
	c.lastFailure.Keep(last)
	return last.Put(c.keys.LastFailure)
}

// lookAtFailures reads the last failures of clients. Without the store, this replica shows
// its own state.
func (b *Broker) lookAtFailures(ctx context.Context, clients ...*client) {
	ctx, cancel := context.WithTimeout(ctx, lease.WriteTimeout)
	defer cancel()
	store.GetEach(ctx, b.store, clients, store.MaxKeys, func(c *client) string { return c.keys.LastFailure }, func(c *client, stored store.Entry) { c.lastFailure.AdoptStored(stored) })
}
