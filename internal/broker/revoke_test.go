package broker_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

// judges are brokers that verify tokens of one issuer and share a store.
type judges struct {
	t      testing.TB
	idp    *devidp.Server
	shared store.Store
	audit  *audit.Log // nil: there is none
	all    []*judge
}

type judge struct {
	*broker.Broker

	link       *link
	markerLink *link // nil: the store has no marker
	metrics    *prometheus.Registry
}

func startJudges(t testing.TB, n int) *judges {
	t.Helper()
	server, err := devidp.New(devidp.Config{Issuer: issuer, Algorithm: "EdDSA"})
	if err != nil {
		t.Fatal(err)
	}
	memory := store.NewMemory(store.MemoryConfig{})
	j := &judges{t: t, idp: server, shared: memory}
	for range n {
		way := &link{}
		way.to.Store(memory)
		j.add(way)
	}
	return j
}

// add starts one more, on a store of its choice.
func (j *judges) add(s store.Store, settings ...func(*broker.Config)) *judge {
	j.t.Helper()
	http := discovery.NewHTTPClient(j.idp.RoundTripper())
	verifier, err := verify.New(verify.Config{HTTP: http, Issuers: []verify.IssuerConfig{{
		Issuer: issuer, Keys: jwks.Config{URL: issuer + devidp.JWKSPath}, Audiences: []string{audience}, Algorithms: []string{"EdDSA"},
	}}}, nil)
	if err != nil {
		j.t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	config := broker.Config{Store: s, MAC: sha256Of, Setup: broker.Setup{Verifier: verifier}, Audit: j.audit, Logger: slog.New(slog.DiscardHandler), Registerer: registry}
	for _, set := range settings {
		set(&config)
	}
	b, err := broker.New(config)
	if err != nil {
		j.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { b.Run(ctx) })
	running.Go(func() { verifier.Run(ctx) })
	j.t.Cleanup(func() { b.Close(); cancel(); running.Wait() })
	made := &judge{Broker: b, metrics: registry}
	if way, ok := s.(*link); ok {
		made.link = way
	}
	j.all = append(j.all, made)
	return made
}

// token mints one of a subject, a client and an ID, issued now.
func (j *judges) token(subject, client, id string) redact.String {
	now := time.Now()
	return j.idp.Mint(map[string]any{
		"iss": issuer, "sub": subject, "client_id": client, "jti": id, "aud": audience, "scope": "read",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	})
}

// good reports whether a judge takes a token for good; it must be able to decide.
func (j *judges) good(b *judge, token redact.String) bool {
	j.t.Helper()
	result, err := b.Verify(j.t.Context(), policy.Self(), token, verify.Request{})
	switch {
	case err != nil:
		j.t.Fatalf("Verify: %v", err)
	case result.Rejection == nil:
		return true
	case result.Rejection.Reason != verify.Revoked:
		j.t.Fatalf("rejected for another reason: %v", result.Rejection)
	}
	return false
}

// expectAll checks that all judges take a token for good, or for revoked.
func (j *judges) expectAll(token redact.String, good bool, when string) {
	j.t.Helper()
	for i, b := range j.all {
		if j.good(b, token) != good {
			j.t.Errorf("%s: judge %d takes the token for good: %v", when, i, !good)
		}
	}
}

func (j *judges) revoke(b *judge, asked revocation.Revocation, request string) revocation.Revocation {
	j.t.Helper()
	asked.Issuer = issuer
	if asked.ExpiresAt.IsZero() {
		asked.ExpiresAt = time.Now().Add(100 * time.Hour)
	}
	made, err := b.Revocations().Revoke(j.t.Context(), policy.Self(), asked, request)
	if err != nil {
		j.t.Errorf("Revoke: %v", err)
	}
	return made
}

func TestRevocation_matchesItsTarget(t *testing.T) {
	for name, asked := range map[string]revocation.Revocation{
		"token":                {TokenID: "id-1"},
		"subject":              {Subject: "alice"},
		"client":               {ClientID: "shop"},
		"subject, issued then": {Subject: "alice", IssuedBefore: time.Unix(946684800+5, 0)},
		"all, issued then":     {All: true, IssuedBefore: time.Unix(946684800+5, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // time begins at 946684800
				j := startJudges(t, 1)
				named := j.token("alice", "shop", "id-1")
				j.expectAll(named, true, "before")
				time.Sleep(10 * time.Second)
				others := []redact.String{j.token("bob", "other", "id-2")}
				if !asked.IssuedBefore.IsZero() {
					others = append(others, j.token("alice", "shop", "id-1"))
				}
				// The values of one kind are not those of another.
				others = append(others, j.token("id-1", "alice", "shop"))
				j.revoke(j.all[0], asked, "1")
				j.expectAll(named, false, "after")
				for _, other := range others {
					j.expectAll(other, true, "another token")
				}
			})
		})
	}
}

