package edge

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

const minterIssuer = "https://minter.example.com"

// everyAlgorithm that a token may be signed with. EdDSA and Ed25519 are two names
// of one.
var everyAlgorithm = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// minted is what minter.mjs prints.
type minted struct {
	Keys   []map[string]any  `json:"keys"`
	Tokens map[string]string `json:"tokens"`
}

func mintWithJose(t *testing.T) minted {
	t.Helper()
	harness.Need(t, "node")
	harness.Need(t, "oidc-provider") // whose modules have jose
	script, err := filepath.Abs(filepath.Join("..", "oidc-provider", "minter.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	const claims = `{"iss":"` + minterIssuer + `","sub":"alice","aud":["` + harness.RS256 + `"],"jti":"id-1","client_id":"app","scope":"read write"}`
	res := harness.Command{Name: "node"}.Run(t, append([]string{script, claims}, everyAlgorithm...)...)
	var m minted
	if err := json.Unmarshal([]byte(res.Stdout), &m); err != nil || len(m.Tokens) != len(everyAlgorithm) {
		t.Fatalf("minting: %v: %v", err, res)
	}
	return m
}

// Tokens of every algorithm, made by a library that nobody here wrote, are
// verified, and no change to one goes unnoticed or is taken for another.
func TestTokensOfAnotherMinter(t *testing.T) {
	t.Parallel()
	m := mintWithJose(t)
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": m.Keys})
	}))
	defer keys.Close()
	b := harness.StartBroker(t, fmt.Sprintf("issuers:\n  - issuer: %s\n    jwks_url: %s\n    audiences: [%s]\n    algorithms: [%s]\n",
		minterIssuer, keys.URL, harness.RS256, strings.Join(everyAlgorithm, ", ")))
	broker, err := client.New(b.Grpc, client.WithPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = broker.Close() }()
	verdict := func(token string) string {
		claims, err := broker.Verify(t.Context(), token, client.RequireScopes("read"))
		if err == nil {
			return "active " + claims.Subject
		}
		if rejected, ok := errors.AsType[*client.RejectedError](err); ok {
			return string(rejected.Reason)
		}
		return err.Error()
	}
	for round := range 2 { // the second time it was seen before
		for algorithm, token := range m.Tokens {
			if got := verdict(token); got != "active alice" {
				t.Errorf("%s, round %d: %s", algorithm, round, got)
			}
		}
	}
	for algorithm := range m.Tokens {
		changed := changesOf(t, m, algorithm)
		if len(changed) < 200 {
			t.Errorf("%s: only %d changes", algorithm, len(changed))
		}
		for name, change := range changed {
			if got := verdict(change.token); got != change.want {
				t.Errorf("%s, %s: %s, want %s", algorithm, name, got, change.want)
			}
		}
		if got := verdict(m.Tokens[algorithm]); got != "active alice" {
			t.Errorf("%s, afterwards: %s", algorithm, got)
		}
	}
}

// changed is a token that was changed, and what is to be said of it.
type changed struct{ token, want string }

// jws is a token taken apart.
type jws struct {
	header, claims map[string]any
	signature      []byte

	first, second, third string
}

