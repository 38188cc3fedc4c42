package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
)

func forcedTooOften(client string) *apierror.Error {
	return &apierror.Error{
		Code:     apierror.ResourceExhausted,
		Reason:   apierror.ReasonForcedFetchLimited,
		Metadata: map[string]string{"client": client},
		Message:  fmt.Sprintf("client %q: the cached token does not live long enough for min_ttl, and a newer one was fetched less than %v ago; try again later, or with a lower min_ttl", client, ForcedInterval),
	}
}

func tooShort(client string, tok *token.Token) *apierror.Error {
	return &apierror.Error{
		Code:     apierror.FailedPrecondition,
		Reason:   apierror.ReasonMinTTLUnattainable,
		Metadata: map[string]string{"client": client, "lifetime": tok.Lifetime().Round(time.Second).String()},
		Message: fmt.Sprintf("client %q: the IdP issues tokens that live %v, which is too short for min_ttl; ask for less, or have the lifetime raised at the IdP",
			client, tok.Lifetime().Round(time.Second)),
	}
}

// unavailable returns an error after which a call can be repeated in a second.
func unavailable(client, reason, message string) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: reason, RetryAfter: time.Second,
		Metadata: map[string]string{"client": client}, Message: message,
	}
}

// ShuttingDown is the error for callers that this replica can no longer serve.
func ShuttingDown(client string) *apierror.Error {
	return unavailable(client, apierror.ReasonShuttingDown, "this replica is shutting down; call another one")
}

// outOfTime is the error of a flight that ended before its request to the IdP.
func (b *Broker) outOfTime(e *entry) *apierror.Error {
	if b.flying.Err() != nil {
		return ShuttingDown(e.client.name)
	}
	return unavailable(e.client.name, apierror.ReasonIdPUnavailable, fmt.Sprintf("client %q: no token came in time", e.client.name))
}

// crashed logs a panic by its type and stack, because its value may contain anything.
func (b *Broker) crashed(e *entry, cause any) *apierror.Error {
	b.log.Error("a fetch crashed", "client", e.client.name, "type", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
	return apierror.Fault(nil)
}

// notProved is the error of a proof without a result.
func (b *Broker) notProved(ctx context.Context, c *client) *apierror.Error {
	switch {
	case b.flying.Err() != nil:
		return ShuttingDown(c.name)
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return apierror.GaveUp(ctx)
	}
	return unavailable(c.name, apierror.ReasonIdPUnavailable, fmt.Sprintf("client %q: the IdP did not answer in time", c.name))
}

func unconfirmedPurge(c *client, err error) *apierror.Error {
	return store.Unconfirmed(err, fmt.Sprintf("client %q: the store did not confirm the purge", c.name), "call again with the same request_id", map[string]string{"client": c.name})
}
