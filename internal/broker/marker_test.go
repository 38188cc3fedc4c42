package broker_test

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// markedJudges share a store that is sealed and has a marker. The marker may be on
// another server than the revocations, as in a Cluster.
type markedJudges struct {
	*judges

	t               *testing.T
	keys            *ringFile
	values, markers *store.Memory
	log             testkit.Log
}

// startMarked starts n judges and waits until all of them decide.
func startMarked(t *testing.T, n int) *markedJudges {
	t.Helper()
	m := &markedJudges{
		judges: startJudges(t, 0), t: t, keys: newRingFile(t),
		values: store.NewMemory(store.MemoryConfig{}), markers: store.NewMemory(store.MemoryConfig{}),
	}
	for range n {
		m.join(m.keys.file)
	}
	token := m.token("nobody", "nothing", "0")
	time.Sleep(revocation.DefaultPutBack + time.Second)
	m.expectAll(token, true, "after the start")
	return m
}

// join starts one more, with a ring of its choice. Both of its ways to the store go
// through its link.
func (m *markedJudges) join(ring *sealed.RingFile) *judge {
	m.t.Helper()
	way, marker := &link{}, &link{}
	way.to.Store(m.values)
	marker.to.Store(m.markers)
	made := m.add(sealed.New(way, ring), func(c *broker.Config) {
		c.MAC = func(data []byte) [32]byte { return ring.Current().MAC(data) }
		c.Marker, c.PutBack = sealed.New(marker, ring), revocation.DefaultPutBack
		c.Logger = slog.New(slog.NewTextHandler(&m.log, nil))
	})
	made.link, made.markerLink = way, marker
	return made
}

// loseValues and loseMarkers replace a part of the store by an empty one.
func (m *markedJudges) loseValues() {
	m.values = store.NewMemory(store.MemoryConfig{})
	for _, one := range m.all {
		one.link.to.Store(m.values)
	}
}

func (m *markedJudges) loseMarkers() {
	m.markers = store.NewMemory(store.MemoryConfig{})
	for _, one := range m.all {
		one.markerLink.to.Store(m.markers)
	}
}

// deafen has no replica hear of changes.
func (m *markedJudges) deafen() {
	for _, one := range m.all {
		one.link.deaf.Store(true)
	}
}

// unknown checks that a judge does not decide.
func (m *markedJudges) unknown(b *judge, token redact.String, when string) *apierror.Error {
	m.t.Helper()
	result, err := b.Verify(m.t.Context(), policy.Self(), token, verify.Request{})
	if err == nil {
		m.t.Errorf("%s: it decides, rejected: %v", when, result.Rejection != nil)
		return &apierror.Error{}
	}
	if b.gauge(m.t, "tokenbroker_revocations_usable") != 0 {
		m.t.Errorf("%s: the metric says that it decides", when)
	}
	return wantError(m.t, err, apierror.Unavailable, apierror.ReasonRevocationsUnknown)
}

// neverGood asks a judge about a revoked token for a while, and returns how long it took
// until it decided.
func (m *markedJudges) neverGood(b *judge, revoked redact.String, lasts time.Duration) (decided time.Duration) {
	m.t.Helper()
	begun := time.Now()
	for time.Since(begun) < lasts {
		switch result, err := b.Verify(m.t.Context(), policy.Self(), revoked, verify.Request{}); {
		case err != nil:
			wantError(m.t, err, apierror.Unavailable, apierror.ReasonRevocationsUnknown)
		case result.Rejection == nil:
			m.t.Fatalf("a revoked token is called good %v after the start", time.Since(begun))
		case decided == 0:
			decided = time.Since(begun)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return decided
}

// A store loses its data while a replica restarts: at no moment does the replica call a
// revoked token good.
func TestRevocation_restartWhileTheStoreIsLost(t *testing.T) {
	for name, loses := range map[string]func(m *markedJudges){
		"all":                       func(m *markedJudges) { m.loseValues(); m.loseMarkers() },
		"the revocations' server":   (*markedJudges).loseValues,
		"the server of the marker":  (*markedJudges).loseMarkers,
		"all, and is away for 12 s": func(m *markedJudges) { m.loseValues(); m.loseMarkers(); m.away(12 * time.Second) },
	} {
		for _, later := range []time.Duration{0, time.Second, 2500 * time.Millisecond, 4 * time.Second} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := startMarked(t, 2)
					revoked, other := m.token("alice", "shop", "1"), m.token("bob", "shop", "2")
					m.revoke(m.all[0], revocation.Revocation{Subject: "alice"}, "1")
					time.Sleep(6*time.Second + later) // they look at the store at another moment
					m.deafen()
					loses(m)
					newcomer := m.join(m.keys.file)
					if took := m.neverGood(newcomer, revoked, 20*time.Second); took == 0 || took > 7*time.Second {
						t.Errorf("it decided after %v", took)
					}
					m.expectAll(other, true, "another token")
				})
			})
		}
	}
}

