package verify_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// world is two issuers and their keys. Issuer A accepts every algorithm and
// at+jwt only; issuer B narrows what it can, and accepts JWT.
type world struct {
	v              *verify.Verifier
	web            sites
	rs, ps, es, ed *josetest.Signer // of issuer A
	declared       *josetest.Signer // an RSA key of issuer A that says PS256
	p384           *josetest.Signer // of issuer A, said to be for ES256
	twin1, twin2   *josetest.Signer // of issuer A, with one kid
	bRS, bEd       *josetest.Signer // of issuer B; bRS has the kid of rs
	says, bSays    *josetest.Signer // of A and of B: Ed25519 keys that say EdDSA
}

func newWorld(t *testing.T) *world {
	w := &world{
		rs: josetest.New(t, "RS256", "rs"), ps: josetest.New(t, "PS256", "ps"), es: josetest.New(t, "ES256", "es"), ed: josetest.New(t, "EdDSA", "ed"),
		p384: josetest.New(t, "ES384", "p384"), twin1: josetest.New(t, "ES256", "twin"), twin2: josetest.New(t, "EdDSA", "twin"),
		bRS: josetest.New(t, "RS256", "rs"), bEd: josetest.New(t, "EdDSA", "b-ed"),
	}
	w.declared = w.ps.As("PS256", "declared")
	w.says, w.bSays = w.ed.As("Ed25519", "says"), w.bEd.As("Ed25519", "says")
	entries := []any{
		w.rs.JWK(), w.ps.JWK(), w.es.JWK(), w.ed.JWK(), w.says.JWK(jsonObject{"alg": "EdDSA"}), w.declared.JWK(jsonObject{"alg": "PS256"}), w.p384.JWK(jsonObject{"alg": "ES256"}),
		w.twin1.JWK(), w.twin2.JWK(),
		w.rs.JWK(jsonObject{"kid": "enc", "use": "enc"}), w.rs.JWK(jsonObject{"kid": "encrypt", "use": nil, "key_ops": []string{"encrypt"}}),
		w.rs.JWK(jsonObject{"kid": "private", "d": "AAAA"}), jsonObject{"kid": "oct", "kty": "oct", "alg": "HS256", "k": josetest.Base64([]byte("secret"))},
		w.ed.JWK(jsonObject{"kid": "short", "x": "AAAA"}), w.ed.JWK(jsonObject{"kid": "small", "x": josetest.Base64(append([]byte{1}, make([]byte, 31)...))}),
		w.es.JWK(jsonObject{"kid": "off", "x": josetest.Base64(bytes.Repeat([]byte{1}, 32))}),
		w.rs.JWK(jsonObject{"kid": "e1", "e": "AQ"}), w.rs.JWK(jsonObject{"kid": "weak", "n": josetest.Base64(append([]byte{0x80}, bytes.Repeat([]byte{1}, 127)...))}),
		w.rs.JWK(jsonObject{"kid": "e65", "e": "AQAAAAAAAQAB"}), jsonObject{"kid": "mldsa", "kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA"},
		jsonObject{"kid": "x5c", "kty": "RSA", "x5c": []string{"MIIB"}}, "not a key", nil,
	}
	w.web = sites{"a.example": serve(josetest.Marshal(jsonObject{"keys": entries})), "b.example": serve(josetest.Set(w.bRS.JWK(), w.bEd.JWK(), w.bSays.JWK(jsonObject{"alg": "EdDSA"})))}
	w.v = w.verifier(t, func(*verify.IssuerConfig) {})
	return w
}

// verifier returns a Verifier of issuers A and B, whose settings change may change, and
// of others.
func (w *world) verifier(t *testing.T, change func(*verify.IssuerConfig), others ...verify.IssuerConfig) *verify.Verifier {
	t.Helper()
	a, b := configOf(issuerA), configOf(issuerB)
	b.Types, b.ScopeClaim, b.Algorithms, b.MaxAge = []string{"at+jwt", "JWT"}, []string{"scp"}, []string{"RS256", "Ed25519"}, time.Hour
	change(&a)
	change(&b)
	return load(t, newVerifier(t, w.web, append(others, a, b)...))
}

// with returns a token of issuer A that is active except for changes to its claims.
func (w *world) with(changes ...jsonObject) string {
	return w.ed.Token(w.ed.Header(), claims(changes...))
}

// header returns a token of issuer A with a correct RS256 signature and a changed header.
func (w *world) header(changes ...jsonObject) string {
	return w.rs.Token(w.rs.Header(changes...), claims())
}

// raw returns a token of issuer A with this member in front of its payload. A member of the
// same name then appears twice.
func (w *world) raw(member string) string {
	payload := josetest.Marshal(claims())
	return w.ed.Token(w.ed.Header(), "{"+member+","+string(payload[1:]))
}

