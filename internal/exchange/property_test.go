package exchange_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
)

// recorder records the exchange that yielded each token.
type recorder struct {
	next http.RoundTripper
	mu   sync.Mutex
	form map[string]url.Values // by access token
}

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		return nil, err
	}
	request.Body = io.NopCloser(bytes.NewReader(body))
	response, err := r.next.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	response.Body = io.NopCloser(bytes.NewReader(data))
	var members struct {
		AccessToken string `json:"access_token"`
	}
	if json.Unmarshal(data, &members) == nil && members.AccessToken != "" {
		r.mu.Lock()
		defer r.mu.Unlock()
		form, _ := url.ParseQuery(string(body))
		id, _, _ := request.BasicAuth()
		form.Set("client_id", id)
		r.form[members.AccessToken] = form
	}
	return response, nil
}

func (r *recorder) exchangeOf(token string) url.Values {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.form[token]
}

// act is one step of the property.
type act struct {
	Kind            string
	Replica, Caller int
	Ask             broker.Ask
	Subject         int
	Sleep           time.Duration
}

const subjects = 6

func drawActs(t *rapid.T) []act {
	kinds := []string{"get", "get", "get", "get", "get", "sleep", "purge", "revoke", "delay", "down", "up", "actor"}
	acts := make([]act, rapid.IntRange(5, 60).Draw(t, "acts"))
	for i := range acts {
		acts[i] = act{
			Kind:    rapid.SampledFrom(kinds).Draw(t, "kind"),
			Replica: rapid.IntRange(0, 1).Draw(t, "replica"),
			Caller:  rapid.IntRange(0, 1).Draw(t, "caller"),
			Subject: rapid.IntRange(0, subjects-1).Draw(t, "subject"),
			Sleep:   time.Duration(rapid.IntRange(0, 90).Draw(t, "sleep")) * time.Second,
			Ask: broker.Ask{
				Client:   rapid.SampledFrom([]string{"obo", "obo-2"}).Draw(t, "client"),
				Audience: rapid.SampledFrom([]string{"", orders, stock}).Draw(t, "audience"),
				Scopes:   rapid.SampledFrom([][]string{nil, {"read"}, {"write"}, {"write", "read"}}).Draw(t, "scopes"),
			},
		}
	}
	return acts
}

// subjectTokens returns tokens of two users. Each user has several, which differ in the
// smallest ways, and two tokens of different users have the same ID.
func (w *world) subjectTokens() []redact.String {
	now := time.Now().Unix()
	return []redact.String{
		w.user(map[string]any{"sub": "alice", "jti": "1"}),
		w.user(map[string]any{"sub": "alice", "jti": "2"}),
		w.user(map[string]any{"sub": "alice", "jti": "1", "scope": "openid admin"}),
		w.user(map[string]any{"sub": "bob", "jti": "1"}),
		w.user(map[string]any{"sub": "bob", "jti": "3", "exp": now + 40}),
		w.user(map[string]any{"sub": "bob", "jti": "3", "exp": now + 3000}),
	}
}

// The ways in which a token may depend on more than the subject token.
const (
	alone     = "the client alone"
	withActor = "an actor of the client"
	withLegs  = "a first leg with an actor"
)

// withActorFile gives a client the actor in a file.
func (w *world) withActorFile(client, path string) {
	w.clients = append(w.clients, func(id string, cfg *idp.Config, c *broker.ClientConfig) {
		if id == client {
			cfg.Exchange.Actor, c.Exchange.ActorFile = "file:"+path, path
		}
	})
}

