package idp_test

import (
	"encoding/base64"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

const subjectValue = "canary-subject"

var subject = idp.Subject{Token: redact.New(subjectValue), Type: idp.TypeAccessToken}

func exchanging(grant, requested string) idp.Config {
	return idp.Config{Grant: grant, Exchange: &idp.Exchange{RequestedTokenType: requested}}
}

func TestExchangeSendsTheSubject(t *testing.T) {
	request := idp.Request{Audience: "https://orders.example.com", Scopes: []string{"read", "write"}}
	common := url.Values{"audience": {request.Audience}, "scope": {"read write"}}
	with := func(more url.Values) url.Values {
		maps.Copy(more, common)
		return more
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(clientID+":"+secretValue))
	for name, tt := range map[string]struct {
		cfg     idp.Config
		subject idp.Subject
		want    url.Values
	}{
		"token exchange": {exchanging(idp.TokenExchange, ""), subject, with(url.Values{
			"grant_type": {idp.TokenExchange}, "subject_token": {subjectValue}, "subject_token_type": {idp.TypeAccessToken},
		})},
		"an ID token, the requested type": {exchanging(idp.TokenExchange, idp.TypeJWTToken), idp.Subject{Token: redact.New(subjectValue), Type: idp.TypeIDToken}, with(url.Values{
			"grant_type": {idp.TokenExchange}, "subject_token": {subjectValue}, "subject_token_type": {idp.TypeIDToken}, "requested_token_type": {idp.TypeJWTToken},
		})},
		"on behalf of, as Entra ID": {
			idp.Config{Grant: idp.JWTBearer, Exchange: &idp.Exchange{}, Params: map[string]string{"requested_token_use": "on_behalf_of"}}, subject,
			with(url.Values{"grant_type": {idp.JWTBearer}, "assertion": {subjectValue}, "requested_token_use": {"on_behalf_of"}}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			var requests func() []recorded
			tt.cfg.TokenURL, requests = idpServer(t, grants(`{"access_token":"tok","token_type":"Bearer","expires_in":60,"issued_token_type":"urn:ietf:params:oauth:token-type:access_token","refresh_token":"canary-refresh"}`))
			grant, err := client(t, tt.cfg).Exchange(t.Context(), version, idp.Behalf{Subject: tt.subject}, request)
			if err != nil {
				t.Fatal(err)
			}
			if grant.Value.Reveal() != "tok" || grant.IssuedType != idp.TypeAccessToken || grant.SecretVersion != version.ID || grant.Lifetime != time.Minute || grant.Extras != nil {
				t.Errorf("grant = %+v", grant)
			}
			received := requests()
			if len(received) != 1 || received[0].header.Get("Authorization") != basic {
				t.Fatalf("requests: %v", received)
			}
			if diff := cmp.Diff(tt.want, received[0].form); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The client's own token proves its secret.
func TestExchangingClientFetchesItsOwnToken(t *testing.T) {
	cfg := idp.Config{Grant: idp.JWTBearer, Exchange: &idp.Exchange{}, Params: map[string]string{"requested_token_use": "on_behalf_of", "tenant": "a"}}
	var requests func() []recorded
	cfg.TokenURL, requests = idpServer(t, grants(good))
	if _, err := client(t, cfg).Fetch(t.Context(), version, idp.Request{}); err != nil {
		t.Fatal(err)
	}
	want := url.Values{"grant_type": {idp.ClientCredentials}, "tenant": {"a"}}
	if diff := cmp.Diff(want, requests()[0].form); diff != "" {
		t.Error(diff)
	}
}

func TestExchangeNeedsItsConfiguration(t *testing.T) {
	cfg := idp.Config{}
	var requests func() []recorded
	cfg.TokenURL, requests = idpServer(t, grants(good))
	_, err := client(t, cfg).Exchange(t.Context(), version, idp.Behalf{Subject: subject}, idp.Request{})
	isFault(t, err, idp.Misconfigured, "not configured to exchange")
	if len(requests()) != 0 {
		t.Error("the subject token was sent")
	}
	for name, cfg := range map[string]idp.Config{
		"another grant":             exchanging(idp.ClientCredentials, ""),
		"no grant":                  exchanging("", ""),
		"a type with jwt-bearer":    exchanging(idp.JWTBearer, idp.TypeAccessToken),
		"a refresh token":           exchanging(idp.TokenExchange, "urn:ietf:params:oauth:token-type:refresh_token"),
		"the parameter of its own":  {Grant: idp.TokenExchange, Exchange: &idp.Exchange{}, Params: map[string]string{"actor_token": "x"}},
		"the parameter of the type": {Grant: idp.TokenExchange, Exchange: &idp.Exchange{}, Params: map[string]string{"requested_token_type": "x"}},
	} {
		cfg.ClientID, cfg.TokenURL = clientID, "https://idp.example/token"
		if _, err := idp.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// exchangeAnswered exchanges at an IdP that gives one answer.
func exchangeAnswered(t *testing.T, answer http.HandlerFunc) (idp.Error, bool) {
	t.Helper()
	cfg := exchanging(idp.TokenExchange, "")
	cfg.TokenURL, _ = idpServer(t, answer)
	_, err := client(t, cfg).Exchange(t.Context(), version, idp.Behalf{Subject: subject}, idp.Request{})
	if err == nil {
		return idp.Error{}, false
	}
	return isFault(t, err, idp.ClassOf(err), ""), true
}

// A refused subject says nothing about the client's secret, in any spelling.
func TestExchangeRefusalsConcernTheSubject(t *testing.T) {
	for _, code := range []string{
		"invalid_request", "invalid_grant", "invalid_token", "invalid_target", "invalid_scope", "insufficient_scope", "access_denied", "unauthorized_client",
		"interaction_required", "login_required", "consent_required", "mfa_required",
		"INVALID_GRANT", "Invalid-Grant", " invalid grant ",
	} {
		for _, status := range []int{200, 400, 401, 403, 500} {
			t.Run(code+strconv.Itoa(status), func(t *testing.T) {
				fault, failed := exchangeAnswered(t, answers(status, "application/json", `{"error":"`+code+`","error_description":"canary-subject canary-secret"}`))
				if !failed || fault.Class != idp.RequestRefused || fault.Unclear() || fault.Code == "" || fault.Code != strings.ToLower(fault.Code) {
					t.Errorf("%v, %v, code %q, unclear %v", fault.Class, &fault, fault.Code, fault.Unclear())
				}
				if text := fault.Error(); strings.Contains(text, "canary") || strings.Contains(text, "secret") {
					t.Errorf("the error blames or repeats: %s", text)
				}
			})
		}
	}
}

func TestExchangeRefusalsOfOtherCauses(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		class  idp.Class
	}{
		"the credential":           {answers(401, "application/json", `{"error":"invalid_client"}`), idp.CredentialRefused},
		"401 without a code":       {answers(401, "application/json", `{}`), idp.CredentialRefused},
		"throttled":                {answers(429, "application/json", `{"error":"invalid_grant"}`), idp.Throttled},
		"throttled for a while":    {answers(503, "application/json", `{"error":"access_denied"}`, "Retry-After", "7"), idp.Throttled},
		"failing":                  {answers(500, "text/html", `<html>`), idp.Transient},
		"no such endpoint":         {answers(404, "text/html", ``), idp.Misconfigured},
		"an unknown code":          {answers(400, "application/json", `{"error":"own_code"}`), idp.RequestRefused},
		"403 without a code":       {answers(403, "text/html", ``), idp.RequestRefused},
		"no token":                 {grants(`{"message":"denied"}`), idp.RequestRefused},
		"DPoP":                     {grants(`{"access_token":"t","token_type":"DPoP"}`), idp.Misconfigured},
		"not an access token":      {grants(`{"access_token":"t","token_type":"N_A","issued_token_type":"urn:ietf:params:oauth:token-type:id-jag"}`), idp.Misconfigured},
		"a refresh token":          {grants(`{"access_token":"t","token_type":"Bearer","issued_token_type":"urn:ietf:params:oauth:token-type:refresh_token"}`), idp.Misconfigured},
		"a type that is no string": {grants(`{"access_token":"t","token_type":"Bearer","issued_token_type":7}`), idp.Misconfigured},
		"two types":                {grants(`{"access_token":"t","token_type":"Bearer","issued_token_type":"a","issued_token_type":"b"}`), idp.Transient},
	} {
		t.Run(name, func(t *testing.T) {
			fault, failed := exchangeAnswered(t, tt.answer)
			if !failed || fault.Class != tt.class || fault.Unclear() {
				t.Errorf("%v, %v, unclear %v", fault.Class, &fault, fault.Unclear())
			}
		})
	}
}

func TestExchangeResponses(t *testing.T) {
	for issued, want := range map[string]string{``: idp.TypeAccessToken, `,"issued_token_type":null`: idp.TypeAccessToken, `,"issued_token_type":"` + idp.TypeJWTToken + `"`: idp.TypeJWTToken} {
		cfg := exchanging(idp.TokenExchange, "")
		cfg.TokenURL, _ = idpServer(t, grants(`{"access_token":"t","token_type":"Bearer","expires_in":60`+issued+`}`))
		if grant, err := client(t, cfg).Exchange(t.Context(), version, idp.Behalf{Subject: subject}, idp.Request{}); err != nil || grant.IssuedType != want {
			t.Errorf("%s: %q, %v", issued, grant.IssuedType, err)
		}
	}
}

func TestExchangeClaimsChallenge(t *testing.T) {
	challenge := `{"access_token":{"polids":{"essential":true,"values":["9ab03e19-ed42-4168-b6b7-7001fb3e933a"]}}}`
	for name, tt := range map[string]struct{ claims, want string }{
		"a challenge":   {strconv.Quote(challenge), challenge},
		"absent":        {`null`, ""},
		"no string":     {challenge, ""},
		"no object":     {`"[1]"`, ""},
		"cut off":       {strconv.Quote(challenge[:20]), ""},
		"beyond ASCII":  {`"{\"a\":\"\u00e9\"}"`, ""},
		"a line break":  {`"{\"a\":\n1}"`, ""},
		"too long":      {strconv.Quote(`{"a":"` + strings.Repeat("x", 2<<10) + `"}`), ""},
		"two documents": {`"{} {}"`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fault, failed := exchangeAnswered(t, answers(400, "application/json", `{"error":"interaction_required","suberror":"basic_action","claims":`+tt.claims+`}`))
			if !failed || fault.Class != idp.RequestRefused || fault.Code != "interaction_required" || fault.Claims != tt.want {
				t.Errorf("%v, claims %q", &fault, fault.Claims)
			}
			if tt.want != "" && strings.Contains(fault.Error(), "polids") {
				t.Errorf("the sentence has text of the IdP: %v", &fault)
			}
		})
	}
}

// TestExchangeWithAStrictIdP tries both grants with every way of authentication that the
// IdP of the tests has for them.
func TestExchangeWithAStrictIdP(t *testing.T) {
	server := httptest.NewUnstartedServer(nil)
	issuer := "http://" + server.Listener.Addr().String()
	long := secret.Version{ID: "v2", Value: redact.New(strings.Repeat(secretValue, 3))} // a secret that may sign
	registered := func(id, grant, auth string) devidp.Client {
		return devidp.Client{ID: id, Secrets: []redact.String{long.Value}, Grant: grant, Auth: auth, Exchange: &devidp.Exchange{}, Scopes: []string{"read"}}
	}
	dev, err := devidp.New(devidp.Config{Issuer: issuer, Algorithm: "EdDSA", Clients: []devidp.Client{
		registered("exchange", "", devidp.AuthBasic), registered("obo", idp.JWTBearer, devidp.AuthPost), registered("signing", "", devidp.AuthSecretJWT),
	}})
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = dev
	server.Start()
	defer server.Close()
	now := time.Now().Unix()
	user := func(aud string, more int64) redact.String {
		return dev.Mint(map[string]any{"iss": issuer, "sub": "alice", "aud": aud, "exp": now + more, "scope": "openid"})
	}
	onBehalf := map[string]string{"requested_token_use": "on_behalf_of"}
	for id, cfg := range map[string]idp.Config{
		"exchange": {Grant: idp.TokenExchange, Auth: idp.SecretBasic},
		"obo":      {Grant: idp.JWTBearer, Auth: idp.SecretPost, Params: onBehalf},
		"signing":  {Grant: idp.TokenExchange, Auth: idp.SecretJWT},
	} {
		t.Run(id, func(t *testing.T) {
			cfg.ClientID, cfg.TokenURL, cfg.Exchange = id, dev.TokenEndpoint(), &idp.Exchange{}
			c := client(t, cfg)
			ask := func(token redact.String) error {
				grant, err := c.Exchange(t.Context(), long, idp.Behalf{Subject: idp.Subject{Token: token, Type: idp.TypeAccessToken}}, idp.Request{Scopes: []string{"read"}})
				if err == nil && (grant.Value.Equal(token) || grant.Lifetime > time.Hour || grant.Lifetime < 50*time.Minute) {
					t.Errorf("the token lives %v", grant.Lifetime)
				}
				return err
			}
			if err := ask(user(id, 3600)); err != nil {
				t.Errorf("a good subject: %v", err)
			}
			for name, bad := range map[string]redact.String{"another audience": user("other", 3600), "expired": user(id, 0), "no token": redact.New("x")} {
				if err := ask(bad); isFault(t, err, idp.RequestRefused, "subject token").Code == "" {
					t.Errorf("%s: %v", name, err)
				}
			}
			if _, err := c.Fetch(t.Context(), long, idp.Request{}); err != nil {
				t.Errorf("its own token: %v", err)
			}
		})
	}
}
