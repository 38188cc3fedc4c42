package secret

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// State is the state of a version.
type State int

// The states. A version goes PENDING -> CURRENT -> PREVIOUS -> RETIRED; a rollback
// makes the previous one current again.
const (
	Pending  State = iota + 1 // staged and not yet active
	Current                   // active
	Previous                  // active before the current one, and kept as a fallback
	Retired                   // the value is deleted and the record remains
)

func (s State) String() string {
	switch s {
	case Pending:
		return "pending"
	case Current:
		return "current"
	case Previous:
		return "previous"
	case Retired:
		return "retired"
	default:
		return fmt.Sprintf("state(%d)", int(s))
	}
}

// Bounds of a History.
const (
	// MaxRecords bounds the recorded versions. The oldest retired ones are dropped.
	MaxRecords = 32
	// MaxRequests bounds the recorded requests, which make retries idempotent.
	MaxRequests = 32

	maxAncestors = 32
	idLength     = 12 // 60 random bits
)

// Record describes one version.
type Record struct {
	// ID is that of the [Version].
	ID    string
	State State
	// Since is the time at which the version reached its state.
	Since time.Time
	// Value is empty for a retired version, and for versions that come from a
	// [Source].
	Value     redact.String
	CreatedAt time.Time
	// CreatedBy is the name of a caller, or the reference to the source.
	CreatedBy string
	// RefusedAt is the time at which the version was retired because the IdP refused
	// it, else zero.
	RefusedAt time.Time
	// Publication is that of a key that the broker made. Zero: it made none.
	Publication Publication
}

// Publication is the public part of a key that the broker made, and how far its
// publication got.
type Publication struct {
	// Key is the public key, a JWK. A retired version keeps it, because its last
	// assertions have not expired. Empty: the key is not to be published any more.
	Key string
	// ShownAt is when the document at the key's URL contained the key. Zero: never yet.
	ShownAt time.Time
	// Usable: the broker may sign with the key.
	Usable bool
	// Urgent: the keys before this one have leaked. It is used as soon as it is shown, and
	// they are then retired at once.
	Urgent bool
}

// Request records a request that changed a History.
type Request struct {
	ID string
	// Digest of the content. A request with the same ID and another digest is an
	// error of the caller.
	Digest string
	// Version that the request concerns.
	Version string
	// Base is the version that was current when the request was recorded first. Empty:
	// no version, or unknown.
	Base string
	// BaseSince is when that version had become current. Zero: unknown.
	BaseSince time.Time
	// Done reports whether no step remains.
	Done bool
	// Refused reports whether the request ended because the IdP refused the version.
	Refused bool
}

// History records the versions of a secret and their states. At most one version is
// current, one previous and one pending. A History is immutable: each change
// returns another one of the next generation, which descends from it. All histories
// descend from the zero History, which has no versions.
//
// If the store loses a write, replicas may create histories of which neither
// descends from the other. [History.Merge] unites them.
type History struct {
	Generation uint64
	// ID is random and distinguishes histories of the same generation.
	ID string
	// Ancestors are the IDs of the histories from which it descends, oldest first.
	Ancestors []string
	// Versions are in the order in which they were staged, newest first.
	Versions []Record
	Requests []Request // oldest first
}

// Errors of changes.
var (
	// ErrAnotherPending: only one version can be staged at a time. Replacing it could
	// delete the only secret that the IdP still accepts.
	ErrAnotherPending = errors.New("another version is staged")
	// ErrNotStaged: the version cannot be activated.
	ErrNotStaged = errors.New("the version is not staged")
	// ErrNoPrevious: there is no previous version, or its value has been deleted.
	ErrNoPrevious = errors.New("there is no previous version")
	// ErrInUse: the current version cannot be retired, and a version that is current
	// or previous cannot be staged.
	ErrInUse = errors.New("the version is in use")
	// ErrUnknown: there never was such a version, or its record has been dropped.
	ErrUnknown = errors.New("there is no such version")
)

// Descends reports whether h is other or was made from it.
func (h History) Descends(other History) bool {
	return other.Generation == 0 || h.ID == other.ID || slices.Contains(h.Ancestors, other.ID)
}

