package exchange_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
)

func TestGet_exchangesOnceForEachSubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.add(), w.add()
		alice, bob := w.user(nil), w.user(map[string]any{"sub": "bob", "exp": time.Now().Unix() + 50})
		first := w.mustGet(a, "bff", obo(), alice)
		if first.Origin != broker.OriginFetched || first.Token.IssuedType != idp.TypeAccessToken || w.text(first, "sub") != "alice" || w.text(first, "aud") != orders {
			t.Errorf("the first: %+v, sub %q", first, w.text(first, "sub"))
		}
		act, _, _ := w.claims(first).Object("act")
		if actor, _, _ := act.Text("sub"); actor != "obo" {
			t.Errorf("the actor is %q", actor)
		}
		if again := w.mustGet(a, "bff", obo(), alice); again.Origin != broker.OriginMemory || again.Token.SHA256 != first.Token.SHA256 {
			t.Errorf("again: %v", again.Origin)
		}
		if elsewhere := w.mustGet(b, "bff", obo(), alice); elsewhere.Origin != broker.OriginShared || elsewhere.Token.SHA256 != first.Token.SHA256 {
			t.Errorf("by another replica: %v", elsewhere.Origin)
		}
		if got := w.mustGet(a, "bff", obo(), bob); w.text(got, "sub") != "bob" || got.Token.Lifetime() > 50*time.Second {
			t.Errorf("bob gets a token of %q, which lives %v; his own ends in 50 s", w.text(got, "sub"), got.Token.Lifetime())
		}
		if n := w.fetches(); n != 2 {
			t.Errorf("%d exchanges, want 2", n)
		}
	})
}

// The verification of tokens has a leeway. An exchange within it would prolong a token
// that has ended.
func TestGet_endsWithTheSubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.add()
		alice := w.user(map[string]any{"exp": time.Now().Unix() + 30})
		got := w.mustGet(b, "bff", obo(), alice)
		if end := time.Now().Add(30 * time.Second); got.Token.ExpiresAt.After(end) {
			t.Errorf("it ends %v after the subject token", got.Token.ExpiresAt.Sub(end))
		}
		time.Sleep(28 * time.Second)
		w.mustGet(b, "bff", obo(), alice)
		time.Sleep(2 * time.Second)
		before := w.fetches()
		if _, err := w.get(b, "bff", obo(), alice); err == nil || err.Metadata["rejection"] != "expired" {
			t.Errorf("after its end: %v", err)
		}
		if w.fetches() != before {
			t.Error("an ended subject token reached the IdP")
		}
	})
}

// Some IdPs issue tokens that outlive the subject token, and opaque ones.
func TestGet_shortensTokensThatOutliveTheSubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.towards = tampering{w.towards, func(url.Values) (int, string) {
			return 200, `{"access_token":"long","token_type":"Bearer","expires_in":3600,"refresh_in":1800}`
		}}
		b := w.add()
		alice := w.user(map[string]any{"exp": time.Now().Unix() + 100})
		got := w.mustGet(b, "bff", obo(), alice)
		if got.Token.ExpiresAt.After(time.Now().Add(100*time.Second)) || !got.RefreshAt.Before(got.Token.ExpiresAt) {
			t.Errorf("the token ends in %v, the subject token in 100 s; refresh in %v", time.Until(got.Token.ExpiresAt), time.Until(got.RefreshAt))
		}
	})
}

// A refresh that cannot bring a longer token would only repeat the exchange.
func TestGet_refreshesOnlyWhatCanLiveLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.add()
		long, short := w.user(map[string]any{"jti": "long"}), w.user(map[string]any{"jti": "short", "exp": time.Now().Unix() + 60})
		for _, token := range []redact.String{long, short} {
			w.mustGet(b, "bff", obo(), token)
		}
		time.Sleep(53 * time.Second) // the refresh of the short one was due after 45 s
		if got := w.mustGet(b, "bff", obo(), short); got.Degraded {
			t.Error("degraded")
		}
		synctest.Wait()
		if n := w.fetches(); n != 2 {
			t.Errorf("%d exchanges, want 2: the short token was refreshed", n)
		}
		time.Sleep(32 * time.Second)
		w.mustGet(b, "bff", obo(), long)
		synctest.Wait()
		if n := w.fetches(); n != 3 {
			t.Errorf("%d exchanges, want 3: the long token was not refreshed", n)
		}
	})
}

