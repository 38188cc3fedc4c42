package fleet_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

// now is the time of all tests of findings.
var now = time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)

// ago is a moment before now.
func ago(d time.Duration) time.Time { return now.Add(-d) }

// world is a fleet of three replicas without a fault, as the first of them sees it.
type world struct {
	self *fleet.Record
	view fleet.View
}

func healthy() *world {
	w := &world{self: record("a")}
	for _, id := range []fleet.Name{"b", "c"} {
		r := record(id)
		w.view.Members = append(w.view.Members, fleet.Member{Presence: fleet.Alive, Replica: r.Replica, Record: r, Age: 5 * time.Second})
	}
	return w
}

func record(id fleet.Name) *fleet.Record {
	return &fleet.Record{
		Replica:     fleet.Replica{ID: id, Host: "host-" + id, Version: "v1.2.0", Started: ago(24 * time.Hour), Written: ago(5 * time.Second)},
		Config:      fleet.Config{Digest: fleet.Digest{1}, Applied: ago(time.Hour)},
		Ring:        &fleet.Ring{Primary: "00000001", IDs: []fleet.Name{"00000001", "00000002"}, Applied: ago(24 * time.Hour)},
		Revocations: fleet.Revocations{Count: 3, Usable: true, Loaded: ago(6 * time.Second)},
		Store: fleet.Store{Kind: fleet.Redis, Durable: fleet.Yes, Evicts: fleet.No, Servers: []fleet.Server{
			{Name: "redis-1:6379", Reads: true, Writes: true}, {Name: "redis-2:6379", Reads: true, Writes: true},
		}},
		Issuers: []fleet.Issuer{{Name: "https://idp.example", Keys: 2, Loaded: ago(10 * time.Minute), MaxStale: time.Hour}},
		Clients: []fleet.Client{
			{Name: "orders", State: fleet.ClientOK, Success: ago(5 * time.Minute), Generation: 2, Changed: ago(time.Hour), SecretSince: ago(time.Hour)},
			{Name: "billing", State: fleet.ClientOK, Success: ago(6 * time.Minute), Generation: 1, Changed: ago(time.Hour)},
			{Name: "unused", State: fleet.ClientIdle},
		},
		Certificates: []fleet.Certificate{
			{Use: fleet.ListenerUse, Name: "broker.example", Begins: ago(60 * 24 * time.Hour), Ends: now.Add(30 * 24 * time.Hour)},
			{Use: fleet.ClientUse, Name: "orders", Begins: ago(20 * time.Minute), Ends: now.Add(40 * time.Minute)},
		},
		Audit:   fleet.Audit{On: true},
		Tracing: fleet.Tracing{On: true},
	}
}

// b is the record of another replica.
func (w *world) b() *fleet.Record { return w.view.Members[0].Record }

func (w *world) everywhere(change func(r *fleet.Record)) {
	change(w.self)
	for _, m := range w.view.Members {
		change(m.Record)
	}
}

func (w *world) findings() []fleet.Finding { return fleet.Summarize(w.view, w.self, now).Findings }

// fault is something that goes wrong, and the finding that tells of it.
type fault struct {
	name   string
	inject func(w *world)
	id     string
	says   string // part of the sentence
	since  time.Time
}

