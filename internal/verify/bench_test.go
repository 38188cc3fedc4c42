package verify_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"math/big"
	"slices"
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

func ready(t testing.TB, algorithm string, cacheBytes int64) (*verify.Verifier, *josetest.Signer, redact.String) {
	key := josetest.New(t, algorithm, "k")
	return load(t, newCached(t, cacheBytes, serve(josetest.Set(key.JWK())), configOf(issuerA))), key, redact.New(usual(key))
}

// benchmarkVerify verifies one token again and again.
func benchmarkVerify(b *testing.B, algorithm string, cacheBytes int64) {
	v, _, token := ready(b, algorithm, cacheBytes)
	req := verify.Request{Scopes: []string{"read"}}
	b.ReportAllocs()
	for b.Loop() {
		if result, err := v.Verify(b.Context(), token, req); err != nil || result.Rejection != nil {
			b.Fatal(result.Rejection, err)
		}
	}
}

func BenchmarkColdRS256(b *testing.B) { benchmarkVerify(b, "RS256", noCache) }
func BenchmarkColdES256(b *testing.B) { benchmarkVerify(b, "ES256", noCache) }
func BenchmarkColdEdDSA(b *testing.B) { benchmarkVerify(b, "EdDSA", noCache) }
func BenchmarkWarm(b *testing.B)      { benchmarkVerify(b, "RS256", 0) }

// BenchmarkWarm900Bytes is of a token as long as many IdPs give out.
func BenchmarkWarm900Bytes(b *testing.B) {
	key := josetest.New(b, "RS256", "k")
	v := load(b, newVerifier(b, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	text := key.Token(key.Header(), claims(jsonObject{"pad": strings.Repeat("x", 190)}))
	if len(text) < 850 || len(text) > 950 {
		b.Fatalf("%d bytes", len(text))
	}
	token := redact.New(text)
	b.ReportAllocs()
	for b.Loop() {
		if result, err := v.Verify(b.Context(), token, verify.Request{}); err != nil || result.Rejection != nil {
			b.Fatal(result.Rejection, err)
		}
	}
}

// Run with -cpu 1,2,...: what is done in a second should grow with the cores.
func benchmarkParallel(b *testing.B, cacheBytes int64) {
	v, _, token := ready(b, "RS256", cacheBytes)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if result, err := v.Verify(b.Context(), token, verify.Request{}); err != nil || result.Rejection != nil {
				b.Error(result.Rejection, err)
			}
		}
	})
}

func BenchmarkParallelCold(b *testing.B) { benchmarkParallel(b, noCache) }
func BenchmarkParallelWarm(b *testing.B) { benchmarkParallel(b, 0) }

// benchmarkBare is what the verification of the signature alone costs.
func benchmarkBare(b *testing.B, algorithm string, holds func(public crypto.PublicKey, input, signature []byte) bool) {
	_, key, token := ready(b, algorithm, noCache)
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
	v, key, _ := ready(b, "RS256", noCache)
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
	for name, tt := range map[string]struct {
		cacheBytes int64
		forget     bool // the token after each time
		most       float64
	}{"cold": {0, true, 30}, "cold, without the cache": {noCache, false, 30}, "warm": {0, false, 5}} {
		v, _, token := ready(t, "RS256", tt.cacheBytes)
		ctx, req := t.Context(), verify.Request{Scopes: []string{"read"}}
		lowest := 1000.0 // pools that are emptied now and then, and at random under -race, make some runs dearer
		for range 100 {
			lowest = min(lowest, testing.AllocsPerRun(1, func() {
				if result, err := v.Verify(ctx, token, req); err != nil || result.Rejection != nil {
					t.Fatal(result.Rejection, err)
				}
				if tt.forget {
					v.Forget()
				}
			}))
		}
		if lowest > tt.most {
			t.Errorf("%s: %v allocations, want %v at most", name, lowest, tt.most)
		}
		t.Logf("%s: %v allocations", name, lowest)
	}
}

// BenchmarkColdBesideBareRS256 does both in turn, so that what disturbs the
// machine disturbs both.
func BenchmarkColdBesideBareRS256(b *testing.B) {
	v, key, token := ready(b, "RS256", noCache)
	text, req := token.Reveal(), verify.Request{Scopes: []string{"read"}}
	dot := strings.LastIndexByte(text, '.')
	signature, err := base64.RawURLEncoding.DecodeString(text[dot+1:])
	if err != nil {
		b.Fatal(err)
	}
	input, public := []byte(text[:dot]), key.Private.Public().(*rsa.PublicKey)
	var bare, cold []time.Duration
	for b.Loop() {
		start := time.Now()
		digest := sha256.Sum256(input)
		err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature)
		between := time.Now()
		result, errVerify := v.Verify(b.Context(), token, req)
		bare, cold = append(bare, between.Sub(start)), append(cold, time.Since(between))
		if err != nil || errVerify != nil || result.Rejection != nil {
			b.Fatal(err, errVerify, result.Rejection)
		}
	}
	slices.Sort(bare)
	slices.Sort(cold)
	b.ReportMetric(float64(cold[len(cold)/2])/float64(bare[len(bare)/2]), "x-bare")
}
