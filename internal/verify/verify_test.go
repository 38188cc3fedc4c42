package verify_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

func TestFactsOfAGoodToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "ES256", "k")
		web := new(site)
		web.set(respond(http.StatusOK, josetest.Set(key.JWK()), http.Header{"Cache-Control": {"max-age=900"}}))
		v := load(t, newVerifier(t, web, configOf(issuerA)))
		now := time.Now().Truncate(time.Second)
		payload := fmt.Sprintf(`{ "iss":%q,"sub":"al\u0069ce","aud":["other",%q],"exp":%d.9,"nbf":%d,"iat":%d,"jti":"id-1","azp":"app",
			"scope":"read write","cnf":{"jkt":"dpop","x5t#S256":"mtls"},"act":{"sub":"bob"},"email":"eve@example.com"}`,
			issuerA, audience, now.Unix()+600, now.Unix()-60, now.Unix())
		result, err := v.Verify(t.Context(), redact.New(key.Token(key.Header(), payload)), verify.Request{Scopes: []string{"write"}})
		if err != nil || result.Rejection != nil {
			t.Fatal(result.Rejection, err)
		}
		want := &verify.Facts{
			Issuer: issuerA, Subject: "alice", SubjectType: verify.SubjectSub, ClientID: "app", Audience: []string{"other", audience}, Scopes: []string{"read", "write"},
			IssuedAt: now, NotBefore: now.Add(-time.Minute), ExpiresAt: now.Add(10 * time.Minute), TokenID: "id-1",
			Confirmation: &verify.Confirmation{JKT: "dpop", X5TS256: "mtls"}, Claims: []byte(payload),
		}
		if diff := cmp.Diff(want, result.Facts, cmpopts.IgnoreUnexported(verify.Facts{})); diff != "" {
			t.Error(diff)
		}
		if got := result.ValidUntil.Sub(now); got != 5*time.Minute {
			t.Errorf("valid for %v, want 5 min", got)
		}
	})
}

func TestClientIDClaims(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	for want, with := range map[string]jsonObject{
		"client": {"client_id": "client", "azp": "party", "cid": "c", "appid": "a"}, "party": {"client_id": nil, "azp": "party", "cid": "c"},
		"okta": {"client_id": nil, "cid": "okta"}, "entra": {"client_id": nil, "cid": 1, "appid": "entra"}, "": {"client_id": nil, "appid": []string{"x"}},
	} {
		result, err := v.Verify(t.Context(), redact.New(key.Token(key.Header(), claims(with))), verify.Request{})
		if err != nil || result.Facts == nil || result.Facts.ClientID != want || result.Facts.Confirmation != nil {
			t.Errorf("%v: %+v, %v", with, result, err)
		}
	}
}

func TestValidUntil_earliestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		web := serve(josetest.Set(key.JWK()))
		v := newVerifier(t, web, configOf(issuerA))
		run(t, v)
		synctest.Wait()
		start := time.Now()
		validFor := func(life time.Duration) time.Duration {
			t.Helper()
			token := key.Token(key.Header(), claims(jsonObject{"exp": time.Now().Add(life).Unix()}))
			result, err := v.Verify(t.Context(), redact.New(token), verify.Request{})
			if err != nil || result.Facts == nil {
				t.Fatalf("%+v, %v", result, err)
			}
			return time.Until(result.ValidUntil)
		}
		if got := validFor(time.Minute); got != time.Minute {
			t.Errorf("a token that expires in 1 min: %v", got)
		}
		if got := validFor(-10 * time.Second); got != -10*time.Second {
			t.Errorf("a token that expired 10 s ago, within the leeway: %v", got)
		}
		// The next fetch is due 5 min after the first, less a tenth at most, and
		// takes 5 s at most.
		time.Sleep(2 * time.Minute)
		if got, most := validFor(time.Hour), 3*time.Minute+5*time.Second; got > most || got < most-30*time.Second {
			t.Errorf("2 min after the keys were fetched: %v", got)
		}
		web.set(respond(http.StatusServiceUnavailable, nil, nil))
		time.Sleep(10 * time.Minute)
		if got := validFor(time.Hour); got > 0 {
			t.Errorf("while the keys cannot be fetched, %v after they were: %v", time.Since(start), got)
		}
	})
}

