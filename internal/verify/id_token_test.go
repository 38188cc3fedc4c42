package verify_test

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// An ID token is accepted only by a request for one, and only for the client that it was
// issued to.
func TestIDTokensAreJudgedApart(t *testing.T) {
	key := josetest.New(t, "ES256", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	idToken := jsonObject{"aud": "web", "scope": nil, "client_id": nil}
	now := time.Now().Unix()
	for name, tt := range map[string]struct {
		header, claims jsonObject
		want           string
	}{
		"an ID token":                 {nil, nil, "active"},
		"without typ":                 {jsonObject{"typ": nil}, nil, "active"},
		"with at_hash and scope":      {nil, jsonObject{"at_hash": "x", "scope": "openid"}, "active"},
		"of Keycloak":                 {nil, jsonObject{"typ": "ID", "azp": "web"}, "active"},
		"of Cognito":                  {nil, jsonObject{"token_use": "id"}, "active"},
		"for several, to this client": {nil, jsonObject{"aud": []string{"api", "web"}, "azp": "web"}, "active"},
		"for several, to another":     {nil, jsonObject{"aud": []string{"api", "web"}, "azp": "api"}, "wrong_audience"},
		"to another client":           {nil, jsonObject{"azp": "Web"}, "wrong_audience"},
		"azp is a list":               {nil, jsonObject{"azp": []string{"web"}}, "bad_claims"},
		"for another client":          {nil, jsonObject{"aud": "api"}, "wrong_audience"},
		"for the audience of the API": {nil, jsonObject{"aud": audience}, "wrong_audience"},
		"no aud":                      {nil, jsonObject{"aud": nil}, "wrong_audience"},
		"no iat":                      {nil, jsonObject{"iat": nil}, "bad_claims"},
		"an access token":             {jsonObject{"typ": "at+jwt"}, nil, "wrong_type"},
		"an access token of typ JWT":  {nil, jsonObject{"scope": "read"}, "wrong_type"},
		"an access token of Keycloak": {nil, jsonObject{"typ": "Bearer"}, "wrong_type"},
		"a refresh token of Keycloak": {nil, jsonObject{"typ": "Refresh"}, "wrong_type"},
		"an access token of Cognito":  {nil, jsonObject{"token_use": "access"}, "wrong_type"},
		"a logout token":              {nil, jsonObject{"events": jsonObject{}}, "wrong_type"},
		"a logout token with its typ": {jsonObject{"typ": "logout+jwt"}, nil, "wrong_type"},
		"an assertion of an ID":       {jsonObject{"typ": "oauth-id-jag+jwt"}, nil, "wrong_type"},
		"a DPoP proof":                {nil, jsonObject{"htm": "GET"}, "wrong_type"},
		"expired":                     {nil, jsonObject{"iat": now - 600, "exp": now - 60}, "expired"},
		"of another issuer":           {nil, jsonObject{"iss": issuerB}, "unknown_issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			token := key.Token(key.Header(jsonObject{"typ": "JWT"}, tt.header), claims(idToken, tt.claims))
			if got := outcome(t, v, token, verify.Request{IDTokenOf: "web", RealAudience: true}); got != tt.want {
				t.Errorf("the token is %s, want %s", got, tt.want)
			}
			if got := outcome(t, v, token, verify.Request{Audience: []string{"web", "api", audience}}); tt.want == "active" && got == "active" {
				t.Error("a request for an access token accepts it")
			}
		})
	}
}