func takeApart(t *testing.T, token string) jws {
	t.Helper()
	parts := strings.Split(token, ".")
	j := jws{first: parts[0], second: parts[1], third: parts[2]}
	for i, into := range []any{&j.header, &j.claims} {
		data, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err == nil {
			err = json.Unmarshal(data, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if j.signature, err = base64.RawURLEncoding.DecodeString(parts[2]); err != nil {
		t.Fatal(err)
	}
	return j
}

func base64JSON(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

func (j jws) signed(signature []byte) string {
	return j.first + "." + j.second + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// having is the members with one replaced, or left out if it is nil.
func having(members map[string]any, name string, value any) map[string]any {
	others := maps.Clone(members)
	if others[name] = value; value == nil {
		delete(others, name)
	}
	return others
}

func (j jws) withClaim(name string, value any) string {
	return j.first + "." + base64JSON(having(j.claims, name, value)) + "." + j.third
}

func (j jws) withHeader(name string, value any) string {
	return base64JSON(having(j.header, name, value)) + "." + j.second + "." + j.third
}

func changesOf(t *testing.T, m minted, algorithm string) map[string]changed {
	t.Helper()
	j := takeApart(t, m.Tokens[algorithm])
	all := map[string]changed{}
	add := func(want, name, token string) {
		if _, twice := all[name]; twice {
			t.Errorf("two changes are called %q", name)
		}
		all[name] = changed{token, want}
	}
	j.changeSignature(add)
	j.changeClaims(add)
	j.changeHeader(add)
	j.changeForm(add)
	for other, token := range m.Tokens {
		if other == algorithm {
			continue
		}
		stranger := takeApart(t, token)
		add("bad_signature", "the signature of the token under "+other, j.signed(stranger.signature))
		add("algorithm_not_allowed", "the kid of the key for "+other, j.withHeader("kid", stranger.header["kid"]))
		add("algorithm_not_allowed", "the algorithm "+other, j.withHeader("alg", other))
		add("bad_signature", "the header of the token under "+other, stranger.first+"."+j.second+"."+j.third)
	}
	return all
}

func (j jws) changeSignature(add func(want, name, token string)) {
	const flips = 80
	for i := range flips {
		at := i * len(j.signature) / flips
		bad := slices.Clone(j.signature)
		bad[at] ^= 1 << (i % 8)
		add("bad_signature", fmt.Sprintf("bit %d of byte %d of the signature", i%8, at), j.signed(bad))
	}
	size := len(j.signature)
	for name, bad := range map[string][]byte{
		"without its first byte": j.signature[1:], "without its last byte": j.signature[:size-1], "with a byte more": append(slices.Clone(j.signature), 0),
		"with a zero in front": append([]byte{0}, j.signature...), "twice": slices.Concat(j.signature, j.signature), "of zeros": make([]byte, size), "of one byte": {1},
		"its second half": j.signature[size/2:], "its halves swapped": slices.Concat(j.signature[size/2:], j.signature[:size/2]),
	} {
		add("bad_signature", "the signature "+name, j.signed(bad))
	}
}

func (j jws) changeClaims(add func(want, name, token string)) {
	for _, name := range []string{"sub", "aud", "exp", "iat", "jti", "client_id", "scope"} {
		for _, value := range []any{nil, "mallory", "", 99999999999, []string{"mallory"}, true} {
			add("bad_signature", fmt.Sprintf("the claim %s is %v", name, value), j.withClaim(name, value))
		}
	}
	for name, value := range map[string]any{"admin": true, "nbf": 1, "cnf": map[string]any{}, "act": map[string]any{"sub": "mallory"}, "Sub": "mallory", "roles": []string{"root"}} {
		add("bad_signature", "one more claim, "+name, j.withClaim(name, value))
	}
	for _, iss := range []any{nil, "", "https://other.example.com", minterIssuer + "/", strings.ToUpper(minterIssuer), 1, []string{minterIssuer}} {
		add("unknown_issuer", fmt.Sprintf("the issuer is %v", iss), j.withClaim("iss", iss))
	}
}

func (j jws) changeHeader(add func(want, name, token string)) {
	for name, value := range map[string]any{"typ": "JWT", "x5t": "AAAA", "x5c": []string{"AAAA"}, "nonce": "n", "ALG": "none", "jti": "x"} {
		add("bad_signature", fmt.Sprintf("the header's %s is %v", name, value), j.withHeader(name, value))
	}
	for _, alg := range []any{"none", "None", "", "HS256", "HS512", "RS256 ", "ES256K", "dir"} {
		add("algorithm_not_allowed", fmt.Sprintf("the algorithm %q", alg), j.withHeader("alg", alg))
	}
	for _, kid := range []any{nil, "", "x", "../../etc/passwd", strings.Repeat("k", 256)} {
		add("unknown_key", fmt.Sprintf("the kid %v", kid), j.withHeader("kid", kid))
	}
	for name, value := range map[string]any{
		"crit": []string{"exp"}, "b64": true, "zip": "DEF", "enc": "A256GCM", "jwk": map[string]any{"kty": "RSA"}, "jku": "https://evil.example", "x5u": "https://evil.example", "cty": "JWT",
	} {
		add("unsupported", "the header has "+name, j.withHeader(name, value))
	}
	for name, value := range map[string]any{"alg": nil, "kid": 1, "typ": []string{"at+jwt"}} {
		add("malformed", fmt.Sprintf("the header's %s is %v, of the wrong type", name, value), j.withHeader(name, value))
	}
}

func (j jws) changeForm(add func(want, name, token string)) {
	token := j.first + "." + j.second + "." + j.third
	for name, bad := range map[string]string{
		"JSON":              fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, j.first, j.second, j.third),
		"no signature":      j.first + "." + j.second + ".",
		"two parts":         j.first + "." + j.second,
		"four parts":        token + ".AAAA",
		"five parts":        token + ".AAAA.AAAA",
		"padding":           token + "=",
		"a line feed":       token + "\n",
		"a space in front":  " " + token,
		"a claim twice":     j.first + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"mallory","sub":"alice","iss":"`+minterIssuer+`"}`)) + "." + j.third,
		"two payloads":      j.first + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"`+minterIssuer+`"}{}`)) + "." + j.third,
		"no payload":        j.first + ".." + j.third,
		"a list for claims": j.first + "." + base64JSON([]any{j.claims}) + "." + j.third,
	} {
		add("malformed", name, bad)
	}
	const places = 10
	for i := range places {
		at := i * len(token) / places
		for _, c := range []string{"\n", "=", "+", "."} {
			add("malformed", fmt.Sprintf("%q at %d", c, at), token[:at]+c+token[at:])
		}
	}
}