// A cached result must not outlive the token's maximum age.
func TestValidUntil_maxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		c := configOf(issuerA)
		c.MaxAge = 2 * time.Minute
		v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), c))
		token := redact.New(key.Token(key.Header(), claims()))
		for _, age := range []time.Duration{0, time.Minute, 2*time.Minute + 20*time.Second} { // the last within the leeway
			time.Sleep(age - time.Since(time.Unix(946684800, 0))) // when the test began
			result, err := v.Verify(t.Context(), token, verify.Request{})
			if err != nil || result.Facts == nil {
				t.Fatalf("%v old: %+v, %v", age, result, err)
			}
			if got := time.Until(result.ValidUntil); got != c.MaxAge-age {
				t.Errorf("%v old: valid for %v", age, got)
			}
		}
	})
}

// Tokens from another library, with every algorithm.
func TestTokensOfAnIndependentMinter(t *testing.T) {
	methods := map[string]jwt.SigningMethod{
		"RS256": jwt.SigningMethodRS256, "RS384": jwt.SigningMethodRS384, "RS512": jwt.SigningMethodRS512,
		"ES256": jwt.SigningMethodES256, "ES384": jwt.SigningMethodES384, "ES512": jwt.SigningMethodES512, "EdDSA": jwt.SigningMethodEdDSA,
	}
	// By default that library uses the longest possible salt, which RFC 7518 section 3.5
	// forbids.
	for name, method := range map[string]*jwt.SigningMethodRSAPSS{
		"PS256": jwt.SigningMethodPS256, "PS384": jwt.SigningMethodPS384, "PS512": jwt.SigningMethodPS512,
	} {
		options := *method.Options
		options.SaltLength = method.Hash.Size()
		methods[name] = &jwt.SigningMethodRSAPSS{SigningMethodRSA: method.SigningMethodRSA, Options: &options}
	}
	var keys []jsonObject
	tokens := map[string]string{}
	for name, method := range methods {
		signer := josetest.New(t, name, name)
		keys = append(keys, signer.JWK(jsonObject{"alg": name}))
		token := jwt.NewWithClaims(method, jwt.MapClaims(claims()))
		token.Header["kid"], token.Header["typ"] = name, "at+jwt"
		signed, err := token.SignedString(signer.Private)
		if err != nil {
			t.Fatal(err)
		}
		tokens[name] = signed
	}
	v := load(t, newVerifier(t, serve(josetest.Set(keys...)), configOf(issuerA)))
	for name, token := range tokens {
		if got := outcome(t, v, token, verify.Request{}); got != "active" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if len(tokens) != len(jose.Algorithms())-1 { // that library does not know Ed25519 by this name
		t.Errorf("%d algorithms were tested", len(tokens))
	}
}

// I6: each change of one byte makes an accepted token invalid.
func TestEveryMutationOfATokenIsRejected(t *testing.T) {
	early := []string{"malformed", "unsupported", "unknown_issuer", "algorithm_not_allowed", "unknown_key", "bad_signature"}
	for _, algorithm := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		synctest.Test(t, func(t *testing.T) {
			key := josetest.New(t, algorithm, "k")
			v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
			token := key.Token(key.Header(), claims())
			if got := outcome(t, v, token, verify.Request{}); got != "active" {
				t.Fatal(got)
			}
			seen := map[string]int{}
			for i := range len(token) {
				for _, mutant := range mutants(token, i) {
					got := outcome(t, v, mutant, verify.Request{})
					if seen[got]++; !slices.Contains(early, got) {
						t.Fatalf("%s: changed at %d: %s", algorithm, i, got)
					}
				}
			}
			if seen["bad_signature"] < 200 || seen["malformed"] < 200 {
				t.Errorf("%s: %v", algorithm, seen)
			}
		})
	}
}

