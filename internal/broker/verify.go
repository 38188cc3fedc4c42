package broker

import (
	"context"
	"errors"
	"fmt"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Verify says whether a presented token is good. A bad token is a result, not an
// error; the error is always an [*Error] and means that the broker could not
// decide.
func (b *Broker) Verify(ctx context.Context, presented redact.String, ask verify.Request) (verify.Result, error) {
	result, err := b.verifier.Verify(ctx, presented, ask)
	if err == nil && result.Rejection == nil {
		result, err = b.unrevoked(ctx, result)
	}
	b.metrics.verification(result, err)
	if err != nil {
		return verify.Result{}, b.undecided(ctx, err)
	}
	return result, nil
}

func (b *Broker) undecided(ctx context.Context, err error) *Error {
	if ctx.Err() != nil {
		return gaveUp(ctx)
	}
	if told, ok := errors.AsType[*Error](err); ok {
		return told
	}
	unavailable, ok := errors.AsType[*verify.UnavailableError](err)
	if !ok {
		b.log.ErrorContext(ctx, "a verification failed in a way that is not foreseen", "error", err)
		return Fault(err)
	}
	reason, what := ReasonKeysUnavailable, fmt.Sprintf("the keys of issuer %q are not to be had", unavailable.Issuer)
	if unavailable.Introspection {
		reason, what = ReasonUnintrospected, fmt.Sprintf("issuer %q cannot be asked about its opaque tokens", unavailable.Issuer)
	}
	return &Error{
		Code:       Unavailable,
		Reason:     reason,
		RetryAfter: unavailable.RetryAfter,
		Metadata:   map[string]string{"issuer": unavailable.Issuer},
		Message:    what + ", so the token can neither be accepted nor refused; try again, and treat it as not verified until then",
		cause:      err,
	}
}
