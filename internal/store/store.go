// Package store holds the state that replicas share: bytes with a lifetime, leases by
// which one replica acts for all, counters that only grow, and notifications of changes.
//
// Nothing here is ordered by a clock. Each lease comes with a fence, a number drawn from
// a counter, and its holder writes with that number: of two writes the one with the
// higher number is the newer, whenever either arrives. The store counts lifetimes from
// the moment a call reaches it, so the clocks of the replicas need not agree.
//
// The package does not interpret its contents: keys are opaque, values are bytes, and
// they cannot be listed. They cannot be deleted either: a value has a lifetime or is
// overwritten by a newer one.
package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Bounds of every call of a Store. A call beyond them fails with an error and changes
// nothing.
const (
	// MaxKey is the longest key and the longest owner of a lease, in bytes.
	MaxKey = 256
	// MaxValue is the largest value in bytes, with the overhead of a decorator.
	MaxValue = 1 << 20
	// MaxKeys is the maximum number of keys that one Get or one Acquire reads.
	MaxKeys = 1000
	// MaxPuts is the maximum number of puts in one change.
	MaxPuts = 8
	// MaxNumber is the largest fence or count. A Redis script computes in floating
	// point, which is exact up to here.
	MaxNumber = 1<<53 - 1
	// EventBuffer is how many events wait for a subscriber. Further events are dropped.
	EventBuffer = 1024
)

// Errors that callers may want to distinguish.
var (
	// ErrClosed is the error of every call after Close.
	ErrClosed = errors.New("the store is closed")
	// ErrFull means that there is no room for the write.
	ErrFull = errors.New("the store is full: raise its limit or keep less in it")
	// ErrAway means that the store was unreachable several times in a row and is not
	// called for a moment: an immediate retry is useless.
	ErrAway = errors.New("the store is unreachable and is not called for a moment")
	// ErrNoWrites means that the store can be read, but refuses writes: it is full, a
	// replica, or lacks the permission. It is ErrAway as well.
	ErrNoWrites = errors.New("the store takes no writes")
)

// UnreadError is the error of a Get that could read only some of its keys, because they
// are on different servers. The entries of the other keys are valid.
type UnreadError struct {
	// Unread has the indexes of the keys that could not be read.
	Unread map[int]bool
	// Err is the reason.
	Err error
}

func (e *UnreadError) Error() string { return e.Err.Error() }

// Unwrap returns why the keys could not be read.
func (e *UnreadError) Unwrap() error { return e.Err }

// WasRead reports whether a Get that returned err has read its i-th key.
func WasRead(err error, i int) bool {
	unread, some := errors.AsType[*UnreadError](err)
	return err == nil || some && !unread.Unread[i]
}

// GetEach reads one value for each item, in chunks of at most MaxKeys, and passes those that
// were read to adopt. It reports whether the store returned all of them.
func GetEach[T any](ctx context.Context, s Store, items []T, chunk int, key func(T) string, adopt func(T, Entry)) (complete bool) {
	complete = true
	for some := range slices.Chunk(items, chunk) {
		keys := make([]string, len(some))
		for i, item := range some {
			keys[i] = key(item)
		}
		values, err := s.Get(ctx, keys...)
		for i, item := range some {
			if WasRead(err, i) {
				adopt(item, values[i])
			}
		}
		complete = complete && err == nil
	}
	return complete
}

// Health is the health of one server of a store.
type Health struct {
	// Shard names the server.
	Shard string
	// Reads and Writes report whether the server is up for them, as far as this replica
	// knows.
	Reads, Writes bool
	// Refusal is why the server refuses writes. Zero: it does not, or the reason is unknown.
	Refusal Refusal
}

// Refusal is why a server that can be read refuses writes.
type Refusal int

// The reasons.
const (
	ReadOnly    Refusal = iota + 1 // it is a replica
	OutOfMemory                    // it has reached its memory limit
	DiskFailed                     // it cannot write its data to disk
	FewReplicas                    // it has too few replicas
	NoRights                       // the user lacks a permission
)

