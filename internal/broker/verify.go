package broker

import (
	"context"
	"errors"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Verify verifies a presented token for a caller with that permission, against only the
// issuers that its grants name. A bad token is a result, not an error. The error is always
// an [*apierror.Error] and means that the broker could not decide, or that the caller lacks
// the permission.
func (b *Broker) Verify(ctx context.Context, caller *policy.Caller, presented redact.String, ask verify.Request) (verify.Result, error) {
	result, err := b.verify(ctx, caller, presented, ask)
	if unwritten := b.verification(ctx, caller, presented, ask, result, err); unwritten != nil {
		err = unwritten
	}
	if err != nil {
		return verify.Result{}, err
	}
	return result, nil
}

func (b *Broker) verify(ctx context.Context, caller *policy.Caller, presented redact.String, ask verify.Request) (verify.Result, *apierror.Error) {
	issuers, may := caller.MayVerify()
	if !may {
		return verify.Result{}, authz.MayNotVerify(caller, ask.Issuer, ask.Audience)
	}
	ask.Issuers = issuers
	result, err := b.verifyUnrevoked(ctx, presented, ask)
	b.metrics.Verification(result, err)
	if err != nil {
		return verify.Result{}, b.undecided(ctx, caller, ask, err)
	}
	return result, nil
}

// Identify verifies the JWT by which a caller identifies itself, which must be for this
// audience. Opaque tokens are not introspected: any peer that can connect could make the
// broker send an unlimited number of requests. The error is always an [*apierror.Error].
func (b *Broker) Identify(ctx context.Context, presented redact.String, audience string) (verify.Result, error) {
	ask := verify.Request{Audience: []string{audience}, Caller: true}
	result, err := b.verifyUnrevoked(ctx, presented, ask)
	if err != nil {
		return verify.Result{}, b.undecided(ctx, policy.Self(), ask, err)
	}
	return result, nil
}

func (b *Broker) verifyUnrevoked(ctx context.Context, presented redact.String, ask verify.Request) (verify.Result, error) {
	result, err := b.setup.Load().verifier.Verify(ctx, presented, ask)
	if err != nil || result.Rejection != nil {
		return result, err
	}
	switch revoked, err := b.revocations.Check(ctx, result.Facts); {
	case err != nil:
		return verify.Result{}, err
	case revoked:
		return verify.Result{Rejection: &verify.Rejection{Reason: verify.Revoked, Message: "The token was revoked."}}, nil
	default:
		return result, nil
	}
}

// Introspecting returns how many issuers have introspection of opaque tokens.
func (b *Broker) Introspecting() int { return b.setup.Load().verifier.Introspecting() }

func (b *Broker) undecided(ctx context.Context, caller *policy.Caller, ask verify.Request, err error) *apierror.Error {
	if errors.Is(err, verify.ErrNotPermitted) {
		return authz.MayNotVerify(caller, ask.Issuer, ask.Audience)
	}
	if ctx.Err() != nil {
		return apierror.GaveUp(ctx)
	}
	if unavailable, ok := errors.AsType[*verify.UnavailableError](err); ok {
		return unavailable.ForCallers() // without the error behind it, which names the client and its IdP
	}
	if failure, ok := errors.AsType[*apierror.Error](err); ok {
		return failure
	}
	b.log.ErrorContext(ctx, "a verification failed in a way that is not foreseen", "error", err)
	return apierror.Fault(err)
}
