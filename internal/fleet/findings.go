package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// findingsIn derives the findings from what a replica sees of the others, its own status and
// its own clock. It is pure, so that all who show findings agree. The order is by severity,
// then by age.
func findingsIn(view View, self *Record, now time.Time) []Finding {
	f := &findings{now: now, view: view, at: map[string]int{}, succeeded: map[Name]time.Time{}, changes: map[Name]change{}}
	f.members = append(f.members, member{record: self, replica: self.Replica, now: now})
	for _, m := range view.Members {
		if m.Presence == Alive {
			f.members = append(f.members, member{record: m.Record, replica: m.Replica, clock: m.Clock, now: now.Add(m.Clock)})
		}
	}
	f.successes()
	f.latestChanges()
	f.presence()
	for _, m := range f.members {
		if m.record != nil {
			f.ofReplica(m)
		}
	}
	f.differences()
	return f.sorted()
}

// member is a replica that is alive.
type member struct {
	record  *Record // nil: it could not be read
	replica Replica
	clock   time.Duration // ahead of ours
	now     time.Time     // by its clock
}

// findings collects findings, and merges the findings that several replicas report.
type findings struct {
	now     time.Time
	view    View
	members []member
	all     []Finding
	at      map[string]int // index in all, by id and subject
	// succeeded is when a replica on which a client works last obtained a token for it.
	succeeded map[Name]time.Time
	changes   map[Name]change // the latest of each client's secret
}

// addf reports a finding of one replica. since is by its clock; zero means now.
func (f *findings) addf(id string, subject Name, m member, since time.Time, format string, args ...any) {
	if since.IsZero() {
		since = m.now
	}
	since = since.Add(-m.clock)
	key := keyOf(id, subject)
	if i, ok := f.at[key]; ok {
		before := &f.all[i]
		if before.Replicas[len(before.Replicas)-1] != m.replica.ID {
			before.Replicas = append(before.Replicas, m.replica.ID)
		}
		if since.Before(before.Since) {
			before.Since = since
		}
		return
	}
	f.at[key] = len(f.all)
	f.all = append(f.all, newFinding(id, subject, []Name{m.replica.ID}, since, fmt.Sprintf(format, args...)))
}

func keyOf(id string, subject Name) string { return id + "\x00" + string(subject) }

// addFleetf reports a finding that follows from the comparison of replicas.
func (f *findings) addFleetf(id string, subject Name, since time.Time, format string, args ...any) {
	f.all = append(f.all, newFinding(id, subject, nil, since, fmt.Sprintf(format, args...)))
}

func newFinding(id string, subject Name, replicas []Name, since time.Time, message string) Finding {
	r := rules[id]
	return Finding{Severity: r.severity, ID: id, Subject: subject, Replicas: replicas, Message: message, Since: since, Runbook: id, Action: r.action}
}

// sorted completes the sentences and returns the findings in their order.
func (f *findings) sorted() []Finding {
	for i := range f.all {
		one := &f.all[i]
		if n := len(one.Replicas); n > 0 && n < len(f.members) {
			one.Message += fmt.Sprintf(" (on %d of %d replicas: %s)", n, len(f.members), list(one.Replicas))
		}
		one.Message += "."
	}
	slices.SortStableFunc(f.all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(b.Severity, a.Severity), a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Subject, b.Subject))
	})
	return f.all
}

// presence reports replicas that are lost, cannot be read, or have another ring.
func (f *findings) presence() {
	if f.view.Err != nil && f.members[0].record.Store.reachable() {
		f.addf(StoreAway, "", f.members[0], f.now, "The store could not be read just now, so the status of other replicas is unknown")
	}
	sealed := 0
	for _, m := range f.view.Members {
		switch {
		case m.Presence == Sealed:
			sealed++
		case m.Presence == Lost && !f.replaced(m):
			f.addFleetf(ReplicaLost, m.Replica.ID, f.now.Add(-m.Age), "Replica %s has not reported for %s and did not shut down in an orderly way", m.Replica.ID, Span(m.Age))
		case m.Presence == Alive && m.Record == nil && !f.explained(m):
			f.addFleetf(ReplicaUnreadable, m.Replica.ID, f.now, "The status of replica %s cannot be read", m.Replica.ID)
		}
	}
	if sealed > 0 {
		f.addFleetf(RingDiffers, "", f.now, "%s status with sealing keys that this replica does not have", Count(sealed, "replica writes its", "replicas write their"))
	}
}

// replaced reports whether a process was started on the host of a lost replica since.
func (f *findings) replaced(lost Member) bool {
	end := f.now.Add(-lost.Age)
	return slices.ContainsFunc(f.members, func(m member) bool {
		return m.replica.Host == lost.Replica.Host && m.replica.Started.Add(-m.clock).After(end)
	})
}

// explained reports whether another finding explains that a record cannot be read.
func (f *findings) explained(m Member) bool {
	return m.Clock.Abs() > ClockLimit || m.Replica.Version != f.members[0].replica.Version
}