// Merge returns a history that descends from both histories. The higher generation wins,
// or the higher ID in the same generation, so that all replicas merge alike. The versions of the winner keep their states. A version that only the
// loser has takes the first free one of the states current, previous and pending,
// but becomes previous only if it was active, and current only if it was current.
// Without a free state it is retired. If the winner has no current version, the
// loser's becomes current in any case.
func (h History) Merge(other History) History {
	winner, loser := h, other
	if cmp.Or(cmp.Compare(h.Generation, other.Generation), cmp.Compare(h.ID, other.ID)) < 0 {
		winner, loser = other, h
	}
	next := winner.next()
	next.Ancestors = lastOf(slices.Concat(loser.Ancestors, []string{loser.ID}, next.Ancestors), 2*maxAncestors)
	next.Requests = lastOf(slices.Concat(slices.DeleteFunc(slices.Clone(loser.Requests), func(r Request) bool {
		_, ok := winner.Request(r.ID)
		return ok
	}), winner.Requests), MaxRequests)
	for _, state := range []State{Current, Previous, Pending} {
		record, ok := loser.In(state)
		_, inBoth := next.Find(record.ID)
		switch {
		case !ok:
			continue
		case inBoth && state == Current && next.CurrentID() == "":
			next.Versions = slices.DeleteFunc(next.Versions, func(r Record) bool { return r.ID == record.ID })
		case inBoth:
			continue
		}
		record.State = next.freeState(state)
		if record.State == Retired {
			record.Value = redact.String{}
		}
		next.Versions = append(next.Versions, record)
	}
	next.Versions = pruned(next.Versions)
	return next
}

// freeState returns the state in h for a version that is in state in another history.
func (h History) freeState(state State) State {
	free := func(s State) bool { _, taken := h.In(s); return !taken }
	switch {
	case state == Current && free(Current):
		return Current
	case state != Pending && free(Previous):
		return Previous
	case free(Pending):
		return Pending
	default:
		return Retired
	}
}

// lastOf returns at most n elements from the end of all.
func lastOf[T any](all []T, n int) []T { return all[max(0, len(all)-n):] }

// Find returns the record of a version.
func (h History) Find(id string) (Record, bool) {
	if i := slices.IndexFunc(h.Versions, func(r Record) bool { return r.ID == id }); i >= 0 {
		return h.Versions[i], true
	}
	return Record{}, false
}

// In returns the record of the version in a state other than Retired.
func (h History) In(state State) (Record, bool) {
	if i := slices.IndexFunc(h.Versions, func(r Record) bool { return r.State == state }); i >= 0 {
		return h.Versions[i], true
	}
	return Record{}, false
}

// CurrentID returns the ID of the current version, or "" if there is none.
func (h History) CurrentID() string {
	current, _ := h.In(Current)
	return current.ID
}

// Request returns the recorded request with an ID.
func (h History) Request(id string) (Request, bool) {
	if i := slices.IndexFunc(h.Requests, func(r Request) bool { return r.ID == id }); i >= 0 {
		return h.Requests[i], true
	}
	return Request{}, false
}

// next returns a copy of the next generation. Its slices are its own.
func (h History) next() History {
	next := History{
		Generation: h.Generation + 1, ID: rand.Text()[:idLength],
		Versions: slices.Clone(h.Versions), Requests: slices.Clone(h.Requests),
	}
	if h.ID != "" {
		next.Ancestors = lastOf(append(slices.Clone(h.Ancestors), h.ID), maxAncestors)
	}
	return next
}

// Stage adds a version as pending, or makes a retired one pending again. It returns h
// if the version is already pending. Its errors are ErrAnotherPending and ErrInUse.
func (h History) Stage(v Version, by string, now time.Time) (History, error) {
	if pending, ok := h.In(Pending); ok {
		if pending.ID == v.ID {
			return h, nil
		}
		return h, ErrAnotherPending
	}
	if record, ok := h.Find(v.ID); ok && record.State != Retired {
		return h, ErrInUse
	}
	next := h.next()
	next.Versions = staged(next.Versions, v, by, now)
	return next, nil
}

// StageKey is Stage for a key that the broker made. public is its public part, a JWK.
func (h History) StageKey(v Version, public, by string, now time.Time) (History, error) {
	next, err := h.Stage(v, by, now)
	if err != nil || next.ID == h.ID {
		return next, err
	}
	next.Versions[0].Publication = Publication{Key: public}
	return next, nil
}

// Publish returns a history in which the publication of a pending key has changed. It
// returns h if it has not. Its error is ErrNotStaged.
func (h History) Publish(id string, to Publication) (History, error) {
	record, _ := h.Find(id)
	switch {
	case record.State != Pending:
		return h, ErrNotStaged
	case record.Publication == to:
		return h, nil
	}
	next := h.next()
	for i := range next.Versions {
		if next.Versions[i].ID == id {
			next.Versions[i].Publication = to
		}
	}
	return next, nil
}

