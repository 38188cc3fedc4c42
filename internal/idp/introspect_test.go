package idp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

const (
	isActive = `{"active":true,"sub":"alice","exp":4102444800,"aud":["a"],"x":{"y":[1,null]}}`
	inactive = `{"active":false}`
)

// presentedToken has characters that a form must encode.
var presentedToken = redact.New("canary~opaque+token/=")

// introspect asks an IdP that gives one answer.
func introspect(t *testing.T, cfg idp.Config, answer http.HandlerFunc) (idp.Introspection, error) {
	t.Helper()
	cfg.TokenURL = "https://elsewhere.example/token"
	cfg.IntrospectionURL, _ = idpServer(t, answer)
	cfg.HTTP = discovery.NewNetwork(nil).ClientFor(cfg.IntrospectionURL, false)
	return client(t, cfg).Introspect(t.Context(), version, presentedToken)
}

func TestIntrospectionAsksAsTheClient(t *testing.T) {
	for _, auth := range []idp.AuthMethod{idp.SecretBasic, idp.SecretPost} {
		endpoint, requests := idpServer(t, grants(isActive))
		c := client(t, idp.Config{
			TokenURL: "https://elsewhere.example/token", IntrospectionURL: endpoint, Auth: auth, Params: map[string]string{"prompt": "none"},
			HTTP: discovery.NewNetwork(nil).ClientFor(endpoint, false),
		})
		for _, with := range []string{secretValue, "canary-rotated"} {
			got, err := c.Introspect(t.Context(), secret.Version{ID: "v", Value: redact.New(with)}, presentedToken)
			if err != nil || !got.Active || string(got.Members) != isActive {
				t.Fatalf("%+v, %v", got, err)
			}
			all := requests()
			if len(all) != 1 {
				t.Fatalf("%d requests", len(all))
			}
			form := url.Values{"token": {presentedToken.Reveal()}, "token_type_hint": {"access_token"}}
			_, password, basic := (&http.Request{Header: all[0].header}).BasicAuth()
			if basic != (auth == idp.SecretBasic) || basic && password != with {
				t.Errorf("%s: basic is %v", auth, basic)
			}
			if auth == idp.SecretPost {
				form.Set("client_id", clientID)
				form.Set("client_secret", with)
			}
			if diff := cmp.Diff(form, all[0].form); diff != "" {
				t.Errorf("%s: %s", auth, diff)
			}
			if accept := all[0].header.Get("Accept"); accept != "application/json" || all[0].header.Get("Idempotency-Key") != "" {
				t.Errorf("header: %v", all[0].header)
			}
		}
	}
}

func TestIntrospectionEndpointIsDiscovered(t *testing.T) {
	endpoint, requests := idpServer(t, grants(inactive))
	document := map[string]string{}
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		document["issuer"] = server.URL
		_ = json.NewEncoder(w).Encode(document)
	}))
	defer server.Close()
	introspectOnce := func() (idp.Introspection, error) {
		return client(t, idp.Config{Issuer: discovery.New(discovery.Config{Issuer: server.URL})}).Introspect(t.Context(), version, presentedToken)
	}
	_, err := introspectOnce()
	isFault(t, err, idp.Misconfigured, "names no introspection_endpoint: configure the endpoint")
	document["introspection_endpoint"] = "/introspect"
	_, err = introspectOnce()
	isFault(t, err, idp.Misconfigured, "has an invalid introspection_endpoint: the URL must be absolute")
	// Endpoints that are not used may be bad.
	document["introspection_endpoint"], document["token_endpoint"], document["jwks_uri"] = endpoint, "http://idp.example/token", "keys"
	if got, err := introspectOnce(); err != nil || got.Active || len(requests()) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	server.Close()
	_, err = introspectOnce()
	isFault(t, err, idp.Transient, "the introspection endpoint cannot be found")
	_, err = client(t, idp.Config{TokenURL: "https://idp.example/token"}).Introspect(t.Context(), version, presentedToken)
	isFault(t, err, idp.Misconfigured, "not configured")
	if _, err := idp.New(idp.Config{TokenURL: "https://idp.example/token", ClientID: clientID, IntrospectionURL: "http://idp.example/introspect"}); err == nil {
		t.Error("an endpoint in plain http is accepted")
	}
}

