package verify_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

const entra = "https://login.microsoftonline.com/{tenant}/v2.0"

// C7: a tenant is inserted as a whole segment of the path, and nowhere else.
func TestTenantPatterns(t *testing.T) {
	for pattern, ok := range map[string]bool{
		entra:                                   true,
		"https://sts.windows.net/{tenant}/":     true,
		"https://idp.example/{tenant}":          true,
		"http://127.0.0.1:9000/a/{tenant}/b":    true,
		"https://idp.example/v2.0":              false,
		"https://{tenant}.idp.example/v2.0":     false,
		"https://{tenant}/v2.0":                 false,
		"http://{tenant}/v2.0":                  false,
		"https://idp.example:{tenant}/":         false,
		"https://{tenant}@idp.example/":         false,
		"https://idp.example/a{tenant}":         false,
		"https://idp.example/{tenant}a":         false,
		"https://idp.example/{tenant}/{tenant}": false,
		"https://idp.example/{tenant}/{x}":      false,
		"https://idp.example/{tenantid}":        false,
		"https://idp.example/{TENANT}":          false,
		"https://idp.example/%7Btenant%7D":      false,
		"https://idp.example/?t={tenant}":       false,
		"https://idp.example/x?{tenant}":        false,
		"https://idp.example/#/{tenant}":        false,
		"{tenant}":                              true, // discovery.CheckURL refuses it
		"":                                      false,
	} {
		if err := verify.CheckTenantPattern(pattern); (err == nil) != ok {
			t.Errorf("%s: %v", pattern, err)
		}
	}
	for tenant, ok := range map[string]bool{
		"9188040d-6c67-4c5b-b112-36a304b66dad": true, "contoso.onmicrosoft.com": true, "A_b-1": true, "...a": true, strings.Repeat("a", 128): true,
		"": false, ".": false, "..": false, "...": false, "a/b": false, "a%2fb": false, "a b": false, "a?b": false, "a#b": false, "a@b": false, "{tenant}": false,
		"ä": false, "a\\b": false, "a:b": false, "a\n": false, strings.Repeat("a", 129): false, "common": false, "Organizations": false, "consumers": false,
	} {
		if err := verify.CheckTenant(tenant); (err == nil) != ok {
			t.Errorf("%q: %v", tenant, err)
		}
	}
	if got := verify.TenantURL(entra, "t-1"); got != "https://login.microsoftonline.com/t-1/v2.0" {
		t.Error(got)
	}
}

// C7: each tenant is an issuer with its own keys; a template is not an issuer.
func TestTenantsAreIssuersWithKeysOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := josetest.New(t, "RS256", "k"), josetest.New(t, "RS256", "k")
		issuerOne, issuerTwo := verify.TenantURL(entra, "one"), verify.TenantURL(entra, "two")
		var configs []verify.IssuerConfig
		web := sites{}
		for issuer, key := range map[string]*josetest.Signer{issuerOne: one, issuerTwo: two} {
			c := configOf(issuer)
			host := strings.Split(strings.TrimPrefix(issuer, "https://login.microsoftonline.com/"), "/")[0] + ".keys.example"
			c.Keys.URL = "https://" + host + "/keys"
			web[host] = serve(josetest.Set(key.JWK()))
			configs = append(configs, c)
		}
		v := load(t, newVerifier(t, web, configs...))
		for name, tt := range map[string]struct {
			key  *josetest.Signer
			iss  string
			want string
		}{
			"tenant one":                    {one, issuerOne, "active"},
			"tenant two":                    {two, issuerTwo, "active"},
			"one's key, two's name":         {one, issuerTwo, "bad_signature"},
			"two's key, one's name":         {two, issuerOne, "bad_signature"},
			"another tenant":                {one, verify.TenantURL(entra, "three"), "unknown_issuer"},
			"the template itself":           {one, entra, "unknown_issuer"},
			"Entra's template":              {one, "https://login.microsoftonline.com/{tenantid}/v2.0", "unknown_issuer"},
			"a tenant in capitals":          {one, verify.TenantURL(entra, "ONE"), "unknown_issuer"},
			"a path that leads to a tenant": {one, verify.TenantURL(entra, "x/../one"), "unknown_issuer"},
		} {
			if got := outcome(t, v, tt.key.Token(tt.key.Header(), claims(jsonObject{"iss": tt.iss})), verify.Request{}); got != tt.want {
				t.Errorf("%s: %s, want %s", name, got, tt.want)
			}
		}
	})
	for _, template := range []string{entra, "https://login.microsoftonline.com/{tenantid}/v2.0", "https://*.example/{tenant}"} {
		c := configOf(template)
		c.Keys.URL = "https://idp.example/keys"
		if _, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{c}}, nil); err == nil || !strings.Contains(err.Error(), "template") {
			t.Errorf("%s: %v", template, err)
		}
	}
}
