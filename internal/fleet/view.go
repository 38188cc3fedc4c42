package fleet

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// Presence is whether a replica is alive, as far as the store shows.
type Presence int

// The presences.
const (
	// Alive: it wrote its status lately.
	Alive Presence = iota + 1
	// Lost: it no longer writes its status, and did not say that it stops.
	Lost
	// Silent: it no longer writes its status, but the store takes no writes.
	Silent
	// Sealed: a replica wrote here with a sealing key that this one does not have.
	Sealed
)

// Member is another replica, as the store shows it.
type Member struct {
	Presence Presence
	// Replica is zero if the slot is Sealed.
	Replica Replica
	// Record is nil if it could not be read: it is of another form, or expired.
	Record *Record
	// Age is how long ago it wrote, by the clock of the store.
	Age time.Duration
	// Clock is how far its clock is ahead of this replica's, to about a second.
	Clock time.Duration
}

func (m Member) silent() bool { return m.Presence == Silent }

// View is what one replica can see of the others.
type View struct {
	Members []Member
	// Err is the reason why some replicas could not be read, so that there may be more.
	Err error
}

// Read reads the status of all replicas other than the one with this ID.
func (p *Publisher) Read(ctx context.Context, own Name) View {
	slots, err := p.names.read(ctx, p.cfg.Store, int(p.count.Load()))
	view := View{Err: err}
	for i := range slots {
		if member, ok := slots[i].member(); ok && member.Replica.ID != own {
			view.Members = append(view.Members, member)
		}
	}
	view.Members = withoutDuplicates(view.Members)
	return view
}

// judged marks lost replicas as silent if the store, and not the replica, may be the cause:
// it takes no writes, or began to take them again too recently.
func (v View) judged(self *Record, now time.Time) View {
	v.Members = slices.Clone(v.Members)
	for i := range v.Members {
		m := &v.Members[i]
		lostAt := now.Add(RecordTTL - m.Age)
		if m.Presence == Lost && slices.ContainsFunc(self.Store.Servers, func(s Server) bool {
			return s.Writes && now.Sub(s.Written) < RecordTTL || !s.Writes && lostAt.After(s.WritesSince)
		}) {
			m.Presence = Silent
		}
	}
	return v
}

// member returns the replica that wrote to the slot. It returns false if none did, or if
// that replica has stopped.
func (s *slot) member() (Member, bool) {
	if s.unopened {
		return Member{Presence: Sealed}, true
	}
	beacon, err := s.decoded()
	if err != nil || beacon.Stopped {
		return Member{}, false
	}
	member := Member{
		Presence: Alive, Replica: beacon.Replica, Age: s.age,
		Clock: beacon.Written.Sub(s.readAt.Add(-s.age)),
	}
	if s.age >= RecordTTL {
		member.Presence = Lost
		return member, true
	}
	// The record may belong to a replica that had the slot before.
	if record, err := Decode(s.record); err == nil && record.Replica.ID == beacon.ID {
		member.Record = record
	}
	return member, true
}

// withoutDuplicates keeps the newest entry of a replica that has changed its slot, and
// sorts the replicas by name.
func withoutDuplicates(all []Member) []Member {
	slices.SortStableFunc(all, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.Replica.ID, b.Replica.ID), cmp.Compare(a.Age, b.Age))
	})
	return slices.CompactFunc(all, func(a, b Member) bool { return a.Replica.ID != "" && a.Replica.ID == b.Replica.ID })
}