// Unpublish removes the public part of a retired key. It returns h if there is none.
func (h History) Unpublish(id string) History {
	record, _ := h.Find(id)
	if record.State != Retired || record.Publication == (Publication{}) {
		return h
	}
	next := h.next()
	for i := range next.Versions {
		if next.Versions[i].ID == id {
			next.Versions[i].Publication = Publication{}
		}
	}
	return next
}

// staged adds a pending version at the front.
func staged(all []Record, v Version, by string, now time.Time) []Record {
	all = slices.DeleteFunc(all, func(r Record) bool { return r.ID == v.ID })
	all = slices.Insert(all, 0, Record{ID: v.ID, State: Pending, Since: now, Value: v.Value, CreatedAt: now, CreatedBy: by})
	return pruned(all)
}

// pruned drops the oldest retired versions beyond MaxRecords.
func pruned(all []Record) []Record {
	for len(all) > MaxRecords {
		oldest := len(all) - 1
		for all[oldest].State != Retired {
			oldest--
		}
		all = slices.Delete(all, oldest, oldest+1)
	}
	return all
}

// Activate makes the pending or the previous version current. The version that was
// current becomes the previous one; with drop both it and
// the version that was previous are retired, and unpublished at once. Activate returns h if the version is already current. Its errors are
// ErrUnknown and ErrNotStaged.
func (h History) Activate(id string, drop bool, now time.Time) (History, error) {
	record, ok := h.Find(id)
	switch {
	case !ok:
		return h, ErrUnknown
	case record.State == Current:
		return h, nil
	case record.State == Retired:
		return h, ErrNotStaged
	}
	next := h.next()
	for i := range next.Versions {
		r := &next.Versions[i]
		switch {
		case r.ID == id:
			r.State, r.Since = Current, now
		case r.State == Current && !drop:
			r.State, r.Since = Previous, now
		case r.State == Current, r.State == Previous:
			r.retire(now)
			if drop {
				r.Publication = Publication{}
			}
		}
	}
	return next, nil
}

// Adopt makes a version current that comes from a [Source]. It records the ID without
// the value.
func (h History) Adopt(id, by string, now time.Time) (History, error) {
	if record, ok := h.Find(id); !ok || record.State == Retired {
		h.Versions = staged(slices.Clone(h.Versions), Version{ID: id}, by, now) // in the same generation as Activate
	}
	return h.Activate(id, false, now)
}

// Retire deletes the value of a version that is not current. It returns h if the
// version is already retired. Its errors are ErrUnknown and ErrInUse.
func (h History) Retire(id string, now time.Time) (History, error) {
	record, ok := h.Find(id)
	switch {
	case !ok:
		return h, ErrUnknown
	case record.State == Current:
		return h, ErrInUse
	case record.State == Retired:
		return h, nil
	}
	next := h.next()
	for i := range next.Versions {
		if next.Versions[i].ID == id {
			next.Versions[i].retire(now)
		}
	}
	return next, nil
}

// Discard is Retire for a version that the IdP refused.
func (h History) Discard(id string, now time.Time) (History, error) {
	next, err := h.Retire(id, now)
	if err != nil || next.ID == h.ID {
		return next, err
	}
	for i := range next.Versions {
		if next.Versions[i].ID == id {
			next.Versions[i].RefusedAt = now
		}
	}
	return next, nil
}

func (r *Record) retire(now time.Time) {
	r.State, r.Since, r.Value = Retired, now, redact.String{}
}

// With returns the history with req recorded. A recorded request with the same ID is
// replaced. The generation stays, because the request belongs to the change before.
func (h History) With(req Request) History {
	h.Requests = slices.DeleteFunc(slices.Clone(h.Requests), func(r Request) bool { return r.ID == req.ID })
	h.Requests = lastOf(append(h.Requests, req), MaxRequests)
	return h
}

// Restore returns a history with the versions of a backup. It descends from both.
func (h History) Restore(backup History) History {
	next := h.next()
	next.Generation = max(h.Generation, backup.Generation) + 1
	next.Ancestors = lastOf(slices.Concat(backup.Ancestors, []string{backup.ID}, next.Ancestors), 2*maxAncestors)
	next.Versions = slices.Clone(backup.Versions)
	return next
}

// Advance returns the same history in the next generation.
func (h History) Advance() History { return h.next() }
