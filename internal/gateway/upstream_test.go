package gateway_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// The upstream entries of these tests.
const (
	exchanged  = "exchanged"
	service    = "service"
	unverified = "unverified"
	ungranted  = "ungranted"
)

func judgeOf(f *apitest.Fixture) *gateway.Judge {
	return gateway.New(gateway.Config{Broker: f.Broker, Upstreams: []gateway.Upstream{
		{Name: exchanged, Client: apitest.OnBehalf, OnBehalfOf: true},
		{Name: service, Client: "orders", Header: "x-upstream-token"},
		{Name: unverified, Client: "orders", Unverified: true},
		{Name: ungranted, Client: "orders", OnBehalfOf: true},
	}})
}

// asks is a request to the judge.
type asks struct {
	caller, upstream string
	scopes           []string // that the token needs
}

func (a asks) decide(t testing.TB, f *apitest.Fixture, token string) gateway.Decision {
	t.Helper()
	j := judgeOf(f)
	request := gateway.Request{Upstream: j.Upstream(a.upstream)}
	if a.upstream != unverified {
		request.Needs = verify.Request{Audience: []string{apitest.BFF}, Scopes: a.scopes}
	}
	if token != "" {
		request.Authorization = []string{"Bearer " + token}
	}
	return j.Decide(t.Context(), f.Broker.Policy().Named(a.caller), request)
}

func answering(status int, body string) func(*apitest.Fixture) {
	return func(f *apitest.Fixture) {
		f.IdP.SetAnswer(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != devidp.TokenPath {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "7")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
			return true
		})
	}
}

func issuing(value, tokenType string) func(*apitest.Fixture) {
	return answering(http.StatusOK, `{"access_token":"`+value+`","token_type":"`+tokenType+`","expires_in":60,"scope":"read","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`)
}

func down(f *apitest.Fixture) { f.IdP.SetDown(true) }

// situation is a row of the table of statuses in docs/gateways.md.
type situation struct {
	name    string
	prepare func(*apitest.Fixture) // nil: nothing
	asks    asks
	claims  map[string]any // of the token; nil: the request has no token
	status  int
	code    string // of the challenge
}

func situations() []situation {
	good := map[string]any{"aud": apitest.BFF, "scope": "read"}
	with := func(name string, value any) map[string]any {
		changed := maps.Clone(good)
		changed[name] = value
		return changed
	}
	gate := asks{caller: apitest.Gate, upstream: exchanged}
	return []situation{
		{"the upstream token is available", nil, gate, good, 200, ""},
		{"the request has no token", nil, gate, nil, 401, ""},
		{"its token is invalid, expired, revoked, or for another audience", nil, gate, with("aud", "https://other.example.com"), 401, "invalid_token"},
		{"its token lacks a required scope", nil, asks{apitest.Gate, exchanged, []string{"admin"}}, good, 403, "insufficient_scope"},
		{"no `exchange` grant of the gateway admits its token", nil, gate, with("scope", "write"), 403, ""},
		{"the IdP refuses to exchange its token", answering(400, `{"error":"invalid_grant"}`), gate, good, 403, ""},
		{"the IdP requires the user to interact", answering(400, `{"error":"interaction_required"}`), gate, good, 401, "insufficient_user_authentication"},
		{"the same, with a claims challenge", answering(400, `{"error":"interaction_required","claims":"{\"a\":1}"}`), gate, good, 401, "insufficient_claims"},
		{"the gateway is not identified", nil, asks{"", exchanged, nil}, good, 503, ""},
		{"the gateway lacks the `get` or `exchange` grant", nil, asks{apitest.Gate, ungranted, nil}, good, 503, ""},
		{"a gateway with `verify` grants uses an entry with `verify: none`", nil, asks{apitest.Gate, unverified, nil}, good, 503, ""},
		{"the IdP refuses the client or its secret", answering(401, `{"error":"invalid_client"}`), gate, good, 503, ""},
		{"the IdP cannot be reached, or fails", down, gate, good, 503, ""},
		{"the IdP throttles the client", answering(429, `{"error":"slow_down"}`), gate, good, 503, ""},
		{"the IdP's token is no bearer token that fits a header", issuing("a b", "Bearer"), gate, good, 503, ""},
		{"anything else", answering(400, `{"error":"something_else"}`), gate, good, 503, ""},
	}
}

