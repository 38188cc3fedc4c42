package verify_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

func TestScopeClaimOfAnyName(t *testing.T) {
	const namespaced = "https://example.com/roles"
	key := josetest.New(t, "ES256", "k")
	for name, tt := range map[string]struct {
		path   []string
		claims jsonObject
		want   []string // nil: the claims are refused
	}{
		"roles, a list":              {[]string{"roles"}, jsonObject{"roles": []string{"Orders.Read", "read"}}, []string{"Orders.Read", "read"}},
		"roles, a text":              {[]string{"roles"}, jsonObject{"roles": " read  write "}, []string{"read", "write"}},
		"without it":                 {[]string{"roles"}, nil, []string{}},
		"a name with dots":           {[]string{namespaced}, jsonObject{namespaced: []string{"read"}}, []string{"read"}},
		"nested":                     {[]string{"realm_access", "roles"}, jsonObject{"realm_access": jsonObject{"roles": []string{"read"}}}, []string{"read"}},
		"nested twice":               {[]string{"resource_access", "api", "roles"}, jsonObject{"resource_access": jsonObject{"api": jsonObject{"roles": []string{"read"}}}}, []string{"read"}},
		"nested, without the first":  {[]string{"realm_access", "roles"}, jsonObject{"roles": []string{"read"}}, []string{}},
		"nested, without the second": {[]string{"realm_access", "roles"}, jsonObject{"realm_access": jsonObject{}}, []string{}},
		"nested in a text":           {[]string{"realm_access", "roles"}, jsonObject{"realm_access": "roles"}, nil},
		"nested in a list":           {[]string{"realm_access", "roles"}, jsonObject{"realm_access": []string{"roles"}}, nil},
		"a name that looks nested":   {[]string{"realm_access.roles"}, jsonObject{"realm_access": jsonObject{"roles": []string{"read"}}}, []string{}},
		"groups that are no scopes":  {[]string{"groups"}, jsonObject{"groups": []string{"read write", "Domain Users", "réad", "", "admin"}}, []string{"admin"}},
		"a number":                   {[]string{"roles"}, jsonObject{"roles": 1}, nil},
		"a list with a number":       {[]string{"roles"}, jsonObject{"roles": []any{"read", 1}}, nil},
		"an object":                  {[]string{"roles"}, jsonObject{"roles": jsonObject{"read": true}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := configOf(issuerA)
			cfg.ScopeClaim = tt.path
			v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), cfg))
			result, err := v.Verify(t.Context(), redact.New(key.Token(key.Header(), claims(tt.claims))), verify.Request{})
			if tt.want == nil {
				if got := word(t, result, err); got != "bad_claims" {
					t.Errorf("the token is %s", got)
				}
				return
			}
			if err != nil || result.Facts == nil {
				t.Fatalf("%+v %v", result.Rejection, err)
			}
			if diff := cmp.Diff(tt.want, append([]string{}, result.Facts.Scopes...)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Entra ID writes roles into ID tokens, too.
func TestScopeClaim_unusualNameMarksNoAccessToken(t *testing.T) {
	key := josetest.New(t, "ES256", "k")
	for name, tt := range map[string]struct {
		path   []string
		claims jsonObject
		want   string
	}{
		"roles":                     {[]string{"roles"}, jsonObject{"roles": []string{"read"}}, "wrong_type"},
		"nested":                    {[]string{"scope", "roles"}, jsonObject{"scope": nil, "realm_access": jsonObject{"roles": []string{"read"}}}, "wrong_type"},
		"roles of an access token":  {[]string{"roles"}, jsonObject{"roles": []string{"read"}, "azpacr": "1"}, "active"},
		"permissions, as by Auth0":  {[]string{"permissions"}, jsonObject{"permissions": []string{"read"}}, "active"},
		"permissions for no scopes": {[]string{"roles"}, jsonObject{"permissions": []string{"read"}}, "wrong_type"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := configOf(issuerA)
			cfg.ScopeClaim, cfg.Types = tt.path, []string{"JWT"}
			v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), cfg))
			token := key.Token(key.Header(jsonObject{"typ": "JWT"}), claims(jsonObject{"scope": nil, "client_id": nil}, tt.claims))
			if got := outcome(t, v, token, verify.Request{}); got != tt.want {
				t.Errorf("the token is %s, want %s", got, tt.want)
			}
		})
	}
}