func faults() []fault {
	m := func(r *fleet.Record, i int) *fleet.Server { return &r.Store.Servers[i] }
	away := ago(3 * time.Minute)
	return []fault{
		{"store away", func(w *world) {
			w.view = fleet.View{Err: errors.New("away")}
			w.self.Revocations.Loaded = away
			for i := range w.self.Store.Servers {
				*m(w.self, i) = fleet.Server{Name: "redis", ReadsSince: away, WritesSince: away, Cause: fleet.Unreachable}
			}
		}, fleet.StoreAway, "The store cannot be reached; each replica fetches tokens for itself.", away},
		{"store could not be read once", func(w *world) { w.view = fleet.View{Err: errors.New("timeout")} }, fleet.StoreAway, "the status of other replicas is unknown", now},
		{"one shard", func(w *world) {
			w.everywhere(func(r *fleet.Record) {
				m(r, 1).Reads, m(r, 1).Writes, m(r, 1).ReadsSince = false, false, away
				r.Revocations.Loaded = away
			})
		}, fleet.StoreShardAway, "1 of 2 servers of the store cannot be reached: redis-2:6379.", away},
		{"read-only", func(w *world) {
			w.everywhere(func(r *fleet.Record) {
				m(r, 0).Writes, m(r, 0).WritesSince, m(r, 0).Cause = false, away, fleet.ReadOnly
			})
		}, fleet.StoreReadOnly, "Redis at redis-1:6379 is a replica, which is read-only.", away},
		{"out of memory", func(w *world) {
			w.everywhere(func(r *fleet.Record) {
				m(r, 0).Writes, m(r, 0).WritesSince, m(r, 0).Cause = false, away, fleet.OutOfMemory
			})
		}, fleet.StoreFull, "Redis at redis-1:6379 is out of memory and refuses writes.", away},
		{"cannot save", func(w *world) {
			w.everywhere(func(r *fleet.Record) {
				m(r, 0).Writes, m(r, 0).WritesSince, m(r, 0).Cause = false, away, fleet.DiskFailed
			})
		}, fleet.StoreRefuses, "Redis at redis-1:6379 refuses writes (it cannot save its data).", away},
		{"evicts", func(w *world) { w.everywhere(func(r *fleet.Record) { r.Store.Evicts = fleet.Yes }) }, fleet.StoreEvicts, "Redis may evict data that must stay", now},
		{"not durable", func(w *world) {
			w.everywhere(func(r *fleet.Record) { r.Store.Durable, r.Store.KeepsSecrets = fleet.No, true })
		}, fleet.StoreVolatile, "Redis keeps no append-only file, and the only copy", now},
		{"IdP down", func(w *world) {
			for i, name := range []fleet.Name{"orders", "billing"} {
				w.self.Clients[i] = fleet.Client{Name: name, State: fleet.ClientFailing, Home: "https://idp.example", Failed: ago(time.Minute), Failure: fleet.Unreachable, Success: ago(time.Hour), Generation: uint64(2 - i), Changed: ago(time.Hour)}
			}
		}, fleet.IdPDown, "The IdP https://idp.example cannot be reached: 2 clients are without a fresh token (on 1 of 3 replicas: a).", ago(time.Minute)},
		{"IdP refuses the request", func(w *world) {
			w.b().Clients[1].State, w.b().Clients[1].Failure, w.b().Clients[1].Failed = fleet.ClientFailing, fleet.RequestRefused, ago(time.Minute)
		}, fleet.IdPRefuses, "issues no token to client billing: it refuses the request for this audience or these scopes (on 1 of 3", ago(time.Minute)},
		{"IdP throttles", func(w *world) {
			w.self.Clients[0].State, w.self.Clients[0].Failed = fleet.ClientThrottled, ago(20*time.Second)
		}, fleet.IdPThrottles, "limits the requests of client orders", ago(20 * time.Second)},
		{"wrong secret", func(w *world) {
			w.everywhere(func(r *fleet.Record) { r.Clients[0].State, r.Clients[0].Failed = fleet.ClientRefused, ago(time.Minute) })
		}, fleet.SecretInvalid, "The IdP refuses the credentials of client orders.", ago(time.Minute)},
		{"no secret", func(w *world) { w.self.Clients[2].State = fleet.ClientNoSecret }, fleet.SecretMissing, "Client unused has no secret", now},
		{"fallback", func(w *world) { w.self.Clients[0].Fallback = ago(10 * time.Minute) }, fleet.SecretFallback, "Client orders obtains", ago(10 * time.Minute)},
		{"new secret refused", func(w *world) {
			w.b().Clients[0].Pending, w.b().Clients[0].PendingRefused = ago(time.Minute), ago(time.Second)
		}, fleet.SecretInvalid, "The IdP refuses the new secret of client", ago(time.Minute)},
		{"source fails", func(w *world) { w.b().Clients[0].SourceFailing = ago(3 * time.Minute) }, fleet.SourceFailing, "The secret of client orders cannot be read from its source", ago(3 * time.Minute)},
		{"pending", func(w *world) { w.b().Clients[0].Pending = ago(61 * time.Minute) }, fleet.SecretPending, "pending for 61m", ago(61 * time.Minute)},
		{"key not shown", func(w *world) {
			w.everywhere(func(r *fleet.Record) {
				r.Clients[0].Key = &fleet.Key{Due: ago(61 * time.Minute), PublishBefore: 24 * time.Hour, Obstacle: fleet.KeyNotShown}
			})
		}, fleet.KeyOverdue, "The key of client orders cannot be replaced: the document at its URL does not contain the next one.", ago(61 * time.Minute)},
		{"key not accepted", func(w *world) {
			w.b().Clients[0].Key = &fleet.Key{Due: ago(16 * time.Minute), PublishBefore: time.Hour, Obstacle: fleet.KeyNotAccepted}
		}, fleet.KeyOverdue, "client orders cannot be replaced: the IdP has issued no token for the next one (on 1 of 3 replicas: b).", ago(16 * time.Minute)},
		{"first key not shown", func(w *world) {
			w.self.Clients[2].State = fleet.ClientNoSecret
			w.self.Clients[2].Key = &fleet.Key{Due: ago(2 * time.Hour), PublishBefore: time.Hour, Obstacle: fleet.KeyNotShown}
		}, fleet.SecretMissing, "Client unused has no key in use: the document at its URL does not contain", ago(2 * time.Hour)},
		{"secrets differ", func(w *world) { w.b().Clients[0].Generation = 1 }, fleet.SecretsDiffer, "client orders has not reached b", ago(time.Hour)},
		{"other ring: unopened", func(w *world) { w.view.Members[1] = fleet.Member{Presence: fleet.Sealed} }, fleet.RingDiffers, "1 replica writes its status with sealing keys that this replica does not have", now},
		{"other ring: primary", func(w *world) {
			w.b().Ring = &fleet.Ring{Primary: "00000003", IDs: []fleet.Name{"00000001", "00000003"}}
			w.b().Clients[0].Generation = 1 // it cannot open the history of the secret
		}, fleet.RingDiffers, "Replica b seals with key 00000003, which replica a does not have", now},
		{"other ring: marker", func(w *world) {
			w.self.Ring.Mismatch, w.self.Revocations = ago(time.Minute), fleet.Revocations{}
		}, fleet.RingDiffers, "another ring of sealing keys, so no token is accepted (on 1 of 3 replicas: a)", ago(time.Minute)},
		{"ring without a key of others", func(w *world) {
			w.b().Ring.IDs, w.b().Ring.Applied = w.b().Ring.IDs[:1], ago(time.Hour)
		}, fleet.RingRollout, "00000001 of [00000001 00000002] on a, c; 00000001 of [00000001] on b", ago(time.Hour)},
		{"ring that one replica did not promote", func(w *world) {
			w.b().Ring.Primary, w.b().Ring.Applied = "00000002", ago(time.Hour)
		}, fleet.RingRollout, "00000002 of [00000001 00000002] on b", ago(time.Hour)},
		{"clock ahead", func(w *world) { w.ahead(0, 2*time.Minute) }, fleet.ClockDiffers, "b is 2m ahead", now},
		{"clock behind", func(w *world) { w.ahead(1, -2*time.Minute) }, fleet.ClockDiffers, "c is 2m behind", now},
		{"clock ahead, record expired", func(w *world) { w.ahead(1, -2*time.Minute); w.view.Members[1].Record = nil }, fleet.ClockDiffers, "c is 2m behind", now},
		{"own clock", func(w *world) { w.ahead(0, -time.Minute); w.ahead(1, -time.Minute) }, fleet.ClockDiffers, "a is 60s ahead", now},
		{"certificate ending", func(w *world) { w.self.Certificates[0].Ends = now.Add(6 * 24 * time.Hour) }, fleet.CertificateEnding, "The broker's own certificate broker.example expires in 6d", ago(24 * time.Hour)},
		{"short certificate ending", func(w *world) { w.self.Certificates[1].Ends = now.Add(3 * time.Minute) }, fleet.CertificateEnding, "client orders expires in 3m", time.Time{}},
		{"certificate ended", func(w *world) { w.b().Certificates[0].Ends = ago(time.Hour) }, fleet.CertificateEnded, "expired 60m ago", ago(time.Hour)},
		{"certificate rejected", func(w *world) { w.b().CertificatesFailing = ago(time.Hour) }, fleet.CertificateRejected, "cannot be used", ago(time.Hour)},
		{"audit", func(w *world) { w.b().Audit.Failing = ago(time.Minute) }, fleet.AuditFailing, "The audit log cannot be written (on 1 of 3 replicas: b).", ago(time.Minute)},
		{"audit lines lost", func(w *world) {
			w.b().Audit.Lost, w.b().Audit.LostAt = 7, ago(20*time.Minute)
		}, fleet.AuditLost, "The audit log has lost 7 lines since the start, the last 20m ago (on 1 of 3 replicas: b).", ago(20 * time.Minute)},
		{"tracing", func(w *world) { w.self.Tracing.Failing = ago(time.Minute) }, fleet.TracingFailing, "collector", ago(time.Minute)},
		{"replica lost", func(w *world) {
			w.view.Members[1] = fleet.Member{Presence: fleet.Lost, Replica: w.view.Members[1].Replica, Age: 90 * time.Second}
		}, fleet.ReplicaLost, "Replica c has not reported for 90s", ago(90 * time.Second)},
		{"replica unreadable", func(w *world) { w.view.Members[1].Record = nil }, fleet.ReplicaUnreadable, "status of replica c", now},
		{"configuration differs", func(w *world) { w.b().Config.Digest = fleet.Digest{2} }, fleet.ConfigDiffers, "01000000 on a, c; 02000000 on b", ago(time.Hour)},
		{"configuration refused", func(w *world) { w.b().Config.Refused = ago(time.Minute) }, fleet.ConfigRefused, "cannot be applied", ago(time.Minute)},
		{"versions differ", func(w *world) { w.setVersion(0, "v1.3.0") }, fleet.VersionsDiffer, "v1.2.0 on a, c; v1.3.0 on b", ago(24 * time.Hour)},
		{"newer form", func(w *world) { w.setVersion(0, "v2.0.0"); w.view.Members[0].Record = nil }, fleet.VersionsDiffer, "v2.0.0 on b", ago(24 * time.Hour)},
		{"revocations never loaded", func(w *world) { w.self.Revocations = fleet.Revocations{} }, fleet.RevocationsNotLoaded, "no token is accepted", ago(24 * time.Hour)},
		{"revocations old", func(w *world) { w.b().Revocations.Loaded = ago(100 * time.Second) }, fleet.RevocationsOld, "100s ago (on 1 of 3 replicas: b)", ago(100 * time.Second)},
		{"keys old", func(w *world) {
			w.b().Issuers[0].Loaded, w.b().Issuers[0].Failure = ago(40*time.Minute), fleet.Unreachable
		}, fleet.KeysOld, "40m old", ago(40 * time.Minute)},
		{"keys stale", func(w *world) { w.b().Issuers[0].Loaded = ago(70 * time.Minute) }, fleet.KeysUnusable, "cannot be verified", ago(10 * time.Minute)},
		{"keys never fetched", func(w *world) {
			w.self.Issuers[0] = fleet.Issuer{Name: "https://idp.example", Failure: fleet.Unreachable}
		}, fleet.KeysUnusable, "were never fetched (it did not respond", ago(24 * time.Hour)},
	}
}