func TestUpstream_statuses(t *testing.T) {
	for _, tt := range situations() {
		t.Run(tt.name, func(t *testing.T) {
			f := apitest.NewExchanging(t)
			token := ""
			if tt.claims != nil {
				token = f.Token(tt.claims)
			}
			if tt.prepare != nil {
				verifyOnly := asks{caller: apitest.Gate}
				if d := verifyOnly.decide(t, f, token); d.Status != 200 { // so that the issuer's keys are held
					t.Fatalf("the token is not valid: %d", d.Status)
				}
				tt.prepare(f)
			}
			d := tt.asks.decide(t, f, token)
			if d.Status != tt.status || tt.code != "" && !strings.Contains(d.Challenge, `error="`+tt.code+`"`) || tt.code == "" && strings.Contains(d.Challenge, "error=") {
				t.Errorf("%d, %s, %v", d.Status, d.Challenge, d.Err)
			}
			if given := d.Upstream != nil || !d.UpstreamValue.IsZero(); given != (tt.status == 200) {
				t.Errorf("an upstream token: %t", given)
			}
			if unavailable := tt.status == 503; (d.Err != nil) != unavailable && tt.status != 401 && tt.status != 403 || unavailable && d.RetryAfter < time.Second {
				t.Errorf("error %v, again after %v", d.Err, d.RetryAfter)
			}
			if d.Err != nil && token != "" && strings.Contains(d.Err.Error(), token) {
				t.Error("the error has the token")
			}
		})
	}
}

// The documentation has the same table.
func TestUpstream_statusesAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/gateways.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "### Statuses of upstream tokens\n")
	section, _, _ = strings.Cut(section, "\n#")
	var documented, want []string
	for line := range strings.Lines(section) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); len(cells) == 3 && !strings.HasPrefix(line, "|--") {
			documented = append(documented, strings.Trim(strings.Join(cells, " | "), "| "))
		}
	}
	for _, tt := range situations() {
		code := "`" + tt.code + "`"
		if tt.code == "" {
			code = "none"
		}
		want = append(want, fmt.Sprintf("%s | %d | %s", tt.name, tt.status, code))
	}
	if d := cmp.Diff(want, documented[min(1, len(documented)):]); d != "" {
		t.Error(d)
	}
}

// Only the errors that the table lists are 401 and 403, and none permits a request.
func TestUpstream_refusesByDefault(t *testing.T) {
	listed := map[string]int{apierror.ReasonSubjectRefused: 403, apierror.ReasonInteraction: 401}
	for _, reason := range reasons(t) {
		for code := apierror.Internal; code <= apierror.NotFound; code++ {
			for _, onBehalf := range []bool{true, false} {
				want := 503
				if status := listed[reason]; onBehalf && status != 0 {
					want = status
				}
				got := gateway.StatusWithoutToken(onBehalf, &apierror.Error{Code: code, Reason: reason, Metadata: map[string]string{"client": "x"}})
				if got != want {
					t.Errorf("%s (%d), on behalf %t: %d, want %d", reason, code, onBehalf, got, want)
				}
			}
		}
	}
	for rejection, want := range map[string]int{"expired": 401, "revoked": 401, "inactive": 401, "wrong_audience": 403, "bound": 403, "": 403} {
		if got := gateway.StatusWithoutToken(true, &apierror.Error{Reason: apierror.ReasonSubjectRefused, Metadata: map[string]string{"rejection": rejection}}); got != want {
			t.Errorf("a subject that is %s: %d, want %d", rejection, got, want)
		}
	}
	for code, want := range map[string]int{"invalid_grant": 403, "invalid_request": 403, "access_denied": 403, "unsupported_grant_type": 503, "": 503} {
		if got := gateway.StatusWithoutToken(true, &apierror.Error{Reason: apierror.ReasonRequestRefused, Metadata: map[string]string{"oauth_error": code}}); got != want {
			t.Errorf("refused with %q: %d, want %d", code, got, want)
		}
	}
	if got := gateway.StatusWithoutToken(true, errors.New("another error")); got != 503 {
		t.Errorf("another error: %d", got)
	}
}

