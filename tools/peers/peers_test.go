// Package peers compares the verification and the cache of this project with libraries
// that others wrote, in one process and one run. It has a module of its own, so that the
// product does not depend on them.
package peers

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/golang-jwt/jwt/v5"
	jwkv2 "github.com/lestrrat-go/jwx/v2/jwk"
	jwtv2 "github.com/lestrrat-go/jwx/v2/jwt"
	jwkv3 "github.com/lestrrat-go/jwx/v3/jwk"
	jwtv3 "github.com/lestrrat-go/jwx/v3/jwt"
	"golang.org/x/oauth2"

	"github.com/cezzis/tokenbroker/client/brokertest"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

const (
	issuer   = "https://login.example.com"
	audience = "https://orders.example.com"
)

// peer does one piece of work; an error means that it refused the token.
type peer struct {
	name string
	do   func(token string) error
}

// verifiers returns the bare signature first, then this project with an empty cache and
// with the token in it, then the libraries. Each checks the signature, the issuer, the
// audience and the expiry; what else they check differs.
func verifiers(t testing.TB, key *josetest.Signer) []peer {
	public, ok := key.Private.Public().(*rsa.PublicKey)
	if !ok {
		t.Fatal("the key is no RSA key")
	}
	return []peer{
		{"bare", func(token string) error { return bare(public, token) }},
		{"tokenbroker", ours(t, key, -1)},
		{"tokenbroker-held", ours(t, key, 0)},
		{"golang-jwt", golangJWT(public)},
		{"go-oidc", goOIDC(public)},
		{"jwx-v3", jwxV3(t, key)},
		{"jwx-v2", jwxV2(t, key)},
	}
}

func bare(public *rsa.PublicKey, token string) error {
	dot := strings.LastIndexByte(token, '.')
	signature, err := josetest.Decode(token[dot+1:])
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte(token[:dot]))
	return rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature)
}

// served answers every request with the same body.
type served []byte

// RoundTrip implements http.RoundTripper.
func (s served) RoundTrip(request *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(bytes.NewReader(s)), ContentLength: int64(len(s)), Request: request,
	}, nil
}

