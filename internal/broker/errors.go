package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/tokenerror"
)

// outOfTime is the error of a flight that ended before its request to the IdP.
func (b *Broker) outOfTime(e *entry) *apierror.Error {
	if b.flying.Err() != nil {
		return tokenerror.ShuttingDown(e.client.name)
	}
	return tokenerror.Unavailable(e.client.name, apierror.ReasonIdPUnavailable, fmt.Sprintf("client %q: no token came in time", e.client.name))
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
		return tokenerror.ShuttingDown(c.name)
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return apierror.GaveUp(ctx)
	}
	return tokenerror.Unavailable(c.name, apierror.ReasonIdPUnavailable, fmt.Sprintf("client %q: the IdP did not answer in time", c.name))
}

func unconfirmedPurge(c *client, err error) *apierror.Error {
	return store.Unconfirmed(err, fmt.Sprintf("client %q: the store did not confirm the purge", c.name), "call again with the same request_id", map[string]string{"client": c.name})
}
