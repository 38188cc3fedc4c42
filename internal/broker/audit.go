package broker

import (
	"context"
	"errors"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// giving writes down that a caller is given a token. What it returns is why the
// token must not be given.
func (b *Broker) giving(ctx context.Context, caller *policy.Caller, e *entry, a Answer) *apierror.Error {
	if b.audit == nil {
		return nil
	}
	given := e.given.Load()
	if given == nil || given.SHA256() != a.Token.SHA256 {
		given = b.newlyGiven(e, a.Token)
	}
	if given.To(ctx, caller.ID(), a.Origin.String(), a.Degraded) != nil {
		return unwritten()
	}
	return nil
}

// newlyGiven is where it is written down to whom a token is given that was given
// to nobody yet, or is the entry's no more.
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
	given := b.audit.Given(of)
	if current := e.token.Load(); current == nil || current.SHA256 != tok.SHA256 {
		return given // somebody was late: what is known of the newer token stays
	}
	e.given.Swap(given).Close()
	if e.gone.Load() {
		given.Close()
	}
	return given
}

// goes says that the entry is nobody's any more, but for those who have it in
// hands.
func (e *entry) goes() {
	e.gone.Store(true)
	e.given.Load().Close()
}

// sumUp writes down, from time to time, how often tokens were given again.
func (b *Broker) sumUp(ctx context.Context) {
	for b.audit != nil && sleep(ctx, nil, audit.SumInterval) {
		b.eachEntry(func(e *entry) { e.given.Load().Sum() })
	}
}

// eachEntry calls do for every entry of the clients there are, or lately were.
func (b *Broker) eachEntry(do func(*entry)) {
	for _, c := range b.setup.Load().clients {
		do(c.entry)
	}
	b.entries.each(do)
}

// deniedToken writes down that a caller may not have what it asked for, as it was
// judged: with the client's defaults.
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

// verification writes down what became of a presented token, where that is wanted.
// What it returns is why the answer must not be given.
func (b *Broker) verification(ctx context.Context, caller *policy.Caller, presented redact.String, ask verify.Request, result verify.Result, told *apierror.Error) *apierror.Error {
	e := audit.Event{Event: audit.Verification}
	wanted := audit.RejectedVerifications
	switch {
	case told != nil && told.Code == apierror.PermissionDenied:
		e.Outcome, e.Reason, wanted = audit.Denied, told.Reason, audit.NoVerifications
	case told != nil:
		e.Outcome, e.Reason, wanted = audit.Undecided, told.Reason, audit.AllVerifications
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
		return unwritten()
	}
	return nil
}

// mayAct is asked before an operator's wish is fulfilled: client is empty where it
// is about none.
func (b *Broker) mayAct(caller *policy.Caller, action policy.Action, client string) *apierror.Error {
	switch {
	case !caller.MayDo(action, client):
		return mayNotDo(caller, action, client)
	case b.audit.Ready() != nil:
		return unwritten()
	default:
		return nil
	}
}

// acted writes down what became of an operator's wish.
func (b *Broker) acted(ctx context.Context, caller *policy.Caller, action policy.Action, err error, e audit.Event) {
	if b.audit == nil {
		return
	}
	e.Event, e.Action, e.Caller, e.Peer, e.Outcome = audit.Admin, string(action), caller.Name(), b.audit.From(ctx), audit.OK
	if told, ok := errors.AsType[*apierror.Error](err); ok {
		e.Reason, e.Detail = told.Reason, told.Message
		switch told.Code {
		case apierror.PermissionDenied:
			e.Outcome = audit.Denied
		case apierror.InvalidArgument, apierror.NotFound, apierror.FailedPrecondition, apierror.ResourceExhausted:
			e.Outcome = audit.Refused
		default:
			e.Outcome = audit.Failed
		}
	}
	b.audit.Record(&e)
}

// aboutRevocation is a revocation as the audit has it.
func aboutRevocation(r *revocation.Revocation) audit.Event {
	return audit.Event{
		Revocation: r.ID, Issuer: r.Issuer, Subject: r.Subject, ClientID: r.ClientID, TokenID: r.TokenID,
		ExpiresAt: r.ExpiresAt, IssuedBefore: r.IssuedBefore, Comment: r.Reason,
	}
}