func TestGet_authorizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.add()
		alice, other := w.user(nil), w.user(map[string]any{"aud": "https://other.example.com"})
		for name, tt := range map[string]struct {
			caller string
			ask    broker.Ask
			token  redact.String
			reason string // empty: allowed
		}{
			"the defaults":           {"bff", obo(), alice, ""},
			"narrowed":               {"narrow", obo(), alice, ""},
			"another target":         {"bff", broker.Ask{Client: "obo", Audience: stock}, alice, ""},
			"no such client":         {"bff", broker.Ask{Client: "nothing"}, alice, apierror.ReasonNotEntitled},
			"no exchange":            {"bff", broker.Ask{Client: "plain"}, alice, apierror.ReasonNotEntitled},
			"without a grant":        {"none", obo(), alice, apierror.ReasonNotEntitled},
			"a client without grant": {"narrow", broker.Ask{Client: "obo-2"}, alice, apierror.ReasonNotEntitled},
			"too wide":               {"narrow", broker.Ask{Client: "obo", Scopes: []string{"write"}}, alice, apierror.ReasonNotEntitled},
			"a foreign audience":     {"bff", broker.Ask{Client: "obo", Audience: "https://x.example.com"}, alice, apierror.ReasonNotEntitled},
			"another's audience":     {"bff", obo(), other, apierror.ReasonSubjectRefused},
			"its own audience":       {"other", obo(), other, ""},
		} {
			answer, err := w.get(b, tt.caller, tt.ask, tt.token)
			if (err == nil) != (tt.reason == "") || err != nil && err.Reason != tt.reason {
				t.Errorf("%s: %v", name, err)
			}
			if name == "narrowed" && err == nil && strings.Join(answer.Token.Scopes, " ") != "read" {
				t.Errorf("narrowed: %v", answer.Token.Scopes)
			}
		}
		if _, err := b.Get(t.Context(), b.Policy().Named("bff"), obo()); err == nil {
			t.Error("a token of a client that exchanges without a subject")
		}
	})
}

func TestGet_revocationAndPurgeEndTheHandingOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.add(), w.add()
		alice, bob := w.user(nil), w.user(map[string]any{"sub": "bob"})
		for _, replica := range w.all {
			w.mustGet(replica, "bff", obo(), alice)
			w.mustGet(replica, "bff", obo(), bob)
		}
		synctest.Wait() // both replicas subscribe to events
		if err := a.Purge(t.Context(), policy.Self(), broker.Purge{Client: "obo", Request: "1"}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.mustGet(b, "bff", obo(), bob); got.Origin == broker.OriginMemory {
			t.Error("a purged token")
		}
		if _, err := a.Revocations().Revoke(t.Context(), policy.Self(), revocation.Revocation{Issuer: issuer, Subject: "alice", IssuedBefore: time.Now().Add(time.Second), Reason: "left"}, "2"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for _, replica := range w.all {
			if _, err := w.get(replica, "bff", obo(), alice); err == nil || err.Metadata["rejection"] != "revoked" {
				t.Errorf("alice after the revocation: %v", err)
			}
			w.mustGet(replica, "bff", obo(), bob)
		}
	})
}

// tampering answers some requests to the IdP itself.
type tampering struct {
	next   http.RoundTripper
	answer func(form url.Values) (status int, body string) // status 0: the IdP answers
}

func (r tampering) RoundTrip(request *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return nil, err
	}
	request.Body = io.NopCloser(bytes.NewReader(body))
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	if status, text := r.answer(form); status != 0 {
		return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(text)), Request: request}, nil
	}
	return r.next.RoundTrip(request)
}

