package verify_test

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// relaxation is a setting of an issuer that accepts more than the defaults do, and the
// attacks of the catalogue that have another result with it.
type relaxation struct {
	set     func(*verify.IssuerConfig)
	changes map[string]string
	// callers are the changes for tokens that identify callers.
	callers map[string]string
}

func relaxations() map[string]relaxation {
	noAud, noSub := map[string]string{"C4 no aud": "active"}, map[string]string{"C9 no sub": "active"}
	atHash, bare := map[string]string{"B11 ID token with at_hash and scope": "active"}, map[string]string{"B11 ID token": "active"}
	return map[string]relaxation{
		"a value for a missing aud": {func(c *verify.IssuerConfig) { c.MissingAudience.Value = audience }, noAud, nil},
		"a claim for a missing aud": {func(c *verify.IssuerConfig) {
			c.MissingAudience.Claim, c.Audiences = "client_id", append(c.Audiences, "app")
		}, noAud, nil},
		"client_id for a missing sub": {func(c *verify.IssuerConfig) { c.MissingSubject = true }, noSub, noSub},
		"other marks of ID tokens":    {func(c *verify.IssuerConfig) { c.IDTokenClaims = []string{"c_hash"} }, atHash, atHash},
		"more marks of access tokens": {func(c *verify.IssuerConfig) {
			c.AccessTokenClaims = append(verify.DefaultAccessTokenClaims(), "nonce")
		}, bare, bare},
	}
}

// Each relaxation changes the result of those attacks that it names, and of no other.
func TestEachRelaxationChangesOnlyWhatItNames(t *testing.T) {
	all := relaxation{func(c *verify.IssuerConfig) {
		for _, one := range relaxations() {
			one.set(c)
		}
		c.MissingAudience.Claim = "" // the value is set
	}, map[string]string{}, map[string]string{}}
	cases := relaxations()
	for _, one := range relaxations() {
		maps.Copy(all.changes, one.changes)
		maps.Copy(all.callers, one.callers)
	}
	cases["all together"] = all
	for name, r := range cases {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, r.set)
				for _, a := range w.attacks(t) {
					for _, fromCaller := range []bool{false, true} {
						want, changes := a.want, r.changes
						if fromCaller {
							changes = r.callers
						}
						if changed, ok := changes[a.name]; ok {
							want = changed
						}
						if got := outcome(t, w.v, a.token, verify.Request{Scopes: scopesOf(a), Caller: fromCaller}); got != want {
							t.Errorf("%s (from a caller: %v): %s, want %s", a.name, fromCaller, got, want)
						}
					}
				}
			})
		})
	}
}

// accepted verifies a token with these claims, as a JWT of issuer A and as an opaque
// token of it, and returns the facts of both.
func accepted(t *testing.T, set func(*verify.IssuerConfig), with jsonObject, req verify.Request) (jwt, opaque verify.Result) {
	t.Helper()
	key := josetest.New(t, "EdDSA", "k")
	c := configOf(issuerA)
	c.Types = []string{"at+jwt", "JWT"}
	c.Introspection = &verify.Introspection{Endpoint: saying(func() []byte { return members(with) })}
	set(&c)
	v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), c))
	var results [2]verify.Result
	for i, token := range []string{key.Token(key.Header(jsonObject{"typ": nil}), claims(with)), "opaque"} {
		result, err := v.Verify(t.Context(), redact.New(token), req)
		if err != nil {
			t.Fatal(err)
		}
		results[i] = result
	}
	return results[0], results[1]
}