func mutants(token string, i int) []string {
	all := []string{
		token[:i] + string(token[i]^1) + token[i+1:], token[:i] + "A" + token[i+1:], token[:i] + token[i+1:], token[:i], token[:i] + "\n" + token[i:],
	}
	return slices.DeleteFunc(all, func(mutant string) bool { return mutant == token })
}

func TestRejections_quoteNothingBeforeTheSignature(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const canary = "canary7f3a"
		key, other := josetest.New(t, "EdDSA", "k"), josetest.New(t, "EdDSA", "k")
		v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
		for want, token := range map[string]string{
			"malformed":             canary,
			"unsupported":           key.Token(key.Header(jsonObject{"crit": []string{canary}}), claims()),
			"unknown_issuer":        key.Token(key.Header(), claims(jsonObject{"iss": canary})),
			"algorithm_not_allowed": key.Token(key.Header(jsonObject{"alg": canary}), claims()),
			"unknown_key":           key.Token(key.Header(jsonObject{"kid": canary}), claims()),
			// D18: with any other defect.
			"bad_signature": other.Token(key.Header(jsonObject{"typ": canary}), claims(jsonObject{"exp": 1, "aud": canary, "sub": 1, "scope": canary})),
		} {
			result, err := v.Verify(t.Context(), redact.New(token), verify.Request{Scopes: []string{"x"}})
			if got := word(t, result, err); got != want {
				t.Errorf("%s, want %s", got, want)
			} else if strings.Contains(result.Rejection.Message, canary) {
				t.Errorf("%s: %s", want, result.Rejection.Message)
			}
		}
	})
}

func TestMessagesAreSentencesOfBoundedLength(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	long := slices.Repeat([]string{strings.Repeat("ä\u202e", 250)}, 5)
	for name, token := range map[string]string{
		"a bad form":         "x",
		"a bad header":       key.Token(`{"alg":1}`, claims()),
		"a bad payload":      key.Token(key.Header(), `[]`),
		"a bad claim":        key.Token(key.Header(), claims(jsonObject{"exp": "soon"})),
		"many long audience": key.Token(key.Header(), claims(jsonObject{"aud": long})),
		"a long type":        key.Token(key.Header(jsonObject{"typ": strings.Repeat("ä", 300)}), claims()),
		"an old token":       key.Token(key.Header(), claims(jsonObject{"exp": 1})),
	} {
		result, err := v.Verify(t.Context(), redact.New(token), verify.Request{})
		if err != nil || result.Rejection == nil {
			t.Errorf("%s: %+v, %v", name, result, err)
			continue
		}
		message := result.Rejection.Message
		if !strings.HasPrefix(message, "The token") || !strings.HasSuffix(message, ".") || len(message) > 1200 || strings.Contains(message, "\u202e") {
			t.Errorf("%s: %s", name, message)
		}
	}
}

func TestNamesOfReasons(t *testing.T) {
	seen := map[string]bool{}
	for reason := verify.Malformed; reason <= verify.InsufficientScope; reason++ {
		name := reason.String()
		if seen[name] || name == "unspecified" || name != strings.ToLower(name) {
			t.Errorf("%d: %q", reason, name)
		}
		seen[name] = true
	}
	if verify.Reason(0).String() != "unspecified" || verify.Reason(-1).String() != "unspecified" || verify.Reason(99).String() != "unspecified" {
		t.Error("reasons that are not there have names")
	}
}

