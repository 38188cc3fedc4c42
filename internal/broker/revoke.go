package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Revoke makes verification refuse tokens from now on, in this replica at once and in the
// others within 5 s. asked has all fields except ID, CreatedAt and CreatedBy. Repeating a
// revocation with the same request has no further effect. The error is always an
// [*apierror.Error]; nil means that the store has it.
func (b *Broker) Revoke(ctx context.Context, caller *policy.Caller, asked revocation.Revocation, request string) (revocation.Revocation, error) {
	revoked, err := b.revoke(ctx, caller, asked, request)
	about := aboutRevocation(&asked)
	about.Revocation, about.RequestID = revoked.ID, request
	b.RecordAction(ctx, caller, policy.RevokeTokens, err, about)
	return revoked, err
}

func (b *Broker) revoke(ctx context.Context, caller *policy.Caller, asked revocation.Revocation, request string) (revocation.Revocation, error) {
	if denied := b.authorize(caller, policy.RevokeTokens, ""); denied != nil {
		return revocation.Revocation{}, denied
	}
	if err := b.checkRevocation(&asked, time.Now()); err != nil {
		return revocation.Revocation{}, err
	}
	t := asked.Target()
	before := strconv.FormatInt(asked.IssuedBefore.UnixNano(), 10)
	// The letter keeps an ID from beginning with a hyphen, which command lines take for
	// a flag.
	asked.ID = "r" + b.name("revocation", []byte(request), []byte(t.Issuer), []byte(t.Kind), []byte(t.Value), []byte(before))
	asked.CreatedAt, asked.CreatedBy = time.Now().UTC().Truncate(time.Millisecond), caller.Name()
	if err := b.revoked.Put(ctx, &asked); err != nil {
		return revocation.Revocation{}, notRevoked(err)
	}
	b.log.Info("tokens revoked", "issuer", t.Issuer, "kind", t.Kind, "revocation", asked.ID, "expires_at", asked.ExpiresAt, "caller", caller.Name())
	return *b.revoked.Find(asked.ID), nil
}

// checkRevocation refuses a revocation that would not have its apparent effect. One without
// an expiry gets one after that of any possible token.
func (b *Broker) checkRevocation(r *revocation.Revocation, now time.Time) *apierror.Error {
	life, known := b.setup.Load().verifier.MaxTokenLife(r.Issuer)
	if r.ExpiresAt.IsZero() {
		last := now
		if r.IssuedBefore.After(now) {
			last = r.IssuedBefore
		}
		r.ExpiresAt = last.Add(life + time.Second).UTC().Truncate(time.Second)
	}
	fault := func(field, format string, args ...any) *apierror.Error {
		return &apierror.Error{Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Field: field, Message: field + ": " + fmt.Sprintf(format, args...)}
	}
	named := 0
	for _, given := range []bool{r.TokenID != "", r.Subject != "", r.ClientID != "", r.All} {
		if given {
			named++
		}
	}
	switch {
	case !known:
		return fault("revocation.issuer", "not one of the issuers that are configured, which are compared byte by byte")
	case named != 1:
		return fault("revocation", "name exactly one of token_id, subject, client_id and all")
	case r.All && r.IssuedBefore.IsZero():
		return fault("revocation.issued_before", "it is required with all, which would refuse every token of the issuer for ever otherwise")
	case !r.ExpiresAt.After(now):
		return fault("revocation.expires_at", "it must be in the future")
	case r.ExpiresAt.After(now.Add(revocation.MaxRevocationLife)):
		return fault("revocation.expires_at", "it must be within 10 years")
	case !r.IssuedBefore.IsZero() && r.ExpiresAt.Before(r.IssuedBefore.Add(life)):
		return fault("revocation.expires_at", "tokens issued before issued_before may live until %s: a revocation that ends sooner would bring them back",
			r.IssuedBefore.Add(life).UTC().Format(time.RFC3339))
	default:
		return nil
	}
}