// D17: active is a boolean, in an object that reads the same to everybody.
func TestIntrospectionAnswersAreReadStrictly(t *testing.T) {
	for body, want := range map[string]bool{
		isActive: true, inactive: false, " {\"active\" : true}\n": true, `{"active":false,"active_since":1,"Active":true}`: false, `{"\u0061ctive":true}`: true,
	} {
		got, err := introspect(t, idp.Config{}, grants(body))
		if err != nil || got.Active != want || string(got.Members) != body {
			t.Errorf("%s: %+v, %v", body, got, err)
		}
	}
	bad := []string{
		``, `{}`, `null`, `true`, `[]`, `[{"active":true}]`, `"active"`, `active=true`, `<html>`, `{"active":"true"}`, `{"active":1}`, `{"active":null}`, `{"active":[true]}`,
		`{"active":{"active":true}}`, `{"Active":true}`, `{"ACTIVE":true}`, `{"active":true,"active":true}`, `{"active":false,"active":true}`, `{"active":true,"sub":"a","sub":"b"}`,
		`{"active":true,"\u0061ctive":false}`, `{"active":true}{"active":true}`, `{"active":true} x`, `{"active":true`, `{"active":True}`, `{"active":true,"sub":"` + "\xff" + `"}`,
		`{"active":true,"sub":"\ud800"}`, "\ufeff\ufeff" + isActive, `{"active":true,"x":` + strings.Repeat("[", 9) + strings.Repeat("]", 9) + `}`,
		`{"active":true,"x":"` + strings.Repeat("x", 64<<10) + `"}`, `{"active":true,"x":"` + strings.Repeat("x", 300<<10) + `"}`,
		"eyJhbGciOiJSUzI1NiJ9.eyJhY3RpdmUiOnRydWV9.c2ln", `{"data":{"active":true}}`,
	}
	var wide strings.Builder
	for i := range 64 {
		fmt.Fprintf(&wide, `,"m%d":0`, i)
	}
	bad = append(bad, `{"active":true`+wide.String()+`}`)
	if len(bad) < 30 {
		t.Errorf("only %d cases", len(bad))
	}
	for _, body := range bad {
		got, err := introspect(t, idp.Config{}, grants(body))
		if err == nil {
			t.Errorf("%.60q was accepted: %v", body, got.Active)
			continue
		}
		if fault := isFault(t, err, idp.Transient, "answers HTTP 200 with "); fault.Backoff() >= 0 {
			t.Errorf("%.60q counts against the endpoint", body)
		}
	}
	for _, status := range []int{201, 202, 204, 206, 299} {
		if _, err := introspect(t, idp.Config{}, answers(status, jsonType, isActive)); err == nil {
			t.Errorf("accepted with HTTP %d", status)
		}
	}
}

func TestIntrospectionFailuresAreClassified(t *testing.T) {
	for name, tt := range map[string]struct {
		answer    http.HandlerFunc
		class     idp.Class
		says      string
		rest      time.Duration
		ambiguous bool
	}{
		"a refused client":       {answers(401, jsonType, `{"error":"invalid_client"}`), idp.CredentialRefused, "rotate the secret", time.Minute, false},
		"a refused client, 400":  {answers(400, jsonType, `{"error":"invalid_client"}`), idp.CredentialRefused, "rotate the secret", time.Minute, false},
		"401 and nothing else":   {answers(401, "", ""), idp.CredentialRefused, "the cause may be the presented token instead", 0, true},
		"401 for a token":        {answers(401, jsonType, `{"active":false}`), idp.CredentialRefused, "the cause may be the presented token instead", 0, true},
		"401 with a bearer code": {answers(401, jsonType, `{"error":"invalid_token"}`), idp.CredentialRefused, "the cause may be the presented token instead", 0, true},
		"a client without leave": {answers(403, jsonType, `{"error":"unauthorized_client"}`), idp.CredentialRefused, "the cause may be the presented token instead", 0, true},
		"a refused request":      {answers(400, jsonType, `{"error":"invalid_request"}`), idp.RequestRefused, "invalid_request", -1, false},
		"forbidden":              {answers(403, "", ""), idp.RequestRefused, "look at the IdP's log", 0, true},
		"nothing there":          {answers(404, "text/html", "<html>"), idp.Misconfigured, "does not exist", 0, true},
		"a redirect":             {answers(302, "", "", "Location", "/login"), idp.Misconfigured, "redirect", 0, true},
		"a proof wanted":         {answers(401, jsonType, `{"error":"use_dpop_nonce"}`), idp.Misconfigured, "DPoP", time.Minute, false},
		"a throttled client":     {answers(429, "", "", "Retry-After", "7"), idp.Throttled, "throttles", 7 * time.Second, false},
		"trouble":                {answers(500, "", ""), idp.Transient, "has a failure of its own", 0, true},
		"an error beside 200":    {answers(200, jsonType, `{"active":true,"error":"invalid_client"}`), idp.CredentialRefused, "invalid_client", time.Minute, false},
	} {
		_, err := introspect(t, idp.Config{}, tt.answer)
		fault := isFault(t, err, tt.class, tt.says)
		if fault.Backoff() != tt.rest || fault.Ambiguous() != tt.ambiguous || !strings.HasPrefix(err.Error(), "the introspection endpoint http://127.0.0.1:") {
			t.Errorf("%s: rest %v, ambiguous %v: %v", name, fault.Backoff(), fault.Ambiguous(), err)
		}
	}
}

// D3: a redirect would show the token, and the secret, to somebody else.
func TestIntrospectionFollowsNoRedirect(t *testing.T) {
	elsewhere, requests := idpServer(t, grants(isActive))
	for _, status := range []int{301, 302, 303, 307, 308} {
		_, err := introspect(t, idp.Config{}, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere, status) })
		isFault(t, err, idp.Misconfigured, "redirect, which is not followed")
	}
	if n := len(requests()); n != 0 {
		t.Errorf("%d redirects were followed", n)
	}
}