// D25.
func TestNewRefusesBadConfigurations(t *testing.T) {
	good := configOf(issuerA)
	for name, change := range map[string]func(*verify.IssuerConfig){
		"no issuer":                    func(c *verify.IssuerConfig) { c.Issuer = "" },
		"a template":                   func(c *verify.IssuerConfig) { c.Issuer = "https://login.example/{tenantid}/v2.0" },
		"no audience":                  func(c *verify.IssuerConfig) { c.Audiences = nil },
		"an empty audience":            func(c *verify.IssuerConfig) { c.Audiences = []string{audience, ""} },
		"algorithm none":               func(c *verify.IssuerConfig) { c.Algorithms = []string{"RS256", "none"} },
		"algorithm HS256":              func(c *verify.IssuerConfig) { c.Algorithms = []string{"HS256"} },
		"algorithm rs256":              func(c *verify.IssuerConfig) { c.Algorithms = []string{"rs256"} },
		"an empty type":                func(c *verify.IssuerConfig) { c.Types = []string{""} },
		"a scope claim without a name": func(c *verify.IssuerConfig) { c.ScopeClaim = []string{"roles", ""} },
		"a scope claim too deep":       func(c *verify.IssuerConfig) { c.ScopeClaim = []string{"a", "b", "c", "d", "e"} },
		"a leeway of 61 s":             func(c *verify.IssuerConfig) { c.Leeway = 61 * time.Second },
		"a negative lifetime":          func(c *verify.IssuerConfig) { c.MaxLifetime = -1 },
		"a negative age":               func(c *verify.IssuerConfig) { c.MaxAge = -1 },
		"refresh every 59 s":           func(c *verify.IssuerConfig) { c.Keys.RefreshInterval = 59 * time.Second },
		"refresh every 16 min":         func(c *verify.IssuerConfig) { c.Keys.RefreshInterval = 16 * time.Minute },
		"staleness under the interval": func(c *verify.IssuerConfig) { c.Keys.MaxStale = 4 * time.Minute },
		"staleness over a day":         func(c *verify.IssuerConfig) { c.Keys.MaxStale = 25 * time.Hour },
		"http":                         func(c *verify.IssuerConfig) { c.Keys.URL = "http://a.example/jwks" },
		"no URL":                       func(c *verify.IssuerConfig) { c.Keys.URL = "jwks.json" },
		"a URL and a file":             func(c *verify.IssuerConfig) { c.Keys.File = "jwks.json" },
		"no place for the keys":        func(c *verify.IssuerConfig) { c.Keys.URL = "" },
	} {
		bad := good
		change(&bad)
		if _, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{bad}}, nil); err == nil || !strings.HasPrefix(err.Error(), "issuer ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{good, configOf(issuerB), good}}, nil); err == nil {
		t.Error("an issuer was accepted twice")
	}
	allowed := good
	allowed.Keys.URL, allowed.Keys.AllowHTTP = "http://a.example/jwks", true
	if _, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{allowed}}, nil); err != nil {
		t.Errorf("http that is allowed: %v", err)
	}
}

