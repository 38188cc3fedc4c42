package idp_test

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/token"
)

const (
	clientID    = "client-a"
	secretValue = "canary-secret"
	good        = `{"access_token":"tok","token_type":"Bearer","expires_in":3600}`
)

var version = secret.Version{ID: "v1", Value: redact.New(secretValue)}

// answers is an IdP that always answers the same.
func answers(status int, contentType, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func grants(body string) http.HandlerFunc { return answers(http.StatusOK, "application/json", body) }

// recorded is a request as the IdP received it.
type recorded struct {
	header http.Header
	form   url.Values
}

// idpServer is a real IdP over HTTP that records its requests.
func idpServer(t *testing.T, answer http.HandlerFunc) (tokenURL string, requests func() []recorded) {
	t.Helper()
	received := make(chan recorded, 100)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("reading the request: %v", err)
		}
		form, err := url.ParseQuery(string(body))
		if err != nil || r.Method != http.MethodPost {
			t.Errorf("%s %q: %v", r.Method, body, err)
		}
		received <- recorded{r.Header, form}
		r.Body = io.NopCloser(strings.NewReader(string(body)))
		answer(w, r)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/token", func() []recorded {
		var all []recorded
		for len(received) > 0 {
			all = append(all, <-received)
		}
		return all
	}
}