// notRevoked returns the error for a revocation that the store did not confirm.
func notRevoked(err error) *apierror.Error {
	if errors.Is(err, revocation.ErrTooManyRevocations) {
		return &apierror.Error{
			Code: apierror.ResourceExhausted, Reason: apierror.ReasonTooManyRevocations, Cause: err,
			Message: fmt.Sprintf("%d revocations are kept and no more: revoke by subject, client or issued_before instead of token by token, or wait until some expire", revocation.MaxRevocations),
		}
	}
	return store.Unconfirmed(err, "the store did not confirm the revocation, or its end", "ask again", nil)
}

// Revocations returns the active revocations of an issuer, or of all if it is empty, oldest
// first. The error is always an [*apierror.Error].
func (b *Broker) Revocations(ctx context.Context, caller *policy.Caller, issuer string) ([]revocation.Revocation, error) {
	listed, err := b.revocations(ctx, caller, issuer)
	b.RecordAction(ctx, caller, policy.ListRevocations, err, audit.Event{Issuer: issuer})
	return listed, err
}

func (b *Broker) revocations(ctx context.Context, caller *policy.Caller, issuer string) ([]revocation.Revocation, error) {
	if denied := b.authorize(caller, policy.ListRevocations, ""); denied != nil {
		return nil, denied
	}
	if _, err := b.revoked.View(ctx); err != nil {
		return nil, revocationsUnknown(err)
	}
	now := time.Now()
	var listed []revocation.Revocation
	for _, one := range b.revoked.All() {
		if !one.Deleted && !one.Over(now) && (issuer == "" || one.Issuer == issuer) {
			listed = append(listed, *one)
		}
	}
	return listed, nil
}

// Unrevocation selects a revocation to delete.
type Unrevocation struct {
	ID string
	// Request identifies the call.
	Request string
	// Reason is recorded in the audit log.
	Reason string
}

// Unrevoke deletes a revocation before it expires. Deleting it again has no effect.
// The error is always an [*apierror.Error].
func (b *Broker) Unrevoke(ctx context.Context, caller *policy.Caller, asked Unrevocation) error {
	deleted, err := b.unrevoke(ctx, caller, asked.ID)
	about := aboutRevocation(&deleted)
	about.Revocation, about.RequestID, about.Comment = asked.ID, asked.Request, asked.Reason
	b.RecordAction(ctx, caller, policy.DeleteRevocation, err, about)
	return err
}

func (b *Broker) unrevoke(ctx context.Context, caller *policy.Caller, id string) (ended revocation.Revocation, err error) {
	if denied := b.authorize(caller, policy.DeleteRevocation, ""); denied != nil {
		return revocation.Revocation{}, denied
	}
	if _, err := b.revoked.View(ctx); err != nil {
		return revocation.Revocation{}, revocationsUnknown(err)
	}
	known := b.revoked.Find(id)
	if known == nil {
		b.revoked.Poll(ctx, 0) // another replica may just have made it
		known = b.revoked.Find(id)
	}
	if known == nil || known.Over(time.Now()) {
		return revocation.Revocation{}, &apierror.Error{Code: apierror.NotFound, Reason: apierror.ReasonNoSuchRevocation, Message: "no revocation has this id; it may have expired"}
	}
	deleted := *known
	deleted.Deleted = true
	if err := b.revoked.Put(ctx, &deleted); err != nil {
		return *known, notRevoked(err)
	}
	b.log.Info("revocation deleted", "issuer", known.Issuer, "revocation", id, "caller", caller.Name())
	return *known, nil
}

// revocationsUnknown returns the error while the revocations are not known: any token may
// be revoked.
func revocationsUnknown(err error) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonRevocationsUnknown, RetryAfter: revocation.LoadInterval, Cause: err,
		Message: "this replica does not know all revocations, so it cannot accept any token; try again, and treat the token as not verified until then",
	}
}

// unrevoked checks a valid token against the revocations.
func (b *Broker) unrevoked(ctx context.Context, result verify.Result) (verify.Result, error) {
	set, err := b.revoked.View(ctx)
	if err != nil {
		return verify.Result{}, revocationsUnknown(err)
	}
	if set.Revokes(result.Facts, time.Now()) == nil {
		return result, nil
	}
	return verify.Result{Rejection: &verify.Rejection{Reason: verify.Revoked, Message: "The token was revoked."}}, nil
}