// Store keeps values, counters and leases. It is safe for concurrent use.
//
// Keys. A key is any non-empty string of at most MaxKey bytes. Values, counters and
// leases have separate keys: using one key as two of them is undefined. The keys of one
// Acquire or one Apply must share a hash tag, the part in braces of "{tag}rest", because
// a Redis Cluster runs a script on one slot only; other calls may mix tags. That includes
// the keys that a claim reads. A key must
// contain no secret, because databases log keys.
//
// Atomicity. A call takes one round trip. Acquire, Renew, Apply and Raise are atomic.
// Get reads each key at one instant but not all keys at the same one.
//
// Bounds in time. A call ends when its ctx does, and changes nothing if ctx has ended
// before it began. An implementation outside the process also bounds each call by
// itself, to well under a second, so that a store that hangs does not block a caller
// without a deadline. Lifetimes have a resolution of a millisecond, rounded up.
//
// Errors. An error means that the store failed: not that a key is absent, nor that a
// lease is held by another. The call may or may not have taken effect, and repeating it
// is safe.
//
// Loss. A store may lose anything at any time, by a failover or because it is full, and
// callers must tolerate that. A caller that saw a higher number than the store has
// restores it (Raise, and Claim.Floor).
//
// Memory. Keys and values are copied: callers may change theirs after a call, and own
// the returned ones.
//
// End. A store in a file or on a server has a Close of its own, which ends the
// subscriptions and releases its resources. Closing it again does nothing, and calls
// after it fail with [ErrClosed].
type Store interface {
	// Get returns one entry for each key, in order. A key that is absent or expired has
	// the zero Entry. If only some of the keys could be read, the error is an
	// *UnreadError and the entries of the others are returned with it.
	Get(ctx context.Context, keys ...string) ([]Entry, error)

	// Acquire claims a lease and has three outcomes. ACQUIRED: the lease. HELD by another
	// owner: no lease and no error. ERROR: the state is unknown; this is not HELD,
	// because the lease may have no holder.
	//
	// In the same step, Acquire reads the keys that the claim names: after ACQUIRED, no
	// holder of the lease has changed them since the claim was granted.
	//
	// The fence of a lease is the counter's next count: higher than that of any earlier
	// lease from the same counter, released, expired or not, and higher than the claim's
	// floor.
	//
	// An owner that claims its lease again, because the first response was lost,
	// acquires it with the same fence, and the lifetime starts anew. A lease that is
	// never released is a guard: something that happens at most once in its lifetime.
	//
	// All claims of a lease name the same lifetime. If a claim finds the lease HELD for
	// longer than that, because the store's clock was set back or the lease was
	// prolonged, the lease is cut to the lifetime of the claim.
	Acquire(ctx context.Context, claim Claim) (Claimed, error)

	// Renew starts the lifetime of a lease anew. False means that the lease is lost: it
	// expired or has another owner now. A lost lease stays lost.
	Renew(ctx context.Context, lease Lease, ttl time.Duration) (held bool, err error)

	// Apply puts values and releases a lease, in one step. For each put it reports
	// whether it was applied: a put whose number is not higher than the stored one
	// changes nothing, its lifetime included. The lease is released only if its owner
	// still has it; the puts do not depend on that, because the value of a late holder
	// may be the best available.
	Apply(ctx context.Context, change Change) (applied []bool, err error)

	// Raise sets a counter to max(its count, floor) + by and returns the new count. An
	// absent counter counts 0. Counters do not expire. By 0 restores a count that the
	// store has lost; by 1 opens a new epoch, and a repetition, because the first
	// response was lost, only opens another.
	Raise(ctx context.Context, key string, floor, by uint64) (count uint64, err error)

	// Confirm waits, a second or so, until the last write under a key is durable, and
	// returns how durable it is: a successful change means only that the store has it.
	Confirm(ctx context.Context, key string) Safety

	// Subscribe returns a channel of keys that changed: a put that was applied, a
	// counter raised by Raise, a lease released. All changes but quiet ones are reported,
	// the subscriber's own as well, after they can be read. The channel is closed when ctx
	// ends or the store is closed.
	//
	// This is best effort. Events are lost while the subscriber is EventBuffer behind or
	// the store is unreachable, may be duplicated or out of order, and expiry is not
	// reported. An event means "look again now"; a subscriber that relies on it must
	// also poll. A replica subscribes once and distributes the events itself.
	Subscribe(ctx context.Context) <-chan string
}

// Entry is the content of a key.
type Entry struct {
	// Number is the number of a value's put, or the count of a counter. 0: the key is
	// absent.
	Number uint64
	// Value is empty for a counter.
	Value []byte
	// TTL is the rest of the value's lifetime, by the store's own clock at the instant
	// at which it read this value. A reader counts it from before its call, and so never
	// overestimates it, however far its clock is from the writer's. 0: the value lives
	// until it is overwritten.
	TTL time.Duration
	// Excess is how much longer the store itself would keep the value, if the end that
	// is sealed with it comes earlier: the clocks of store, writer and reader differ, or
	// the value was prolonged. A use of the value that must not end too early may add a
	// little of it to TTL.
	Excess time.Duration
	// Unopened reports a value that is sealed and cannot be opened: all other fields are
	// zero. A caller that does not need the value treats it as absent.
	Unopened bool
	// Aged reports that the value was sealed with a key that is no longer used for
	// sealing. Putting it again, under a higher number, seals it anew.
	Aged bool
}

// Safety is how durable a change is beyond the memory of the store.
type Safety struct {
	// Disk: the change is on disk.
	Disk bool
	// Replicas is the number of the store's replicas that have the change.
	Replicas int
	// Doubt says in a sentence how the change may still be lost, or why that is unknown.
	// Empty: there is no doubt.
	Doubt string
}

