package verify_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// relaxation is a setting of an issuer that accepts more than the defaults do, and the
// attacks of the catalogue that have another result with it.
type relaxation struct {
	// key names the setting, value what it is set to.
	key, value string
	set        func(*verify.IssuerConfig)
	// others are issuers beside A and B.
	others  []verify.IssuerConfig
	changes map[string]string
	// callers are the changes for tokens that identify callers.
	callers map[string]string
}

func (r relaxation) name() string { return r.key + " " + r.value }

// callerResults are the attacks that have another result by default if the token
// identifies a caller: such a token needs no claim that only access tokens have.
func callerResults() map[string]string { return map[string]string{"B11 ID token": "active"} }

func relaxations() []relaxation {
	relax := func(key, value string, set func(*verify.IssuerConfig), changes map[string]string) relaxation {
		return relaxation{key: key, value: value, set: set, changes: changes, callers: changes}
	}
	notForCallers := func(r relaxation) relaxation { r.callers = nil; return r }
	noAud := map[string]string{"C4 no aud": "active"}
	urn := configOf(issuerA)
	urn.Issuer = "urn:example:a"
	return []relaxation{
		relax("audiences", "one more", func(c *verify.IssuerConfig) { c.Audiences = append(c.Audiences, audience+"/") },
			map[string]string{"C4 aud " + audience + "/": "active"}),
		relax("algorithms", "all", func(c *verify.IssuerConfig) { c.Algorithms = jose.Algorithms() }, map[string]string{
			"B3 algorithm of another issuer": "bad_signature", "B18 EdDSA where Ed25519 is allowed only": "active",
			"B18 Ed25519 with a key that says EdDSA, which is not allowed": "active",
		}),
		relax("types", "at+jwt and JWT", func(c *verify.IssuerConfig) { c.Types = []string{"at+jwt", "JWT"} }, map[string]string{
			"B11 typ JWT where at+jwt is asked for": "active", "B11 typ jwt where at+jwt is asked for": "active",
			"B11 typ <nil> where at+jwt is asked for": "active", "B11 typ  where at+jwt is asked for": "active",
		}),
		relax("scope_claim", "roles", func(c *verify.IssuerConfig) { c.ScopeClaim = []string{"roles"} },
			scopesElsewhere("C8 roles where scope is configured")),
		relax("scope_claim", "realm_access.roles", func(c *verify.IssuerConfig) { c.ScopeClaim = []string{"realm_access", "roles"} },
			scopesElsewhere("C8 nested roles where scope is configured")),
		relax("allow_null_claims", "true", func(c *verify.IssuerConfig) { c.AllowNullClaims = true },
			map[string]string{"C1 nbf null": "active", "C8 scope null": "insufficient_scope"}),
		notForCallers(relax("missing_aud", "value", func(c *verify.IssuerConfig) { c.MissingAudience.Value = audience }, noAud)),
		notForCallers(relax("missing_aud", "claim", func(c *verify.IssuerConfig) {
			c.MissingAudience.Claim, c.Audiences = "client_id", append(c.Audiences, "app")
		}, noAud)),
		relax("missing_sub", "client_id", func(c *verify.IssuerConfig) { c.MissingSubject = true }, map[string]string{"C9 no sub": "active"}),
		relax("id_token_claims", "c_hash", func(c *verify.IssuerConfig) { c.IDTokenClaims = []string{"c_hash"} },
			map[string]string{"B11 ID token with at_hash and scope": "active"}),
		notForCallers(relax("access_token_claims", "nonce", func(c *verify.IssuerConfig) {
			c.AccessTokenClaims = append(verify.DefaultAccessTokenClaims(), "nonce")
		}, map[string]string{"B11 ID token": "active"})),
		relax("leeway", "the longest", func(c *verify.IssuerConfig) { c.Leeway = verify.MaxLeeway }, map[string]string{
			"C2 expired beyond the leeway": "active", "C2 nbf beyond the leeway": "active", "C3 iat in the future": "active",
		}),
		relax("max_lifetime", "26 h", func(c *verify.IssuerConfig) { c.MaxLifetime = 26 * time.Hour }, map[string]string{
			"C1 lifetime from iat": "active", "C1 lifetime from now, where there is no iat": "active",
		}),
		relax("max_age", "none", func(c *verify.IssuerConfig) { c.MaxAge = 0 }, map[string]string{
			"C3 iat beyond the maximal age": "active", "C3 no iat where the age is bounded": "active",
		}),
		{
			key: "issuer", value: "that is not a URL", set: func(*verify.IssuerConfig) {}, others: []verify.IssuerConfig{urn},
			changes: map[string]string{"C5 iss urn:example:a": "active"}, callers: map[string]string{"C5 iss urn:example:a": "active"},
		},
	}
}

