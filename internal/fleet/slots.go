package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
)

// batch is the maximum number of slots that one Get reads, because records may be large.
const batch = 16

// names makes the keys of the store. They are keyed hashes, like the other keys, so that
// fleets with different rings do not see each other's records.
type names struct {
	mac func(data []byte) [32]byte
}

// slotKeys are the keys of one slot. They share a hash tag, so that one script may use
// them; the slots do not, so that they are on all servers of a Cluster.
type slotKeys struct{ record, beacon, lease, fences string }

func (n names) slot(number int) slotKeys {
	tag := "{" + n.hash("status/"+strconv.Itoa(number)) + "}"
	return slotKeys{record: tag + "status", beacon: tag + "seen", lease: tag + "lease", fences: tag + "fences"}
}

// count is the key of the counter of the slots that were ever used.
func (n names) count() string { return "{" + n.hash("status") + "}slots" }

// hash returns 128 bits of the keyed hash. Without a key the store has no other user.
func (n names) hash(text string) string {
	mac := n.mac
	if mac == nil {
		mac = sha256.Sum256
	}
	sum := mac([]byte(text))
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// slot is the content of a slot.
type slot struct {
	number uint64 // of the record or the beacon, whichever is higher
	record []byte // nil: none
	beacon []byte
	// unopened: a replica wrote here with a sealing key that this one does not have.
	unopened bool
	// age of the beacon, by the store's clock.
	age time.Duration
	// readAt is a moment before the slot was read, by this replica's clock.
	readAt time.Time
}

// inUse reports whether a replica may be writing to the slot.
func (s *slot) inUse() bool {
	if s.record == nil && !s.unopened && s.beacon == nil {
		return false
	}
	beacon, err := s.decoded()
	if err != nil {
		return s.record != nil || s.unopened
	}
	return !beacon.Stopped && (s.record != nil || s.age < RecordTTL)
}

func (s *slot) decoded() (beacon Beacon, err error) {
	err = json.Unmarshal(s.beacon, &beacon)
	return beacon, err
}

// read reads the slots up to the counter, and at least to atLeast. On an error it returns
// those that it has read.
func (n names) read(ctx context.Context, s store.Store, atLeast int) ([]slot, error) {
	found, err := s.Get(ctx, n.count())
	count := atLeast
	if err == nil {
		count = max(count, int(min(found[0].Number, MaxSlots)))
	}
	slots := make([]slot, 0, count)
	for first := 0; first < count && err == nil; first += batch {
		var some []slot
		some, err = n.readBatch(ctx, s, first, min(first+batch, count))
		slots = slices.Concat(slots, some)
	}
	return slots, err
}

func (n names) readBatch(ctx context.Context, s store.Store, first, end int) ([]slot, error) {
	var keys []string
	for number := first; number < end; number++ {
		slot := n.slot(number)
		keys = append(keys, slot.record, slot.beacon)
	}
	readAt := time.Now()
	entries, err := s.Get(ctx, keys...)
	if err != nil && len(entries) != len(keys) {
		return nil, err
	}
	slots := make([]slot, end-first)
	for i := range slots {
		record, beacon := entries[2*i], entries[2*i+1]
		slots[i] = slot{
			number: max(record.Number, beacon.Number), record: record.Value, beacon: beacon.Value,
			unopened: record.Unopened || beacon.Unopened, readAt: readAt,
			// The sealed end of the value is by the writer's clock; the store's own rest of
			// its lifetime is the sum.
			age: max(0, BeaconTTL-beacon.TTL-beacon.Excess),
		}
	}
	return slots, err
}