func TestDefaults(t *testing.T) {
	rs, ps := josetest.New(t, "RS256", "rs"), josetest.New(t, "PS256", "ps")
	v := load(t, newVerifier(t, serve(josetest.Set(rs.JWK(), ps.JWK())), verify.IssuerConfig{
		Issuer: issuerA, Keys: jwks.Config{URL: issuerA + "/jwks"}, Audiences: []string{audience},
	}))
	for name, tt := range map[string]struct{ token, want string }{
		"RS256 and at+jwt": {rs.Token(rs.Header(), claims()), "active"},
		"PS256":            {ps.Token(ps.Header(), claims()), "algorithm_not_allowed"},
		"typ JWT":          {rs.Token(rs.Header(jsonObject{"typ": "JWT"}), claims()), "wrong_type"},
		"no typ":           {rs.Token(rs.Header(jsonObject{"typ": nil}), claims()), "wrong_type"},
		"lifetime 24 h":    {rs.Token(rs.Header(), claims(jsonObject{"exp": time.Now().Unix() + 24*3600 - 1})), "active"},
		"lifetime 25 h":    {rs.Token(rs.Header(), claims(jsonObject{"exp": time.Now().Unix() + 25*3600})), "lifetime_too_long"},
	} {
		if got := outcome(t, v, tt.token, verify.Request{}); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

func TestVerifierWithoutIssuersKnowsNone(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	v := newVerifier(t, nil)
	if got := outcome(t, v, key.Token(key.Header(), claims()), verify.Request{}); got != "unknown_issuer" {
		t.Error(got)
	}
	if err := v.Refresh(t.Context(), issuerA); err == nil {
		t.Error("the keys of an issuer that is not configured were fetched")
	}
	v.Run(t.Context()) // has nothing to do
}

func TestKeysAreFoundByDiscovery(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	metadata := func(jwksURI string) []byte {
		return josetest.Marshal(jsonObject{"issuer": issuerA, "jwks_uri": jwksURI})
	}
	web := sites{"a.example": serve(metadata("https://keys.example/jwks")), "keys.example": serve(josetest.Set(key.JWK()))}
	find := func() *verify.Verifier {
		client := discovery.NewHTTPClient(web)
		c := configOf(issuerA)
		c.Keys.URL, c.Keys.Discovery = "", discovery.New(discovery.Config{Issuer: issuerA, HTTP: client})
		return newVerifier(t, web, c)
	}
	if got := outcome(t, load(t, find()), key.Token(key.Header(), claims()), verify.Request{}); got != "active" {
		t.Error(got)
	}
	for name, jwksURI := range map[string]string{"none": "", "http": "http://keys.example/jwks"} {
		web["a.example"] = serve(metadata(jwksURI))
		if err := find().Refresh(t.Context(), issuerA); err == nil {
			t.Errorf("a jwks_uri that is %s is accepted", name)
		}
	}
}

// An issuer with introspection may have no keys. That is no failure, and a JWT in its name is
// forged.
func TestOpaque_issuerWithoutKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		metadata := func(jwksURI string) []byte {
			return josetest.Marshal(jsonObject{"issuer": issuerA, "jwks_uri": jwksURI})
		}
		a := serve(metadata(""))
		web := sites{"a.example": a, "keys.example": serve(josetest.Set(key.JWK()))}
		configure := func() verify.IssuerConfig {
			c := configOf(issuerA)
			c.Keys.URL, c.Keys.Discovery = "", discovery.New(discovery.Config{Issuer: issuerA, HTTP: discovery.NewHTTPClient(web)})
			return c
		}
		c := configure()
		c.Introspection = &verify.Introspection{Endpoint: saying(func() []byte { return members() })}
		v := newVerifier(t, web, c)
		run(t, v)
		synctest.Wait()
		if got := outcome(t, v, "opaque", verify.Request{}); got != "active" {
			t.Errorf("an opaque token: %s", got)
		}
		signed := forever(key, issuerA)
		if got := outcome(t, v, signed, verify.Request{}); got != "unknown_key" {
			t.Errorf("a JWT: %s", got)
		}
		time.Sleep(50 * time.Minute)
		if status := v.Status()[0]; status.Err != nil || a.fetches() != 1 {
			t.Errorf("after 50 min: %v, %d requests", status.Err, a.fetches())
		}
		a.set(respond(http.StatusOK, metadata("https://keys.example/jwks"), nil))
		time.Sleep(20 * time.Minute)
		if got := outcome(t, v, signed, verify.Request{}); got != "active" {
			t.Errorf("a JWT, once there are keys: %s", got)
		}
		a.set(respond(http.StatusOK, metadata(""), nil)) // keys are not taken away by that
		time.Sleep(70 * time.Minute)
		if status := v.Status()[0]; status.Err == nil || status.Keys != 1 {
			t.Errorf("when the keys are not named any more: %+v", status)
		}
		if err := newVerifier(t, web, configure()).Refresh(t.Context(), issuerA); err == nil {
			t.Error("an issuer without introspection and without keys is no error")
		}
	})
}

func TestFetch_boundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		metadata := josetest.Marshal(jsonObject{"issuer": issuerA, "jwks_uri": "https://keys.example/jwks"})
		web := sites{"a.example": new(site), "keys.example": new(site)}
		web["a.example"].set(after(4*time.Second, respond(http.StatusOK, metadata, nil)))
		web["keys.example"].set(after(4*time.Second, respond(http.StatusOK, josetest.Set(key.JWK()), nil)))
		c := configOf(issuerA)
		c.Keys.URL, c.Keys.Discovery = "", discovery.New(discovery.Config{Issuer: issuerA, HTTP: discovery.NewHTTPClient(web)})
		v := newVerifier(t, web, c)
		start := time.Now()
		if err := v.Refresh(t.Context(), issuerA); err == nil || time.Since(start) != 5*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		if err := v.Refresh(t.Context(), issuerA); err != nil { // the metadata is known now
			t.Error(err)
		}
	})
}

