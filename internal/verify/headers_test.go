package verify_test

import (
	"fmt"
	"maps"
	"testing"
	"testing/synctest"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// A header that was cached with one token has the same meaning in any other.
func TestHeaderCache_changesNoAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keyA, keyB, ec := josetest.New(t, "EdDSA", "a"), josetest.New(t, "EdDSA", "b"), josetest.New(t, "ES256", "ec")
		a, b := configOf(issuerA), configOf(issuerB)
		b.Algorithms = []string{"ES256"}
		web := sites{"a.example": serve(josetest.Set(keyA.JWK(), ec.JWK())), "b.example": serve(josetest.Set(ec.JWK()))}
		v := load(t, newCached(t, noCache, web, a, b))
		header := func(key *josetest.Signer, more jsonObject) jsonObject {
			all := maps.Clone(key.Header())
			maps.Copy(all, more)
			return all
		}
		jku := jsonObject{"jku": "https://evil.example"}
		forged := func(like, by *josetest.Signer, more jsonObject) string { return by.Token(header(like, more), claims()) }
		for range 3 { // cold, and then with cached headers
			for name, tt := range map[string]struct{ token, want string }{
				"good":                         {keyA.Token(keyA.Header(), claims()), "active"},
				"another key, same header":     {forged(keyA, keyB, nil), "bad_signature"},
				"with the URL of a key":        {keyA.Token(header(keyA, jku), claims()), "active"},
				"the same, another key":        {forged(keyA, keyB, jku), "unsupported"},
				"another type":                 {keyA.Token(header(keyA, jsonObject{"typ": "JWT"}), claims()), "wrong_type"},
				"good for the other issuer":    {ec.Token(ec.Header(), claims(jsonObject{"iss": issuerB})), "active"},
				"an algorithm of another only": {keyA.Token(keyA.Header(), claims(jsonObject{"iss": issuerB})), "algorithm_not_allowed"},
			} {
				if got := outcome(t, v, tt.token, verify.Request{}); got != tt.want {
					t.Errorf("%s: %s, want %s", name, got, tt.want)
				}
			}
		}
	})
}

func TestHeaderCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, unknown := josetest.New(t, "EdDSA", "k"), josetest.New(t, "EdDSA", "k")
		v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
		present := func(by *josetest.Signer, n int, want string) {
			header := maps.Clone(by.Header())
			header["n"] = n
			if got := outcome(t, v, by.Token(header, claims(jsonObject{"sub": fmt.Sprint(n)})), verify.Request{}); got != want {
				t.Fatalf("%d: %s, want %s", n, got, want)
			}
		}
		for n := range 100 {
			present(unknown, n, "bad_signature")
		}
		if n := v.CachedHeaders(); n != 0 {
			t.Errorf("%d headers of tokens with bad signatures are cached", n)
		}
		for n := range 1000 {
			present(key, n, "active")
			if n := v.CachedHeaders(); n == 0 || n > 64 {
				t.Fatalf("%d headers are cached", n)
			}
		}
	})
}