// reasons returns all reasons of errors.
func reasons(t *testing.T) []string {
	t.Helper()
	source, err := os.ReadFile("../apierror/apierror.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, match := range regexp.MustCompile(`Reason[A-Za-z]+ += "([A-Z_]+)"`).FindAllStringSubmatch(string(source), -1) {
		all = append(all, match[1])
	}
	if len(all) < 40 {
		t.Fatalf("only %d reasons", len(all))
	}
	return all
}

// The claims reach the client as those of Entra ID do, in base64.
func TestUpstream_challengesWithClaims(t *testing.T) {
	f := apitest.NewExchanging(t)
	answering(400, `{"error":"interaction_required","claims":"{\"access_token\":{\"nbf\":{\"essential\":true}}}"}`)(f)
	d := asks{caller: apitest.Gate, upstream: exchanged}.decide(t, f, f.Token(map[string]any{"aud": apitest.BFF}))
	_, claims, _ := strings.Cut(d.Challenge, `claims="`)
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimSuffix(claims, `"`))
	if err != nil || string(decoded) != `{"access_token":{"nbf":{"essential":true}}}` {
		t.Errorf("%s: %v", d.Challenge, err)
	}
}

// The token is the one that a call of the gateway's own would get.
func TestUpstream_value(t *testing.T) {
	f := apitest.NewExchanging(t)
	user := f.Token(map[string]any{"aud": apitest.BFF})
	for name, tt := range map[string]struct {
		asks  asks
		token string
		check func(claims map[string]any) bool
	}{
		"on behalf of the user":  {asks{apitest.Gate, exchanged, nil}, user, func(c map[string]any) bool { return c["sub"] == "user-1" && c["act"] != nil }},
		"the client's own":       {asks{apitest.Gate, service, nil}, user, func(c map[string]any) bool { return c["client_id"] == "abc" && c["act"] == nil }},
		"without a verification": {asks{apitest.Egress, unverified, nil}, "", func(c map[string]any) bool { return c["client_id"] == "abc" }},
		"with any token":         {asks{apitest.Egress, unverified, nil}, "x y", func(c map[string]any) bool { return c["client_id"] == "abc" }},
	} {
		before := f.IdP.Requests(devidp.TokenPath)
		for range 2 {
			d := tt.asks.decide(t, f, tt.token)
			value, ok := strings.CutPrefix(d.UpstreamValue.Reveal(), "Bearer ")
			if d.Status != 200 || !ok || value == tt.token {
				t.Errorf("%s: %d, %v", name, d.Status, d.Err)
				continue
			}
			var claims map[string]any
			payload, err := base64.RawURLEncoding.DecodeString(strings.Split(value, ".")[1])
			if err != nil || json.Unmarshal(payload, &claims) != nil || !tt.check(claims) {
				t.Errorf("%s: %s", name, payload)
			}
			if identified := d.Identity()[1] != ""; identified != (tt.asks.upstream != unverified) {
				t.Errorf("%s: identity %q", name, d.Identity())
			}
		}
		if n := f.IdP.Requests(devidp.TokenPath) - before; n > 1 {
			t.Errorf("%s: %d requests to the IdP", name, n)
		}
	}
}