// ahead sets the clock of another replica, and thereby all times that it reports.
func (w *world) ahead(i int, by time.Duration) {
	m := &w.view.Members[i]
	m.Clock = by
	r := m.Record
	for _, at := range []*time.Time{&r.Revocations.Loaded, &r.Config.Applied, &r.Issuers[0].Loaded, &r.Clients[0].Success, &r.Clients[0].Changed} {
		*at = at.Add(by)
	}
}

func (w *world) setVersion(i int, version fleet.Name) {
	w.view.Members[i].Replica.Version = version
	w.view.Members[i].Record.Replica.Version = version
}

func TestHealthyFleetHasNoFinding(t *testing.T) {
	if got := healthy().findings(); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}

func TestEachFaultIsExactlyItsFinding(t *testing.T) {
	covered := map[string]bool{}
	for _, fault := range faults() {
		covered[fault.id] = true
		t.Run(fault.name, func(t *testing.T) {
			w := healthy()
			fault.inject(w)
			got := w.findings()
			if len(got) != 1 {
				t.Fatalf("%d findings: %+v", len(got), got)
			}
			one := got[0]
			if one.ID != fault.id || !strings.Contains(one.Message, fault.says) {
				t.Errorf("%s: %q, want %s: %q", one.ID, one.Message, fault.id, fault.says)
			}
			if !fault.since.IsZero() && !one.Since.Equal(fault.since) {
				t.Errorf("since %v, want %v", one.Since, fault.since)
			}
			if one.Action == "" || one.Runbook != one.ID || one.Severity == 0 || !strings.HasSuffix(one.Message, ".") {
				t.Errorf("not complete: %+v", one)
			}
		})
	}
	for _, id := range fleet.RuleIDs() {
		if !covered[id] {
			t.Errorf("no fault leads to the finding %s", id)
		}
	}
}