func client(t *testing.T, cfg idp.Config) *idp.Client {
	t.Helper()
	if cfg.ClientID == "" {
		cfg.ClientID = clientID
	}
	c, err := idp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// fetch asks an IdP that gives one answer.
func fetch(t *testing.T, cfg idp.Config, answer http.HandlerFunc) (token.Grant, error) {
	t.Helper()
	cfg.TokenURL, _ = idpServer(t, answer)
	return client(t, cfg).Fetch(t.Context(), version, idp.Request{Scopes: []string{"write", "read", "write"}})
}

func granted(t *testing.T, cfg idp.Config, body string) token.Grant {
	t.Helper()
	grant, err := fetch(t, cfg, grants(body))
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	return grant
}

// refused returns the error, which must be of the class and say what.
func refused(t *testing.T, answer http.HandlerFunc, class idp.Class, says string) idp.Error {
	t.Helper()
	grant, err := fetch(t, idp.Config{}, answer)
	if err == nil {
		t.Fatalf("granted: %+v", grant)
	}
	return isFault(t, err, class, says)
}

func isFault(t *testing.T, err error, class idp.Class, says string) idp.Error {
	t.Helper()
	var fault *idp.Error
	if !errors.As(err, &fault) {
		t.Fatalf("the error is a %T: %v", err, err)
	}
	if fault.Class != class || idp.ClassOf(err) != class || !strings.Contains(fault.Error(), says) {
		t.Errorf("%v: %v; want %v: %q", fault.Class, fault, class, says)
	}
	return *fault
}

func TestNewRefusesBadConfigurations(t *testing.T) {
	ok := func() idp.Config { return idp.Config{TokenURL: "https://idp.example/token", ClientID: clientID} }
	extras := make([]string, 17)
	for i := range extras {
		extras[i] = strings.Repeat("x", i+1)
	}
	for says, change := range map[string]func(*idp.Config){
		"neither token_url nor issuer":             func(c *idp.Config) { c.TokenURL = "" },
		"token_url is not valid":                   func(c *idp.Config) { c.TokenURL = "http://idp.example/token" },
		"user name or password":                    func(c *idp.Config) { c.TokenURL = "https://u:canary@idp.example/token" },
		"client_id is missing":                     func(c *idp.Config) { c.ClientID = "" },
		`auth "magic" is unknown`:                  func(c *idp.Config) { c.Auth = "magic" },
		"needs assertion.file":                     func(c *idp.Config) { c.Auth = idp.FederatedJWT },
		"needs a certificate and its key":          func(c *idp.Config) { c.Auth, c.Certificate.Cert = idp.TLS, "client.crt" },
		"by its own assertion":                     func(c *idp.Config) { c.Grant, c.Auth = idp.JWTBearer, idp.SecretBasic },
		"issuer needs an issuer":                   func(c *idp.Config) { c.Assertion.Audience = idp.AudienceIssuer },
		"assertion.algorithm must be HS256":        func(c *idp.Config) { c.Auth, c.Assertion.Algorithm = idp.SecretJWT, "RS256" },
		"assertion.algorithm must be one of RS256": func(c *idp.Config) { c.Auth, c.Assertion.Algorithm = idp.PrivateKeyJWT, "HS256" },
		"params must not set grant_type":           func(c *idp.Config) { c.Params = map[string]string{"grant_type": "canary"} },
		"params must not set assertion":            func(c *idp.Config) { c.Params = map[string]string{"assertion": "canary"} },
		"raw_basic requires auth":                  func(c *idp.Config) { c.Auth, c.RawBasic = idp.SecretPost, true },
		"with a colon":                             func(c *idp.Config) { c.ClientID, c.RawBasic = "a:b", true },
		"without a name":                           func(c *idp.Config) { c.Params = map[string]string{"": "canary"} },
		"params must not set client_id":            func(c *idp.Config) { c.Params = map[string]string{"client_id": "canary"} },
		"params must not set client_secret":        func(c *idp.Config) { c.Params = map[string]string{"client_secret": "canary"} },
		"params must not set scope":                func(c *idp.Config) { c.Params = map[string]string{"scope": "canary"} },
		"params must not set audience":             func(c *idp.Config) { c.Params = map[string]string{"audience": "canary"} },
		"params must not set resource":             func(c *idp.Config) { c.Params = map[string]string{"resource": "canary"} },
		"extras names 17 members":                  func(c *idp.Config) { c.Extras = extras },
		`must not name "access_token"`:             func(c *idp.Config) { c.Extras = []string{"access_token"} },
		`must not name "refresh_token"`:            func(c *idp.Config) { c.Extras = []string{"refresh_token"} },
		`must not name "id_token"`:                 func(c *idp.Config) { c.Extras = []string{"id_token"} },
		"default_lifetime -1s":                     func(c *idp.Config) { c.DefaultLifetime = -time.Second },
		"default_lifetime 24h0m1s":                 func(c *idp.Config) { c.DefaultLifetime = 24*time.Hour + time.Second },
	} {
		cfg := ok()
		change(&cfg)
		if _, err := idp.New(cfg); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "canary") {
			t.Errorf("want %q, got: %v", says, err)
		}
	}
	for name, change := range map[string]func(*idp.Config){
		"as it is":              func(*idp.Config) {},
		"an issuer":             func(c *idp.Config) { c.TokenURL, c.Issuer = "", discovery.New(discovery.Config{}) },
		"allowed plain http":    func(c *idp.Config) { c.TokenURL, c.AllowHTTP = "http://idp.example/token", true },
		"another grant_type":    func(c *idp.Config) { c.Grant = "account_credentials" },
		"sixteen extras":        func(c *idp.Config) { c.Extras = extras[:16] },
		"a colon in the id":     func(c *idp.Config) { c.ClientID = "a:b" },
		"the longest lifetime":  func(c *idp.Config) { c.DefaultLifetime = token.MaxLifetime },
		"a token URL's queries": func(c *idp.Config) { c.TokenURL += "?tenant=a" },
	} {
		cfg := ok()
		change(&cfg)
		if _, err := idp.New(cfg); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRequestByBasic(t *testing.T) {
	tokenURL, requests := idpServer(t, grants(good))
	c := client(t, idp.Config{TokenURL: tokenURL, Params: map[string]string{"organization": "org 1"}})
	if _, err := c.Fetch(t.Context(), version, idp.Request{
		Audience:  "https://api.example/?a=b&c",
		Resources: []string{"urn:z", "urn:a", "urn:z"},
		Scopes:    []string{"write", "read:all"},
	}); err != nil {
		t.Fatal(err)
	}
	got := requests()
	if len(got) != 1 {
		t.Fatalf("%d requests", len(got))
	}
	want := url.Values{
		"grant_type": {"client_credentials"}, "organization": {"org 1"}, "audience": {"https://api.example/?a=b&c"},
		"resource": {"urn:z", "urn:a", "urn:z"}, "scope": {"write read:all"},
	}
	if diff := cmp.Diff(want, got[0].form); diff != "" {
		t.Error(diff)
	}
	for name, want := range map[string]string{
		"Content-Type":    "application/x-www-form-urlencoded",
		"Accept":          "application/json",
		"Accept-Encoding": "identity",
		"Authorization":   "Basic " + base64.StdEncoding.EncodeToString([]byte("client-a:canary-secret")),
	} {
		if value := got[0].header.Values(name); len(value) != 1 || value[0] != want {
			t.Errorf("%s: %q, want %q", name, value, want)
		}
	}
}

func TestRequestByPost(t *testing.T) {
	tokenURL, requests := idpServer(t, grants(good))
	c := client(t, idp.Config{TokenURL: tokenURL, Auth: idp.SecretPost, ClientID: "ö & co"})
	odd := secret.Version{ID: "v2", Value: redact.New("a+b=c&d%20 é")}
	grant, err := c.Fetch(t.Context(), odd, idp.Request{})
	if err != nil || grant.SecretVersion != "v2" {
		t.Fatalf("secret version %q, %v", grant.SecretVersion, err)
	}
	got := requests()[0]
	want := url.Values{"grant_type": {"client_credentials"}, "client_id": {"ö & co"}, "client_secret": {"a+b=c&d%20 é"}}
	if diff := cmp.Diff(want, got.form); diff != "" {
		t.Error(diff)
	}
	if got.header.Get("Authorization") != "" {
		t.Error("the client authenticates twice")
	}
}

func TestBasicWithOddCharacters(t *testing.T) {
	odd := secret.Version{Value: redact.New("s:e+c r%é&t")}
	for name, tt := range map[string]struct {
		id   string
		raw  bool
		want string
	}{
		"form-encoded (RFC 6749 section 2.3.1)": {"id:1 /ü", false, "id%3A1+%2F%C3%BC:s%3Ae%2Bc+r%25%C3%A9%26t"},
		"raw":                                   {"id1 /ü", true, "id1 /ü:s:e+c r%é&t"},
	} {
		t.Run(name, func(t *testing.T) {
			tokenURL, requests := idpServer(t, grants(good))
			c := client(t, idp.Config{TokenURL: tokenURL, ClientID: tt.id, RawBasic: tt.raw})
			if _, err := c.Fetch(t.Context(), odd, idp.Request{}); err != nil {
				t.Fatal(err)
			}
			got := requests()[0]
			if want := "Basic " + base64.StdEncoding.EncodeToString([]byte(tt.want)); got.header.Get("Authorization") != want {
				t.Errorf("%q, want %q", got.header.Get("Authorization"), want)
			}
			if got.form.Has("client_id") || got.form.Has("client_secret") {
				t.Error("the client authenticates twice")
			}
		})
	}
}

func TestAnotherGrantWithItsParams(t *testing.T) {
	tokenURL, requests := idpServer(t, grants(good))
	params := map[string]string{"account_id": "42"}
	c := client(t, idp.Config{TokenURL: tokenURL + "?tenant=t", Grant: "account_credentials", Params: params})
	params["account_id"] = "changed by the caller afterwards"
	if _, err := c.Fetch(t.Context(), version, idp.Request{}); err != nil {
		t.Fatal(err)
	}
	want := url.Values{"grant_type": {"account_credentials"}, "account_id": {"42"}}
	if diff := cmp.Diff(want, requests()[0].form); diff != "" {
		t.Error(diff)
	}
}

// issuerServer publishes a metadata document and is the token endpoint that it
// names.
func issuerServer(t *testing.T, status int, document func(base string) string) *discovery.Issuer {
	t.Helper()
	var server *httptest.Server
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			grants(good)(w, r)
			return
		}
		answers(status, "application/json", document(server.URL))(w, r)
	}))
	t.Cleanup(server.Close)
	return discovery.New(discovery.Config{Issuer: server.URL})
}