// I9 D11: concurrent callers with different requests get different results.
func TestEachCallIsJudgedByItself(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	token := key.Token(key.Header(), claims(jsonObject{"aud": []string{audience, "x"}}))
	for _, tt := range []struct {
		req  verify.Request
		want string
	}{
		{verify.Request{}, "active"},
		{verify.Request{Audience: []string{"x"}, Scopes: []string{"write", "read", "read"}, Issuer: issuerA}, "active"},
		{verify.Request{Audience: []string{"y"}}, "wrong_audience"},
		{verify.Request{Scopes: []string{"read", "admin"}}, "insufficient_scope"},
		{verify.Request{Scopes: []string{"read write"}}, "insufficient_scope"},
		{verify.Request{Issuer: issuerB}, "unknown_issuer"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			for range 50 {
				if got := outcome(t, v, token, tt.req); got != tt.want {
					t.Errorf("%+v: %s, want %s", tt.req, got, tt.want)
				}
			}
		})
	}
}

func TestClaimsAreThePayloadByteForByte(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	payload := bytes.Replace(josetest.Marshal(claims()), []byte("{"), []byte(`{ "big":12345678901234567890.10, "esc":"\u003c\/" , `), 1)
	result, err := v.Verify(t.Context(), redact.New(key.Token(key.Header(), string(payload))), verify.Request{})
	if err != nil || result.Facts == nil || !bytes.Equal(result.Facts.Claims, payload) || !json.Valid(result.Facts.Claims) {
		t.Errorf("%+v, %v", result, err)
	}
}

// B4: the URL of a key in a header changes nothing, and no request is sent to it.
func TestHeader_keyURLsAreIgnored(t *testing.T) {
	key, stranger := josetest.New(t, "ES256", "k"), josetest.New(t, "ES256", "k")
	web := serve(josetest.Set(key.JWK()))
	v := load(t, newVerifier(t, web, configOf(issuerA)))
	before := web.fetches()
	certificate := jsonObject{"x5c": []string{strings.Repeat("A", 400)}}
	for _, header := range []jsonObject{
		{"jku": issuerA + "/other"}, {"x5u": "https://evil.example/x5u"}, {"jku": "http://169.254.169.254/", "x5u": ""}, {"jku": "no URL"},
		certificate, {"x5t": "AAAA", "x5t#S256": "AAAA"},
	} {
		if got := outcome(t, v, key.Token(key.Header(header), claims()), verify.Request{}); got != "active" {
			t.Errorf("%v over a good signature: %s", header, got)
		}
		want := "bad_signature"
		if header["jku"] != nil || header["x5u"] != nil {
			want = "unsupported"
		}
		if got := outcome(t, v, stranger.Token(stranger.Header(header), claims()), verify.Request{}); got != want {
			t.Errorf("%v over another key's signature: %s, want %s", header, got, want)
		}
		unknown := stranger.As("ES256", "unknown")
		if got := outcome(t, v, unknown.Token(unknown.Header(header), claims()), verify.Request{}); got != "unknown_key" {
			t.Errorf("%v and an unknown kid: %s", header, got)
		}
	}
	for _, header := range []jsonObject{{"jwk": stranger.JWK()}, {"jwk": key.JWK(), "jku": "https://a.example"}, {"crit": []string{"jku"}, "jku": "https://a.example"}} {
		if got := outcome(t, v, key.Token(key.Header(header), claims()), verify.Request{}); got != "unsupported" {
			t.Errorf("%v: %s", header, got)
		}
	}
	if web.fetches() != before {
		t.Errorf("requests: %v", web.urls)
	}
	// A chain of certificates does not fit the bound of the header.
	if got := outcome(t, v, key.Token(key.Header(jsonObject{"x5c": []string{strings.Repeat("A", 1200)}}), claims()), verify.Request{}); got != "malformed" {
		t.Errorf("a certificate of 1,200 bytes: %s", got)
	}
}

