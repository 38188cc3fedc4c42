package verify_test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// For each kind of cnf claim: which certificate may present the token, and the token_type
// in introspection.
func TestConfirmation(t *testing.T) {
	holder, other := &x509.Certificate{Raw: []byte("holder")}, &x509.Certificate{Raw: []byte("other")}
	sum := sha256.Sum256(holder.Raw)
	x5t := base64.RawURLEncoding.EncodeToString(sum[:])
	padded := base64.URLEncoding.EncodeToString(sum[:])
	for name, tt := range map[string]struct {
		cnf  string
		want verify.Confirmation
		typ  string
		held bool // with the holder's certificate
	}{
		"a certificate":                 {`{"x5t#S256":"` + x5t + `"}`, verify.Confirmation{X5TS256: x5t}, "Bearer", true},
		"a certificate, padded":         {`{"x5t#S256":"` + padded + `"}`, verify.Confirmation{X5TS256: padded}, "Bearer", false},
		"a DPoP key":                    {`{"jkt":"t"}`, verify.Confirmation{JKT: "t"}, "DPoP", false},
		"both":                          {`{"jkt":"t","x5t#S256":"` + x5t + `"}`, verify.Confirmation{JKT: "t", X5TS256: x5t}, "DPoP", false},
		"a certificate and a kid":       {`{"x5t#S256":"` + x5t + `","kid":"k"}`, verify.Confirmation{X5TS256: x5t, Other: true}, "", false},
		"a certificate and an empty":    {`{"x5t#S256":"` + x5t + `","jkt":""}`, verify.Confirmation{X5TS256: x5t, Other: true}, "", false},
		"a DPoP key and a kid":          {`{"jkt":"t","kid":"k"}`, verify.Confirmation{JKT: "t", Other: true}, "DPoP", false},
		"nothing":                       {`{}`, verify.Confirmation{Other: true}, "", false},
		"an empty DPoP key":             {`{"jkt":""}`, verify.Confirmation{Other: true}, "", false},
		"an empty certificate":          {`{"x5t#S256":""}`, verify.Confirmation{Other: true}, "", false},
		"a kid":                         {`{"kid":"k"}`, verify.Confirmation{Other: true}, "", false},
		"a key":                         {`{"jwk":{"kty":"OKP"}}`, verify.Confirmation{Other: true}, "", false},
		"an encrypted key":              {`{"jwe":"a.b.c.d.e"}`, verify.Confirmation{Other: true}, "", false},
		"a set of keys":                 {`{"jku":"https://x","kid":"k"}`, verify.Confirmation{Other: true}, "", false},
		"a member that nobody knows":    {`{"vendor":null}`, verify.Confirmation{Other: true}, "", false},
		"another spelling of the names": {`{"JKT":"t","X5T#S256":"` + x5t + `"}`, verify.Confirmation{Other: true}, "", false},
		"the SHA-1 thumbprint":          {`{"x5t":"` + x5t + `"}`, verify.Confirmation{Other: true}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				key := josetest.New(t, "EdDSA", "k")
				jwt := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
				opaque := introspecting(t, saying(func() []byte { return members(jsonObject{"cnf": json.RawMessage(tt.cnf)}) }))
				for token, verifier := range map[string]*verify.Verifier{"opaque": opaque, key.Token(key.Header(), claims(jsonObject{"cnf": json.RawMessage(tt.cnf)})): jwt} {
					result, err := verifier.Verify(t.Context(), redact.New(token), verify.Request{})
					if err != nil || result.Rejection != nil {
						t.Fatal(err, result.Rejection)
					}
					c := result.Facts.Confirmation
					if diff := cmp.Diff(&tt.want, c); diff != "" {
						t.Error(diff)
					}
					if got := result.Facts.TokenType(); got != tt.typ {
						t.Errorf("token type %q, want %q", got, tt.typ)
					}
					if c.MatchesCertificate(nil) || c.MatchesCertificate(other) || c.MatchesCertificate(holder) != tt.held {
						t.Errorf("held with no certificate: %v, with another: %v, with the holder's: %v", c.MatchesCertificate(nil), c.MatchesCertificate(other), c.MatchesCertificate(holder))
					}
				}
			})
		})
	}
	if bearer := (*verify.Confirmation)(nil); !bearer.MatchesCertificate(nil) || !bearer.MatchesCertificate(other) {
		t.Error("a bearer token is not good in any hands")
	}
}

// The issuer of an opaque token can bind it by its token type alone (RFC 9449
// section 6.2).
func TestConfirmation_tokenTypeDPoP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for cnf, want := range map[string]verify.Confirmation{
			``: {Other: true}, `{"jkt":"t"}`: {JKT: "t"}, `{"x5t#S256":"t"}`: {X5TS256: "t", Other: true},
		} {
			answer := jsonObject{"token_type": "dpop"}
			if cnf != "" {
				answer["cnf"] = json.RawMessage(cnf)
			}
			v := introspecting(t, saying(func() []byte { return members(answer) }))
			result, err := v.Verify(t.Context(), redact.New("opaque"), verify.Request{})
			if err != nil || result.Rejection != nil {
				t.Fatal(err, result.Rejection)
			}
			if diff := cmp.Diff(&want, result.Facts.Confirmation); diff != "" || result.Facts.TokenType() != "DPoP" {
				t.Errorf("cnf %s: token type %q, %s", cnf, result.Facts.TokenType(), diff)
			}
		}
	})
}