// only is like raw, but replaces a member of the same name.
func (w *world) only(name, value string) string {
	payload := josetest.Marshal(claims(jsonObject{name: nil}))
	return w.ed.Token(w.ed.Header(), `{"`+name+`":`+value+","+string(payload[1:]))
}

// fromB returns a token of issuer B.
func (w *world) fromB(header jsonObject, changes ...jsonObject) string {
	return w.bRS.Token(w.bRS.Header(header), claims(append([]jsonObject{{"iss": issuerB}}, changes...)...))
}

func split3(token string) (header, payload, signature string) {
	parts := strings.Split(token, ".")
	return parts[0], parts[1], parts[2]
}

type attack struct {
	name  string // begins with an id: A form, B algorithm and header, C claims, D keys and network
	token string
	want  string
}

func formAttacks(w *world) []attack {
	good := w.with()
	h, p, s := split3(good)
	standard := strings.NewReplacer("-", "+", "_", "/")
	differs := w.es.Token(w.es.Header(), claims()) // in the two alphabets of base64
	for standard.Replace(differs) == differs {
		differs = w.es.Token(w.es.Header(), claims())
	}
	return []attack{
		{"A1 flattened JSON serialization", fmt.Sprintf(`{"protected":%q,"payload":%q,"signature":%q}`, h, p, s), "malformed"},
		{"A1 general JSON serialization", fmt.Sprintf(`{"payload":%q,"signatures":[{"protected":%q,"signature":%q}]}`, p, h, s), "malformed"},
		{"A1 JSON serialization with dots", fmt.Sprintf(`{"x":"..","protected":%q,"payload":%q,"signature":%q}`, h, p, s), "malformed"},
		{"A1 detached payload", h + ".." + s, "malformed"},
		{"A2 JWE of five parts", good + ".e30.e30", "malformed"},
		{"A2 nested token", w.ed.Token(w.ed.Header(), good), "malformed"},
		{"A2 nested token with cty", w.ed.Token(w.ed.Header(jsonObject{"cty": "JWT"}), good), "unsupported"},
		{"A2 cty without a nested token", w.ed.Token(w.ed.Header(jsonObject{"cty": "JWT"}), claims()), "unsupported"},
		{"A2 zip", w.header(jsonObject{"zip": "DEF"}), "unsupported"},
		{"A2 enc", w.header(jsonObject{"enc": "A256GCM"}), "unsupported"},
		{"A2 PBES2 with a huge p2c", w.header(jsonObject{"alg": "PBES2-HS256+A128KW", "p2c": 1 << 30}), "algorithm_not_allowed"},
		{"A3 thousands of dots", strings.Repeat(".", jose.MaxTokenSize), "malformed"},
		{"A4 token of 16,385 bytes", good + strings.Repeat("A", 16<<10+1-len(good)), "malformed"},
		{"A4 token of 4 MiB", w.with(jsonObject{"pad": strings.Repeat("x", 4<<20)}), "malformed"},
		{"A4 header of 1,025 bytes", w.header(jsonObject{"pad": strings.Repeat("x", 1025)}), "malformed"},
		{"A4 wide claims", w.ed.Token(w.ed.Header(), claims(wideObject(60))), "malformed"},
		{"A5 padding", good + "==", "malformed"},
		{"A5 padding of the header", h + "=." + p + "." + s, "malformed"},
		{"A5 standard alphabet", standard.Replace(differs), "malformed"},
		{"A5 CR LF in the signature", good[:len(good)-8] + "\r\n" + good[len(good)-8:], "malformed"},
		{"A5 LF in the payload", h + "." + p[:8] + "\n" + p[8:] + "." + s, "malformed"},
		{"A5 LF in the header", h[:8] + "\n" + h[8:] + "." + p + "." + s, "malformed"},
		{"A5 LF at the end", good + "\n", "malformed"},
		{"A5 space at the end", good + " ", "malformed"},
		{"A5 space in front", " " + good, "malformed"},
		{"A5 spare bits", spare(good), "malformed"},
		{"A6 alg twice", w.rs.Token(`{"alg":"RS256","kid":"rs","typ":"at+jwt","alg":"RS256"}`, claims()), "malformed"},
		{"A6 kid twice", w.rs.Token(`{"alg":"RS256","kid":"no","kid":"rs","typ":"at+jwt"}`, claims()), "malformed"},
		{"A6 sub twice", w.raw(`"sub":"mallory"`), "malformed"},
		{"A6 iss twice", w.raw(`"iss":"` + issuerB + `"`), "malformed"},
		{"A6 sub twice, once escaped", w.raw(`"s\u0075b":"mallory"`), "malformed"},
		{"A6 repeated name, deeper", w.raw(`"x":[{"y":1,"y":2}]`), "malformed"},
		{"A7 second object after the claims", w.ed.Token(w.ed.Header(), string(josetest.Marshal(claims()))+`{}`), "malformed"},
		{"A7 garbage after the claims", w.ed.Token(w.ed.Header(), string(josetest.Marshal(claims()))+"\x00"), "malformed"},
		{"A7 garbage after the header", w.rs.Token(string(josetest.Marshal(w.rs.Header()))+"x", claims()), "malformed"},
		{"A8 invalid UTF-8", w.only("sub", "\"al\xffice\""), "malformed"},
		{"A8 invalid UTF-8, deeper", w.raw("\"x\":[\"\xc0\xaf\"]"), "malformed"},
		{"A8 lone surrogate", w.only("sub", `"al\ud800ice"`), "malformed"},
		{"A8 byte order mark", w.ed.Token(w.ed.Header(), "\ufeff"+string(josetest.Marshal(claims()))), "malformed"},
		{"A8 NUL in sub", w.only("sub", `"alice\u0000"`), "bad_claims"},
		{"A8 line feed in jti", w.only("jti", `"a\nb"`), "bad_claims"},
		{"A8 C1 control in client_id", w.only("client_id", `"a\u0085"`), "bad_claims"},
		{"A8 control in aud", w.with(jsonObject{"aud": []string{audience, "a\x1b"}}), "bad_claims"},
		{"A9 claims nested 5,000 deep", h + "." + josetest.Base64([]byte(strings.Repeat("[", 5000))) + "." + s, "malformed"},
		{"A9 claims nested 9 deep", w.raw(`"x":` + strings.Repeat("[", 8) + strings.Repeat("]", 8)), "malformed"},
		{"A9 header nested deep", w.rs.Token(`{"alg":"RS256","kid":"rs","x":`+strings.Repeat("[", 400)+strings.Repeat("]", 400)+`}`, claims()), "malformed"},
		{"A10 EXP for exp", w.ed.Token(w.ed.Header(), claims(jsonObject{"exp": nil, "EXP": time.Now().Unix() + 600})), "bad_claims"},
		{"A10 Sub beside sub", w.with(jsonObject{"Sub": "mallory", "SCOPE": "admin", "Aud": "x"}), "active"},
		{"A10 Iss for iss", w.with(jsonObject{"iss": nil, "Iss": issuerA}), "unknown_issuer"},
		{"A10 ALG for alg", w.rs.Token(`{"ALG":"RS256","kid":"rs","typ":"at+jwt"}`, claims()), "malformed"},
		{"A10 Kid for kid", w.rs.Token(`{"alg":"RS256","Kid":"rs","typ":"at+jwt"}`, claims()), "unknown_key"},
	}
}