// The header of a token can only hold its credentials.
func TestUpstream_valueIsToken68(t *testing.T) {
	for value, want := range map[string]int{
		"abc": 200, "a.b-c_d~e+f/g==": 200, "=": 503, "a=b": 503, "a,b": 503, "a b": 503, "a;b": 503, "a:b": 503, "a\\\"b": 503, "a%0d": 503,
	} {
		f := apitest.NewExchanging(t)
		issuing(value, "Bearer")(f)
		if d := (asks{apitest.Gate, service, nil}).decide(t, f, f.Token(map[string]any{"aud": apitest.BFF})); d.Status != want {
			t.Errorf("%q: %d, want %d: %v", value, d.Status, want, d.Err)
		}
	}
}

func TestUpstream_otherTypesAreNoBearer(t *testing.T) {
	f := apitest.NewExchanging(t)
	issuing("abc", "DPoP")(f)
	if d := (asks{apitest.Gate, service, nil}).decide(t, f, f.Token(map[string]any{"aud": apitest.BFF})); d.Status != 503 {
		t.Errorf("%d: %v", d.Status, d.Err)
	}
}

// A held token costs no I/O, no log line, and little memory beyond the verification.
func TestUpstream_warmHitIsCheap(t *testing.T) {
	f := apitest.NewExchanging(t)
	user := f.Token(map[string]any{"aud": apitest.BFF})
	j := judgeOf(f)
	gate := f.Broker.Policy().Named(apitest.Gate)
	allocations := map[string]float64{}
	for _, name := range []string{"", exchanged, service} {
		request := gateway.Request{Authorization: []string{"Bearer " + user}, Needs: verify.Request{Audience: []string{apitest.BFF}}, Upstream: j.Upstream(name)}
		decide := func() {
			if d := j.Decide(t.Context(), gate, request); d.Status != http.StatusOK {
				t.Fatalf("%s: %d, %v", name, d.Status, d.Err)
			}
		}
		decide()
		requests, logged := len(f.IdP.TokenRequests()), f.Log.String()
		allocations[name] = testing.AllocsPerRun(100, decide)
		if n := len(f.IdP.TokenRequests()); n != requests || f.Log.String() != logged {
			t.Errorf("%s: %d requests to the IdP, log %s", name, n-requests, strings.TrimPrefix(f.Log.String(), logged))
		}
	}
	t.Logf("allocations: %v", allocations)
	if more := allocations[exchanged] - allocations[""]; more > 30 {
		t.Errorf("an exchanged token needs %v more allocations", more)
	}
	if more := allocations[service] - allocations[""]; more > 5 {
		t.Errorf("a service token needs %v more allocations", more)
	}
}

func BenchmarkDecide(b *testing.B) {
	f := apitest.NewExchanging(b)
	user := f.Token(map[string]any{"aud": apitest.BFF, "padding": strings.Repeat("x", 500)})
	j, gate := judgeOf(f), f.Broker.Policy().Named(apitest.Gate)
	for _, name := range []string{"", exchanged, service} {
		request := gateway.Request{Authorization: []string{"Bearer " + user}, Needs: verify.Request{Audience: []string{apitest.BFF}}, Upstream: j.Upstream(name)}
		b.Run("upstream="+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := j.Decide(b.Context(), gate, request); d.Status != http.StatusOK {
					b.Fatal(d.Err)
				}
			}
		})
	}
}

// A request cannot bring another spelling of the header, which services would confuse with it.
func TestUpstream_imitations(t *testing.T) {
	j := judgeOf(apitest.NewExchanging(t))
	for name, want := range map[string]bool{
		"X_Upstream_Token": true, "x-upstream_token": true, "X.Upstream.Token": true, "X-Upstream-Token": false, "x-upstream-token": false, "X_Auth_Subject": true, "Authorization": false,
	} {
		if got := j.Imitates(name, j.Upstream(service)); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
	if j.Imitates("X_Upstream_Token", j.Upstream(exchanged)) || j.Imitates("X_Upstream_Token", nil) {
		t.Error("the header of another entry counts")
	}
}