func TestMissingAudience(t *testing.T) {
	null := json.RawMessage("null")
	named := func(m verify.MissingAudience) func(*verify.IssuerConfig) {
		return func(c *verify.IssuerConfig) { c.MissingAudience = m }
	}
	client, fixed := named(verify.MissingAudience{Claim: "client_id"}), named(verify.MissingAudience{Value: audience})
	for name, tt := range map[string]struct {
		set   func(*verify.IssuerConfig)
		with  jsonObject
		want  string
		found []string
	}{
		"not configured":                {named(verify.MissingAudience{}), jsonObject{"aud": nil}, "wrong_audience", nil},
		"the claim is the audience":     {client, jsonObject{"aud": nil, "client_id": audience}, "active", []string{audience}},
		"the claim is a list":           {named(verify.MissingAudience{Claim: "resource"}), jsonObject{"aud": nil, "resource": []string{"x", audience}}, "active", []string{"x", audience}},
		"the claim is something else":   {client, jsonObject{"aud": nil}, "wrong_audience", nil},
		"the claim is missing":          {named(verify.MissingAudience{Claim: "resource"}), jsonObject{"aud": nil}, "wrong_audience", nil},
		"the claim is null":             {named(verify.MissingAudience{Claim: "resource"}), jsonObject{"aud": nil, "resource": null}, "wrong_audience", nil},
		"the claim is empty":            {named(verify.MissingAudience{Claim: "resource"}), jsonObject{"aud": nil, "resource": ""}, "bad_claims", nil},
		"the claim is an empty list":    {named(verify.MissingAudience{Claim: "resource"}), jsonObject{"aud": nil, "resource": []string{}}, "bad_claims", nil},
		"the claim is an object":        {named(verify.MissingAudience{Claim: "resource"}), jsonObject{"aud": nil, "resource": jsonObject{}}, "bad_claims", nil},
		"the claim in another case":     {client, jsonObject{"aud": nil, "client_id": nil, "azp": "x", "Client_ID": audience}, "wrong_audience", nil},
		"azp is no client_id":           {client, jsonObject{"aud": nil, "client_id": nil, "azp": audience, "scope": "read"}, "wrong_audience", nil},
		"a value":                       {fixed, jsonObject{"aud": nil}, "active", []string{audience}},
		"a value that is not asked for": {named(verify.MissingAudience{Value: "https://other.example"}), jsonObject{"aud": nil}, "wrong_audience", nil},
		"another aud, and a value":      {fixed, jsonObject{"aud": "https://other.example"}, "wrong_audience", nil},
		"another aud, and the claim":    {client, jsonObject{"aud": "https://other.example", "client_id": audience}, "wrong_audience", nil},
		"aud, and the claim":            {client, jsonObject{}, "active", []string{audience}},
		"an empty aud":                  {fixed, jsonObject{"aud": ""}, "bad_claims", nil},
		"an empty list":                 {fixed, jsonObject{"aud": []string{}}, "bad_claims", nil},
	} {
		t.Run(name, func(t *testing.T) {
			jwt, opaque := accepted(t, tt.set, tt.with, verify.Request{})
			for kind, result := range map[string]verify.Result{"a JWT": jwt, "an opaque token": opaque} {
				if got := word(t, result, nil); got != tt.want || got == "active" && !slices.Equal(result.Facts.Audience, tt.found) {
					t.Errorf("%s: %s, want %s; %+v", kind, got, tt.want, result)
				}
			}
		})
	}
	for _, set := range []func(*verify.IssuerConfig){client, fixed} {
		jwt, opaque := accepted(t, set, jsonObject{"aud": null, "client_id": audience}, verify.Request{})
		if jwt.Facts != nil || opaque.Facts != nil {
			t.Errorf("something stands for an aud of null: %+v %+v", jwt, opaque)
		}
		if jwt, _ := accepted(t, set, jsonObject{"aud": nil, "client_id": audience}, verify.Request{Caller: true}); word(t, jwt, nil) != "wrong_audience" {
			t.Errorf("the JWT of a caller needs no aud: %+v", jwt)
		}
	}
}