func TestRevocation_reachesAllReplicas(t *testing.T) {
	for name, deaf := range map[string]bool{"at once": false, "within 5 s if no message arrives": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := startJudges(t, 4)
				token := j.token("alice", "shop", "1")
				j.expectAll(token, true, "before")
				for _, b := range j.all {
					b.link.deaf.Store(deaf)
				}
				made := j.revoke(j.all[2], revocation.Revocation{Subject: "alice"}, "1")
				if j.good(j.all[2], token) {
					t.Error("the replica that was asked does not refuse at once")
				}
				lag := 100 * time.Millisecond
				if deaf {
					lag = 5*time.Second + 100*time.Millisecond
				}
				time.Sleep(lag)
				j.expectAll(token, false, "after")
				if err := j.all[1].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: made.ID}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(lag)
				j.expectAll(token, true, "after its end")
			})
		})
	}
}

func TestMissingRevocationsStopDecisions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		token := j.token("alice", "shop", "1")
		j.revoke(j.all[0], revocation.Revocation{Subject: "alice"}, "1")
		way := &link{}
		way.to.Store(j.all[0].link.to.Load())
		way.state.Store(refused)
		newcomer := j.add(way)
		time.Sleep(time.Second)
		_, err := newcomer.Verify(t.Context(), policy.Self(), token, verify.Request{})
		told := wantError(t, err, apierror.Unavailable, apierror.ReasonRevocationsUnknown)
		if told.RetryAfter <= 0 {
			t.Error("it does not say when to ask again")
		}
		// What is bad whatever is revoked can be said.
		result, err := newcomer.Verify(t.Context(), policy.Self(), token, verify.Request{Scopes: []string{"admin"}})
		if err != nil || result.Rejection == nil {
			t.Errorf("%+v, %v", result, err)
		}
		way.state.Store(good)
		time.Sleep(6 * time.Second)
		j.expectAll(token, false, "once they are loaded")
	})
}

// Verifications that come while the store is down look after the revocations once
// in a second, all of them together.
func TestVerifyDoesNotLoadADownStore(t *testing.T) {
	for name, outage := range map[string]int32{"refuses": refused, "hangs": hangs} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				j := startJudges(t, 1)
				token := j.token("alice", "shop", "1")
				j.expectAll(token, true, "before")
				way := &link{}
				way.to.Store(j.all[0].link.to.Load())
				way.state.Store(outage)
				newcomer := j.add(way)
				time.Sleep(time.Second)
				before := way.calls.Load()
				var all sync.WaitGroup
				for n := range 500 {
					all.Go(func() {
						time.Sleep(time.Duration(n/100) * 2 * time.Second) // 100 at a time
						_, err := newcomer.Verify(t.Context(), policy.Self(), token, verify.Request{})
						wantError(t, err, apierror.Unavailable, apierror.ReasonRevocationsUnknown)
					})
				}
				all.Wait()
				if n := way.calls.Load() - before; n < 5 || n > 10 { // the replica looks each 5 s by itself
					t.Errorf("the store was asked %d times", n)
				}
			})
		})
	}
}

