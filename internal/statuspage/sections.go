package statuspage

import (
	"cmp"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

func (r *reader) replicas() section {
	s := section{Title: "Replicas"}
	alive := 0
	for i := range r.Replicas {
		m := &r.Replicas[i]
		if m.Presence == fleet.Alive {
			alive++
		}
		one := r.replica(m)
		if i == 0 {
			one.Name += " (this one)"
		}
		s.Rows = append(s.Rows, one)
	}
	s.Summary = fmt.Sprintf("%d alive", alive)
	if r.Incomplete {
		s.Summary += ", the others are unknown"
	}
	return s.limited()
}

func (r *reader) replica(m *fleet.Member) row {
	one := row{Name: shown(m.Replica.ID)}
	switch {
	case m.Presence == fleet.Sealed:
		return row{Name: "a replica", State: "has other sealing keys", Level: bad}
	case m.Presence == fleet.Lost:
		one.Level = r.found(m.Replica.ID, fleet.ReplicaLost)
		one.State = "lost"
		if one.Level == plain {
			one.State = "replaced"
		}
		one.Facts = []string{"reported " + fleet.Span(m.Age) + " ago", "version " + shown(m.Replica.Version)}
		return one
	case m.Presence == fleet.Silent:
		one.State = "unknown"
		one.Facts = []string{"reported " + fleet.Span(m.Age) + " ago", "version " + shown(m.Replica.Version)}
		return one
	case m.Record == nil:
		one.State, one.Level = "unreadable", warn
	default:
		one.State, one.Level = "alive", good
	}
	one.Facts = append(one.Facts, "version "+shown(m.Replica.Version), "up for "+fleet.Span(r.now.Add(m.Clock).Sub(m.Replica.Started)))
	if m.Clock.Abs() >= notableClock {
		one.Facts = append(one.Facts, offBy(m.Clock))
	}
	if record := m.Record; record != nil {
		now := r.now.Add(m.Clock)
		one.Facts = append(one.Facts, "configuration "+record.Config.Digest.Short()+" for "+fleet.Span(now.Sub(record.Config.Applied)))
		if !record.Config.Refused.IsZero() {
			one.Level = warn
			one.Facts = append(one.Facts, "its file cannot be applied")
		}
		if record.Ring != nil {
			one.Facts = append(one.Facts, "sealing key "+shown(record.Ring.Primary))
		}
		one.Facts = append(one.Facts, revocations(&record.Revocations))
	}
	return one
}

func offBy(clock time.Duration) string {
	if clock > 0 {
		return "its clock is " + fleet.Span(clock) + " ahead"
	}
	return "its clock is " + fleet.Span(-clock) + " behind"
}

func revocations(r *fleet.Revocations) string {
	if !r.Usable {
		return "revocations are not loaded"
	}
	return fleet.Count(r.Count, "revocation", "revocations") + " loaded"
}

func (r *reader) store() section {
	kinds := map[fleet.StoreKind]string{fleet.Memory: "Memory of this process", fleet.Bolt: "Bolt file", fleet.Redis: "Redis"}
	kind := cmp.Or(kinds[r.Store.Kind], "unknown kind")
	s := section{Title: "Store", Summary: keeping(&r.Store)}
	for i := range r.Store.Servers {
		s.Rows = append(s.Rows, r.server(kind, &r.Store.Servers[i]))
	}
	if len(s.Rows) == 0 {
		s.Rows = []row{{Name: kind, State: "in use", Level: good}}
	}
	return s.limited()
}

func keeping(s *fleet.Store) string {
	if s.Kind == fleet.Memory {
		return "a restart loses everything"
	}
	if s.Evicts == fleet.Yes {
		return "may evict data that must stay"
	}
	return map[fleet.Answer]string{fleet.Yes: "keeps its data on disk", fleet.No: "does not keep its data on disk"}[s.Durable]
}

func (r *reader) server(kind string, server *fleet.Server) row {
	one := row{Name: kind, State: "reads and writes work", Level: good}
	if server.Name != "" {
		one.Name += " " + shown(server.Name)
	}
	began := server.WritesSince
	switch {
	case !server.Reads:
		one.State, one.Level, began = "cannot be reached", bad, server.ReadsSince
	case !server.Writes:
		one.State, one.Level = "refuses writes", bad
		one.Facts = append(one.Facts, server.Cause.Sentence())
	default:
		return one
	}
	one.Facts = append(one.Facts, since(r.now, began))
	return one
}

func (r *reader) clients() section {
	s := section{Title: "Clients", Summary: fleet.Count(len(r.Clients)+r.Omitted, "client", "clients")}
	for i := range r.Clients {
		c := &r.Clients[i]
		s.Rows = append(s.Rows, row{Name: shown(c.Name), State: clientWords(c.State), Level: r.client(c)})
	}
	return s.limited()
}

func clientWords(state fleet.ClientState) string {
	switch state {
	case fleet.ClientIdle:
		return "not used yet"
	case fleet.ClientOK:
		return "ok"
	case fleet.ClientFailing:
		return "gets no token"
	case fleet.ClientRefused:
		return "refused by the IdP"
	case fleet.ClientThrottled:
		return "throttled by the IdP"
	case fleet.ClientNoSecret:
		return "has no secret"
	case fleet.ClientUnknown:
	}
	return "unknown"
}

// client returns how well a client works: as the worst finding about it or its IdP says,
// and otherwise by its state, since another replica may still obtain tokens for it.
func (r *reader) client(c *fleet.FleetClient) level {
	worst := r.found(c.Name, fleet.IdPRefuses, fleet.IdPThrottles, fleet.SecretInvalid, fleet.SecretMissing, fleet.SecretFallback, fleet.SecretPending, fleet.SecretsDiffer, fleet.KeyOverdue)
	switch {
	case worst != plain:
		return worst
	case c.State == fleet.ClientOK:
		return good
	case c.State <= fleet.ClientIdle:
		return plain
	default:
		return cmp.Or(r.found(cmp.Or(c.Home, c.Name), fleet.IdPDown), warn)
	}
}

func (r *reader) issuers() section {
	s := section{Title: "Issuers", Summary: fleet.Count(len(r.Issuers), "issuer", "issuers")}
	for i := range r.Issuers {
		issuer := &r.Issuers[i]
		one := row{Name: shown(issuer.Name), State: fleet.Count(issuer.Keys, "key", "keys"), Level: r.found(issuer.Name, fleet.KeysOld, fleet.KeysUnusable)}
		if issuer.Loaded.IsZero() {
			one.State = "no keys yet"
		} else {
			one.Level = cmp.Or(one.Level, good)
			one.Facts = append(one.Facts, "fetched "+r.ago(issuer.Loaded))
		}
		if issuer.Failure != fleet.NoCause {
			one.Facts = append(one.Facts, "the last fetch failed: "+issuer.Failure.Sentence())
		}
		s.Rows = append(s.Rows, one)
	}
	return s.limited()
}

func (r *reader) certificates() section {
	uses := map[fleet.CertificateUse]string{
		fleet.ListenerUse: "broker", fleet.CallerAuthority: "authority of callers", fleet.ClientUse: "client", fleet.IdPAuthority: "authority of IdPs",
	}
	s := section{Title: "Certificates", Summary: "none in use"}
	for i := range r.Certificates {
		c := &r.Certificates[i]
		one := row{Name: uses[c.Use] + " " + shown(c.Name), Level: r.found(fleet.Name(c.Use.String())+":"+c.Name, fleet.CertificateEnded, fleet.CertificateEnding)}
		one.Level = cmp.Or(one.Level, good)
		if left := c.Ends.Sub(r.now); left > 0 {
			one.State = "expires in " + fleet.Span(left)
		} else {
			one.State = "expired " + r.ago(c.Ends)
		}
		one.Facts = []string{c.Ends.UTC().Format("2006-01-02 15:04 UTC")}
		if i == 0 {
			s.Summary = "the first " + one.State
		}
		s.Rows = append(s.Rows, one)
	}
	return s.limited()
}

// records shows the audit log and the traces.
func (r *reader) records() section {
	s := section{Title: "Audit and tracing"}
	audit, tracing := row{Name: "Audit log", State: "off"}, row{Name: "Tracing", State: "off"}
	lost := uint64(0)
	for _, record := range r.alive {
		audit.is(record.Audit.On, record.Audit.Failing, bad, r.now)
		tracing.is(record.Tracing.On, record.Tracing.Failing, warn, r.now)
		lost += record.Audit.Lost
	}
	if lost > 0 {
		audit.Level = cmp.Or(audit.Level, warn)
		audit.Facts = append(audit.Facts, fleet.Count(lost, "line", "lines")+" lost since the start")
	}
	s.Rows = []row{audit, tracing}
	return s
}

// is adds a replica's state to a row for all replicas.
func (one *row) is(on bool, failing time.Time, failed level, now time.Time) {
	switch {
	case !failing.IsZero() && one.Level != failed:
		one.State, one.Level = "failing", failed
		one.Facts = append(one.Facts, since(now, failing))
	case on && one.Level == plain:
		one.State, one.Level = "works", good
	}
}