func wideObject(members int) jsonObject {
	o := jsonObject{}
	for i := range members {
		o[fmt.Sprintf("m%d", i)] = i
	}
	return o
}

// spare changes the spare bits in the last character of an Ed25519 signature of 64 bytes.
func spare(token string) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, token[len(token)-1])
	return token[:len(token)-1] + string(alphabet[last|1])
}

func headerAttacks(t *testing.T, w *world) []attack {
	var all []attack
	add := func(name, token, want string) { all = append(all, attack{name, token, want}) }
	for _, alg := range []string{"none", "None", "nOnE", "", "RS256 ", " RS256", "rs256", "HS256", "HS512", "ES256K", "RS1", "RSA-OAEP"} {
		add(fmt.Sprintf("B1 alg %q over a good signature", alg), w.header(jsonObject{"alg": alg}), "algorithm_not_allowed")
	}
	h, p, _ := split3(w.header(jsonObject{"alg": "none"}))
	add("B1 alg none, no signature", h+"."+p+".", "malformed")
	add("B1 alg none, any signature", h+"."+p+".AA", "algorithm_not_allowed")
	add("B1 no alg", w.header(jsonObject{"alg": nil}), "malformed")
	add("B1 alg a list", w.header(jsonObject{"alg": []string{"RS256"}}), "malformed")

	public, err := x509.MarshalPKIXPublicKey(w.rs.Private.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string][]byte{"DER": public, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})} {
		add("B2 HS256 with the public key in "+name, josetest.HMAC(secret, w.rs.Header(jsonObject{"alg": "HS256"}), claims()), "algorithm_not_allowed")
	}
	add("B2 HS256 with a symmetric key of the set", josetest.HMAC([]byte("secret"), w.rs.Header(jsonObject{"alg": "HS256", "kid": "oct"}), claims()), "algorithm_not_allowed")
	add("B2 RS256 with the kid of a symmetric key", w.header(jsonObject{"kid": "oct"}), "unknown_key")

	add("B3 RS512 said, RS256 done", w.header(jsonObject{"alg": "RS512"}), "bad_signature")
	add("B3 PS256 said, RS256 done", w.header(jsonObject{"alg": "PS256"}), "bad_signature")
	add("B3 ES256 said of an RSA key", w.header(jsonObject{"alg": "ES256"}), "algorithm_not_allowed")
	add("B3 EdDSA said of an RSA key", w.header(jsonObject{"alg": "EdDSA"}), "algorithm_not_allowed")
	add("B3 RS256 with a key that says PS256", w.declared.As("RS256", "declared").Token(w.declared.Header(jsonObject{"alg": "RS256"}), claims()), "algorithm_not_allowed")
	add("B3 PS256 with a key that says PS256", w.declared.Token(w.declared.Header(), claims()), "active")
	add("B3 algorithm of another issuer", w.fromB(jsonObject{"alg": "PS256"}), "algorithm_not_allowed")

	attacker := josetest.New(t, "RS256", "rs")
	add("B4 jwk", attacker.Token(attacker.Header(jsonObject{"jwk": attacker.JWK()}), claims()), "unsupported")
	add("B4 jku", attacker.Token(attacker.Header(jsonObject{"jku": "https://evil.example/jwks"}), claims()), "unsupported")
	add("B4 x5u", attacker.Token(attacker.Header(jsonObject{"x5u": "https://evil.example/x5u"}), claims()), "unsupported")
	add("B4 x5c", attacker.Token(attacker.Header(jsonObject{"x5c": []string{base64.StdEncoding.EncodeToString(public)}}), claims()), "bad_signature")
	add("B4 x5t", attacker.Token(attacker.Header(jsonObject{"x5t": "AAAA", "x5t#S256": "AAAA"}), claims()), "bad_signature")
	add("B4 x5c beside a good signature", w.header(jsonObject{"x5c": []string{"not a certificate"}}), "active")

	for _, kid := range []string{"../../../dev/null", "' OR 1=1 --", "https://evil.example/jwks", "RS", "rs ", "\u202ers"} {
		add(fmt.Sprintf("B5 kid %q", kid), w.header(jsonObject{"kid": kid}), "unknown_key")
	}
	add("B5 kid of 257 bytes", w.header(jsonObject{"kid": strings.Repeat("k", 257)}), "malformed")
	add("B5 kid with a NUL", w.header(jsonObject{"kid": "rs\x00"}), "malformed")
	add("B5 kid with CR LF", w.header(jsonObject{"kid": "rs\r\n"}), "malformed")
	add("B5 kid a number", w.header(jsonObject{"kid": 1}), "malformed")
	add("B5 kid a list", w.header(jsonObject{"kid": []string{"rs"}}), "malformed")
	add("B6 no kid", w.header(jsonObject{"kid": nil}), "unknown_key")
	add("B6 empty kid", w.header(jsonObject{"kid": ""}), "unknown_key")
	add("B7 kid that two keys have, the first", w.twin1.Token(w.twin1.Header(), claims()), "unknown_key")
	add("B7 kid that two keys have, the second", w.twin2.Token(w.twin2.Header(), claims()), "unknown_key")
	for kid, what := range map[string]string{"enc": "use enc", "encrypt": "key_ops without verify", "private": "private key", "x5c": "certificate only", "mldsa": "unknown type"} {
		add("B8 "+what, w.header(jsonObject{"kid": kid}), "unknown_key")
	}

	for name, crit := range map[string]any{
		"unknown": []string{"urn:x"}, "empty": []string{}, "naming alg": []string{"alg"}, "naming b64": []string{"b64"}, "twice the same": []string{"exp", "exp"}, "null": nil, "a string": "exp",
	} {
		header := w.rs.Header(jsonObject{"exp": 1})
		header["crit"] = crit
		add("B9 crit "+name, w.rs.Token(header, claims()), "unsupported")
	}
	add("B10 b64 false with crit", w.header(jsonObject{"b64": false, "crit": []string{"b64"}}), "unsupported")
	for _, b64 := range []any{true, false, "yes", 0} {
		add(fmt.Sprintf("B10 b64 %v", b64), w.header(jsonObject{"b64": b64}), "unsupported")
	}
	all = append(all, typeAttacks(w)...)
	all = append(all, keyAttacks(w)...)
	return all
}