// D2: neither what is configured nor what is discovered leads to this host.
func TestPrivateEndpointsAreMisconfigured(t *testing.T) {
	server, requests := idpServer(t, grants(isActive))
	c := client(t, idp.Config{TokenURL: server, IntrospectionURL: server, HTTP: discovery.NewNetwork(nil).ClientFor("https://idp.example", false)})
	_, err := c.Introspect(t.Context(), version, presentedToken)
	isFault(t, err, idp.Misconfigured, "allow_private")
	_, err = c.Fetch(t.Context(), version, idp.Request{})
	isFault(t, err, idp.Misconfigured, "allow_private")
	if n := len(requests()); n != 0 {
		t.Errorf("%d requests reached a private endpoint", n)
	}
}

func TestIntrospectionTakesItsBudgetAndRetriesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		requests := 0
		measure := func(roundTrip transport) (time.Duration, error) {
			requests = 0
			begin := time.Now()
			c := client(t, idp.Config{TokenURL: "https://idp.example/token", IntrospectionURL: "https://idp.example/introspect", HTTP: discovery.NewHTTPClient(transport(func(r *http.Request) (*http.Response, error) {
				requests++
				return roundTrip(r)
			}))})
			_, err := c.Introspect(t.Context(), version, presentedToken)
			return time.Since(begin), err
		}
		elapsed, err := measure(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		if isFault(t, err, idp.Transient, "deadline"); elapsed != idp.IntrospectionBudget || requests != 1 {
			t.Errorf("an endpoint that hangs: %d requests, %v", requests, elapsed)
		}
		_, err = measure(func(*http.Request) (*http.Response, error) {
			if requests == 1 {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
			}
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(strings.NewReader(inactive))}, nil
		})
		if err != nil || requests != 2 {
			t.Errorf("an endpoint that is back at once: %d requests, %v", requests, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		c := client(t, idp.Config{TokenURL: "https://idp.example/token", IntrospectionURL: "https://idp.example/introspect"})
		if _, err := c.Introspect(ctx, version, presentedToken); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	})
}

// D20: no error shows the token, the secret or what the IdP wrote.
func TestNoIntrospectionErrorShowsTheToken(t *testing.T) {
	forms := append([]string{presentedToken.Reveal(), url.QueryEscape(presentedToken.Reveal()), "opaque"}, canaries...)
	cases := 0
	for name, answer := range echoes() {
		for _, auth := range []idp.AuthMethod{idp.SecretBasic, idp.SecretPost} {
			cases++
			echoed := ""
			endpoint, _ := idpServer(t, func(w http.ResponseWriter, r *http.Request) {
				echoed = echo(r)
				answer(w, echoed)
			})
			c := client(t, idp.Config{
				TokenURL: "https://idp.example/token", IntrospectionURL: endpoint + "?key=canary", Auth: auth, HTTP: discovery.NewNetwork(nil).ClientFor(endpoint, false),
			})
			_, err := c.Introspect(t.Context(), secret.Version{ID: "v1", Value: redact.New(leaky)}, presentedToken)
			if err == nil || !strings.Contains(echoed, presentedToken.Reveal()) {
				t.Fatalf("%s tests nothing: %v", name, err)
			}
			if shown := printed(err); containsAny(shown, forms) {
				t.Errorf("%s: the error shows it: %s", name, shown)
			}
		}
	}
	if cases < 70 {
		t.Errorf("only %d cases", cases)
	}
}

// FuzzIntrospection looks for an answer that is taken for active although
// encoding/json finds no active that is true in it.
func FuzzIntrospection(f *testing.F) {
	for _, body := range []string{
		isActive, inactive, `{"active":"true"}`, `{"active":true,"active":false}`, `{"Active":true}`, `{"\u0061ctive":true}`, `{"active":true}}`, `active=true`, "", "\xff",
		`{"active":true,"error":"x"}`, `{"error":{},"active":true}`, `{"active":true,"x":[[[[[[[[[]]]]]]]]]}`, `{"a":{"active":true}}`,
	} {
		for _, status := range []int{200, 400, 401} {
			f.Add(status, body)
		}
	}
	f.Fuzz(func(t *testing.T, status int, body string) {
		if status < 200 || status > 501 {
			t.Skip("no status of an answer, or one that is tried again after a pause")
		}
		c := client(t, idp.Config{TokenURL: "https://idp.example/token", IntrospectionURL: "https://idp.example/introspect",
			HTTP: discovery.NewHTTPClient(transport(func(*http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}, nil
			}))})
		got, err := c.Introspect(t.Context(), version, presentedToken)
		if err != nil {
			isFault(t, err, idp.ClassOf(err), "the introspection endpoint https://idp.example/introspect ")
			if got.Active || got.Members != nil {
				t.Errorf("an error and an answer: %+v", got)
			}
			return
		}
		var reference map[string]any
		if err := json.Unmarshal([]byte(body), &reference); err != nil || status != 200 || reference["active"] != got.Active || reference["error"] != nil && reference["error"] != "" && reference["error"] != false {
			t.Errorf("HTTP %d with %q is taken for active: %v", status, body, got.Active)
		}
	})
}
