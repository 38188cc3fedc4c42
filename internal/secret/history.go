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

// State is where a version stands.
type State int

// The states. A version goes PENDING -> CURRENT -> PREVIOUS -> RETIRED; a rollback
// makes the previous one current again.
const (
	Pending  State = iota + 1 // staged; it has not been in force since
	Current                   // in force
	Previous                  // was in force before, and serves as a fallback
	Retired                   // wiped: only the record is left
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
	// MaxRecords is how many versions are remembered; the oldest retired ones are
	// forgotten first.
	MaxRecords = 32
	// MaxRequests is how many calls are remembered, so that they can be repeated.
	MaxRequests = 32

	maxAncestors = 32
	idLength     = 12 // 60 random bits
)

// Record is what is known of a version.
type Record struct {
	// ID is that of the [Version].
	ID    string
	State State
	// Since is when it came to its state.
	Since time.Time
	// Value is empty for a retired version, and for all whose source keeps them.
	Value     redact.String
	CreatedAt time.Time
	// CreatedBy is a caller's name, or the source.
	CreatedBy string
	// RefusedAt is when the version was retired because the IdP refused it. Zero: it
	// was retired otherwise, or not at all.
	RefusedAt time.Time
}

// Request is a call that changed a History.
type Request struct {
	ID string
	// Digest of what was asked: the same ID with another content is a mistake.
	Digest string
	// Version that the call was about.
	Version string
	// Done: there is nothing left to do.
	Done bool
	// Refused: it is done because the IdP refused the version.
	Refused bool
}

// History is which versions of a secret there are and have been, and which is
// in force: at most one is current, one previous and one pending. It is
// immutable; each change makes another one, of the next generation, which
// descends from it. The zero History has no versions, and all descend from it.
//
// Where the store loses one, two replicas may make histories of which neither
// descends from the other: see [History.Merge].
type History struct {
	Generation uint64
	// ID is random: it tells histories of the same generation apart.
	ID string
	// Ancestors are the IDs of those that it descends from, oldest first.
	Ancestors []string
	// Versions are newest first: as they were staged.
	Versions []Record
	Requests []Request // oldest first
}

// What a change may be refused for.
var (
	// ErrAnotherPending: only one version is staged at a time, because wiping one
	// unasked could wipe the only one that the IdP still takes.
	ErrAnotherPending = errors.New("another version is staged")
	// ErrNotStaged: the version is not one that can be put in force.
	ErrNotStaged = errors.New("the version is not staged")
	// ErrNoPrevious: there is no previous version, or its value is gone.
	ErrNoPrevious = errors.New("there is no previous version")
	// ErrInForce: a version in force cannot be retired.
	ErrInForce = errors.New("the version is in force")
	// ErrUnknown: there never was such a version, or it is forgotten.
	ErrUnknown = errors.New("there is no such version")
)

// Descends reports whether h was made from other, or is the same.
func (h History) Descends(other History) bool {
	return other.Generation == 0 || h.ID == other.ID || slices.Contains(h.Ancestors, other.ID)
}

// Merge returns a history that descends from both, where neither descends from the
// other. What is in force is what the one of the higher generation says, or of the
// same generation the one with the higher ID; of the other one nothing is lost that
// is not known to be retired: what was in force is kept to fall back to, or staged;
// or it is in force, where nothing else is.
func (h History) Merge(other History) History {
	winner, loser := h, other
	if cmp.Or(cmp.Compare(h.Generation, other.Generation), cmp.Compare(h.ID, other.ID)) < 0 {
		winner, loser = other, h
	}
	next := winner.next()
	next.Ancestors = limited(slices.Concat(loser.Ancestors, []string{loser.ID}, next.Ancestors), 2*maxAncestors)
	next.Requests = limited(slices.Concat(slices.DeleteFunc(slices.Clone(loser.Requests), func(r Request) bool {
		_, known := winner.Request(r.ID)
		return known
	}), winner.Requests), MaxRequests)
	for _, wanted := range []State{Current, Previous, Pending} {
		record, there := loser.In(wanted)
		_, known := next.Find(record.ID)
		switch {
		case !there:
			continue
		case known && wanted == Current && next.CurrentID() == "":
			next.Versions = slices.DeleteFunc(next.Versions, func(r Record) bool { return r.ID == record.ID })
		case known:
			continue
		}
		record.State = next.placeFor(wanted)
		if record.State == Retired {
			record.Value = redact.String{}
		}
		next.Versions = append(next.Versions, record)
	}
	next.Versions = forgotten(next.Versions)
	return next
}

