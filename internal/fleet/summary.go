package fleet

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Summary is the status of the whole fleet, as one replica sees it.
type Summary struct {
	Findings []Finding
	// Replicas are all replicas; the first is the replica that made the summary.
	Replicas []Member
	Store    Store
	// Issuers and Clients are sorted by name, Certificates by their end.
	Issuers      []Issuer
	Clients      []FleetClient
	Certificates []Certificate
	// Omitted is the largest number of clients that a replica has left out.
	Omitted int
	// Incomplete: not all replicas could be read.
	Incomplete bool
}

// FleetClient is a client in the whole fleet: its state is the worst of all replicas, and
// its times are the latest. A replica that cannot have read the latest secret yet does not
// count with what it says about the earlier one.
type FleetClient struct {
	Client

	// Differs: some replicas have not read the latest change of the secret.
	Differs bool
}

// Summarize combines the records of all replicas. Times are by the clocks of the replicas.
func Summarize(view View, self *Record, now time.Time) Summary {
	view = view.judged(self, now)
	s := Summary{Findings: findingsIn(view, self, now), Incomplete: view.Err != nil || slices.ContainsFunc(view.Members, Member.silent)}
	s.Replicas = append([]Member{{Presence: Alive, Replica: self.Replica, Record: self}}, view.Members...)
	issuers, clients, certificates := map[Name]Issuer{}, map[Name]FleetClient{}, map[Certificate]Certificate{}
	servers := map[Name]Server{}
	for _, m := range s.Replicas {
		r := m.Record
		if r == nil || m.Presence != Alive {
			continue
		}
		s.Omitted = max(s.Omitted, r.Omitted)
		mergeInto(servers, r.Store.Servers, func(one Server) Name { return one.Name }, worseServer)
		mergeInto(issuers, r.Issuers, func(one Issuer) Name { return one.Name }, worseIssuer)
		mergeInto(certificates, r.Certificates, func(c Certificate) Certificate { return Certificate{Use: c.Use, Name: c.Name} }, sooner)
		for _, c := range r.Clients {
			before, ok := clients[c.Name]
			if !ok {
				before = FleetClient{Client: c}
			}
			clients[c.Name] = before.with(c, now)
		}
	}
	byName := cmp.Compare[Name]
	s.Store = self.Store
	s.Store.Servers = values(servers, func(a, b Server) int { return byName(a.Name, b.Name) })
	s.Issuers = values(issuers, func(a, b Issuer) int { return byName(a.Name, b.Name) })
	s.Clients = values(clients, func(a, b FleetClient) int { return byName(a.Name, b.Name) })
	s.Certificates = values(certificates, func(a, b Certificate) int { return cmp.Or(a.Ends.Compare(b.Ends), byName(a.Name, b.Name)) })
	return s
}

func values[K comparable, V any](of map[K]V, order func(a, b V) int) []V {
	return slices.SortedFunc(maps.Values(of), order)
}

// mergeInto combines each entry with the one of the same key.
func mergeInto[K comparable, V any](all map[K]V, some []V, key func(V) K, combine func(a, b V) V) {
	for _, one := range some {
		if before, ok := all[key(one)]; ok {
			one = combine(before, one)
		}
		all[key(one)] = one
	}
}

func worseServer(a, b Server) Server {
	if a.Cause == NoCause {
		a.Cause = b.Cause
	}
	a.ReadsSince, a.WritesSince = failingSince(a.Reads, b.Reads, a.ReadsSince, b.ReadsSince), failingSince(a.Writes, b.Writes, a.WritesSince, b.WritesSince)
	a.Reads, a.Writes = a.Reads && b.Reads, a.Writes && b.Writes
	return a
}

// failingSince returns the earliest time of a failure.
func failingSince(aWorks, bWorks bool, a, b time.Time) time.Time {
	switch {
	case aWorks && bWorks:
		return time.Time{}
	case aWorks:
		return b
	case bWorks:
		return a
	default:
		return earlier(a, b)
	}
}

func worseIssuer(a, b Issuer) Issuer {
	if b.Loaded.Before(a.Loaded) {
		a, b = b, a
	}
	if a.Failure == NoCause {
		a.Failure = b.Failure
	}
	return a
}

func sooner(a, b Certificate) Certificate {
	if b.Ends.Before(a.Ends) {
		return b
	}
	return a
}

// with combines the status with that on another replica.
func (c FleetClient) with(other Client, now time.Time) FleetClient {
	c.State = worseState(&c.Client, &other, now)
	c.Home = cmp.Or(c.Home, other.Home)
	c.Success = later(c.Success, other.Success)
	if other.Failed.After(c.Failed) {
		c.Failed, c.Failure, c.Resolved = other.Failed, other.Failure, other.Resolved
	}
	c.Differs = c.Differs || c.Generation != other.Generation
	c.Generation, c.Changed = max(c.Generation, other.Generation), later(c.Changed, other.Changed)
	c.SecretSince = later(c.SecretSince, other.SecretSince)
	c.Fallback, c.Pending = earlier(c.Fallback, other.Fallback), earlier(c.Pending, other.Pending)
	return c
}

func worseState(a, b *Client, now time.Time) ClientState {
	if b.Generation < a.Generation {
		a, b = b, a
	}
	ofSecret := a.State == ClientNoSecret || a.State == ClientRefused
	if ofSecret && a.Generation < b.Generation && now.Sub(b.Changed) <= SecretsSettle {
		return b.State
	}
	return max(a.State, b.State)
}

// earlier returns the earlier of two times, without regard to the zero time.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
