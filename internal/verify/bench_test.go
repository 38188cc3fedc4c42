package verify_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// usual has the claims that Keycloak puts into a token of about 1.2 KB.
func usual(key *josetest.Signer) string {
	now := time.Now().Unix()
	return key.Token(key.Header(), jsonObject{
		"iss": issuerA, "sub": "f1c1b0c8-4b0a-4f44-9a3e-0c4fd6a3d1f5", "aud": []string{audience, "account"}, "exp": now + 3600, "iat": now, "auth_time": now,
		"jti": "9b2d1d4e-6c0a-4a52-8a9c-2d3b3a1f7e66", "azp": "orders", "client_id": "orders", "scope": "openid profile email read write", "acr": "1",
		"session_state": "0b4c7b0e-58d9-4c40-9d11-0e6a5b3a7d2e", "sid": "0b4c7b0e-58d9-4c40-9d11-0e6a5b3a7d2e", "allowed-origins": []string{"https://app.example.com"},
		"realm_access":    jsonObject{"roles": []string{"offline_access", "uma_authorization", "default-roles-example"}},
		"resource_access": jsonObject{"account": jsonObject{"roles": []string{"manage-account", "manage-account-links", "view-profile"}}},
		"email_verified":  true, "name": "Alice Example", "preferred_username": "alice", "given_name": "Alice", "family_name": "Example", "email": "alice@example.com",
	})
}

func ready(t testing.TB, algorithm string) (*verify.Verifier, *josetest.Signer, redact.String) {
	key := josetest.New(t, algorithm, "k")
	return load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA))), key, redact.New(usual(key))
}

func benchmarkVerify(b *testing.B, algorithm string) {
	v, _, token := ready(b, algorithm)
	req := verify.Request{Scopes: []string{"read"}}
	b.ReportAllocs()
	for b.Loop() {
		if result, err := v.Verify(b.Context(), token, req); err != nil || result.Rejection != nil {
			b.Fatal(result.Rejection, err)
		}
	}
}

func BenchmarkVerifyRS256(b *testing.B) { benchmarkVerify(b, "RS256") }
func BenchmarkVerifyES256(b *testing.B) { benchmarkVerify(b, "ES256") }
func BenchmarkVerifyEdDSA(b *testing.B) { benchmarkVerify(b, "EdDSA") }

// benchmarkBare is what the verification of the signature alone costs.
func benchmarkBare(b *testing.B, algorithm string, holds func(public crypto.PublicKey, input, signature []byte) bool) {
	_, key, token := ready(b, algorithm)
	text := token.Reveal()
	dot := strings.LastIndexByte(text, '.')
	signature, err := base64.RawURLEncoding.DecodeString(text[dot+1:])
	if err != nil {
		b.Fatal(err)
	}
	input, public := []byte(text[:dot]), key.Private.Public()
	b.ReportAllocs()
	for b.Loop() {
		if !holds(public, input, signature) {
			b.Fatal("the signature does not hold")
		}
	}
}

func BenchmarkBareRS256(b *testing.B) {
	benchmarkBare(b, "RS256", func(public crypto.PublicKey, input, signature []byte) bool {
		digest := sha256.Sum256(input)
		return rsa.VerifyPKCS1v15(public.(*rsa.PublicKey), crypto.SHA256, digest[:], signature) == nil
	})
}

func BenchmarkBareES256(b *testing.B) {
	benchmarkBare(b, "ES256", func(public crypto.PublicKey, input, signature []byte) bool {
		digest := sha256.Sum256(input)
		return ecdsa.Verify(public.(*ecdsa.PublicKey), digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
	})
}

func BenchmarkBareEdDSA(b *testing.B) {
	benchmarkBare(b, "EdDSA", func(public crypto.PublicKey, input, signature []byte) bool {
		return ed25519.Verify(public.(ed25519.PublicKey), input, signature)
	})
}

func BenchmarkRejectForgedRS256(b *testing.B) {
	v, key, _ := ready(b, "RS256")
	forger := josetest.New(b, "RS256", key.KeyID)
	token := redact.New(usual(forger))
	b.ReportAllocs()
	for b.Loop() {
		if result, err := v.Verify(b.Context(), token, verify.Request{}); err != nil || result.Rejection == nil {
			b.Fatal(result, err)
		}
	}
}

func TestVerificationAllocatesLittle(t *testing.T) {
	v, _, token := ready(t, "RS256")
	ctx, req := t.Context(), verify.Request{Scopes: []string{"read"}}
	lowest := 1000.0 // pools that are emptied now and then, and at random under -race, make some runs dearer
	for range 100 {
		lowest = min(lowest, testing.AllocsPerRun(1, func() {
			if result, err := v.Verify(ctx, token, req); err != nil || result.Rejection != nil {
				t.Fatal(result.Rejection, err)
			}
		}))
	}
	if lowest > 30 {
		t.Errorf("%v allocations, want 30 at most", lowest)
	}
}