func TestTokenEndpointIsDiscovered(t *testing.T) {
	fetch := func(issuer *discovery.Issuer) error {
		_, err := client(t, idp.Config{Issuer: issuer}).Fetch(t.Context(), version, idp.Request{})
		return err
	}
	named := func(base string) string { return `{"issuer":"` + base + `","token_endpoint":"` + base + `/token"}` }
	if err := fetch(issuerServer(t, 200, named)); err != nil {
		t.Error(err)
	}
	err := fetch(issuerServer(t, 503, named))
	isFault(t, err, idp.Transient, "HTTP 503")
	err = fetch(issuerServer(t, 404, named))
	isFault(t, err, idp.Misconfigured, "publishes no metadata")
	err = fetch(issuerServer(t, 200, func(base string) string { return named(base + "/other") }))
	isFault(t, err, idp.Misconfigured, "another issuer")
	err = fetch(issuerServer(t, 200, func(base string) string { return `{"issuer":"` + base + `"}` }))
	isFault(t, err, idp.Misconfigured, "configure token_url")
	closed := httptest.NewServer(nil)
	closed.Close()
	err = fetch(discovery.New(discovery.Config{Issuer: closed.URL}))
	isFault(t, err, idp.Transient, "refused")
}

func TestExplicitTokenURLNeedsNoDiscovery(t *testing.T) {
	tokenURL, _ := idpServer(t, grants(good))
	issuer := discovery.New(discovery.Config{Issuer: "https://idp.invalid"})
	if _, err := client(t, idp.Config{TokenURL: tokenURL, Issuer: issuer}).Fetch(t.Context(), version, idp.Request{}); err != nil {
		t.Error(err)
	}
}

func TestCancelledContextIsTransientAndKeepsItsCause(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	tokenURL, requests := idpServer(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := client(t, idp.Config{TokenURL: tokenURL}).Fetch(ctx, version, idp.Request{})
	isFault(t, err, idp.Transient, "canceled")
	if !errors.Is(err, context.Canceled) || len(requests()) != 1 {
		t.Errorf("the cause is lost, or the request was repeated: %v", err)
	}
}

func TestClosedPortIsTransient(t *testing.T) {
	closed := httptest.NewServer(nil)
	closed.Close()
	_, err := client(t, idp.Config{TokenURL: closed.URL}).Fetch(t.Context(), version, idp.Request{})
	isFault(t, err, idp.Transient, "connection refused")
}