// Whatever the IdP says of one subject, others get their tokens, and so does the client.
func TestGet_refusalOfOneSubjectStopsNoOther(t *testing.T) {
	for name, body := range map[string]string{
		"invalid_grant": `{"error":"invalid_grant"}`, "in capitals": `{"error":"INVALID_GRANT"}`, "with dashes": `{"error":"invalid-grant"}`,
		"invalid_request": `{"error":"invalid_request"}`, "invalid_token": `{"error":"invalid_token"}`, "unauthorized_client": `{"error":"unauthorized_client"}`,
		"access_denied": `{"error":"access_denied"}`, "interaction": `{"error":"interaction_required"}`, "its own code": `{"error":"subject_is_bad"}`,
		"the credential": `{"error":"invalid_client"}`, "nothing": `{}`,
	} {
		for _, status := range []int{400, 401, 403} {
			t.Run(fmt.Sprintf("%s %d", name, status), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					alice, bob := w.user(nil), w.user(map[string]any{"sub": "bob"})
					refusals := 0
					w.towards = tampering{w.towards, func(form url.Values) (int, string) {
						if form.Get("subject_token") != alice.Reveal() {
							return 0, ""
						}
						refusals++
						return status, body
					}}
					b := w.add()
					for range 3 { // the secret is not proved yet
						if _, err := w.get(b, "bff", obo(), alice); err == nil || err.Code != apierror.FailedPrecondition {
							t.Fatalf("alice: %v", err)
						}
					}
					if refusals != 1 {
						t.Errorf("the exchange was refused %d times, want 1: the refusal is remembered", refusals)
					}
					w.mustGet(b, "bff", obo(), bob)
					for _, c := range b.LocalClients(time.Now()) {
						if c.Name == "obo" && c.State == broker.ClientRefused {
							t.Errorf("the client counts as refused: %s", c.LastError)
						}
					}
					if _, err := w.get(b, "bff", obo(), alice); err == nil {
						t.Error("alice has a token")
					}
				})
			})
		}
	}
}

func TestGet_refusedSecretIsCondemnedByAControl(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.idp.SetSecrets("obo", redact.New("another"))
		b := w.add()
		for i := range 5 {
			if _, err := w.get(b, "bff", obo(), w.user(map[string]any{"sub": fmt.Sprint(i)})); err == nil || err.Reason != apierror.ReasonCredentialsRefused {
				t.Fatalf("with a wrong secret: %v", err)
			}
		}
		if n := w.fetches(); n != 2 {
			t.Errorf("%d requests with a wrong secret, want 2: an exchange and the control", n)
		}
	})
}

func TestGet_passesTheClaimsChallengeOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.towards = tampering{w.towards, func(url.Values) (int, string) {
			return 400, `{"error":"interaction_required","claims":"{\"access_token\":{\"acrs\":{\"essential\":true,\"value\":\"c1\"}}}"}`
		}}
		a, b := w.add(), w.add()
		alice := w.user(nil)
		for _, replica := range []*broker.Broker{a, a, b} { // fetched, remembered, from the store
			_, err := w.get(replica, "bff", obo(), alice)
			if err == nil || err.Reason != apierror.ReasonInteraction || err.Metadata["claims"] != `{"access_token":{"acrs":{"essential":true,"value":"c1"}}}` || strings.Contains(err.Message, "acrs") {
				t.Errorf("%+v", err)
			}
		}
	})
}

func TestGet_fleetExchangesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const replicas, requests = 20, 100
		w := newWorld(t)
		w.idp.SetDelay(100 * time.Millisecond)
		for range replicas {
			w.add()
		}
		alice := w.user(nil)
		sums := make(chan [32]byte, replicas*requests)
		var all sync.WaitGroup
		for _, b := range w.all {
			for range requests {
				all.Go(func() {
					if answer, err := w.get(b, "bff", obo(), alice); err != nil {
						t.Error(err)
					} else {
						sums <- answer.Token.SHA256
					}
				})
			}
		}
		all.Wait()
		close(sums)
		distinct := map[[32]byte]bool{}
		for sum := range sums {
			distinct[sum] = true
		}
		if n := w.fetches(); n != 1 || len(distinct) != 1 {
			t.Errorf("%d exchanges and %d tokens, want 1", n, len(distinct))
		}
	})
}

func TestGet_subjectsDoNotEvictTheClientsTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.settings = append(w.settings, func(cfg *broker.Config) { cfg.MaxEntries, cfg.MaxSubjects = 64, 64 })
		b := w.add()
		own := broker.Ask{Client: "plain", Audience: orders, Scopes: []string{"read"}}
		if _, err := b.Get(t.Context(), policy.Self(), own); err != nil {
			t.Fatal(err)
		}
		for i := range 500 {
			w.mustGet(b, "bff", obo(), w.user(map[string]any{"sub": fmt.Sprint(i)}))
		}
		before := w.fetches()
		if got, err := b.Get(t.Context(), policy.Self(), own); err != nil || got.Origin != broker.OriginMemory || w.fetches() != before {
			t.Errorf("after 500 subjects the client's own token comes from %v: %v", got.Origin, err)
		}
	})
}

