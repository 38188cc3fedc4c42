package config_test

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/config"
)

const providersFile = "../../docs/identity-providers.md"

// examples are the configurations of docs/identity-providers.md, by the section
// that they stand in.
func examples(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile(providersFile)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for section := range strings.SplitSeq(string(page), "\n## ") {
		name, _, _ := strings.Cut(section, "\n")
		for _, block := range regexp.MustCompile("(?s)```yaml\n(clients:\n.*?)```").FindAllStringSubmatch(section, -1) {
			if texts[name] != "" {
				t.Errorf("%s has two configurations", name)
			}
			texts[name] = block[1]
		}
	}
	return texts
}

func parsed(t testing.TB, text string) *config.Config {
	t.Helper()
	config, err := config.Parse("sample.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestIdPExamplesAreValid(t *testing.T) {
	schema := published(t)
	all := examples(t)
	for name, text := range all {
		if _, err := config.Parse(name, []byte(text)); err != nil {
			t.Error(err)
		}
		if err := schema.Validate(document(t, []byte(text))); err != nil {
			t.Errorf("the schema refuses the example of %s: %v", name, err)
		}
	}
	for _, preset := range config.Presets() {
		if !slices.ContainsFunc(examplesOf(all), func(text string) bool { return strings.Contains(text, "preset: "+preset+"\n") }) {
			t.Errorf("%s has no example", preset)
		}
	}
	if len(all) != 10 {
		t.Errorf("%d examples", len(all))
	}
}

func examplesOf(all map[string]string) (texts []string) {
	for _, text := range all {
		texts = append(texts, text)
	}
	return texts
}

// TestPresetsEqualTheirKeys: with the preset's values written out, as the table
// in the documentation has them, the same comes of a file without it.
func TestPresetsEqualTheirKeys(t *testing.T) {
	var documented []string
	for _, row := range presetRows(t, "Identity providers") {
		name, keys := row[1], regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[2], -1)
		documented = append(documented, name)
		// Keys for assertions may be given only where there are some; a preset has them
		// ready for when auth is given.
		const signs = "auth: private_key_jwt"
		auth, endpoint := "", "    issuer: https://login.example.com\n"
		var written strings.Builder
		for _, key := range keys {
			text := "    " + key[1] + "\n"
			switch {
			case strings.HasPrefix(key[1], "token_url:"):
				endpoint = ""
			case strings.HasPrefix(key[1], "auth:") && strings.Contains(row[2], "assertion:"):
				client := parsed(t, "clients: {a: {client_id: abc, secret: env:A, issuer: \"https://login.example.com\", preset: "+name+"}}").Clients["a"]
				if "auth: "+client.Auth != key[1] {
					t.Errorf("%s has auth: %s", name, client.Auth)
				}
				text, auth = "", "    "+signs+"\n"
			}
			written.WriteString(text)
		}
		base := "clients:\n  a:\n    client_id: abc\n    secret: env:A\n" + endpoint + auth
		byPreset := parsed(t, base+"    preset: "+name+"\n").Clients["a"]
		byKeys := parsed(t, base+written.String()).Clients["a"]
		byPreset.Preset = ""
		if !reflect.DeepEqual(byPreset, byKeys) {
			t.Errorf("%s: %+v, written out: %+v", name, byPreset, byKeys)
		}
	}
	if !slices.Equal(documented, config.Presets()) {
		t.Errorf("documented are %q, there are %q", documented, config.Presets())
	}
}