// away takes the store away from all judges for a while.
func (m *markedJudges) away(lasts time.Duration) {
	for _, one := range m.all {
		one.link.state.Store(refused)
		one.markerLink.state.Store(refused)
	}
	time.Sleep(lasts)
	for _, one := range m.all {
		one.link.state.Store(good)
		one.markerLink.state.Store(good)
	}
}

// The time in which the store was away does not count as time in which others could put
// back revocations.
func TestMarker_waitBeginsWhenTheStoreResponds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMarked(t, 1)
		revoked := m.token("alice", "shop", "1")
		m.revoke(m.all[0], revocation.Revocation{Subject: "alice"}, "1")
		m.all[0].link.state.Store(refused) // it cannot put anything back yet
		m.all[0].markerLink.state.Store(refused)
		m.deafen()
		m.loseValues()
		m.loseMarkers()
		newcomer := m.join(m.keys.file)
		m.neverGood(newcomer, revoked, 8*time.Second)
		m.away(10 * time.Second)
		m.neverGood(newcomer, revoked, 20*time.Second)
		m.expectAll(revoked, false, "in the end")
	})
}

// The marker is written after all revocations were: where they cannot be written, there
// is no marker.
func TestMarker_writtenAfterRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMarked(t, 1)
		revoked := m.token("alice", "shop", "1")
		m.revoke(m.all[0], revocation.Revocation{Subject: "alice"}, "1")
		m.loseValues()
		m.loseMarkers()
		m.all[0].link.state.Store(full)
		newcomer := m.join(m.keys.file)
		m.neverGood(newcomer, revoked, 9*time.Second)
		if marked, err := sealed.New(m.markers, m.keys.file).Marked(t.Context()); marked || err != nil {
			t.Errorf("without the revocations the store is marked: %v, %v", marked, err)
		}
		m.all[0].link.state.Store(good)
		m.neverGood(newcomer, revoked, 9*time.Second)
		m.expectAll(revoked, false, "in the end")
	})
}

// The same where the store has kept its count of changes: without a marker it counts as
// one that has lost data, and as long as not all of that was put back it gets none.
func TestMarker_countWithoutRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMarked(t, 1)
		revoked := m.token("alice", "shop", "1")
		m.revoke(m.all[0], revocation.Revocation{Subject: "alice"}, "1")
		count := *m.all[0].link.count.Load()
		kept, err := m.values.Get(t.Context(), count)
		if err != nil {
			t.Fatal(err)
		}
		m.loseValues()
		m.loseMarkers()
		if _, err := m.values.Raise(t.Context(), count, kept[0].Number, 0); err != nil {
			t.Fatal(err)
		}
		m.all[0].link.state.Store(full)
		newcomer := m.join(m.keys.file)
		m.neverGood(newcomer, revoked, 9*time.Second)
		m.all[0].link.state.Store(good)
		m.neverGood(newcomer, revoked, 9*time.Second)
		m.expectAll(revoked, false, "in the end")
	})
}

// The count of changes, too, appears after all revocations were put back.
func TestMarker_countWrittenAfterRevocations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMarked(t, 1)
		var tokens []redact.String
		for i := range 40 {
			name := "subject " + string(rune('A'+i))
			tokens = append(tokens, m.token(name, "shop", name))
			m.revoke(m.all[0], revocation.Revocation{Subject: name}, name)
		}
		m.loseValues()
		m.all[0].link.writesLeft.Store(3) // it fails halfway
		newcomer := m.join(m.keys.file)
		time.Sleep(6 * time.Second)
		for i, token := range tokens {
			if result, err := newcomer.Verify(t.Context(), policy.Self(), token, verify.Request{}); err == nil && result.Rejection == nil {
				t.Fatalf("revoked token %d is called good", i)
			}
		}
		m.all[0].link.writesLeft.Store(0)
		time.Sleep(6 * time.Second)
		for _, token := range tokens {
			m.expectAll(token, false, "in the end")
		}
	})
}

func TestMarker_newStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &markedJudges{
			judges: startJudges(t, 0), t: t, keys: newRingFile(t),
			values: store.NewMemory(store.MemoryConfig{}), markers: store.NewMemory(store.MemoryConfig{}),
		}
		first, second := m.join(m.keys.file), m.join(m.keys.file)
		token := m.token("alice", "shop", "1")
		time.Sleep(9 * time.Second)
		for _, one := range []*judge{first, second} {
			m.unknown(one, token, "before 10 s")
			_, err := one.Revocations().Revoke(t.Context(), policy.Self(), revocation.Revocation{Issuer: issuer, Subject: "alice"}, "1")
			wantError(t, err, apierror.Unavailable, apierror.ReasonStoreUnavailable)
		}
		if !strings.Contains(m.log.String(), "the store is new or has lost its data") {
			t.Errorf("the log does not say why: %s", m.log.String())
		}
		time.Sleep(2 * time.Second)
		m.expectAll(token, true, "after 10 s")
		m.expectAll(m.token("bob", "shop", "2"), true, "at once, by the marker")
		third := m.join(m.keys.file)
		if !m.good(third, token) {
			t.Error("a replica that starts later")
		}
		m.revoke(third, revocation.Revocation{Subject: "alice"}, "1")
		time.Sleep(time.Second)
		m.expectAll(token, false, "revoked")
	})
}