// scopesElsewhere are the changes if another claim than scope or scp holds the scopes:
// only the attack named found has them there. The others have no scope, whatever scope
// and scp say.
func scopesElsewhere(claim string) map[string]string {
	changes := map[string]string{claim: "active", "C8 scp in a list": "insufficient_scope", "C8 repeated scope": "insufficient_scope", "C8 list whose element has a space": "insufficient_scope"}
	for _, scope := range []string{
		"of all that may be in one", "with two spaces", "with spaces around", "a list with an empty string", "null", "with a tab", "with a line feed", "with a quote",
		"with a backslash", "with a DEL", "with a letter that is not in ASCII", "a number", "a list with a number", "nested", "an object",
	} {
		changes["C8 scope "+scope] = "insufficient_scope"
	}
	return changes
}

// together has the first relaxation of each setting.
func together() relaxation {
	var chosen []relaxation
	all := relaxation{key: "all", value: "together", changes: map[string]string{}, callers: map[string]string{}}
	for _, r := range relaxations() {
		if slices.ContainsFunc(chosen, func(before relaxation) bool { return before.key == r.key }) {
			continue
		}
		chosen = append(chosen, r)
		all.others = append(all.others, r.others...)
		maps.Copy(all.changes, r.changes)
		maps.Copy(all.callers, r.callers)
	}
	all.set = func(c *verify.IssuerConfig) {
		for _, r := range chosen {
			r.set(c)
		}
	}
	return all
}

// Each relaxation changes the result of those attacks that it names, and of no other,
// and only for the issuer that has it.
func TestEachRelaxationChangesOnlyWhatItNames(t *testing.T) {
	cases := append(relaxations(), relaxation{key: "none"}, together())
	wrong := make([][]string, len(cases))
	synctest.Test(t, func(t *testing.T) { // where no time passes, however long it takes
		w := newWorld(t)
		attacks := w.attacks(t)
		issuers := make([]string, len(attacks))
		for i, a := range attacks {
			issuers[i] = issuerOf(a.token)
		}
		for i, r := range cases {
			for _, only := range []string{"", issuerA, issuerB} {
				v := w.verifier(t, func(c *verify.IssuerConfig) {
					if r.set != nil && (only == "" || only == c.Issuer) {
						r.set(c)
					}
				}, r.others...)
				for n, a := range attacks {
					wrong[i] = append(wrong[i], r.judge(t, v, a, issuers[n], only)...)
				}
			}
		}
	})
	for i, r := range cases {
		t.Run(r.name(), func(t *testing.T) {
			for _, line := range wrong[i] {
				t.Error(line)
			}
		})
	}
}