// ofReplica reports the findings of one replica alone.
func (f *findings) ofReplica(m member) {
	r := m.record
	f.ofStore(m)
	outages := r.outages()
	for i := range r.Clients {
		f.ofClient(m, &r.Clients[i], outages)
	}
	for i := range r.Issuers {
		f.ofIssuer(m, &r.Issuers[i])
	}
	for i := range r.Certificates {
		f.ofCertificate(m, &r.Certificates[i])
	}
	f.ofRevocations(m)
	f.failing(m, ConfigRefused, r.Config.Refused, "The configuration file contains a configuration that cannot be applied")
	f.failing(m, CertificateRejected, r.CertificatesFailing, "The new certificate of a listener cannot be used")
	f.failing(m, AuditFailing, r.Audit.Failing, "The audit log cannot be written")
	if a := &r.Audit; a.Lost > 0 && m.now.Sub(a.LostAt) < LostMemory {
		f.addf(AuditLost, m.replica.ID, m, a.LostAt, "The audit log has lost %s since the start, the last %s ago", Count(a.Lost, "line", "lines"), Span(m.now.Sub(a.LostAt)))
	}
	f.failing(m, TracingFailing, r.Tracing.Failing, "The trace collector does not accept spans")
	if r.Ring != nil {
		f.failing(m, RingDiffers, r.Ring.Mismatch, "The store is used with another ring of sealing keys, so no token is accepted")
	}
}

// failing reports a finding if since is set.
func (f *findings) failing(m member, id string, since time.Time, message string) {
	if !since.IsZero() {
		f.addf(id, "", m, since, "%s", message)
	}
}

// reachable reports whether all servers serve reads.
func (s *Store) reachable() bool {
	return !slices.ContainsFunc(s.Servers, func(server Server) bool { return !server.Reads })
}

func (f *findings) ofStore(m member) {
	s := &m.record.Store
	f.ofServers(m, s)
	if s.Evicts == Yes {
		f.addf(StoreEvicts, "", m, f.now, "Redis may evict data that must stay, such as the epochs that purges have raised")
	}
	if s.KeepsSecrets && s.Durable == No {
		f.addf(StoreVolatile, "", m, f.now, "Redis keeps no append-only file, and the only copy of the managed secrets is in it")
	}
}

func (f *findings) ofServers(m member, s *Store) {
	down := 0
	for _, server := range s.Servers {
		if !server.Reads {
			down++
		}
	}
	all := down == len(s.Servers)
	for i := range s.Servers {
		server := &s.Servers[i]
		switch {
		case !server.Reads && all:
			f.addf(StoreAway, "", m, server.ReadsSince, "The store cannot be reached; each replica fetches tokens for itself")
			return // one finding for all servers
		case !server.Reads:
			f.addf(StoreShardAway, server.Name, m, server.ReadsSince, "%d of %d servers of the store cannot be reached: %s", down, len(s.Servers), server.Name)
		case !server.Writes && server.Cause == OutOfMemory:
			f.addf(StoreFull, server.Name, m, server.WritesSince, "%s is out of memory and refuses writes", s.named(server))
		case !server.Writes && server.Cause == ReadOnly:
			f.addf(StoreReadOnly, server.Name, m, server.WritesSince, "%s is a replica, which is read-only", s.named(server))
		case !server.Writes:
			f.addf(StoreRefuses, server.Name, m, server.WritesSince, "%s refuses writes%s", s.named(server), why(server.Cause))
		}
	}
}

func (f *findings) ofClient(m member, c *Client, outages map[outage]int) {
	switch {
	case c.State == ClientThrottled:
		f.addf(IdPThrottles, c.Name, m, c.Failed, "The IdP limits the requests of client %s", c.Name)
	case c.State == ClientFailing && !f.succeeded[c.Name].After(c.Failed.Add(-m.clock)):
		f.ofFetch(m, c, outages)
	}
	if !c.SourceFailing.IsZero() {
		f.addf(SourceFailing, c.Name, m, c.SourceFailing, "The secret of client %s cannot be read from its source", c.Name)
	}
	if !f.outdated(c) {
		f.ofSecret(m, c)
	}
}

func (f *findings) ofSecret(m member, c *Client) {
	switch c.State {
	case ClientNoSecret:
		f.ofMissing(m, c)
	case ClientRefused:
		f.addf(SecretInvalid, c.Name, m, c.Failed, "The IdP refuses the credentials of client %s", c.Name)
	case ClientUnknown, ClientIdle, ClientOK, ClientFailing, ClientThrottled:
	}
	if !c.Fallback.IsZero() {
		f.addf(SecretFallback, c.Name, m, c.Fallback, "Client %s obtains tokens with another version of its secret than the current one", c.Name)
	}
	if !c.PendingRefused.IsZero() {
		f.addf(SecretInvalid, c.Name, m, c.Pending, "The IdP refuses the new secret of client %s, so the one from before stays in use", c.Name)
	}
	if !c.Pending.IsZero() && m.now.Sub(c.Pending) > PendingLimit {
		f.addf(SecretPending, c.Name, m, c.Pending, "A new secret of client %s has been pending for %s", c.Name, Span(m.now.Sub(c.Pending)))
	}
	if c.State != ClientNoSecret && c.Key.Overdue(m.now) {
		f.addf(KeyOverdue, c.Name, m, c.Key.Due, "The key of client %s cannot be replaced: %s", c.Name, waiting[c.Key.Obstacle])
	}
}

