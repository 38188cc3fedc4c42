// Package store is what replicas share: bytes that live for a while, a lease
// by which one of them acts for all, counters that only grow, and a wake-up
// when something changed.
//
// Nothing here is ordered by a clock. Each lease comes with a fence, a number
// drawn from a counter, and what its holder writes carries that number: of two
// writes the one with the higher number is the newer, whenever either arrives.
// Lifetimes are counted by the store from the moment a call reaches it, so the
// clocks of the replicas need not agree.
//
// The package refuses to know what it keeps: keys are opaque, values are
// bytes, and there is no way of listing them. There is no deletion either;
// what must end has a lifetime or is overwritten by something newer.
package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Bounds that every Store holds its callers to. A call beyond them is refused
// with an error and changes nothing.
const (
	// MaxKey is the longest key and the longest owner of a lease, in bytes.
	MaxKey = 256
	// MaxValue is the largest value in bytes, with what a decorator adds to it.
	MaxValue = 1 << 20
	// MaxKeys is the most keys that one Get may name.
	MaxKeys = 1000
	// MaxPuts is the most puts in one change.
	MaxPuts = 8
	// MaxNumber is the largest fence or count. A script of Redis computes in
	// floating point, which is exact up to here.
	MaxNumber = 1<<53 - 1
	// EventBuffer is how many events wait for a subscriber. More are dropped.
	EventBuffer = 1024
)

// Errors that callers may want to tell from others.
var (
	// ErrClosed is the answer to every call after Close.
	ErrClosed = errors.New("the store is closed")
	// ErrFull says that there is no room for what was to be written.
	ErrFull = errors.New("the store is full: raise its limit or keep less in it")
	// ErrAway says that the store was out of reach several times in a row and is
	// left alone for a moment: there is no use in asking again at once.
	ErrAway = errors.New("the store is out of reach and is left alone for a moment")
	// ErrNoWrites says that the store can be read, but refuses to write: it is full,
	// a replica, or without the right. It is ErrAway as well.
	ErrNoWrites = errors.New("the store takes no writes")
)

// UnreadError is the error of a Get that could read some of its keys only, because
// they are on different servers. The entries of the others are good.
type UnreadError struct {
	// Unread has the places of the keys that could not be read.
	Unread map[int]bool
	// Err is the reason.
	Err error
}

func (e *UnreadError) Error() string { return e.Err.Error() }

// Unwrap returns why the keys could not be read.
func (e *UnreadError) Unwrap() error { return e.Err }

// WasRead reports whether a Get that ended with err has read its i-th key.
func WasRead(err error, i int) bool {
	unread, some := errors.AsType[*UnreadError](err)
	return err == nil || some && !unread.Unread[i]
}

// Health is the health of one server of a store.
type Health struct {
	// Shard names the server.
	Shard string
	// Reads and Writes say whether the server is up for them, as far as is known
	// here.
	Reads, Writes bool
}

