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
// immutable; each change makes another one, of the next generation. The zero
// History has no versions.
//
// Histories of one secret are ordered: see [History.Newer].
type History struct {
	Generation uint64
	// ID is random: it orders histories of the same generation, which two
	// replicas may have made where the store lost one of them.
	ID string
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

// Newer reports whether h holds against other wherever the two meet: the higher
// generation, and of the same generation the higher ID.
func (h History) Newer(other History) bool {
	return cmp.Or(cmp.Compare(h.Generation, other.Generation), cmp.Compare(h.ID, other.ID)) > 0
}

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
	return History{
		Generation: h.Generation + 1, ID: rand.Text(),
		Versions: slices.Clone(h.Versions), Requests: slices.Clone(h.Requests),
	}
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

func (r *Record) retire(now time.Time) {
	r.State, r.Since, r.Value = Retired, now, redact.String{}
}

// With returns the history with a call noted, or noted anew. It is part of
// the step that the call made: the generation stays.
func (h History) With(made Request) History {
	h.Requests = slices.DeleteFunc(slices.Clone(h.Requests), func(r Request) bool { return r.ID == made.ID })
	h.Requests = append(h.Requests, made)
	if over := len(h.Requests) - MaxRequests; over > 0 {
		h.Requests = h.Requests[over:]
	}
	return h
}

// Restore returns a history with the versions of another one, which holds against
// both.
func (h History) Restore(from History) History {
	next := h.next()
	next.Generation = max(h.Generation, from.Generation) + 1
	next.Versions = slices.Clone(from.Versions)
	return next
}

// Again returns the same history as one of the next generation, so that it holds
// against all that came before.
func (h History) Again() History { return h.next() }
