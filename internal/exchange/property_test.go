package exchange_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/broker"
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
	kinds := []string{"get", "get", "get", "get", "sleep", "purge", "revoke", "delay", "down", "up"}
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

// No token that was obtained for one subject token, client or target is handed out for
// another, whatever callers, replicas, times, purges, revocations and failures do. After
// the revocation of a user no token is handed out on behalf of this user.
func TestTokensNeverChangeTheirSubject(t *testing.T) {
	cases, served, shared := 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		cases++
		acts := append([]act{{Kind: "get", Ask: obo()}}, drawActs(rt)...)
		failure := ""
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			record := &recorder{next: w.towards, form: map[string]url.Values{}}
			w.towards = record
			w.add()
			w.add()
			synctest.Wait() // both replicas subscribe to events
			tokens, revoked := w.subjectTokens(), map[string]bool{}
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
					wasRevoked := revoked[user]
					get := func() {
						caller := []string{"bff", "narrow"}[a.Caller]
						answer, err := w.get(b, caller, a.Ask, tokens[a.Subject])
						if err != nil {
							return
						}
						mu.Lock()
						served++
						if answer.Origin != broker.OriginFetched {
							shared++
						}
						mu.Unlock()
						if wasRevoked {
							fail("%d: a token for %s, who is revoked", i, user)
						}
						if problem := mismatch(record.exchangeOf(answer.Token.Value.Reveal()), a.Ask, tokens[a.Subject], caller); problem != "" {
							fail("%d: the token %s", i, problem)
						}
					}
					if a.Sleep < 30*time.Second { // some at once
						all.Go(get)
					} else {
						get()
					}
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
	if served < cases || shared == 0 {
		t.Errorf("only %d answers were checked in %d cases, %d of them from a cache", served, cases, shared)
	}
}

// mismatch describes how the exchange that yielded a token differs from the request that
// the token was handed out for.
func mismatch(form url.Values, ask broker.Ask, token redact.String, caller string) string {
	audience, scope := ask.Audience, map[string]string{"[]": "read write", "[read]": "read", "[write]": "write", "[write read]": "read write"}[fmt.Sprint(ask.Scopes)]
	if audience == "" {
		audience = orders
	}
	if caller == "narrow" && len(ask.Scopes) == 0 {
		scope = "read"
	}
	for name, want := range map[string]string{"subject_token": token.Reveal(), "client_id": ask.Client, "audience": audience, "scope": scope} {
		if form.Get(name) != want {
			return "was obtained with another " + name
		}
	}
	return ""
}