// Store keeps values, counters and leases. It is safe for concurrent use.
//
// Keys. A key is any non-empty string of at most MaxKey bytes. Values, counters
// and leases have keys of their own: what happens to a key that is used as two
// of them is not defined. The keys of one Acquire or one Apply must share a
// hash tag, the part in braces of "{tag}rest", because a Redis Cluster runs a
// script on one slot only; other calls may mix tags. No key may show what must
// not be seen, for keys stand in the logs of databases.
//
// Atomicity. A call takes one round trip. Acquire, Renew, Apply and Raise each
// happen at one instant, whole or not at all. Get reads each key at one instant
// but not all keys at the same one.
//
// Bounds in time. A call ends when its ctx does, and changes nothing if ctx has
// ended before it began. An implementation that leaves the process also bounds
// each call by itself, to well under a second, so that a caller without a
// deadline is not held by a store that hangs. Lifetimes have a resolution of a
// millisecond, rounded up.
//
// Errors. An error means that the store could not answer: not that a key is
// absent, nor that a lease is held by another. What the call asked for may or
// may not have happened, and asking again is safe.
//
// Loss. A store may lose anything at any time, by a failover or because it is
// full, and callers must be able to live with that. Those who saw a higher
// number than the store shows put it back (Raise, and Claim.Floor).
//
// Memory. Keys and values are copied: callers may change theirs after a call,
// and what a call returned is theirs.
type Store interface {
	// Get returns one entry for each key, in order. A key that is absent or
	// expired has the zero Entry. If only some of the keys could be read, the error
	// is an *UnreadError and the entries of the others are returned with it.
	Get(ctx context.Context, keys ...string) ([]Entry, error)

	// Acquire claims a lease and has three outcomes. ACQUIRED: true, and the
	// lease. HELD by another owner: false and no error. ERROR: the store could
	// not say; this is not HELD, for nobody may be at work.
	//
	// The fence of a lease is the counter's next count: higher than that of
	// any lease that drew from the same counter before, released, expired or
	// not, and higher than the claim's floor.
	//
	// An owner that claims its lease again, because the first answer was lost,
	// acquires it with the fence it has, and the lifetime starts anew. A lease
	// that is never released is a guard: something that happens at most once in
	// its lifetime.
	//
	// All claims of a lease ask for the same lifetime. A lease that would last
	// longer than a claim that finds it HELD, because the store's clock was set back
	// or somebody has prolonged it, is cut to the lifetime of the claim.
	Acquire(ctx context.Context, claim Claim) (lease Lease, acquired bool, err error)

	// Renew starts the lifetime of a lease anew. False says that it is lost: it
	// expired or is another's now. A lost lease stays lost.
	Renew(ctx context.Context, lease Lease, ttl time.Duration) (held bool, err error)

	// Apply puts values and releases a lease, in one step. For each put it
	// reports whether it was applied: a put whose number is not higher than the
	// one stored under its key changes nothing, its lifetime included. The
	// lease is released only if its owner still has it; the puts do not depend
	// on that, because what a late holder brings may be the best there is.
	Apply(ctx context.Context, change Change) (applied []bool, err error)

	// Raise sets a counter to max(its count, floor) + by and returns the new
	// count. An absent counter counts 0. Counters do not expire. By 0 puts back
	// what the store has lost; by 1 opens a new epoch, and doing so twice,
	// because the first answer was lost, only opens another.
	Raise(ctx context.Context, key string, floor, by uint64) (count uint64, err error)

	// Confirm waits, a second or so, for what was written under a key to be safe,
	// and says how safe it is: an answer to a change means no more than that the
	// store has it.
	Confirm(ctx context.Context, key string) Safety

	// Subscribe returns a channel of keys that changed: a put that was applied,
	// a counter raised by Raise, a lease released. All changes are told, the
	// subscriber's own as well, after they can be read. The channel is closed
	// when ctx ends or the store is closed.
	//
	// This is best effort. Events are lost while the subscriber is EventBuffer
	// behind or the store is out of reach, may come twice or out of order, and
	// expiry is never told. An event means "look again now"; who relies on it
	// must also look from time to time. A replica subscribes once and spreads
	// the events itself.
	Subscribe(ctx context.Context) <-chan string

	// Close ends the subscriptions and releases what the store uses. Closing
	// it again does nothing.
	Close() error
}

// Entry is what a key holds.
type Entry struct {
	// Number is the number that a value was put with, or the count of a
	// counter. 0: the key is absent.
	Number uint64
	// Value is empty for a counter.
	Value []byte
	// TTL is what is left of the value's lifetime, by the store's own clock at
	// the instant at which it read this very value. A reader counts it from
	// before its call, and so never takes it for longer than it is, however far
	// its clock is from the writer's. 0: the value lives until it is overwritten.
	TTL time.Duration
	// Excess is how much longer the store itself would keep the value, where the end
	// that is sealed with it comes earlier: the clocks of store, writer and reader
	// differ, or somebody has prolonged the value. A use of the value that must not
	// end too early may add a little of it to TTL.
	Excess time.Duration
	// Unopened says that there is a value, but sealed in a way that cannot be
	// opened: all else is zero. Who can do without the value takes it for absent.
	Unopened bool
	// Aged says that the value was sealed with a key that seals no more. Putting
	// it again, under a higher number, seals it anew.
	Aged bool
}