// A null member counts as absent if no check depends on it, and never marks an access
// token.
func TestNullClaims(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	strict, lenient := configOf(issuerA), configOf(issuerA)
	strict.Types = []string{"at+jwt", "JWT"}
	lenient.Types, lenient.AllowNullClaims = strict.Types, true
	set := serve(josetest.Set(key.JWK()))
	byDefault, allowing := load(t, newVerifier(t, set, strict)), load(t, newVerifier(t, set, lenient))
	null := json.RawMessage("null")
	for _, tt := range []struct {
		claim, strict, lenient string
		others                 jsonObject
	}{
		{"client_id", "active", "active", nil},
		{"azp", "active", "active", nil},
		{"jti", "active", "active", nil},
		{"iat", "active", "active", nil},
		{"cid", "active", "active", nil},
		{"vendor", "active", "active", nil},
		{"nbf", "bad_claims", "active", nil},
		{"scope", "bad_claims", "active", nil},
		{"exp", "bad_claims", "bad_claims", nil},
		{"sub", "bad_claims", "bad_claims", nil},
		{"sub", "bad_claims", "bad_claims", jsonObject{"client_id": "app"}},
		{"aud", "bad_claims", "bad_claims", nil},
		{"iss", "unknown_issuer", "unknown_issuer", nil},
		{"cnf", "bad_claims", "bad_claims", nil},
		{"at_hash", "wrong_type", "wrong_type", nil},
		{"c_hash", "wrong_type", "wrong_type", nil},
		{"events", "wrong_type", "wrong_type", nil},
		{"htm", "wrong_type", "wrong_type", nil},
		{"token_use", "wrong_type", "wrong_type", nil},
		// Nothing else marks an access token.
		{"client_id", "wrong_type", "wrong_type", jsonObject{"scope": nil}},
		{"cid", "wrong_type", "wrong_type", jsonObject{"scope": nil, "client_id": nil}},
		{"gty", "wrong_type", "wrong_type", jsonObject{"scope": nil, "client_id": nil}},
		{"scope", "bad_claims", "wrong_type", jsonObject{"client_id": nil}},
	} {
		token := key.Token(key.Header(jsonObject{"typ": "JWT"}), claims(tt.others, jsonObject{tt.claim: null}))
		if got := outcome(t, byDefault, token, verify.Request{}); got != tt.strict {
			t.Errorf("%s null, %v: %s, want %s", tt.claim, tt.others, got, tt.strict)
		}
		if got := outcome(t, allowing, token, verify.Request{}); got != tt.lenient {
			t.Errorf("%s null, %v, where it is allowed: %s, want %s", tt.claim, tt.others, got, tt.lenient)
		}
	}
	token := key.Token(key.Header(), claims(jsonObject{"scope": null}))
	if got := outcome(t, allowing, token, verify.Request{Scopes: []string{"read"}}); got != "insufficient_scope" {
		t.Errorf("a null scope where one is needed: %s", got)
	}
	token = key.Token(key.Header(), claims(jsonObject{"cnf": json.RawMessage(`{"jkt":null}`)}))
	if got := outcome(t, allowing, token, verify.Request{}); got != "bad_claims" {
		t.Errorf("a null thumbprint: %s", got)
	}
}

// Issuers are compared byte by byte, even if they are no URLs.
func TestIssuersThatAreNoURLs(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	for _, identifier := range []string{"http://adfs.corp.example/adfs/services/trust", "urn:example:issuer", "orders@shop.example"} {
		c := configOf(issuerA)
		c.Issuer = identifier
		v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), c))
		for iss, want := range map[string]string{identifier: "active", identifier + "/": "unknown_issuer", strings.ToUpper(identifier): "unknown_issuer", issuerA: "unknown_issuer"} {
			if got := outcome(t, v, key.Token(key.Header(), claims(jsonObject{"iss": iss})), verify.Request{}); got != want {
				t.Errorf("%s for %s: %s, want %s", iss, identifier, got, want)
			}
		}
	}
}