func ours(t testing.TB, key *josetest.Signer, cacheBytes int64) func(string) error {
	verifier, err := verify.New(verify.Config{
		Issuers: []verify.IssuerConfig{{
			Issuer: issuer, Audiences: []string{audience}, Keys: jwks.Config{URL: issuer + "/keys"},
		}},
		HTTP: discovery.NewHTTPClient(served(josetest.Set(key.JWK(josetest.JSON{"alg": "RS256"})))), CacheBytes: cacheBytes,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := verifier.Refresh(t.Context(), issuer); err != nil {
		t.Fatal(err)
	}
	return func(token string) error {
		result, err := verifier.Verify(context.Background(), redact.New(token), verify.Request{})
		if err == nil && result.Rejection != nil {
			err = errors.New(result.Rejection.Message)
		}
		return err
	}
}

func golangJWT(public *rsa.PublicKey) func(string) error {
	parser := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(issuer), jwt.WithAudience(audience), jwt.WithExpirationRequired())
	return func(token string) error {
		_, err := parser.Parse(token, func(*jwt.Token) (any, error) { return public, nil })
		return err
	}
}

func goOIDC(public *rsa.PublicKey) func(string) error {
	verifier := oidc.NewVerifier(issuer, &oidc.StaticKeySet{PublicKeys: []crypto.PublicKey{public}}, &oidc.Config{ClientID: audience})
	return func(token string) error {
		_, err := verifier.Verify(context.Background(), token)
		return err
	}
}

func jwxV3(t testing.TB, key *josetest.Signer) func(string) error {
	set, err := jwkv3.Parse(josetest.Set(key.JWK(josetest.JSON{"alg": "RS256"})))
	if err != nil {
		t.Fatal(err)
	}
	return func(token string) error {
		_, err := jwtv3.Parse([]byte(token), jwtv3.WithKeySet(set), jwtv3.WithIssuer(issuer), jwtv3.WithAudience(audience))
		return err
	}
}

func jwxV2(t testing.TB, key *josetest.Signer) func(string) error {
	set, err := jwkv2.Parse(josetest.Set(key.JWK(josetest.JSON{"alg": "RS256"})))
	if err != nil {
		t.Fatal(err)
	}
	return func(token string) error {
		_, err := jwtv2.Parse([]byte(token), jwtv2.WithKeySet(set), jwtv2.WithIssuer(issuer), jwtv2.WithAudience(audience))
		return err
	}
}

// accessToken has about 900 bytes, like the tokens of many IdPs.
func accessToken(key *josetest.Signer, ends time.Time) string {
	return key.Token(key.Header(), josetest.JSON{
		"iss": issuer, "sub": "alice", "aud": audience, "exp": ends.Unix(), "iat": time.Now().Unix(), "jti": "id-1",
		"client_id": "app", "scope": "read write", "pad": strings.Repeat("x", 190),
	})
}

func TestVerifiersAcceptTheTokenAndRefuseOthers(t *testing.T) {
	key, other := josetest.New(t, "RS256", "k"), josetest.New(t, "RS256", "k")
	good := accessToken(key, time.Now().Add(time.Hour))
	forged, expired := accessToken(other, time.Now().Add(time.Hour)), accessToken(key, time.Now().Add(-time.Hour))
	for _, v := range verifiers(t, key) {
		if err := v.do(good); err != nil {
			t.Errorf("%s refuses a good token: %v", v.name, err)
		}
		if v.do(forged) == nil {
			t.Errorf("%s accepts a forged token", v.name)
		}
		if v.name != "bare" && v.do(expired) == nil {
			t.Errorf("%s accepts an expired token", v.name)
		}
	}
}

// sources returns caches that hold a token: the least work first, then this project's, then
// x/oauth2.
func sources(t testing.TB) []peer {
	held, until := "token", time.Now().Add(time.Hour)
	source := brokertest.New(t).Client().TokenSource("orders-api")
	if _, err := source.Token(t.Context()); err != nil {
		t.Fatal(err)
	}
	ours := source.OAuth2()
	reused := oauth2.ReuseTokenSource(nil, oauth2.StaticTokenSource(&oauth2.Token{AccessToken: held, Expiry: until}))
	of := func(source oauth2.TokenSource) func(string) error {
		return func(string) error {
			_, err := source.Token()
			return err
		}
	}
	ctx := t.Context()
	return []peer{
		{"floor", func(string) error {
			if held == "" || !time.Now().Before(until) {
				return errors.New("no token is held")
			}
			return nil
		}},
		{"tokenbroker-Source", func(string) error { _, err := source.Token(ctx); return err }},
		{"tokenbroker-OAuth2", of(ours)},
		{"x/oauth2-ReuseTokenSource", of(reused)},
	}
}

func BenchmarkVerify(b *testing.B) {
	key := josetest.New(b, "RS256", "k")
	compare(b, verifiers(b, key), accessToken(key, time.Now().Add(20*time.Hour)), 200)
}

func BenchmarkHeldToken(b *testing.B) { compare(b, sources(b), "", 20_000) }

// compare runs the peers in batches of some milliseconds in random order, so that other
// work of the machine disturbs all of them alike. It reports the medians of the CPU time
// of a call, the ratio to the first peer, and the allocations.
func compare(b *testing.B, peers []peer, token string, batch int) {
	if b.N == 1 {
		return // the benchmark's own first attempt
	}
	cpu := make([][]float64, len(peers))
	for range b.N {
		for _, i := range rand.Perm(len(peers)) {
			start := cpuTime(b)
			for range batch {
				if err := peers[i].do(token); err != nil {
					b.Fatalf("%s: %v", peers[i].name, err)
				}
			}
			cpu[i] = append(cpu[i], float64((cpuTime(b)-start).Nanoseconds())/float64(batch))
		}
	}
	b.ReportMetric(0, "ns/op")
	first := median(cpu[0])
	fmt.Println()
	for i, p := range peers {
		allocations := testing.AllocsPerRun(10, func() { _ = p.do(token) })
		fmt.Printf("%-26s %9.0f ns  %5.2f x  %4.0f allocations\n", p.name, median(cpu[i]), median(cpu[i])/first, allocations)
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// cpuTime returns the CPU time that the process has used. The garbage of a batch counts.
func cpuTime(b *testing.B) time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