// Whatever the store loses, nothing is lifted: not in the replicas that know
// the revocation, and not in those that come later.
func TestLostRevocationsAreRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 2)
		token, other := j.token("alice", "shop", "1"), j.token("bob", "shop", "2")
		j.revoke(j.all[0], revocation.Revocation{Subject: "alice"}, "1")
		lifted := j.revoke(j.all[0], revocation.Revocation{Subject: "bob"}, "2")
		if err := j.all[1].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: lifted.ID}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		empty := store.NewMemory(store.MemoryConfig{})
		for _, b := range j.all {
			b.link.to.Store(empty)
		}
		j.expectAll(token, false, "right after the loss")
		time.Sleep(11 * time.Second)
		way := &link{}
		way.to.Store(empty)
		j.add(way)
		j.expectAll(token, false, "in a newcomer")
		j.expectAll(other, true, "what was lifted")
	})
}

// A store that comes back as it was before a revocation was lifted.
func TestLostDeletionIsRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 2)
		token := j.token("bob", "shop", "1")
		before := store.NewMemory(store.MemoryConfig{})
		connect := func() *judge {
			way := &link{}
			way.to.Store(before)
			return j.add(way)
		}
		j.revoke(connect(), revocation.Revocation{Subject: "bob"}, "1")
		lifted := j.revoke(j.all[0], revocation.Revocation{Subject: "bob"}, "1")
		if err := j.all[0].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: lifted.ID}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, b := range j.all[:2] {
			b.link.to.Store(before)
		}
		time.Sleep(time.Minute + 11*time.Second)
		connect()
		j.expectAll(token, true, "a minute later")
	})
}

func TestRevocation_concurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 5)
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				asked := revocation.Revocation{Issuer: issuer, Subject: fmt.Sprint("subject ", i), ExpiresAt: time.Now().Add(time.Hour)}
				for try := 0; ; try++ {
					_, err := j.all[i%5].Revocations().Revoke(t.Context(), policy.Self(), asked, "1")
					if err == nil {
						return
					}
					wantError(t, err, apierror.Unavailable, apierror.ReasonStoreUnavailable)
					if try == 20 {
						t.Errorf("%d cannot be revoked", i)
						return
					}
					time.Sleep(time.Second)
				}
			})
		}
		wg.Wait()
		time.Sleep(6 * time.Second)
		for i, b := range j.all {
			found, err := b.Revocations().List(t.Context(), policy.Self(), "")
			if err != nil || len(found) != 100 {
				t.Errorf("judge %d knows %d (%v)", i, len(found), err)
			}
		}
	})
}

// A few who get in each other's way do not even notice.
func TestRevocation_conflictIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 3)
		for round := range 20 {
			var wg sync.WaitGroup
			for i, b := range j.all {
				wg.Go(func() { j.revoke(b, revocation.Revocation{Subject: fmt.Sprint(round, i)}, "1") })
			}
			wg.Wait()
			// Acknowledged means stored: who knows the store alone has them all.
			way := &link{}
			way.to.Store(j.shared.(*store.Memory))
			newcomer := j.add(way)
			if found, err := newcomer.Revocations().List(t.Context(), policy.Self(), ""); err != nil || len(found) != 3*(round+1) {
				t.Fatalf("after round %d the store has %d (%v)", round, len(found), err)
			}
			newcomer.Close()
			j.all = j.all[:3]
		}
	})
}

