package fleet

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// RuleIDs returns the ids of all findings.
func RuleIDs() []string { return slices.Sorted(maps.Keys(rules)) }

func (p *Publisher) Publish(ctx context.Context) error  { return p.publish(ctx) }
func (p *Publisher) TakeSlot(ctx context.Context) error { return p.takeSlot(ctx) }
func (p *Publisher) Stop(ctx context.Context)           { p.stop(ctx) }

// Slot returns the slot of the replica; -1: none.
func (p *Publisher) Slot() int { return p.slot }

// ShiftClock writes the status again, with a clock that is ahead.
func (p *Publisher) ShiftClock(ctx context.Context, ahead time.Duration) {
	record := p.cfg.Record()
	record.Replica.Written = time.Now().Add(ahead)
	value, err := record.Encode()
	if err != nil {
		panic(err)
	}
	if applied, err := p.write(ctx, Beacon{Replica: record.Replica}, BeaconTTL, store.Put{Value: value, TTL: RecordTTL}); err != nil || !applied {
		panic("not written")
	}
}