func TestGet_auditNamesSubjectAndActors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		path := filepath.Join(t.TempDir(), "audit.jsonl")
		var err error
		if w.audit, err = audit.Open(audit.Config{File: path, Logger: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = w.audit.Close() }()
		b := w.add()
		var act any
		for _, name := range []string{"a6", "a5", "a4", "a3", "a2", "a1"} {
			act = map[string]any{"sub": name, "act": act}
			if name == "a6" {
				act = map[string]any{"sub": name}
			}
		}
		alice := w.user(map[string]any{"act": act})
		w.mustGet(b, "bff", obo(), alice)
		_, _ = w.get(b, "none", obo(), alice)
		if err := w.audit.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		for _, part := range []string{`"caller":"bff"`, `"client":"obo"`, `"issuer":"` + issuer + `"`, `"subject":"alice"`, `"actors":["a1","a2","a3","a4"]`, `"outcome":"denied"`} {
			if !strings.Contains(text, part) {
				t.Errorf("the audit log lacks %s:\n%s", part, text)
			}
		}
		if strings.Contains(text, alice.Reveal()) {
			t.Error("the audit log has the subject token")
		}
	})
}

// Keycloak refuses a wrong secret with unauthorized_client, which elsewhere means that the
// client may not use the grant. The control tells them apart.
func TestGet_wrongSecretInTheWordsOfKeycloak(t *testing.T) {
	for name, tt := range map[string]struct {
		wrong    bool // the secret, so that the control is refused as well
		requests int
		reason   string
	}{
		"the secret":  {true, 2, apierror.ReasonCredentialsRefused},
		"the subject": {false, 10, apierror.ReasonRequestRefused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				requests := 0
				w.towards = tampering{w.towards, func(form url.Values) (int, string) {
					requests++
					if form.Get("grant_type") == idp.ClientCredentials && !tt.wrong {
						return 0, ""
					}
					return 401, `{"error":"unauthorized_client"}`
				}}
				b := w.add()
				for i := range 5 {
					if _, err := w.get(b, "bff", obo(), w.user(map[string]any{"sub": fmt.Sprint(i)})); err == nil || err.Reason != tt.reason {
						t.Fatalf("%v, want %s", err, tt.reason)
					}
				}
				if requests != tt.requests {
					t.Errorf("%d requests, want %d", requests, tt.requests)
				}
			})
		})
	}
}

// subjectEntries is how many entries a replica holds on behalf of subjects.
func subjectEntries(t *testing.T, registry *prometheus.Registry) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "tokenbroker_cache_subject_entries" {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatal("there is no such metric")
	return 0
}

// Refused subjects occupy a bounded number of entries, and do not evict tokens.
func TestGet_failuresAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 640
		w, registry := newWorld(t), prometheus.NewRegistry()
		w.settings = append(w.settings, func(cfg *broker.Config) { cfg.MaxSubjects, cfg.Registerer = most, registry })
		alice := w.user(nil)
		w.towards = tampering{w.towards, func(form url.Values) (int, string) {
			if form.Get("subject_token") == alice.Reveal() {
				return 0, ""
			}
			return 400, `{"error":"invalid_grant"}`
		}}
		b := w.add()
		w.mustGet(b, "bff", obo(), alice)
		for i := range 3 * most {
			if _, err := w.get(b, "bff", obo(), w.user(map[string]any{"sub": fmt.Sprint(i)})); err == nil {
				t.Fatal("a refused subject has a token")
			}
		}
		if n := subjectEntries(t, registry); n > most {
			t.Errorf("%v entries, want at most %d", n, most)
		}
		if got := w.mustGet(b, "bff", obo(), alice); got.Origin != broker.OriginMemory {
			t.Errorf("alice's token is from %v", got.Origin)
		}
	})
}

// A subject with a token of 1 KiB costs a few KiB of memory. The number is in
// docs/delegation.md.
func TestGet_memoryOfSubjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subjects := 1_000
		if os.Getenv("TOKENBROKER_LONG") != "" {
			subjects = 10_000
		}
		w := newWorld(t)
		b := w.add()
		w.mustGet(b, "bff", obo(), w.user(nil))
		tokens := make([]redact.String, subjects)
		for i := range tokens {
			tokens[i] = w.user(map[string]any{"sub": fmt.Sprint(i), "more": strings.Repeat("x", 450)})
		}
		before := heap()
		for _, token := range tokens {
			w.mustGet(b, "bff", obo(), token)
		}
		each := (heap() - before) / int64(subjects)
		t.Logf("%d bytes for each subject with a token of %d bytes, a store in memory and the cache of verified tokens included", each, len(tokens[0].Reveal()))
		if each > 12<<10 {
			t.Errorf("%d bytes for each subject", each)
		}
	})
}

func heap() int64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}