func TestRevocation_repeatedRequestID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 2)
		expires := time.Now().Add(time.Hour)
		first := j.revoke(j.all[0], revocation.Revocation{Subject: "alice", ExpiresAt: expires}, "1")
		time.Sleep(time.Second)
		again := j.revoke(j.all[1], revocation.Revocation{Subject: "alice", ExpiresAt: expires}, "1")
		other := j.revoke(j.all[1], revocation.Revocation{Subject: "bob", ExpiresAt: expires}, "1")
		elsewhere := j.revoke(j.all[1], revocation.Revocation{Subject: "alice", ExpiresAt: expires}, "2")
		if elsewhere.ID == first.ID {
			t.Error("another request's revocation is the same")
		}
		if err := j.all[1].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: elsewhere.ID}); err != nil {
			t.Fatal(err)
		}
		if again.ID != first.ID || !again.CreatedAt.Equal(first.CreatedAt) || other.ID == first.ID {
			t.Errorf("%+v, %+v, %+v", first, again, other)
		}
		found, err := j.all[1].Revocations().List(t.Context(), policy.Self(), issuer)
		if err != nil || len(found) != 2 || found[0].ID != first.ID {
			t.Errorf("%+v, %v", found, err)
		}
		if found, _ := j.all[1].Revocations().List(t.Context(), policy.Self(), "https://other.example.com"); len(found) != 0 {
			t.Errorf("of another issuer: %+v", found)
		}
		for range 2 {
			if err := j.all[1].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: first.ID}); err != nil {
				t.Fatal(err)
			}
		}
		wantError(t, j.all[1].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: "unknown"}), apierror.NotFound, apierror.ReasonNoSuchRevocation)
	})
}

// One in 64 names begins with a hyphen, and "broker revocations delete ID" would take
// it for a flag.
func TestRevocationIDIsNoFlag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		for i := range 200 {
			if id := j.revoke(j.all[0], revocation.Revocation{TokenID: fmt.Sprint(i)}, "1").ID; id == "" || id[0] == '-' {
				t.Fatalf("the ID %q", id)
			}
		}
	})
}

func TestRevocation_expires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 2)
		token := j.token("alice", "shop", "1")
		made := j.revoke(j.all[0], revocation.Revocation{TokenID: "1", ExpiresAt: time.Now().Add(607 * time.Second)}, "1")
		time.Sleep(666 * time.Second)
		j.expectAll(token, false, "before it is over")
		time.Sleep(2 * time.Second)
		j.expectAll(token, true, "after")
		if found, err := j.all[1].Revocations().List(t.Context(), policy.Self(), ""); err != nil || len(found) != 0 {
			t.Errorf("%v, %v", found, err)
		}
		wantError(t, j.all[0].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: made.ID}), apierror.NotFound, apierror.ReasonNoSuchRevocation)
		j.revoke(j.all[0], revocation.Revocation{TokenID: "1", ExpiresAt: time.Now().Add(time.Hour)}, "1")
		synctest.Wait()
		time.Sleep(time.Second)
		j.expectAll(token, false, "revoked again, by the same request")
	})
}

// C2 C10: an expired token is good within the leeway, but not if it was revoked
// until its expiry.
func TestRevocation_outlastsTheLeeway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 2)
		token, other := j.token("alice", "shop", "1"), j.token("alice", "shop", "2")
		j.revoke(j.all[0], revocation.Revocation{TokenID: "1", ExpiresAt: time.Now().Add(time.Hour)}, "1")
		for _, late := range []time.Duration{-time.Second, time.Second, 29 * time.Second} {
			time.Sleep(time.Until(time.Unix(946684800, 0).Add(time.Hour + late))) // the test began at 946684800
			j.expectAll(token, false, fmt.Sprintf("%v after its expiry", late))
			j.expectAll(other, true, fmt.Sprintf("another, %v after its expiry", late))
		}
	})
}