// placeFor is the state that a version can have which was in another one elsewhere.
func (h History) placeFor(state State) State {
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

// limited are the last of a list.
func limited[T any](all []T, most int) []T { return all[max(0, len(all)-most):] }

// Find returns the record of a version.
func (h History) Find(id string) (Record, bool) {
	if i := slices.IndexFunc(h.Versions, func(r Record) bool { return r.ID == id }); i >= 0 {
		return h.Versions[i], true
	}
	return Record{}, false
}

// In returns the one record in a state; not for Retired.
func (h History) In(state State) (Record, bool) {
	if i := slices.IndexFunc(h.Versions, func(r Record) bool { return r.State == state }); i >= 0 {
		return h.Versions[i], true
	}
	return Record{}, false
}

// CurrentID is the ID of the current version; empty: there is none.
func (h History) CurrentID() string {
	current, _ := h.In(Current)
	return current.ID
}

// Request returns what is known of a call.
func (h History) Request(id string) (Request, bool) {
	if i := slices.IndexFunc(h.Requests, func(r Request) bool { return r.ID == id }); i >= 0 {
		return h.Requests[i], true
	}
	return Request{}, false
}

// next is a copy that may be changed until it is returned.
func (h History) next() History {
	next := History{
		Generation: h.Generation + 1, ID: rand.Text()[:idLength],
		Versions: slices.Clone(h.Versions), Requests: slices.Clone(h.Requests),
	}
	if h.ID != "" {
		next.Ancestors = limited(append(slices.Clone(h.Ancestors), h.ID), maxAncestors)
	}
	return next
}

// Stage adds a version as pending; one that was retired is so again. Staging what
// is staged already changes nothing.
func (h History) Stage(v Version, by string, now time.Time) (History, error) {
	if pending, there := h.In(Pending); there {
		if pending.ID == v.ID {
			return h, nil
		}
		return h, ErrAnotherPending
	}
	if known, there := h.Find(v.ID); there && known.State != Retired {
		return h, ErrInForce
	}
	next := h.next()
	next.Versions = staged(next.Versions, v, by, now)
	return next, nil
}

// staged puts a version in front, as pending.
func staged(all []Record, v Version, by string, now time.Time) []Record {
	all = slices.DeleteFunc(all, func(r Record) bool { return r.ID == v.ID })
	all = slices.Insert(all, 0, Record{ID: v.ID, State: Pending, Since: now, Value: v.Value, CreatedAt: now, CreatedBy: by})
	return forgotten(all)
}

// forgotten leaves out the oldest retired versions, if there are too many.
func forgotten(all []Record) []Record {
	for len(all) > MaxRecords {
		oldest := len(all) - 1
		for all[oldest].State != Retired {
			oldest--
		}
		all = slices.Delete(all, oldest, oldest+1)
	}
	return all
}

// Activate puts a pending version in force, or the previous one again. The one
// that was in force becomes the previous one, or is retired with all others if
// they are not to be used any more (drop). Activating what is in force changes
// nothing.
func (h History) Activate(id string, drop bool, now time.Time) (History, error) {
	record, there := h.Find(id)
	switch {
	case !there:
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
		}
	}
	return next, nil
}

// Adopt puts a version in force that its source brought, known before or not.
// Only its name is kept.
func (h History) Adopt(id, by string, now time.Time) (History, error) {
	if record, there := h.Find(id); !there || record.State == Retired {
		h.Versions = staged(slices.Clone(h.Versions), Version{ID: id}, by, now) // part of the step to come
	}
	return h.Activate(id, false, now)
}

// Retire wipes a version that is not in force. Retiring it again changes nothing.
func (h History) Retire(id string, now time.Time) (History, error) {
	record, there := h.Find(id)
	switch {
	case !there:
		return h, ErrUnknown
	case record.State == Current:
		return h, ErrInForce
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

// Discard retires a version because the IdP refused it.
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

// With returns the history with a call noted, or noted anew. It is part of
// the step that the call made: the generation stays.
func (h History) With(made Request) History {
	h.Requests = slices.DeleteFunc(slices.Clone(h.Requests), func(r Request) bool { return r.ID == made.ID })
	h.Requests = limited(append(h.Requests, made), MaxRequests)
	return h
}

// Restore returns a history with the versions of another one, which descends from
// both.
func (h History) Restore(from History) History {
	next := h.next()
	next.Generation = max(h.Generation, from.Generation) + 1
	next.Ancestors = limited(slices.Concat(from.Ancestors, []string{from.ID}, next.Ancestors), 2*maxAncestors)
	next.Versions = slices.Clone(from.Versions)
	return next
}

// Again returns the same history as one of the next generation.
func (h History) Again() History { return h.next() }