// Safety is how far a change has got beyond the memory of the store.
type Safety struct {
	// Disk: it is on disk.
	Disk bool
	// Replicas of the store that have it.
	Replicas int
	// Doubt says in a sentence what may become of it all the same, or why that is
	// not known. Empty: there is no doubt.
	Doubt string
}

// String says where the change is known to be; empty: nowhere but in the store's
// memory.
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

// Claim asks for a lease.
type Claim struct {
	// Key is what the lease is on.
	Key string
	// Owner tells the claim from all others: random for each attempt, the same
	// when the attempt asks again. 1 to MaxKey bytes.
	Owner string
	// Counter is the key of the counter that the fence is drawn from. The
	// fences of all leases that share a counter can be compared.
	Counter string
	// Floor is the highest fence of this counter that the caller has seen, so
	// that fences grow even where the store lost the counter. 0: none.
	Floor uint64
	// TTL is how long the lease lasts unless renewed. More than 0.
	TTL time.Duration
}

// Lease is a claim that was granted.
type Lease struct {
	Key   string
	Owner string
	// Fence is the number to put values with. At least 1.
	Fence uint64
}

// Put is a value to be written if it is newer.
type Put struct {
	Key string
	// Number orders the values of a key. At least 1.
	Number uint64
	Value  []byte
	// TTL is how long the value lives. 0: until it is overwritten.
	TTL time.Duration
}

// Change is what one Apply does.
type Change struct {
	// Puts are at most MaxPuts, each of a key of its own. May be empty.
	Puts []Put
	// Release is the lease to give up. The zero Lease: none.
	Release Lease
}

// CheckKey returns an error if no Store takes the key.
func CheckKey(key string) error {
	if key == "" || len(key) > MaxKey {
		return fmt.Errorf("a key of %d bytes: it must have 1 to %d", len(key), MaxKey)
	}
	return nil
}

// CheckKeys returns an error if no Store takes the keys of a Get.
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

// CheckTTL returns an error if no lease can have the lifetime.
func CheckTTL(ttl time.Duration) error {
	if ttl <= 0 {
		return fmt.Errorf("a lease for %v: it must last for some time", ttl)
	}
	return nil
}

// Check returns an error if no Store takes the claim.
func (c Claim) Check() error {
	if CheckKey(c.Owner) != nil {
		return fmt.Errorf("a lease owner of %d bytes: it must have 1 to %d", len(c.Owner), MaxKey)
	}
	return errors.Join(CheckTTL(c.TTL), CheckKey(c.Key), CheckKey(c.Counter))
}

func (p Put) check() error {
	switch {
	case p.Number == 0 || p.Number > MaxNumber:
		return fmt.Errorf("a value numbered %d: it must be 1 to %d", p.Number, uint64(MaxNumber))
	case p.TTL < 0:
		return fmt.Errorf("a value that lives for %v: 0 is for ever, and what is over must not be put", p.TTL)
	case len(p.Value) > MaxValue:
		return fmt.Errorf("a value of %d bytes: at most %d are allowed", len(p.Value), MaxValue)
	}
	return CheckKey(p.Key)
}

// Check returns an error if no Store takes the change.
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
			return errors.New("two puts of one key in one change: which of them counts?")
		}
		seen[put.Key] = true
	}
	return nil
}

// Raised returns the count that a counter comes to.
func Raised(count, floor, by uint64) (uint64, error) {
	count = max(count, floor)
	if count > MaxNumber || by > MaxNumber-count {
		return 0, fmt.Errorf("a counter raised above %d", uint64(MaxNumber))
	}
	return count + by, nil
}
