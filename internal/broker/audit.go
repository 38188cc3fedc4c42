package broker

import (
	"context"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// recordGiven records that a caller receives a token. On an error the token must not be
// given.
func (b *Broker) recordGiven(ctx context.Context, caller *policy.Caller, e *entry, a Answer) *apierror.Error {
	if b.audit == nil {
		return nil
	}
	given := e.given.Load()
	if given == nil || given.SHA256() != a.Token.SHA256 {
		given = b.newlyGiven(e, a.Token)
	}
	if given.To(ctx, caller.ID(), a.Origin.String(), a.Degraded) != nil {
		return authz.Unrecorded()
	}
	return nil
}

// newlyGiven returns the audit record of a token that was not given before, or that
// the entry no longer holds.
func (b *Broker) newlyGiven(e *entry, tok *token.Token) *audit.Given {
	e.mu.Lock()
	defer e.mu.Unlock()
	if given := e.given.Load(); given != nil && given.SHA256() == tok.SHA256 {
		return given
	}
	of := audit.Event{
		Client: e.client.name, Resources: e.ask.Resources, Scopes: e.ask.Scopes, GrantedScopes: tok.Scopes,
		TokenSHA256: tok.SHA256, ExpiresAt: tok.ExpiresAt, SecretVersion: tok.SecretVersion,
	}
	if e.ask.Audience != "" {
		of.Audiences = []string{e.ask.Audience}
	}
	if s := e.subject; s != nil {
		of.Issuer, of.Subject, of.ClientID, of.TokenID, of.Actors = s.facts.Issuer, s.facts.Subject, s.facts.ClientID, s.facts.TokenID, s.actors
		if s.facts.SubjectType != verify.SubjectSub {
			of.SubjectType = s.facts.SubjectType.String()
		}
	}
	given := b.audit.Given(of)
	if current := e.token.Load(); current == nil || current.SHA256 != tok.SHA256 {
		return given // a late caller: the record of the newer token stays
	}
	e.given.Swap(given).Close()
	if e.gone.Load() {
		given.Close()
	}
	return given
}

// evicted marks the entry as removed from the cache; goroutines that hold it may still
// use it.
func (e *entry) Evicted() {
	e.gone.Store(true)
	e.given.Load().Close()
}

// sumUp periodically records how often tokens were given again.
func (b *Broker) sumUp(ctx context.Context) {
	for b.audit != nil && backoff.Sleep(ctx, nil, audit.SumInterval) {
		b.eachEntry(func(e *entry) { e.given.Load().Sum() })
	}
}

// eachEntry calls do for every entry of the current clients, and of former ones until
// eviction.
func (b *Broker) eachEntry(do func(*entry)) {
	for _, c := range b.setup.Load().clients {
		do(c.entry)
	}
	b.entries.Each(do)
	b.subjects.Each(do)
}

// deniedToken records a denied token request with the client's defaults filled in.
func (b *Broker) deniedToken(ctx context.Context, caller *policy.Caller, client string, judged idp.Request, reason string) {
	if b.audit == nil {
		return
	}
	e := &audit.Event{
		Event: audit.Token, Outcome: audit.Denied, Caller: caller.Name(), Peer: b.audit.From(ctx), Reason: reason,
		Client: client, Resources: judged.Resources, Scopes: judged.Scopes,
	}
	if judged.Audience != "" {
		e.Audiences = []string{judged.Audience}
	}
	b.audit.Record(e)
}

// verification records the result for a presented token, if the audit log is
// configured for it. On an error the result must not be returned.
func (b *Broker) verification(ctx context.Context, caller *policy.Caller, presented redact.String, ask verify.Request, result verify.Result, err *apierror.Error) *apierror.Error {
	e := audit.Event{Event: audit.Verification}
	wanted := audit.RejectedVerifications
	switch {
	case err != nil && err.Code == apierror.PermissionDenied:
		e.Outcome, e.Reason, wanted = audit.Denied, err.Reason, audit.NoVerifications
	case err != nil:
		e.Outcome, e.Reason, wanted = audit.Undecided, err.Reason, audit.AllVerifications
	case result.Rejection != nil:
		e.Outcome, e.Rejection = audit.Rejected, result.Rejection.Reason.String()
	default:
		e.Outcome, wanted = audit.Active, audit.AllVerifications
	}
	if b.audit == nil || b.audit.Verifications() < wanted {
		return nil
	}
	e.Caller, e.Peer, e.TokenSHA256 = caller.Name(), b.audit.From(ctx), presented.SHA256()
	e.Audiences, e.Scopes, e.Issuer = ask.Audience, ask.Scopes, ask.Issuer
	if e.Outcome != audit.Active {
		b.audit.Record(&e)
		return nil
	}
	f := result.Facts
	e.Issuer, e.Subject, e.ClientID, e.TokenID, e.GrantedScopes, e.ExpiresAt = f.Issuer, f.Subject, f.ClientID, f.TokenID, f.Scopes, f.ExpiresAt
	if f.SubjectType != verify.SubjectSub {
		e.SubjectType = f.SubjectType.String()
	}
	if b.audit.Permit(&e) != nil {
		return authz.Unrecorded()
	}
	return nil
}

// authorizeOn authorizes an operator action on a client and returns the client. A client
// that does not exist and one on which the caller may not act yield the same error.
func (b *Broker) authorizeOn(caller *policy.Caller, action policy.Action, name string) (*client, *apierror.Error) {
	if err := b.actions.Authorize(caller, action, name); err != nil {
		return nil, err
	}
	if c := b.client(name); c != nil {
		return c, nil
	}
	return nil, authz.NotPermitted(caller, action, name)
}