// presetRows are the rows about presets in a section of the documentation: name and keys.
func presetRows(t *testing.T, section string) [][]string {
	t.Helper()
	page, err := os.ReadFile(providersFile)
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut("\n#"+string(page), "# "+section+"\n")
	if !ok {
		t.Fatalf("there is no section %q", section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (`.*`) \\|$").FindAllStringSubmatch(text, -1)
}

// TestIssuerPresetsEqualTheirKeys is the same for the tokens of an issuer.
func TestIssuerPresetsEqualTheirKeys(t *testing.T) {
	issuer := func(settings string) config.Issuer {
		if !strings.Contains(settings, "issuer: ") && !strings.Contains(settings, "preset: kubernetes") {
			settings += "    issuer: https://login.example.com\n"
		}
		one := parsed(t, "issuers:\n  - audiences: [a]\n"+settings).Issuers[0]
		one.Preset = ""
		return one
	}
	var documented []string
	for _, row := range append(presetRows(t, "Tokens without aud or sub"), presetRows(t, "Kubernetes as an issuer")...) {
		documented = append(documented, row[1])
		var keys strings.Builder
		for _, key := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[2], -1) {
			keys.WriteString("    " + key[1] + "\n")
		}
		byPreset, byKeys := issuer("    preset: "+row[1]+"\n"), issuer(keys.String())
		if !reflect.DeepEqual(byPreset, byKeys) {
			t.Errorf("%s: %+v, written out: %+v", row[1], byPreset, byKeys)
		}
		given := issuer("    preset: " + row[1] + "\n    types: [at+jwt]\n    missing_aud: {value: b}\n    id_token_claims: [nonce]\n    access_token_claims: [scope]\n")
		if given.Types[0] != "at+jwt" || given.MissingAud.Value != "b" || given.MissingAud.Claim != "" || given.IDTokenClaims[0] != "nonce" || given.AccessTokenClaims[0] != "scope" {
			t.Errorf("%s wins over keys that are given: %+v", row[1], given)
		}
	}
	if presets := config.ValuesOf("issuer_presets"); !slices.Equal(documented, presets) {
		t.Errorf("documented are %q, there are %q", documented, presets)
	}
	page, err := os.ReadFile(providersFile)
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```yaml\n(issuers:\n.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(examples) < 2 {
		t.Errorf("%d examples of issuers", len(examples))
	}
	for _, example := range examples {
		parsed(t, example[1])
	}
}

func TestKeysOverrideIssuerPresets(t *testing.T) {
	issuers := parsed(t, `
issuers:
  - {preset: kubernetes, issuer: "https://oidc.example.com/id/A", audiences: [a], types: [at+jwt], allow_private: false, tls: {ca: ca.crt}}
  - {preset: kubernetes, issuer: "https://oidc.example.com/id/B", audiences: [a], jwks_file: keys.json}
  - {preset: kubernetes, issuer: "https://oidc.example.com/id/C", audiences: [a], jwks_url: "https://10.0.0.1:6443/openid/v1/jwks", jwks_token_file: token}
`).Issuers
	if a := issuers[0]; a.Issuer != "https://oidc.example.com/id/A" || !slices.Equal(a.Types, []string{"at+jwt"}) || a.AllowPrivate || a.TLS.CA != "ca.crt" || a.JWKSTokenFile == "" {
		t.Errorf("%+v", a)
	}
	if b := issuers[1]; b.JWKSURL != "" || b.JWKSTokenFile != "" || b.TLS != nil || !slices.Equal(b.Types, []string{"JWT"}) {
		t.Errorf("keys from a file: %+v", b)
	}
	if c := issuers[2]; c.JWKSURL != "https://10.0.0.1:6443/openid/v1/jwks" || c.JWKSTokenFile != "token" || !strings.HasSuffix(c.TLS.CA, "/ca.crt") || !c.AllowPrivate {
		t.Errorf("another host: %+v", c)
	}
}

func TestKeysOverridePresets(t *testing.T) {
	c := parsed(t, `
clients:
  a: {preset: entra, issuer: "https://login.example.com", client_id: abc, secret: env:A, auth: private_key_jwt, assertion: {algorithm: RS256, audience: issuer}}
  b: {preset: google, issuer: "https://accounts.google.com", client_id: abc, secret: env:A, grant_type: client_credentials, auth: client_secret_post}
  c: {preset: salesforce, token_url: "https://login.example.com/token", client_id: abc, secret: env:A, extras: [id], default_lifetime: 1h}
  d: {preset: salesforce, token_url: "https://login.example.com/token", client_id: abc, secret: env:A, grant_type: "urn:ietf:params:oauth:grant-type:jwt-bearer"}
  e: {preset: zoom, token_url: "https://login.example.com/token", client_id: abc, secret: env:A}
  f: {preset: entra, issuer: "https://login.example.com", client_id: abc, secret: env:A, auth: private_key_jwt, assertion: {kid: k}}
`).Clients
	if a := c["a"]; a.Auth != "private_key_jwt" || a.Assertion != (config.Assertion{Algorithm: "RS256", Audience: "issuer", Typ: "JWT"}) {
		t.Errorf("%+v", a)
	}
	if b := c["b"]; b.TokenURL != "" || b.GrantType != "client_credentials" || b.Auth != "client_secret_post" {
		t.Errorf("%+v", b)
	}
	if c := c["c"]; !slices.Equal(c.Extras, []string{"id"}) || c.DefaultLifetime != time.Hour {
		t.Errorf("%+v", c)
	}
	if d := c["d"]; d.Auth != "none" {
		t.Errorf("the grant decides where auth is not given: %+v", d)
	}
	if e := c["e"]; e.TokenURL != "https://login.example.com/token" || e.GrantType != "account_credentials" {
		t.Errorf("%+v", e)
	}
	if f := c["f"]; f.Assertion != (config.Assertion{Audience: "token_endpoint", Algorithm: "PS256", Kid: "k", Typ: "JWT"}) {
		t.Errorf("%+v", f)
	}
}
