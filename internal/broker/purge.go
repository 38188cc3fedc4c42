package broker

import (
	"context"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/epoch"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// activeCounters returns the counters of the clients with requested tokens or known purges
// in this replica, and of those on which the tokens of others depend.
func (b *Broker) activeCounters() []*epoch.Counters {
	var active []*epoch.Counters
	for _, c := range b.setup.Load().clients {
		if c.requested.Load() || c.idp.IssuesAssertions() || c.counters.Epoch() > 0 {
			active = append(active, c.counters)
		}
	}
	return active
}

// Purge is a request to purge tokens.
type Purge struct {
	Client string
	// Request identifies the call: a repetition within 24 h, on any replica, changes
	// nothing.
	Request string
	// Reason is the reason for the audit log.
	Reason string
}

// Purge makes all replicas drop every token of a client whose fetch began before now:
// at once if the store's event arrives, otherwise within 5 s. Nil means that the store
// has the purge; after an error, which is always an [*apierror.Error], a repetition is
// safe.
func (b *Broker) Purge(ctx context.Context, caller *policy.Caller, requested Purge) error {
	err := b.purge(ctx, caller, requested)
	b.actions.Record(ctx, caller, policy.PurgeTokens, err, audit.Event{Client: requested.Client, RequestID: requested.Request, Comment: requested.Reason})
	return err
}

func (b *Broker) purge(ctx context.Context, caller *policy.Caller, requested Purge) error {
	c, denied := b.authorizeOn(caller, policy.PurgeTokens, requested.Client)
	if denied != nil {
		return denied
	}
	opened, err := c.counters.AdvanceOnce(ctx, c.keys.Purge(b.name("purge", []byte(requested.Request))))
	if err != nil {
		return unconfirmedPurge(c, err)
	}
	b.log.Info("tokens purged", "client", c.name, "caller", caller.Name(), "epoch", opened)
	return nil
}