func typeAttacks(w *world) []attack {
	logout := jsonObject{"events": jsonObject{"http://schemas.openid.net/event/backchannel-logout": jsonObject{}}}
	var all []attack
	for typ, want := range map[any]string{
		"at+jwt": "active", "AT+JWT": "active", "application/at+jwt": "active", "Application/AT+jwt": "active",
		"JWT": "wrong_type", "jwt": "wrong_type", nil: "wrong_type", "": "wrong_type", "dpop+jwt": "wrong_type", "logout+jwt": "wrong_type", "secevent+jwt": "wrong_type",
		"id_token": "wrong_type", "at+jwt ": "wrong_type", "application/application/at+jwt": "wrong_type", "text/at+jwt": "wrong_type", 1: "malformed",
	} {
		all = append(all, attack{fmt.Sprintf("B11 typ %v where at+jwt is asked for", typ), w.header(jsonObject{"typ": typ}), want})
	}
	jwt := jsonObject{"typ": "JWT"}
	bare := jsonObject{"scope": nil, "client_id": nil}
	return append(all,
		attack{"B11 typ JWT where it is admitted", w.fromB(jwt), "active"},
		attack{"B11 no typ where JWT is admitted", w.fromB(jsonObject{"typ": nil}), "active"},
		attack{"B11 typ dpop+jwt where JWT is admitted", w.fromB(jsonObject{"typ": "dpop+jwt"}), "wrong_type"},
		attack{"B11 ID token", w.fromB(jwt, bare, jsonObject{"nonce": "n", "azp": "app"}), "wrong_type"},
		attack{"B11 ID token with at_hash and scope", w.fromB(jwt, jsonObject{"nonce": "n", "at_hash": "h"}), "wrong_type"},
		attack{"B11 ID token with c_hash and scope", w.fromB(jwt, jsonObject{"nonce": "n", "c_hash": "h"}), "wrong_type"},
		attack{"B11 logout token", w.fromB(jwt, logout), "wrong_type"},
		attack{"B11 DPoP proof", w.fromB(jwt, jsonObject{"htm": "GET", "htu": "https://api.example"}), "wrong_type"},
		attack{"B11 DPoP proof without htu", w.fromB(jwt, jsonObject{"htm": "GET"}), "wrong_type"},
		attack{"B11 DPoP proof without htm", w.fromB(jwt, jsonObject{"htu": "https://api.example"}), "wrong_type"},
		attack{"B11 ID token of Cognito with scope", w.fromB(jwt, jsonObject{"token_use": "id"}), "wrong_type"},
		attack{"B11 token of another use that is no text", w.fromB(jwt, jsonObject{"token_use": 1}), "wrong_type"},
		attack{"B11 ID token of Keycloak with scope", w.fromB(jwt, jsonObject{"typ": "ID"}), "wrong_type"},
		attack{"B11 refresh token of Keycloak", w.fromB(jwt, jsonObject{"typ": "Refresh"}), "wrong_type"},
		attack{"B11 offline token of Keycloak", w.fromB(jwt, jsonObject{"typ": "Offline"}), "wrong_type"},
		attack{"B11 registration token of Keycloak", w.fromB(jwt, jsonObject{"typ": "RegistrationAccessToken"}), "wrong_type"},
		attack{"B11 access token of Keycloak", w.fromB(jwt, bare, jsonObject{"scope": "read", "typ": "Bearer"}), "active"},
		attack{"B11 access token of Cognito", w.fromB(jsonObject{"typ": nil}, jsonObject{"token_use": "access"}), "active"},
		attack{"B11 access token of Okta", w.fromB(jwt, bare, jsonObject{"cid": "app", "scp": []string{"read"}}), "active"},
		attack{"B11 access token of Entra ID", w.fromB(jwt, bare, jsonObject{"azp": "app", "azpacr": "1"}), "active"},
		attack{"B11 access token of Kubernetes", w.fromB(jsonObject{"typ": nil}, bare, jsonObject{"kubernetes.io": jsonObject{"namespace": "n"}}), "active"},
	)
}