// A store without a marker has lost data, even if it has revocations.
func TestMarker_lostAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMarked(t, 1)
		token := m.token("bob", "shop", "2")
		m.all[0].Close()
		m.all[0].markerLink.state.Store(refused)
		m.loseMarkers()
		newcomer := m.join(m.keys.file)
		time.Sleep(9 * time.Second)
		m.unknown(newcomer, token, "before 10 s")
		time.Sleep(2 * time.Second)
		if !m.good(newcomer, token) {
			t.Error("it is not good after 10 s")
		}
	})
}

func TestMarker_singleReplicaDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 0)
		keys := newRingFile(t)
		outer := sealed.New(j.shared, keys.file)
		one := j.add(outer, func(c *broker.Config) { c.Marker = outer })
		if !j.good(one, j.token("alice", "shop", "1")) {
			t.Error("it is not good")
		}
		if marked, err := outer.Marked(t.Context()); !marked || err != nil {
			t.Errorf("the store is marked: %v, %v", marked, err)
		}
	})
}

// The store is away while a replica starts, and turns out to be that of others.
func TestMarker_comparedAfterAnOutage(t *testing.T) {
	for name, same := range map[string]bool{"same ring": true, "another ring": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := startMarked(t, 1)
				token, revoked := m.token("bob", "shop", "2"), m.token("alice", "shop", "1")
				m.revoke(m.all[0], revocation.Revocation{Subject: "alice"}, "1")
				ring := m.keys.file
				if !same {
					ring = newRingFile(t).file
				}
				newcomer := m.join(ring)
				newcomer.link.state.Store(refused)
				newcomer.markerLink.state.Store(refused)
				time.Sleep(20 * time.Second)
				m.unknown(newcomer, token, "while the store is away")
				newcomer.link.state.Store(good)
				newcomer.markerLink.state.Store(good)
				time.Sleep(20 * time.Second)
				if !same {
					err := m.unknown(newcomer, token, "with another ring")
					if !errors.Is(err, sealed.ErrAnotherRing) || !strings.Contains(m.log.String(), "another ring of sealing keys") {
						t.Errorf("it does not say why: %v; log: %s", err, m.log.String())
					}
					return
				}
				m.expectAll(token, true, "once the store is back")
				m.expectAll(revoked, false, "once the store is back")
			})
		})
	}
}

// A running replica finds the marker of another ring: it decides nothing until its own
// is back, also while the store is away. It keeps what it knows.
func TestMarker_ofAnotherRing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMarked(t, 2)
		token, revoked := m.token("bob", "shop", "2"), m.token("alice", "shop", "1")
		m.revoke(m.all[0], revocation.Revocation{Subject: "alice"}, "1")
		time.Sleep(time.Second)
		own := m.markers
		m.loseMarkers()
		if err := sealed.New(m.markers, newRingFile(t).file).Mark(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Second)
		for _, one := range m.all {
			m.unknown(one, token, "with another marker")
		}
		if n := strings.Count(m.log.String(), "tokens are not verified, because"); n != 2 {
			t.Errorf("two replicas say it %d times: %s", n, m.log.String())
		}
		m.away(10 * time.Second)
		m.unknown(m.all[0], token, "after the store was away")
		for _, one := range m.all {
			one.markerLink.to.Store(own)
		}
		time.Sleep(6 * time.Second)
		m.expectAll(token, true, "with its own marker")
		m.expectAll(revoked, false, "with its own marker")
	})
}

// A replica without the key that revocations are sealed with cannot learn of new ones,
// so it does not go on with those that it knows.
func TestUnreadableRevocationsStopDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := startMarked(t, 1)
		token := m.token("alice", "shop", "1")
		ahead := newRingFile(t)
		added, id := m.keys.ring.Add()
		promoted, err := added.Promote(id)
		ahead.write(promoted, err)
		second := m.join(ahead.file)
		m.expectAll(token, true, "before")
		m.revoke(second, revocation.Revocation{Subject: "alice"}, "1")
		time.Sleep(6 * time.Second)
		m.unknown(m.all[0], token, "without the sealing key")
		if !strings.Contains(m.log.String(), "put the sealing key that they were sealed with back into the ring") {
			t.Errorf("it does not say why: %s", m.log.String())
		}
		m.keys.becomes(promoted, nil)
		time.Sleep(6 * time.Second)
		m.expectAll(token, false, "with the key")
	})
}