// writeActor writes a token of an actor; each has other bytes.
func (w *world) writeActor(path, actor string, number int) {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(w.user(map[string]any{"sub": actor, "jti": fmt.Sprint(number)}).Reveal()), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// newDependingWorld returns a world in which the tokens of the client "obo" depend on more.
func newDependingWorld(t *testing.T, depends, actorFile string) *world {
	t.Helper()
	w := newWorld(t)
	switch depends {
	case withActor:
		w.withActorFile("obo", actorFile)
	case withLegs:
		w = newLegs(t)
		w.withActorFile("obo-2", actorFile)
	}
	w.writeActor(actorFile, "pod-a", 0)
	return w
}

// No token that was obtained for one subject token, client, target, actor or first leg is
// handed out for another, whatever callers, replicas, times, purges, revocations and
// failures do. After the revocation of a user no token is handed out on behalf of this user.
func TestTokensNeverChangeTheirSubject(t *testing.T) {
	cases, served, shared := 0, map[string]int{}, 0
	rapid.Check(t, func(rt *rapid.T) {
		cases++
		depends, actorFile := rapid.SampledFrom([]string{alone, withActor, withLegs}).Draw(rt, "depends"), filepath.Join(t.TempDir(), "actor.jwt")
		acts := append([]act{{Kind: "get", Ask: obo()}}, drawActs(rt)...)
		failure := ""
		synctest.Test(t, func(t *testing.T) {
			w := newDependingWorld(t, depends, actorFile)
			record := &recorder{next: w.towards, form: map[string]url.Values{}}
			w.towards = record
			w.add()
			w.add()
			synctest.Wait() // both replicas subscribe to events
			tokens, revoked, actor := w.subjectTokens(), map[string]bool{}, "pod-a"
			var all sync.WaitGroup
			var mu sync.Mutex
			fail := func(format string, args ...any) {
				mu.Lock()
				defer mu.Unlock()
				if failure == "" {
					failure = fmt.Sprintf(format, args...)
				}
			}
			for i, a := range acts {
				b := w.all[a.Replica]
				user := []string{"alice", "alice", "alice", "bob", "bob", "bob"}[a.Subject]
				switch a.Kind {
				case "get":
					wasRevoked, want := revoked[user], exchanged{a.Ask, tokens[a.Subject], []string{"bff", "narrow"}[a.Caller], actor}
					if depends == alone || a.Ask.Client == "obo-2" {
						want.actor = ""
					}
					get := func() {
						answer, err := w.get(b, want.caller, a.Ask, tokens[a.Subject])
						if err != nil {
							return
						}
						mu.Lock()
						served[depends]++
						if answer.Origin != broker.OriginFetched {
							shared++
						}
						mu.Unlock()
						if wasRevoked {
							fail("%d: a token for %s, who is revoked", i, user)
						}
						if problem := want.mismatch(record, answer.Token.Value.Reveal()); problem != "" {
							fail("%d: the token %s", i, problem)
						}
					}
					if a.Sleep < 30*time.Second { // some at once
						all.Go(get)
					} else {
						get()
					}
				case "actor":
					all.Wait()
					actor = []string{"pod-a", "pod-b"}[a.Caller]
					w.writeActor(actorFile, actor, i+1)
					time.Sleep(6 * time.Second) // the replicas read the file again
				case "sleep":
					all.Wait()
					time.Sleep(a.Sleep)
				case "purge":
					_ = b.Purge(t.Context(), policy.Self(), broker.Purge{Client: a.Ask.Client, Request: fmt.Sprint(i)})
				case "revoke":
					if a.Sleep > 80*time.Second { // seldom
						all.Wait()
						if _, err := b.Revocations().Revoke(t.Context(), policy.Self(), revocation.Revocation{Issuer: issuer, Subject: user, IssuedBefore: time.Now().Add(time.Second)}, fmt.Sprint(i)); err == nil {
							revoked[user] = true
						}
						synctest.Wait()
					}
				case "delay":
					w.idp.SetDelay(a.Sleep * 10 / 1000)
				case "down":
					w.idp.SetDown(true)
				case "up":
					w.idp.SetDown(false)
				}
			}
			all.Wait()
		})
		if failure != "" {
			rt.Fatal(failure)
		}
	})
	for _, depends := range []string{alone, withActor, withLegs} {
		if served[depends] < cases/4 || shared == 0 {
			t.Errorf("%s: only %d answers were checked in %d cases; of all %d were from a cache", depends, served[depends], cases, shared)
		}
	}
}

// exchanged is the exchange that must have yielded the token for a request.
type exchanged struct {
	ask     broker.Ask
	subject redact.String
	caller  string
	actor   string // empty: none
}

// mismatch describes how the exchange that yielded a token differs from the request that
// the token was handed out for.
func (e exchanged) mismatch(record *recorder, token string) string {
	form := record.exchangeOf(token)
	subject := form // the form with the subject token itself
	if assertion := form.Get("assertion"); assertion != "" {
		subject = record.exchangeOf(assertion)
	}
	for name, want := range map[string]string{"client_id": e.ask.Client, "audience": cmp.Or(e.ask.Audience, orders), "scope": e.scope()} {
		if form.Get(name) != want {
			return "was obtained with another " + name
		}
	}
	if subject.Get("subject_token") != e.subject.Reveal() {
		return "was obtained with another subject token"
	}
	if actor := subjectOf(subject.Get("actor_token")); actor != e.actor {
		return "was obtained with the actor " + actor + ", not " + e.actor
	}
	return ""
}

func (e exchanged) scope() string {
	if e.caller == "narrow" && len(e.ask.Scopes) == 0 {
		return "read"
	}
	return map[string]string{"[]": "read write", "[read]": "read", "[write]": "write", "[write read]": "read write"}[fmt.Sprint(e.ask.Scopes)]
}

// subjectOf returns sub of a JWT, or "" without one.
func subjectOf(token string) string {
	compact, err := jose.Split(redact.New(token))
	if err != nil {
		return ""
	}
	claims, err := jose.ParseObject(compact.Payload)
	if err != nil {
		return ""
	}
	subject, _, _ := claims.Text("sub")
	return subject
}