func TestMissingSubject(t *testing.T) {
	null := json.RawMessage("null")
	off, on := func(*verify.IssuerConfig) {}, func(c *verify.IssuerConfig) { c.MissingSubject = true }
	for name, tt := range map[string]struct {
		set         func(*verify.IssuerConfig)
		with        jsonObject
		jwt, opaque string // the subject and its type, or the reason of a rejection
	}{
		"not configured":           {off, jsonObject{"sub": nil}, "bad_claims", "client_id app"},
		"client_id":                {on, jsonObject{"sub": nil}, "client_id app", "client_id app"},
		"a sub":                    {on, jsonObject{}, "sub alice", "sub alice"},
		"sub is client_id":         {on, jsonObject{"sub": "app"}, "sub app", "sub app"},
		"an empty sub":             {on, jsonObject{"sub": ""}, "bad_claims", "client_id app"},
		"sub is null":              {on, jsonObject{"sub": null}, "bad_claims", "bad_claims"},
		"sub is a number":          {on, jsonObject{"sub": 1}, "bad_claims", "bad_claims"},
		"no client_id, but azp":    {on, jsonObject{"sub": nil, "client_id": nil, "azp": "app"}, "bad_claims", "bad_claims"},
		"no client_id, but others": {on, jsonObject{"sub": nil, "client_id": nil, "cid": "app", "appid": "app", "username": "app"}, "bad_claims", "bad_claims"},
		"client_id is empty":       {on, jsonObject{"sub": nil, "client_id": ""}, "bad_claims", "bad_claims"},
		"client_id is null":        {on, jsonObject{"sub": nil, "client_id": null}, "bad_claims", "bad_claims"},
	} {
		t.Run(name, func(t *testing.T) {
			jwt, opaque := accepted(t, tt.set, tt.with, verify.Request{})
			if got := subjectOf(t, jwt); got != tt.jwt {
				t.Errorf("a JWT: %s, want %s", got, tt.jwt)
			}
			if got := subjectOf(t, opaque); got != tt.opaque {
				t.Errorf("an opaque token: %s, want %s", got, tt.opaque)
			}
		})
	}
}

func subjectOf(t *testing.T, result verify.Result) string {
	t.Helper()
	if result.Facts == nil {
		return word(t, result, nil)
	}
	return result.Facts.SubjectType.String() + " " + result.Facts.Subject
}

// Tokens of Dex have at_hash and none of the claims that mark access tokens elsewhere.
func TestMarksOfTokens(t *testing.T) {
	null := json.RawMessage("null")
	dex := jsonObject{"client_id": nil, "scope": nil, "at_hash": "h", "email": "a@example.com"}
	with := func(changes jsonObject) jsonObject {
		made := maps.Clone(dex)
		maps.Copy(made, changes)
		return made
	}
	off := func(*verify.IssuerConfig) {}
	on := func(c *verify.IssuerConfig) {
		c.IDTokenClaims, c.AccessTokenClaims = []string{"c_hash"}, []string{"at_hash"}
	}
	stricter := func(c *verify.IssuerConfig) { c.IDTokenClaims = []string{"at_hash", "c_hash", "email"} }
	for name, tt := range map[string]struct {
		set  func(*verify.IssuerConfig)
		with jsonObject
		want string
	}{
		"by default":                 {off, dex, "wrong_type"},
		"as configured for Dex":      {on, dex, "active"},
		"an ID token for a code":     {on, with(jsonObject{"c_hash": "h"}), "wrong_type"},
		"the mark is null":           {on, with(jsonObject{"c_hash": null}), "wrong_type"},
		"no mark of an access token": {on, with(jsonObject{"at_hash": nil}), "wrong_type"},
		"a mark that is not named":   {on, with(jsonObject{"at_hash": nil, "scope": "read"}), "wrong_type"},
		"a logout token":             {on, with(jsonObject{"events": jsonObject{}}), "wrong_type"},
		"a DPoP proof":               {on, with(jsonObject{"htm": "GET"}), "wrong_type"},
		"token_use id":               {on, with(jsonObject{"token_use": "id"}), "wrong_type"},
		"typ Refresh":                {on, with(jsonObject{"typ": "Refresh"}), "wrong_type"},
		"another mark, by default":   {off, jsonObject{"email": "a@example.com"}, "active"},
		"another mark, configured":   {stricter, jsonObject{"email": "a@example.com"}, "wrong_type"},
	} {
		t.Run(name, func(t *testing.T) {
			jwt, opaque := accepted(t, tt.set, tt.with, verify.Request{})
			if got := word(t, jwt, nil); got != tt.want {
				t.Errorf("a JWT: %s, want %s", got, tt.want)
			}
			if got := word(t, opaque, nil); tt.want == "active" && got != "active" {
				t.Errorf("an opaque token: %s", got)
			}
		})
	}
}