func TestRevocation_misleadingIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		now := time.Now()
		hour := now.Add(time.Hour)
		for name, test := range map[string]struct {
			asked revocation.Revocation
			field string
		}{
			"unknown issuer":        {revocation.Revocation{Issuer: issuer + "/", Subject: "a", ExpiresAt: hour}, "revocation.issuer"},
			"nothing named":         {revocation.Revocation{Issuer: issuer, ExpiresAt: hour}, "revocation"},
			"two things named":      {revocation.Revocation{Issuer: issuer, Subject: "a", TokenID: "b", ExpiresAt: hour}, "revocation"},
			"all for ever":          {revocation.Revocation{Issuer: issuer, All: true, ExpiresAt: hour}, "revocation.issued_before"},
			"over already":          {revocation.Revocation{Issuer: issuer, Subject: "a", ExpiresAt: now}, "revocation.expires_at"},
			"too far":               {revocation.Revocation{Issuer: issuer, Subject: "a", ExpiresAt: now.AddDate(11, 0, 0)}, "revocation.expires_at"},
			"ends before its token": {revocation.Revocation{Issuer: issuer, Subject: "a", IssuedBefore: now, ExpiresAt: now.Add(23 * time.Hour)}, "revocation.expires_at"},
		} {
			_, err := j.all[0].Revocations().Revoke(t.Context(), policy.Self(), test.asked, "1")
			if told := wantError(t, err, apierror.InvalidArgument, apierror.ReasonInvalidRequest); told.Field != test.field {
				t.Errorf("%s: field %q: %v", name, told.Field, told)
			}
		}
		j.all[0].link.state.Store(refused)
		_, err := j.all[0].Revocations().Revoke(t.Context(), policy.Self(), revocation.Revocation{Issuer: issuer, Subject: "a", ExpiresAt: hour}, "1")
		wantError(t, err, apierror.Unavailable, apierror.ReasonStoreUnavailable)
	})
}

func TestRevocation_withoutAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		life := 24*time.Hour + 30*time.Second // max_lifetime and leeway, as by default
		for name, before := range map[string]time.Time{"none": {}, "past": time.Now().Add(-time.Hour), "ahead": time.Now().Add(time.Hour)} {
			want := time.Now().Add(life)
			if before.After(time.Now()) {
				want = before.Add(life)
			}
			made, err := j.all[0].Revocations().Revoke(t.Context(), policy.Self(), revocation.Revocation{Issuer: issuer, Subject: name, IssuedBefore: before}, name)
			if late := made.ExpiresAt.Sub(want); err != nil || late < 0 || late > time.Second {
				t.Errorf("issued before: %s: it ends %v after the last token, %v", name, late, err)
			}
		}
	})
}

// Revocations that cannot be opened are not the same as none; and they are
// sealed anew before the key that sealed them may be dropped.
func TestRevocation_outlivesItsSealingKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring.json")
	ring := sealed.GenerateRing()
	write := func(r *sealed.Ring) *sealed.RingFile {
		if err := sealed.WriteRing(path, r); err != nil {
			t.Fatal(err)
		}
		file, err := sealed.OpenRing(path)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 0)
		inner := j.shared
		old := write(ring)
		first := j.add(sealed.New(inner, old))
		token := j.token("alice", "shop", "1")
		j.revoke(first, revocation.Revocation{Subject: "alice"}, "1")

		// A broker that has not the key decides nothing.
		stranger := j.add(sealed.New(inner, write(sealed.GenerateRing())))
		_, err := stranger.Verify(t.Context(), policy.Self(), token, verify.Request{})
		wantError(t, err, apierror.Unavailable, apierror.ReasonRevocationsUnknown)

		added, id := ring.Add()
		promoted, err := added.Promote(id)
		if err != nil {
			t.Fatal(err)
		}
		second := j.add(sealed.New(inner, write(promoted)))
		if j.good(second, token) {
			t.Error("after the promotion of a key the token is good")
		}
		time.Sleep(2 * time.Minute)
		dropped, err := promoted.Drop(ring.Primary())
		if err != nil {
			t.Fatal(err)
		}
		third := j.add(sealed.New(inner, write(dropped)))
		if j.good(third, token) {
			t.Error("after the old key was dropped the token is good")
		}
	})
	_ = os.Remove(path)
}