func keyAttacks(w *world) []attack {
	h, p, s := split3(w.es.Token(w.es.Header(), claims()))
	signature, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		panic(err)
	}
	r, sv := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	n := w.es.Private.(*ecdsa.PrivateKey).Params().N
	der, err := asn1.Marshal(struct{ R, S *big.Int }{r, sv})
	if err != nil {
		panic(err)
	}
	es := func(signature []byte) string { return h + "." + p + "." + josetest.Base64(signature) }
	join := func(r, s *big.Int) []byte {
		return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
	}
	zero := new(big.Int)
	return []attack{
		{"B12 ECDSA signature (0, 0)", es(make([]byte, 64)), "bad_signature"},
		{"B12 ECDSA signature (r, 0)", es(join(r, zero)), "bad_signature"},
		{"B12 ECDSA signature (n, n)", es(join(n, n)), "bad_signature"},
		{"B12 ECDSA signature (n, s)", es(join(n, sv)), "bad_signature"},
		{"B12 ECDSA signature in DER", es(der), "bad_signature"},
		{"B12 ECDSA signature of 63 bytes", es(signature[1:]), "bad_signature"},
		{"B12 ECDSA signature of 65 bytes", es(append([]byte{0}, signature...)), "bad_signature"},
		{"B12 ECDSA signature with a zero between r and s", es(slices.Concat(signature[:32], []byte{0}, signature[32:])), "bad_signature"},
		{"B13 ES256 on P-384", w.p384.As("ES256", "p384").Token(w.p384.Header(jsonObject{"alg": "ES256"}), claims()), "unknown_key"},
		{"B13 ES384 on P-256", w.es.As("ES384", "es").Token(w.es.Header(jsonObject{"alg": "ES384"}), claims()), "algorithm_not_allowed"},
		{"B14 Ed25519 key of 3 bytes", w.ed.Token(w.ed.Header(jsonObject{"kid": "short"}), claims()), "unknown_key"},
		{"B14 Ed25519 key of small order", forgeSmallOrder(w), "unknown_key"},
		{"B14 EC point off the curve", w.es.Token(w.es.Header(jsonObject{"kid": "off"}), claims()), "unknown_key"},
		{"B15 RSA of 1,024 bits", w.header(jsonObject{"kid": "weak"}), "unknown_key"},
		{"B15 RSA exponent 1", forgeExponentOne(w), "unknown_key"},
		{"B15 RSA exponent of 65 bits", w.header(jsonObject{"kid": "e65"}), "unknown_key"},
		{"B16 PSS with another salt length", pssSalt(w, 20), "bad_signature"},
		{"B16 PSS with the salt of the hash's length", pssSalt(w, 32), "active"},
		{"B17 ECDSA signature (r, n-s)", es(join(r, new(big.Int).Sub(n, sv))), "active"},
		{"B18 Ed25519 for EdDSA where both are allowed", w.ed.As("Ed25519", "ed").Token(w.ed.Header(jsonObject{"alg": "Ed25519"}), claims()), "active"},
		{"B18 EdDSA where Ed25519 is allowed only", w.bEd.Token(w.bEd.Header(), claims(jsonObject{"iss": issuerB})), "algorithm_not_allowed"},
		{"B18 Ed25519 where it is allowed only", w.bEd.As("Ed25519", "b-ed").Token(w.bEd.Header(jsonObject{"alg": "Ed25519"}), claims(jsonObject{"iss": issuerB})), "active"},
		{"B18 Ed25519 with a key that says EdDSA, which is not allowed", w.bSays.Token(w.bSays.Header(), claims(jsonObject{"iss": issuerB})), "algorithm_not_allowed"},
		{"B18 Ed25519 with a key that says EdDSA, where both are allowed", w.says.Token(w.says.Header(), claims()), "active"},
		{"B18 Ed25519 of an ECDSA key", w.es.Token(w.es.Header(jsonObject{"alg": "Ed25519"}), claims()), "algorithm_not_allowed"},
	}
}