// judge says what is wrong with the results of an attack on an issuer, where the issuer
// only has the relaxation; empty: both have it.
func (r relaxation) judge(t *testing.T, v *verify.Verifier, a attack, issuer, only string) (wrong []string) {
	t.Helper()
	other := slices.ContainsFunc(r.others, func(c verify.IssuerConfig) bool { return c.Issuer == issuer })
	applies := only == "" || only == issuer || other
	for _, fromCaller := range []bool{false, true} {
		want, changes := a.want, r.changes
		if fromCaller {
			changes = r.callers
			want = cmp.Or(callerResults()[a.name], want)
		}
		if changed, ok := changes[a.name]; ok && applies {
			if changed == want {
				wrong = append(wrong, a.name+" is no change")
			}
			want = changed
		}
		if got := outcome(t, v, a.token, verify.Request{Scopes: scopesOf(a), Caller: fromCaller}); got != want {
			wrong = append(wrong, fmt.Sprintf("%s (from a caller: %v, relaxed: %s): %s, want %s", a.name, fromCaller, cmp.Or(only, "both"), got, want))
		}
	}
	return wrong
}

// issuerOf returns the iss claim of a token, or nothing if it cannot be read.
func issuerOf(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, _ := josetest.Decode(parts[1])
	var claims struct{ Iss string }
	_ = json.Unmarshal(payload, &claims)
	return claims.Iss
}

// The changes of a relaxation are attacks of the catalogue, and each setting of an issuer
// that judges tokens is relaxed.
func TestRelaxationsAreComplete(t *testing.T) {
	names := map[string]bool{}
	for _, a := range newWorld(t).attacks(t) {
		names[a.name] = true
	}
	relaxed := map[string]bool{}
	for _, r := range relaxations() {
		for _, changes := range []map[string]string{r.changes, r.callers} {
			for name := range changes {
				if !names[name] {
					t.Errorf("%s: no attack is called %q", r.name(), name)
				}
			}
		}
		before, after := configOf(issuerB), configOf(issuerB)
		before.Algorithms, before.MaxAge = []string{"RS256"}, time.Hour
		after.Algorithms, after.MaxAge = []string{"RS256"}, time.Hour
		r.set(&after)
		for _, field := range reflect.VisibleFields(reflect.TypeFor[verify.IssuerConfig]()) {
			if b, a := reflect.ValueOf(before).FieldByIndex(field.Index), reflect.ValueOf(after).FieldByIndex(field.Index); !reflect.DeepEqual(b.Interface(), a.Interface()) {
				relaxed[field.Name] = true
			}
		}
	}
	// Where keys come from, and introspection, which has a test of its own.
	elsewhere := []string{"Issuer", "Keys", "Introspection"}
	for _, field := range reflect.VisibleFields(reflect.TypeFor[verify.IssuerConfig]()) {
		if relaxed[field.Name] == slices.Contains(elsewhere, field.Name) {
			t.Errorf("the setting %s: relaxed %v", field.Name, relaxed[field.Name])
		}
	}
}