// An opaque token is shown to the issuer that the request names, and to no other.
func TestOpaqueTokensOfSeveralIssuers(t *testing.T) {
	var seen []string
	endpoint := func(name string) says {
		return func(_ context.Context, token string) (bool, []byte, error) {
			seen = append(seen, name)
			return true, members(jsonObject{"iss": nil, "sub": name}), nil
		}
	}
	a, b, c := configOf(issuerA), configOf(issuerB), configOf("https://c.example")
	a.Introspection, b.Introspection = &verify.Introspection{Endpoint: endpoint("a")}, &verify.Introspection{Endpoint: endpoint("b")}
	onlyA := map[string][]string{issuerA: nil}
	onlyC := map[string][]string{"https://c.example": nil}
	for name, tt := range map[string]struct {
		token string
		req   verify.Request
		want  string
		asked string
	}{
		"no issuer is named":                 {"opaque", verify.Request{}, "unknown_issuer", ""},
		"the first":                          {"opaque", verify.Request{Issuer: issuerA}, "active", "a"},
		"the second":                         {"opaque", verify.Request{Issuer: issuerB}, "active", "b"},
		"by the listener":                    {"opaque", verify.Request{OpaqueIssuer: issuerB}, "active", "b"},
		"by the request, not the listener":   {"opaque", verify.Request{Issuer: issuerA, OpaqueIssuer: issuerB}, "active", "a"},
		"one without introspection":          {"opaque", verify.Request{Issuer: "https://c.example"}, "unknown_issuer", ""},
		"without, and a listener":            {"opaque", verify.Request{Issuer: "https://c.example", OpaqueIssuer: issuerA}, "unknown_issuer", ""},
		"one that does not exist":            {"opaque", verify.Request{Issuer: "https://d.example"}, "unknown_issuer", ""},
		"one that the caller may not ask":    {"opaque", verify.Request{Issuer: issuerB, Issuers: onlyA}, "unknown_issuer", ""},
		"the caller may ask one of them":     {"opaque", verify.Request{Issuers: onlyA}, "unknown_issuer", ""},
		"the caller may ask none of them":    {"opaque", verify.Request{Issuer: issuerA, Issuers: onlyC}, "malformed", ""},
		"a token that claims to be of A":     {"eyJhbGciOiJkaXIifQ." + josetest.Base64([]byte(`{"iss":"`+issuerA+`"}`)) + ".x.x.x", verify.Request{}, "unknown_issuer", ""},
		"a JWT by form":                      {"eyJhbGciOiJub25lIn0.e30.AA", verify.Request{Issuer: issuerA}, "unknown_issuer", ""},
		"the JWT of a caller":                {"opaque", verify.Request{Issuer: issuerA, FromCaller: true}, "malformed", ""},
		"not made of a token's characters":   {"op aque", verify.Request{Issuer: issuerA}, "malformed", ""},
		"the listener's, which is not had":   {"opaque", verify.Request{OpaqueIssuer: "https://c.example"}, "unknown_issuer", ""},
		"the listener's, without leave":      {"opaque", verify.Request{OpaqueIssuer: issuerB, Issuers: onlyA}, "unknown_issuer", ""},
		"the listener's with a JWT":          {"eyJhbGciOiJub25lIn0.e30.AA", verify.Request{OpaqueIssuer: issuerA}, "unknown_issuer", ""},
		"the issuer with a slash at its end": {"opaque", verify.Request{Issuer: issuerA + "/"}, "unknown_issuer", ""},
	} {
		t.Run(name, func(t *testing.T) {
			seen = nil
			v := newVerifier(t, serve(nil), a, b, c)
			got := outcome(t, v, tt.token, tt.req)
			asked := ""
			for _, name := range seen {
				asked += name
			}
			if got != tt.want || asked != tt.asked {
				t.Errorf("%s, asked %q; want %s, %q", got, asked, tt.want, tt.asked)
			}
		})
	}
}

// The answer of one issuer about a token is not that of another.
func TestOpaqueTokenIsJudgedByEachIssuerAlone(t *testing.T) {
	v := func() *verify.Verifier {
		a, b := configOf(issuerA), configOf(issuerB)
		a.Introspection = &verify.Introspection{Endpoint: saying(func() []byte { return members() })}
		b.Introspection = &verify.Introspection{Endpoint: says(func(context.Context, string) (bool, []byte, error) { return false, nil, nil })}
		return newVerifier(t, serve(nil), a, b)
	}()
	for range 2 {
		for issuer, want := range map[string]string{issuerA: "active", issuerB: "inactive"} {
			if got := outcome(t, v, "opaque", verify.Request{Issuer: issuer}); got != want {
				t.Errorf("%s: %s, want %s", issuer, got, want)
			}
		}
	}
}