func claimAttacks(w *world) []attack {
	now := time.Now().Unix()
	long := strings.Repeat("9", 400)
	all := []attack{
		{"C1 no exp", w.with(jsonObject{"exp": nil}), "bad_claims"},
		{"C1 exp with a fraction", w.only("exp", fmt.Sprintf("%d.75", now+600)), "active"},
		{"C1 exp with an exponent", w.only("exp", fmt.Sprintf("%d.5e1", now/10+60)), "active"},
		{"C1 exp beyond the lifetime cap", w.only("exp", "1e10"), "lifetime_too_long"},
		{"C1 exp 2^53-1", w.only("exp", "9007199254740991"), "lifetime_too_long"},
		{"C1 exp NaN", w.only("exp", "NaN"), "malformed"},
		{"C1 nbf huge", w.only("nbf", "1e30"), "bad_claims"},
		{"C1 iat negative", w.with(jsonObject{"iat": -1}), "bad_claims"},
		{"C1 iat a string", w.with(jsonObject{"iat": fmt.Sprint(now)}), "bad_claims"},
		{"C1 nbf null", w.only("nbf", "null"), "bad_claims"},
		{"C1 lifetime from iat", w.with(jsonObject{"iat": now - 25*3600}), "lifetime_too_long"},
		{"C1 lifetime from now, where there is no iat", w.with(jsonObject{"iat": nil, "exp": now + 25*3600}), "lifetime_too_long"},
		{"C2 expired within the leeway", w.with(jsonObject{"exp": now - 20}), "active"},
		{"C2 expired beyond the leeway", w.with(jsonObject{"exp": now - 31}), "expired"},
		{"C2 nbf within the leeway", w.with(jsonObject{"nbf": now + 20}), "active"},
		{"C2 nbf beyond the leeway", w.with(jsonObject{"nbf": now + 60}), "not_yet_valid"},
		{"C3 iat in the future", w.with(jsonObject{"iat": now + 60}), "not_yet_valid"},
		{"C3 nbf in the far future", w.with(jsonObject{"nbf": now + 1<<40}), "not_yet_valid"},
		{"C3 iat beyond the maximal age", w.fromB(nil, jsonObject{"iat": now - 3700, "scope": nil}), "lifetime_too_long"},
		{"C3 no iat where the age is bounded", w.fromB(nil, jsonObject{"iat": nil}), "lifetime_too_long"},
		{"C4 aud in a list", w.with(jsonObject{"aud": []string{"x", audience}}), "active"},
		{"C4 no aud", w.with(jsonObject{"aud": nil}), "wrong_audience"},
		{"C5 iss missing", w.with(jsonObject{"iss": nil}), "unknown_issuer"},
		{"C6 key of issuer B for issuer A", w.bEd.Token(w.bEd.Header(), claims()), "unknown_key"},
		{"C6 key of issuer B with a kid that A has, for issuer A", w.bRS.Token(w.bRS.Header(), claims()), "bad_signature"},
		{"C6 key of issuer A with a kid that B has, for issuer B", w.rs.Token(w.rs.Header(), claims(jsonObject{"iss": issuerB})), "bad_signature"},
		{"C7 tenant that is not configured", w.with(jsonObject{"iss": issuerA + "/11111111-2222/v2.0"}), "unknown_issuer"},
		{"C7 template as iss", w.with(jsonObject{"iss": issuerA + "/{tenantid}"}), "unknown_issuer"},
		{"C8 scp where scope is configured", w.with(jsonObject{"scope": nil, "scp": "read"}), "insufficient_scope"},
		{"C8 scope where scp is configured", w.fromB(nil), "insufficient_scope"},
		{"C8 scp in a list", w.fromB(nil, jsonObject{"scp": []string{"x", "read"}}), "active"},
		{"C8 scope in other case", w.with(jsonObject{"scope": "READ"}), "insufficient_scope"},
		{"C8 roles where scope is configured", w.with(jsonObject{"scope": nil, "roles": []string{"read"}}), "insufficient_scope"},
		{"C8 nested roles where scope is configured", w.with(jsonObject{"scope": nil, "realm_access": jsonObject{"roles": []string{"read"}}}), "insufficient_scope"},
		{"C8 scope as a part of another", w.with(jsonObject{"scope": "reader spread"}), "insufficient_scope"},
		{"C8 empty scope", w.with(jsonObject{"scope": ""}), "insufficient_scope"},
		{"C8 scope of all that may be in one", w.with(jsonObject{"scope": "!#[]~ read"}), "active"},
		{"C8 repeated scope", w.with(jsonObject{"scope": "read read"}), "active"},
		{"C8 list whose element has a space", w.with(jsonObject{"scope": []string{"x read"}}), "bad_claims"},
		{"C11 cnf", w.with(jsonObject{"cnf": jsonObject{"jkt": "t"}}), "active"},
		{"C11 cnf a string", w.with(jsonObject{"cnf": "t"}), "bad_claims"},
		{"C11 jkt a number", w.with(jsonObject{"cnf": jsonObject{"jkt": 1}}), "bad_claims"},
		{"C12 act", w.with(jsonObject{"act": jsonObject{"sub": "bob"}, "may_act": jsonObject{"sub": "eve"}}), "active"},
	}
	for _, exp := range []string{"0", "0.5", "-1", "null", "true", "[1]", `"9999999999"`, `"2030-01-01T00:00:00Z"`, "1e18", "1e30", "9007199254740992", "9223372036854775808", "1e999", long, "-0"} {
		all = append(all, attack{"C1 exp " + exp[:min(len(exp), 20)], w.only("exp", exp), "bad_claims"})
	}
	for _, aud := range []any{"API", "https://API.example", "https://api.example/", "xhttps://api.example", "https://api.example https://x", []string{"https://api.exampl"}} {
		all = append(all, attack{fmt.Sprintf("C4 aud %v", aud), w.with(jsonObject{"aud": aud}), "wrong_audience"})
	}
	for name, aud := range map[string]any{"empty": "", "an empty list": []string{}, "a list with an empty string": []string{audience, ""}, "a mixed list": []any{audience, 1}, "an object": jsonObject{"aud": audience}, "a number": 1, "true": true, "nested": []any{[]any{audience}}} {
		all = append(all, attack{"C4 aud " + name, w.with(jsonObject{"aud": aud}), "bad_claims"})
	}
	all = append(all, attack{"C4 aud null", w.only("aud", "null"), "bad_claims"})
	for _, iss := range []any{issuerA + "/", "https://A.example", "HTTPS://a.example", "https://a.example:443", "https://%61.example", "https://ａ.example", " " + issuerA, "urn:example:a", "URN:example:a", []string{issuerA}, 1, true, ""} {
		all = append(all, attack{fmt.Sprintf("C5 iss %v", iss), w.with(jsonObject{"iss": iss}), "unknown_issuer"})
	}
	all = append(all, attack{"C5 iss null", w.only("iss", "null"), "unknown_issuer"}, attack{"C5 iss with a NUL", w.only("iss", `"`+issuerA+`\u0000"`), "unknown_issuer"})
	for name, scope := range map[string]any{"with a tab": "read\twrite", "with a line feed": "read\nx", "with a quote": `read "x"`, "with a backslash": `read x\y`, "with a DEL": "read x\x7f", "with a letter that is not in ASCII": "réad", "a number": 1, "a list with a number": []any{"read", 1}, "nested": []any{[]any{"read"}}, "an object": jsonObject{"read": true}} {
		all = append(all, attack{"C8 scope " + name, w.with(jsonObject{"scope": scope}), "bad_claims"})
	}
	for name, scope := range map[string]any{"with two spaces": "write  read", "with spaces around": "  read ", "a list with an empty string": []string{"", "read"}} {
		all = append(all, attack{"C8 scope " + name, w.with(jsonObject{"scope": scope}), "active"})
	}
	for name, scope := range map[string]any{"of a space": " ", "a list of an empty string": []string{""}} {
		all = append(all, attack{"C8 scope " + name, w.with(jsonObject{"scope": scope}), "insufficient_scope"})
	}
	all = append(all, attack{"C8 scope null", w.only("scope", "null"), "bad_claims"})
	for name, sub := range map[string]string{"empty": `""`, "a number": "1", "null": "null", "a list": `["alice"]`, "an object": `{"a":"alice"}`} {
		all = append(all, attack{"C9 sub " + name, w.only("sub", sub), "bad_claims"})
	}
	return append(all,
		attack{"C9 no sub", w.with(jsonObject{"sub": nil, "email": "alice@example.com"}), "bad_claims"},
		attack{"C9 no sub and no client_id", w.with(jsonObject{"sub": nil, "client_id": nil, "azp": "app"}), "bad_claims"})
}