// ofMissing reports a client without a secret. Its first key has the same obstacles as the
// later ones, and the same action.
func (f *findings) ofMissing(m member, c *Client) {
	if c.Key == nil {
		f.addf(SecretMissing, c.Name, m, c.Changed, "Client %s has no secret", c.Name)
		return
	}
	f.addf(SecretMissing, c.Name, m, c.Key.Due, "Client %s has no key in use: %s", c.Name, waiting[c.Key.Obstacle])
	f.all[f.at[keyOf(SecretMissing, c.Name)]].Action = rules[KeyOverdue].action
}

// ofFetch reports a failing client. An IdP that cannot be reached is one finding for all
// of its clients.
func (f *findings) ofFetch(m member, c *Client, outages map[outage]int) {
	if c.Failure == RequestRefused || c.Failure == Misconfigured {
		f.addf(IdPRefuses, c.Name, m, c.Failed, "The IdP issues no token to client %s: %s", c.Name, sentences[c.Failure])
		return
	}
	subject, idp, clients := c.Home, "The IdP "+string(c.Home), outages[outage{c.Home, c.Failure}]
	if c.Home == "" {
		subject, idp, clients = c.Name, "The IdP of client "+string(c.Name), 1
	}
	f.addf(IdPDown, subject, m, c.Failed, "%s cannot be reached: %s without a fresh token", idp, Count(clients, "client is", "clients are"))
}

// outage is what the clients of one IdP that cannot be reached have in common.
type outage struct {
	home  Name
	cause Cause
}

// outages counts the failing clients by IdP and cause.
func (r *Record) outages() map[outage]int {
	count := map[outage]int{}
	for i := range r.Clients {
		if c := &r.Clients[i]; c.State == ClientFailing {
			count[outage{c.Home, c.Failure}]++
		}
	}
	return count
}

// successes records when each client last worked anywhere.
func (f *findings) successes() {
	for _, m := range f.members {
		for _, c := range m.clients() {
			if c.State == ClientOK {
				f.succeeded[c.Name] = later(f.succeeded[c.Name], c.Success.Add(-m.clock))
			}
		}
	}
}

func (f *findings) ofIssuer(m member, i *Issuer) {
	age := m.now.Sub(i.Loaded)
	switch {
	case i.Loaded.IsZero() && m.now.Sub(m.replica.Started) > StartGrace:
		f.addf(KeysUnusable, i.Name, m, m.replica.Started, "The keys of issuer %s were never fetched%s: its tokens cannot be verified", i.Name, why(i.Failure))
	case i.Loaded.IsZero():
	case i.MaxStale > 0 && age > i.MaxStale:
		f.addf(KeysUnusable, i.Name, m, i.Loaded.Add(i.MaxStale), "The keys of issuer %s are %s old%s: its tokens cannot be verified", i.Name, Span(age), why(i.Failure))
	case i.Failure != NoCause && age > KeysLimit:
		f.addf(KeysOld, i.Name, m, i.Loaded, "The keys of issuer %s are %s old and cannot be fetched again%s", i.Name, Span(age), why(i.Failure))
	}
}

func (f *findings) ofCertificate(m member, c *Certificate) {
	limit := CertificateLimit
	if life := c.Ends.Sub(c.Begins); !c.Begins.IsZero() && life/CertificateShare < limit {
		limit = life / CertificateShare
	}
	subject := Name(c.Use.String()) + ":" + c.Name
	switch left := c.Ends.Sub(m.now); {
	case left <= 0:
		f.addf(CertificateEnded, subject, m, c.Ends, "%s %s expired %s ago", certificates[c.Use], c.Name, Span(-left))
	case left < limit:
		f.addf(CertificateEnding, subject, m, c.Ends.Add(-limit), "%s %s expires in %s", certificates[c.Use], c.Name, Span(left))
	}
}

func (f *findings) ofRevocations(m member) {
	r := &m.record.Revocations
	switch age := m.now.Sub(r.Loaded); {
	case m.record.Ring != nil && !m.record.Ring.Mismatch.IsZero(): // this is the cause, and has its own finding
	case !r.Usable && m.now.Sub(m.replica.Started) > StartGrace:
		f.addf(RevocationsNotLoaded, "", m, cmp.Or(r.Loaded, m.replica.Started), "The revocations are not loaded, so no token is accepted")
	case r.Usable && age > RevocationsLimit && m.record.Store.reachable(): // else the store is the cause
		f.addf(RevocationsOld, "", m, r.Loaded, "The revocations were last compared with the store %s ago", Span(age))
	}
}

// list names up to three replicas.
func list(names []Name) string {
	const most = 3
	shown := make([]string, 0, most)
	for _, name := range names[:min(len(names), most)] {
		shown = append(shown, string(name))
	}
	text := strings.Join(shown, ", ")
	if more := len(names) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