// "broker secret rotate" is refused for a client whose key the broker makes.
func TestActionOfAMissingSecret(t *testing.T) {
	for name, want := range map[string]string{"no secret": "broker secret rotate", "first key not shown": "broker key list"} {
		all := faults()
		i := slices.IndexFunc(all, func(one fault) bool { return one.name == name })
		w := healthy()
		all[i].inject(w)
		if got := w.findings()[0].Action; !strings.Contains(got, want) || strings.Count(got, "broker ") != 1 {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestFaultsDoNotHideEachOther(t *testing.T) {
	for _, fault := range faults() {
		if fault.id == fleet.AuditFailing {
			continue
		}
		w := healthy()
		fault.inject(w)
		w.self.Audit.Failing = ago(time.Hour)
		var ids []string
		for _, one := range w.findings() {
			ids = append(ids, one.ID)
		}
		if len(ids) != 2 || !slices.Contains(ids, fault.id) || !slices.Contains(ids, fleet.AuditFailing) {
			t.Errorf("%s and an audit log that cannot be written: %v", fault.name, ids)
		}
	}
}

func TestSettlingIsNoFinding(t *testing.T) {
	for name, inject := range map[string]func(w *world){
		"configuration rollout": func(w *world) { w.b().Config = fleet.Config{Digest: fleet.Digest{2}, Applied: ago(time.Minute)} },
		"first secret that others have not read": func(w *world) {
			w.b().Clients[2].State = fleet.ClientNoSecret
			w.self.Clients[2].Generation, w.self.Clients[2].Changed = 1, ago(time.Second)
		},
		"new secret that others have not read": func(w *world) {
			w.self.Clients[0].State, w.self.Clients[0].Generation = fleet.ClientRefused, 1
			w.b().Clients[0].Changed = ago(time.Second)
		},
		"version rollout": func(w *world) {
			w.setVersion(0, "v1.3.0")
			w.view.Members[0].Replica.Started = ago(10 * time.Minute)
		},
		"rotation": func(w *world) { w.self.Clients[0].Generation, w.self.Clients[0].Changed = 3, ago(30*time.Second) },
		"key that is due since a while": func(w *world) {
			w.self.Clients[0].Key = &fleet.Key{Due: ago(59 * time.Minute), PublishBefore: 24 * time.Hour, Obstacle: fleet.KeyNotShown}
			w.self.Clients[1].Key = &fleet.Key{Due: ago(14 * time.Minute), PublishBefore: time.Hour, Obstacle: fleet.KeyNotAccepted}
		},
		"just started": func(w *world) {
			w.self.Replica.Started = ago(5 * time.Second)
			w.self.Revocations = fleet.Revocations{}
			w.self.Issuers[0].Loaded = time.Time{}
		},
		"new sealing key": func(w *world) {
			w.b().Ring.IDs, w.b().Ring.Applied = append(w.b().Ring.IDs, "00000003"), ago(9*time.Minute)
		},
		"audit lines lost some time ago": func(w *world) { w.b().Audit.Lost, w.b().Audit.LostAt = 7, ago(61*time.Minute) },
		"not durable, without secrets":   func(w *world) { w.self.Store.Durable = fleet.No },
		"resolved":                       func(w *world) { w.self.Clients[0].Failed, w.self.Clients[0].Resolved = ago(time.Minute), true },
		"resolved on another replica": func(w *world) {
			c := &w.self.Clients[0]
			c.State, c.Failure, c.Failed, c.Success = fleet.ClientFailing, fleet.Unreachable, ago(time.Minute), ago(time.Hour)
			w.b().Clients[0].Success = ago(30 * time.Second)
		},
		"restarted at once": func(w *world) {
			lost := w.view.Members[1].Replica
			w.view.Members[1].Replica.Started, w.view.Members[1].Replica.ID = ago(20*time.Second), "c2"
			w.view.Members[1].Record.Replica = w.view.Members[1].Replica
			w.view.Members = append(w.view.Members, fleet.Member{Presence: fleet.Lost, Replica: lost, Age: 40 * time.Second})
		},
		"a store that takes writes again": func(w *world) {
			w.self.Store.Servers[1].Written = ago(15 * time.Second)
			w.view.Members[1] = fleet.Member{Presence: fleet.Lost, Replica: w.view.Members[1].Replica, Age: 90 * time.Second}
		},
		"clocks to a few seconds": func(w *world) { w.ahead(0, 5*time.Second); w.ahead(1, -4*time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			w := healthy()
			inject(w)
			if got := w.findings(); len(got) > 0 {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Findings that no replica times begin when they are first seen, and again after a break.
func TestDifferencesBeginWhenTheyAreSeen(t *testing.T) {
	w, later := healthy(), now.Add(time.Minute)
	w.ahead(0, 2*time.Minute)
	var seen fleet.Seen
	sinceAt := func(at time.Time) time.Time {
		summary := fleet.Summarize(w.view, w.self, at)
		seen = summary.Date(seen, at)
		for _, one := range summary.Findings {
			if one.ID == fleet.ClockDiffers {
				return one.Since
			}
		}
		return time.Time{}
	}
	if first, second := sinceAt(now), sinceAt(later); !first.Equal(now) || !second.Equal(now) {
		t.Errorf("seen at %v, reported since %v and then %v", now, first, second)
	}
	faulty := w.view
	w.view = healthy().view
	sinceAt(later)
	w.view = faulty
	if got := sinceAt(later.Add(time.Minute)); !got.Equal(later.Add(time.Minute)) {
		t.Errorf("after a break: since %v", got)
	}
}

// A replica cannot report to a store that takes no writes.
func TestSilenceIsNoLossWhileTheStoreTakesNoWrites(t *testing.T) {
	for silent, want := range map[time.Duration]int{90 * time.Second: 1, 10 * time.Minute: 2} {
		w := healthy()
		w.everywhere(func(r *fleet.Record) {
			r.Store.Servers[0].Writes, r.Store.Servers[0].Cause, r.Store.Servers[0].WritesSince = false, fleet.ReadOnly, ago(80*time.Second)
		})
		w.view.Members[1] = fleet.Member{Presence: fleet.Lost, Replica: w.view.Members[1].Replica, Age: silent}
		summary := fleet.Summarize(w.view, w.self, now)
		if got := summary.Findings; len(got) != want || got[0].ID != fleet.StoreReadOnly {
			t.Errorf("silent for %s: %+v", silent, got)
		}
		if got := summary.Replicas[2].Presence; summary.Incomplete != (want == 1) || (got == fleet.Silent) != (want == 1) {
			t.Errorf("silent for %s: presence %d, incomplete %v", silent, got, summary.Incomplete)
		}
	}
}

// A secret that one replica has wrong is not resolved by another that has it right.
func TestRefusalOfOneReplicaIsNotResolvedByAnother(t *testing.T) {
	w := healthy()
	w.self.Clients[0].State, w.self.Clients[0].Failed = fleet.ClientRefused, ago(time.Hour)
	if got := w.findings(); len(got) != 1 || got[0].ID != fleet.SecretInvalid {
		t.Errorf("%+v", got)
	}
}

func TestFindingsAreOrderedBySeverityThenAge(t *testing.T) {
	w := healthy()
	w.self.Tracing.Failing = ago(2 * time.Hour)
	w.self.Audit.Failing = ago(time.Minute)
	w.b().Ring.Mismatch = ago(time.Hour)
	w.b().Config.Refused = ago(3 * time.Hour)
	var got []string
	for _, one := range w.findings() {
		got = append(got, one.ID)
	}
	want := []string{fleet.RingDiffers, fleet.AuditFailing, fleet.ConfigRefused, fleet.TracingFailing}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestFindingsOfThousandsOfClientsAreOneForAnIdPThatIsDown(t *testing.T) {
	w := healthy()
	w.everywhere(func(r *fleet.Record) {
		r.Clients = nil
		for i := range 4000 {
			r.Clients = append(r.Clients, fleet.Client{Name: fleet.Name(fmt.Sprint("c", i)), State: fleet.ClientFailing, Home: "https://idp.example", Failed: ago(time.Minute), Failure: fleet.Unreachable})
		}
	})
	got := w.findings()
	if len(got) != 1 || !strings.Contains(got[0].Message, "4000 clients are") || len(got[0].Replicas) != 3 {
		t.Errorf("%+v", got)
	}
}