// String says where the change is known to be; empty: only in the store's memory.
func (s Safety) String() string {
	places := make([]string, 0, 2)
	if s.Disk {
		places = append(places, "on disk")
	}
	switch s.Replicas {
	case 0:
	case 1:
		places = append(places, "on 1 replica")
	default:
		places = append(places, fmt.Sprintf("on %d replicas", s.Replicas))
	}
	return strings.Join(places, " and ")
}

// Claim requests a lease.
type Claim struct {
	// Key identifies the lease.
	Key string
	// Owner identifies the claim: random for each attempt, the same when the attempt is
	// repeated. 1 to MaxKey bytes.
	Owner string
	// Counter is the key of the counter that the fence is drawn from. The fences of all
	// leases that share a counter can be compared.
	Counter string
	// Floor is the highest fence of this counter that the caller has seen, so that
	// fences grow even if the store lost the counter. 0: no floor.
	Floor uint64
	// TTL is how long the lease lasts unless renewed. More than 0.
	TTL time.Duration
	// Read are keys to read in the same step, at most MaxKeys. May be empty.
	Read []string
}

// Claimed is the outcome of a claim.
type Claimed struct {
	// Acquired: the lease was granted. False: another owner holds it.
	Acquired bool
	// Lease is the granted lease, else zero.
	Lease Lease
	// Entries has one entry for each key in Claim.Read, in order, as Get returns them,
	// whether the lease was granted or not. All of them are of the instant of the claim.
	Entries []Entry
}

// Lease is a claim that was granted.
type Lease struct {
	Key   string
	Owner string
	// Fence is the number to put values with. At least 1.
	Fence uint64
}

// Put is a value to write if it is newer.
type Put struct {
	Key string
	// Number orders the values of a key. At least 1.
	Number uint64
	Value  []byte
	// TTL is how long the value lives. 0: until it is overwritten.
	TTL time.Duration
}

// Change is the input of one Apply.
type Change struct {
	// Puts has at most MaxPuts elements with distinct keys. It may be empty.
	Puts []Put
	// Release is the lease to release. The zero Lease: no release.
	Release Lease
	// Quiet: the change is not reported to subscribers, because no replica waits for it.
	// Each event is a message to every replica.
	Quiet bool
}

// CheckKey returns an error if the key is invalid for every Store.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("a key of %d bytes: it must have 1 to %d", len(key), MaxKey)
	}
	return nil
}

// CheckKeys returns an error if keys to read are invalid for every Store.
func CheckKeys(keys []string) error {
	if len(keys) > MaxKeys {
		return fmt.Errorf("%d keys at once: at most %d are allowed", len(keys), MaxKeys)
	}
	for _, key := range keys {
		if err := CheckKey(key); err != nil {
			return err
		}
	}
	return nil
}

// CheckTTL returns an error if the lifetime is invalid for a lease.
func CheckTTL(ttl time.Duration) error {
	if ttl <= 0 {
		return fmt.Errorf("a lease for %v: it must last for some time", ttl)
	}
	return nil
}

// Check returns an error if the claim is invalid for every Store.
func (c Claim) Check() error {
	if CheckKey(c.Owner) != nil {
		return fmt.Errorf("a lease owner of %d bytes: it must have 1 to %d", len(c.Owner), MaxKey)
	}
	return errors.Join(CheckTTL(c.TTL), CheckKey(c.Key), CheckKey(c.Counter), CheckKeys(c.Read))
}

func (p Put) check() error {
	switch {
	case p.Number == 0 || p.Number > MaxNumber:
		return fmt.Errorf("a value numbered %d: it must be 1 to %d", p.Number, uint64(MaxNumber))
	case p.TTL < 0:
		return fmt.Errorf("a value that lives for %v: 0 means without end, and an expired value must not be put", p.TTL)
	case len(p.Value) > MaxValue:
		return fmt.Errorf("a value of %d bytes: at most %d are allowed", len(p.Value), MaxValue)
	}
	return CheckKey(p.Key)
}

// Check returns an error if the change is invalid for every Store.
func (c Change) Check() error {
	if len(c.Puts) > MaxPuts {
		return fmt.Errorf("%d puts at once: at most %d are allowed", len(c.Puts), MaxPuts)
	}
	seen := make(map[string]bool, len(c.Puts))
	for _, put := range c.Puts {
		if err := put.check(); err != nil {
			return err
		}
		if seen[put.Key] {
			return errors.New("a change with two puts of one key: keep one of them")
		}
		seen[put.Key] = true
	}
	return nil
}

// Raised returns the new count of a counter, as Store.Raise defines it.
func Raised(count, floor, by uint64) (uint64, error) {
	count = max(count, floor)
	if count > MaxNumber || by > MaxNumber-count {
		return 0, fmt.Errorf("a counter raised above %d", uint64(MaxNumber))
	}
	return count + by, nil
}
