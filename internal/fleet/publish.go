package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	mathrand "math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// Interval is the time between two writes of a replica.
	Interval = 10 * time.Second
	// RecordTTL is how long a record lives, and how long a slot that was leased is
	// reserved for its first record.
	RecordTTL = 3 * Interval
	// BeaconTTL is how long a replica that is gone is remembered.
	BeaconTTL = 10 * time.Minute
	// MaxSlots is the maximum number of replicas that publish their status.
	MaxSlots = 512
	// noSlotInterval is the time until a replica without a slot looks for one again. It
	// reads all slots for that, as a Watcher does.
	noSlotInterval = MaxSlots * watchShare
	// maxRefusals is how often a replica tries to lease a slot in one round.
	maxRefusals = 16

	// publishTimeout bounds one round, and the farewell.
	publishTimeout = 5 * time.Second
	stopTimeout    = time.Second
	// sequenceBits of a record's number count the writes under one fence: four months.
	sequenceBits = 20
)

var (
	errNoSlot     = errors.New("the fleet has more replicas than there are slots for their status")
	errSlotsTaken = errors.New("many replicas look for a slot for their status at the same time")
)

// Beacon is the part of a record that outlives it for some minutes, so that the loss of a
// replica shows. Its form never changes.
type Beacon struct {
	Replica

	// Stopped: the replica has shut down in an orderly way.
	Stopped bool `json:"stopped,omitempty"`
}

// PublisherConfig configures a Publisher.
type PublisherConfig struct {
	Store store.Store
	// MAC is a keyed hash that all replicas share. Nil: the store is not shared.
	MAC func(data []byte) [32]byte
	// Record returns the present status of this replica. Its Replica.ID must not change;
	// the Publisher sets the time of writing.
	Record func() Record
	Logger *slog.Logger
}

// Publisher publishes the status of this replica in the store, under a slot that no other
// replica has.
//
// A slot is taken with a lease. The lease is not renewed, which would cost a second write:
// each record has a higher number than the one before, and the fence of the lease is the
// upper part of the number. A replica that took the slot later has a higher fence; the
// records of the earlier one are then not applied, and it takes another slot.
type Publisher struct {
	cfg   PublisherConfig
	names names

	slot     int // -1: none
	lease    store.Lease
	sequence uint64
	count    atomic.Int64 // the highest count of slots that was seen
	failing  bool         // the last round failed
}

// NewPublisher returns a Publisher without a slot.
func NewPublisher(cfg PublisherConfig) *Publisher {
	return &Publisher{cfg: cfg, names: names{cfg.MAC}, slot: -1}
}

// Run publishes the status at once and then every Interval, until ctx ends. It then gives
// the slot back.
func (p *Publisher) Run(ctx context.Context) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	defer p.stop(context.WithoutCancel(ctx))
	for {
		err := p.publish(ctx)
		p.note(err)
		if errors.Is(err, errNoSlot) {
			ticker.Reset(noSlotInterval)
		} else {
			ticker.Reset(Interval)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// note logs when publishing begins to fail and when it works again.
func (p *Publisher) note(err error) {
	if failed := err != nil; failed != p.failing {
		p.failing = failed
		if failed {
			p.cfg.Logger.Warn("the other replicas cannot see the status of this one", "error", err)
		} else {
			p.cfg.Logger.Info("the other replicas can see the status of this one again")
		}
	}
}

// publish writes one record. It takes a slot first if this replica has none.
func (p *Publisher) publish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	if p.slot < 0 {
		if err := p.takeSlot(ctx); err != nil {
			return err
		}
	}
	record := p.cfg.Record()
	record.Replica.Written = time.Now()
	value, err := record.Encode()
	if err != nil {
		return err
	}
	applied, err := p.write(ctx, Beacon{Replica: record.Replica}, BeaconTTL, store.Put{Value: value, TTL: RecordTTL})
	if err != nil {
		return err
	}
	if !applied {
		p.slot = -1 // another replica has it now; the next round takes another slot
		return nil
	}
	return p.restoreCount(ctx)
}

// write puts the beacon, and the record unless it is empty, in one step.
func (p *Publisher) write(ctx context.Context, beacon Beacon, ttl time.Duration, record store.Put) (applied bool, err error) {
	keys := p.names.slot(p.slot)
	p.sequence++
	number := p.lease.Fence<<sequenceBits + p.sequence
	value, err := json.Marshal(beacon)
	if err != nil {
		return false, err
	}
	// No replica waits for these writes. If each were an event, a fleet would send a number of
	// messages that grows with the square of its size.
	change := store.Change{Puts: []store.Put{{Key: keys.beacon, Number: number, Value: value, TTL: ttl}}, Quiet: true}
	if record.Value != nil {
		record.Key, record.Number = keys.record, number
		change.Puts = append(change.Puts, record)
	}
	if beacon.Stopped {
		change.Release = p.lease
	}
	done, err := p.cfg.Store.Apply(ctx, change)
	return err == nil && done[0], err
}

// takeSlot leases the lowest slot that no replica uses. If others are faster more than once,
// it chooses at random from twice as many free slots each time: otherwise replicas that
// start together would all try each slot.
func (p *Publisher) takeSlot(ctx context.Context) error {
	slots, err := p.names.read(ctx, p.cfg.Store, int(p.count.Load()))
	if err != nil {
		return err
	}
	free := freeSlots(slots)
	for refused := range maxRefusals {
		if len(free) == 0 {
			return errNoSlot
		}
		i := mathrand.N(min(1<<max(refused-1, 0), len(free))) //nolint:gosec // it only spreads the attempts
		n, floor := free[i], uint64(0)
		free = slices.Delete(free, i, i+1)
		if n < len(slots) {
			floor = slots[n].number >> sequenceBits
		}
		keys := p.names.slot(n)
		claimed, err := p.cfg.Store.Acquire(ctx, store.Claim{Key: keys.lease, Owner: rand.Text(), Counter: keys.fences, Floor: floor, TTL: RecordTTL})
		if err != nil {
			return err
		}
		if claimed.Acquired {
			p.slot, p.lease, p.sequence = n, claimed.Lease, 0
			p.count.Store(int64(max(len(slots), n+1)))
			return nil
		}
	}
	return errSlotsTaken
}

// freeSlots returns the slots that no replica uses, from the slots that were ever used.
func freeSlots(used []slot) (free []int) {
	for n := range MaxSlots {
		if n >= len(used) || !used[n].inUse() {
			free = append(free, n)
		}
	}
	return free
}

// restoreCount makes sure that the count of slots includes this one. The store may have
// lost it.
func (p *Publisher) restoreCount(ctx context.Context) error {
	found, err := p.cfg.Store.Get(ctx, p.names.count())
	if err != nil {
		return err
	}
	count := uint64(p.count.Load()) //nolint:gosec // at most MaxSlots
	if found[0].Number >= count {
		return nil
	}
	_, err = p.cfg.Store.Raise(ctx, p.names.count(), count, 0)
	return err
}

// stop tells the other replicas that this one has stopped, and releases its slot.
func (p *Publisher) stop(ctx context.Context) {
	if p.slot < 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	replica := p.cfg.Record().Replica
	replica.Written = time.Now()
	_, _ = p.write(ctx, Beacon{Replica: replica, Stopped: true}, RecordTTL, store.Put{}) // on failure it looks like a loss
	p.slot = -1
}