// Of the attacks, introspection sees only tokens that are opaque by their form. An issuer
// that calls all of them active can accept no others.
func TestIntrospectionChangesOnlyTokensThatAreOpaque(t *testing.T) {
	opaque := []string{"A2 JWE of five parts"}
	// These are opaque by their form, too, but no issuer is asked about them, because of
	// their characters. If several could be, that is seen first.
	unspeakable := []string{"A1 flattened JSON serialization", "A1 general JSON serialization", "A1 JSON serialization with dots", "A5 space in front"}
	var wrong []string
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		attacks := w.attacks(t)
		all := &verify.Introspection{Endpoint: saying(func() []byte { return members() })}
		allOfB := &verify.Introspection{Endpoint: saying(func() []byte { return members(jsonObject{"iss": issuerB}) })}
		one := w.verifier(t, func(c *verify.IssuerConfig) {
			if c.Issuer == issuerA {
				c.Introspection = all
			}
		})
		several := w.verifier(t, func(c *verify.IssuerConfig) {
			if c.Introspection = all; c.Issuer == issuerB {
				c.Introspection = allOfB
			}
		})
		for _, a := range attacks {
			check := func(what string, v *verify.Verifier, req verify.Request, want string) {
				req.Scopes = scopesOf(a)
				changes := slices.Contains(opaque, a.name) || want == "unknown_issuer" && slices.Contains(unspeakable, a.name)
				if req.Caller || !changes {
					want = a.want
				}
				if got := outcome(t, v, a.token, req); got != want && (!req.Caller || got != callerResults()[a.name]) {
					wrong = append(wrong, fmt.Sprintf("%s, %s: %s, want %s", a.name, what, got, want))
				}
			}
			check("one issuer", one, verify.Request{}, "active")
			check("one issuer, from a caller", one, verify.Request{Caller: true}, "")
			check("several issuers", several, verify.Request{}, "unknown_issuer")
			check("several issuers, one by the listener", several, verify.Request{OpaqueIssuer: issuerB}, "active")
			check("several issuers, from a caller", several, verify.Request{Caller: true, OpaqueIssuer: issuerB}, "")
		}
	})
	for _, line := range wrong {
		t.Error(line)
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
		set       func(*verify.IssuerConfig)
		with      jsonObject
		want      string
		audiences []string
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
				if got := word(t, result, nil); got != tt.want || got == "active" && !slices.Equal(result.Facts.Audience, tt.audiences) {
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
		for _, realAudience := range []bool{true, false} {
			want := map[bool]string{true: "wrong_audience", false: "active"}[realAudience]
			jwt, opaque := accepted(t, set, jsonObject{"aud": nil, "client_id": audience}, verify.Request{RealAudience: realAudience})
			if word(t, jwt, nil) != want || word(t, opaque, nil) != want {
				t.Errorf("a token without aud, with RealAudience %v: %+v %+v, want %s", realAudience, jwt, opaque, want)
			}
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
func TestTokenMarks(t *testing.T) {
	null := json.RawMessage("null")
	dex := jsonObject{"client_id": nil, "scope": nil, "at_hash": "h", "email": "a@example.com"}
	with := func(changes jsonObject) jsonObject {
		token := maps.Clone(dex)
		maps.Copy(token, changes)
		return token
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
	var introspected []string
	endpoint := func(name string) says {
		return func(context.Context, string) (bool, []byte, error) {
			introspected = append(introspected, name)
			return true, members(jsonObject{"iss": nil, "sub": name}), nil
		}
	}
	a, b, c := configOf(issuerA), configOf(issuerB), configOf("https://c.example")
	a.Introspection, b.Introspection = &verify.Introspection{Endpoint: endpoint("a")}, &verify.Introspection{Endpoint: endpoint("b")}
	onlyA := map[string][]string{issuerA: nil}
	onlyC := map[string][]string{"https://c.example": nil}
	for name, tt := range map[string]struct {
		token  string
		req    verify.Request
		want   string
		issuer string
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
		"the JWT of a caller":                {"opaque", verify.Request{Issuer: issuerA, Caller: true}, "malformed", ""},
		"not made of a token's characters":   {"op aque", verify.Request{Issuer: issuerA}, "malformed", ""},
		"the listener's, which is not had":   {"opaque", verify.Request{OpaqueIssuer: "https://c.example"}, "unknown_issuer", ""},
		"the listener's, without leave":      {"opaque", verify.Request{OpaqueIssuer: issuerB, Issuers: onlyA}, "unknown_issuer", ""},
		"the listener's with a JWT":          {"eyJhbGciOiJub25lIn0.e30.AA", verify.Request{OpaqueIssuer: issuerA}, "unknown_issuer", ""},
		"the issuer with a slash at its end": {"opaque", verify.Request{Issuer: issuerA + "/"}, "unknown_issuer", ""},
	} {
		t.Run(name, func(t *testing.T) {
			introspected = nil
			v := newVerifier(t, serve(nil), a, b, c)
			got := outcome(t, v, tt.token, tt.req)
			issuer := ""
			for _, name := range introspected {
				issuer += name
			}
			if got != tt.want || issuer != tt.issuer {
				t.Errorf("%s, asked %q; want %s, %q", got, issuer, tt.want, tt.issuer)
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
