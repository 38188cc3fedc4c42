package devidp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	secret = "canary-secret"
	orders = "https://orders.example.com"
	stock  = "https://stock.example.com"
)

// config has an IdP that is quick to make: RSA keys are not.
func config() devidp.Config {
	return devidp.Config{
		Algorithm: "EdDSA",
		Clients: []devidp.Client{
			{ID: "any", Secrets: []redact.String{redact.New(secret)}, Scopes: []string{"read", "write"}, Audiences: []string{orders, stock, "plain", stock + "#a"}},
			{ID: "basic", Secrets: []redact.String{redact.New(secret)}, Auth: devidp.AuthBasic},
			{ID: "post", Secrets: []redact.String{redact.New(secret)}, Auth: devidp.AuthPost},
		},
	}
}

// overBoth runs a test against a server on the network and against one in
// memory, in a bubble. The test must not call t.Run.
func overBoth(t *testing.T, cfg devidp.Config, test func(t *testing.T, idp *devidp.Server, client *http.Client)) {
	t.Run("over the network", func(t *testing.T) {
		server := httptest.NewUnstartedServer(nil)
		cfg.Issuer = "http://" + server.Listener.Addr().String()
		idp := newServer(t, cfg)
		server.Config.Handler = idp
		server.Start()
		t.Cleanup(server.Close)
		test(t, idp, server.Client())
	})
	t.Run("in a bubble", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			cfg.Issuer = "https://idp.example.com"
			idp := newServer(t, cfg)
			test(t, idp, &http.Client{Transport: idp.RoundTripper()})
		})
	})
}

func newServer(t *testing.T, cfg devidp.Config) *devidp.Server {
	t.Helper()
	idp, err := devidp.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return idp
}

// answer is what the tests look at.
type answer struct {
	status int
	header http.Header
	body   map[string]any
}

func send(t *testing.T, client *http.Client, r *http.Request) answer {
	t.Helper()
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: response.StatusCode, header: response.Header}
	if strings.Contains(response.Header.Get("Content-Type"), "json") {
		if err := json.Unmarshal(data, &a.body); err != nil {
			t.Fatalf("the answer is not JSON: %v", err)
		}
	}
	return a
}

func get(t *testing.T, client *http.Client, address string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	return send(t, client, r)
}

func tokenRequest(t *testing.T, idp *devidp.Server, form string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, idp.Issuer()+devidp.TokenPath, strings.NewReader(form))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return r
}

// ask asks for a token of client "any" with more parameters.
func ask(t *testing.T, idp *devidp.Server, client *http.Client, more string) answer {
	t.Helper()
	form := "grant_type=client_credentials&client_id=any&client_secret=" + secret
	if more != "" {
		form += "&" + more
	}
	return send(t, client, tokenRequest(t, idp, form))
}

func TestNewRefusesBadConfigurations(t *testing.T) {
	const issuer = "https://idp.example.com"
	cases := map[string]devidp.Config{
		"no issuer":             {},
		"relative issuer":       {Issuer: "idp.example.com"},
		"other scheme":          {Issuer: "ftp://idp.example.com"},
		"issuer with query":     {Issuer: issuer + "?a=b"},
		"issuer with fragment":  {Issuer: issuer + "#a"},
		"unknown algorithm":     {Issuer: issuer, Algorithm: "HS256"},
		"client without ID":     {Issuer: issuer, Clients: []devidp.Client{{}}},
		"client twice":          {Issuer: issuer, Clients: []devidp.Client{{ID: "a"}, {ID: "a"}}},
		"unknown way to log in": {Issuer: issuer, Clients: []devidp.Client{{ID: "a", Auth: "magic"}}},
	}
	for name, cfg := range cases {
		if _, err := devidp.New(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestMetadataOfAnIssuer(t *testing.T) {
	for _, tt := range []struct{ issuer, oidc, oauth, token string }{
		{
			"https://idp.example.com",
			"https://idp.example.com/.well-known/openid-configuration",
			"https://idp.example.com/.well-known/oauth-authorization-server",
			"https://idp.example.com/token",
		}, {
			"https://idp.example.com/",
			"https://idp.example.com/.well-known/openid-configuration",
			"https://idp.example.com/.well-known/oauth-authorization-server",
			"https://idp.example.com/token",
		}, {
			"https://idp.example.com/tenants/one",
			"https://idp.example.com/tenants/one/.well-known/openid-configuration",
			"https://idp.example.com/.well-known/oauth-authorization-server/tenants/one",
			"https://idp.example.com/tenants/one/token",
		},
	} {
		t.Run(tt.issuer, func(t *testing.T) {
			cfg := config()
			cfg.Issuer = tt.issuer
			idp := newServer(t, cfg)
			client := &http.Client{Transport: idp.RoundTripper()}
			for _, address := range []string{tt.oidc, tt.oauth} {
				got := get(t, client, address)
				if got.status != http.StatusOK || got.body["issuer"] != tt.issuer || got.body["token_endpoint"] != tt.token {
					t.Errorf("%s: %d %v", address, got.status, got.body)
				}
				if diff := cmp.Diff([]any{"read", "write"}, got.body["scopes_supported"]); diff != "" {
					t.Errorf("scopes_supported: %s", diff)
				}
				keys := get(t, client, got.body["jwks_uri"].(string))
				if list, _ := keys.body["keys"].([]any); len(list) != 1 {
					t.Errorf("jwks_uri: %d %v", keys.status, keys.body)
				}
			}
		})
	}
}

func TestOtherPathsAndMethods(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		if got := get(t, client, idp.Issuer()+"/absent"); got.status != http.StatusNotFound {
			t.Errorf("an unknown path: %d", got.status)
		}
		if got := get(t, client, idp.Issuer()+devidp.TokenPath); got.status != http.StatusMethodNotAllowed || got.header.Get("Allow") != "POST" {
			t.Errorf("GET of the token endpoint: %d, Allow %q", got.status, got.header.Get("Allow"))
		}
		if idp.Requests("/absent") != 1 || idp.Requests(devidp.TokenPath) != 1 || idp.Requests(devidp.JWKSPath) != 0 {
			t.Error("the requests were not counted by path")
		}
	})
}

func TestSecretsDoNotPrint(t *testing.T) {
	cfg := config()
	cfg.Issuer = "https://idp.example.com"
	idp := newServer(t, cfg)
	if out := fmt.Sprintf("%v %+v %#v", idp, idp, cfg); strings.Contains(out, secret) {
		t.Errorf("printed: %s", out)
	}
}

func TestDownAbortsTheConnection(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		idp.SetDown(true)
		for _, path := range []string{"/.well-known/openid-configuration", devidp.JWKSPath} {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, idp.Issuer()+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			response, err := client.Do(r)
			if err == nil {
				_ = response.Body.Close()
				t.Fatalf("%s answered %d", path, response.StatusCode)
			}
			if _, overNetwork := client.Transport.(*http.Transport); !overNetwork && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: %v is not what a server that is gone looks like", path, err)
			}
			if idp.Requests(path) == 0 {
				t.Errorf("%s: the attempt was not counted", path)
			}
		}
		idp.SetDown(false)
		if got := ask(t, idp, client, ""); got.status != http.StatusOK {
			t.Errorf("up again: %d", got.status)
		}
	})
}