// attacks is the whole catalogue.
func (w *world) attacks(t *testing.T) []attack {
	return slices.Concat(formAttacks(w), headerAttacks(t, w), claimAttacks(w))
}

func TestAttacks(t *testing.T) {
	var attacks []attack
	var got []string
	synctest.Test(t, func(t *testing.T) { // where no time passes, however long it takes
		w := newWorld(t)
		attacks = w.attacks(t)
		before := w.web["a.example"].fetches() + w.web["b.example"].fetches()
		for _, a := range attacks {
			got = append(got, outcome(t, w.v, a.token, verify.Request{Scopes: scopesOf(a)}))
		}
		if now := w.web["a.example"].fetches() + w.web["b.example"].fetches(); now != before {
			t.Errorf("tokens caused %d fetches", now-before)
		}
	})
	ids, names, rejected := map[string]bool{}, map[string]bool{}, 0
	for i, a := range attacks {
		id, _, _ := strings.Cut(a.name, " ")
		ids[id] = true
		if names[a.name] {
			t.Errorf("two attacks are called %q", a.name)
		}
		names[a.name] = true
		if a.want != "active" {
			rejected++
		}
		t.Run(a.name, func(t *testing.T) {
			if got[i] != a.want {
				t.Errorf("%s, want %s", got[i], a.want)
			}
		})
	}
	for _, row := range slices.Concat(rows("A", 10), rows("B", 18), rows("C", 9), []string{"C11", "C12"}) {
		if !ids[row] {
			t.Errorf("nothing is tried of %s", row)
		}
	}
	if rejected < 190 {
		t.Errorf("only %d attacks were tried: %v", rejected, slices.Sorted(maps.Keys(ids)))
	}
}

// scopesOf returns the requested scopes: one if the attack concerns scopes.
func scopesOf(a attack) []string {
	if strings.HasPrefix(a.name, "C8 ") {
		return []string{"read"}
	}
	return nil
}

func rows(letter string, count int) []string {
	var all []string
	for n := range count {
		all = append(all, fmt.Sprintf("%s%d", letter, n+1))
	}
	return all
}
