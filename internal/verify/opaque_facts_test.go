package verify_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

func TestFactsOfAnOpaqueToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now().Truncate(time.Second)
		answer := members(jsonObject{"aud": []string{"other", audience}, "nbf": now.Unix() - 60, "cnf": jsonObject{"jkt": "dpop"}, "username": "al", "x": jsonObject{"y": nil}})
		v := introspecting(t, saying(func() []byte { return answer }))
		result, err := v.Verify(t.Context(), redact.New("opaque"), verify.Request{Scopes: []string{"write"}, Issuer: issuerA})
		if err != nil || result.Rejection != nil {
			t.Fatal(result.Rejection, err)
		}
		want := &verify.Facts{
			Issuer: issuerA, Subject: "alice", SubjectType: verify.SubjectSub, ClientID: "app", Audience: []string{"other", audience}, Scopes: []string{"read", "write"},
			IssuedAt: now, NotBefore: now.Add(-time.Minute), ExpiresAt: now.Add(10 * time.Minute), TokenID: "id-1",
			Confirmation: &verify.Confirmation{JKT: "dpop"}, Claims: answer,
		}
		if diff := cmp.Diff(want, result.Facts, cmpopts.IgnoreUnexported(verify.Facts{})); diff != "" {
			t.Error(diff)
		}
		if got := time.Until(result.ValidUntil); got != 30*time.Second {
			t.Errorf("valid for %v", got)
		}
		time.Sleep(12 * time.Second)
		if result, _ := v.Verify(t.Context(), redact.New("opaque"), verify.Request{}); time.Until(result.ValidUntil) != 18*time.Second {
			t.Errorf("12 s later valid for %v", time.Until(result.ValidUntil))
		}
	})
}

// D17: an introspection response is parsed and judged as strictly as a JWT.
func TestOpaque_responseIsJudged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, null := time.Now().Unix(), json.RawMessage("null")
		type row struct {
			name, want string
			with       jsonObject
		}
		rows := []row{
			{"as it should be", "active", nil},
			{"without iss", "active", jsonObject{"iss": nil}},
			{"another iss", "unknown_issuer", jsonObject{"iss": issuerB}},
			{"iss with a slash", "unknown_issuer", jsonObject{"iss": issuerA + "/"}},
			{"iss in capitals", "unknown_issuer", jsonObject{"iss": "https://A.example"}},
			{"an empty iss", "unknown_issuer", jsonObject{"iss": ""}},
			{"iss, a list", "bad_claims", jsonObject{"iss": []string{issuerA}}},
			{"another aud", "wrong_audience", jsonObject{"aud": "https://other.example"}},
			{"aud, a list", "active", jsonObject{"aud": []string{"x", audience}}},
			{"aud that looks alike", "wrong_audience", jsonObject{"aud": audience + "/"}},
			{"without aud", "wrong_audience", jsonObject{"aud": nil}},
			{"an empty aud", "bad_claims", jsonObject{"aud": ""}},
			{"an empty list as aud", "bad_claims", jsonObject{"aud": []string{}}},
			{"aud, a number", "bad_claims", jsonObject{"aud": 1}},
			{"without exp", "bad_claims", jsonObject{"exp": nil}},
			{"exp in the past", "expired", jsonObject{"exp": now - 31}},
			{"exp within the leeway", "active", jsonObject{"exp": now - 29}},
			{"exp, zero", "bad_claims", jsonObject{"exp": 0}},
			{"exp, negative", "bad_claims", jsonObject{"exp": -1}},
			{"exp, a text", "bad_claims", jsonObject{"exp": fmt.Sprint(now + 60)}},
			{"exp, huge", "bad_claims", jsonObject{"exp": 1e300}},
			{"exp, far", "lifetime_too_long", jsonObject{"exp": now + 25*3600}},
			{"nbf in the future", "not_yet_valid", jsonObject{"nbf": now + 31}},
			{"nbf within the leeway", "active", jsonObject{"nbf": now + 29}},
			{"nbf, a text", "bad_claims", jsonObject{"nbf": "0"}},
			{"iat in the future", "not_yet_valid", jsonObject{"iat": now + 31}},
			{"scope, a list", "active", jsonObject{"scope": []string{"read"}}},
			{"scope with two spaces", "active", jsonObject{"scope": "write  read "}},
			{"scope with a tab", "bad_claims", jsonObject{"scope": "read\twrite"}},
			{"scope, a number", "bad_claims", jsonObject{"scope": 1}},
			{"another scope", "insufficient_scope", jsonObject{"scope": "READ"}},
			{"without scope", "insufficient_scope", jsonObject{"scope": nil}},
			{"scp in place of scope", "insufficient_scope", jsonObject{"scope": nil, "scp": "read"}},
			{"token_type in other letters", "active", jsonObject{"token_type": "bearer"}},
			{"a DPoP token", "active", jsonObject{"token_type": "DPoP"}},
			{"without token_type, as a refresh token", "wrong_type", jsonObject{"token_type": nil}},
			{"an empty token_type", "wrong_type", jsonObject{"token_type": ""}},
			{"another token_type", "wrong_type", jsonObject{"token_type": "refresh_token"}},
			{"N_A", "wrong_type", jsonObject{"token_type": "N_A"}},
			{"token_type, a list", "bad_claims", jsonObject{"token_type": []string{"Bearer"}}},
			{"a refresh token by token_use", "wrong_type", jsonObject{"token_use": "refresh_token"}},
			{"an access token by token_use", "active", jsonObject{"token_use": "access_token"}},
			{"token_use, a number", "wrong_type", jsonObject{"token_use": 1}},
			{"a refresh token by typ", "wrong_type", jsonObject{"typ": "Refresh"}},
			{"an access token by typ", "active", jsonObject{"typ": "Bearer"}},
			{"an ID token", "wrong_type", jsonObject{"at_hash": "x"}},
			{"without sub", "active", jsonObject{"sub": nil}},
			{"without sub and client_id", "bad_claims", jsonObject{"sub": nil, "client_id": nil}},
			{"sub, a number", "bad_claims", jsonObject{"sub": 7}},
			{"sub, null", "bad_claims", jsonObject{"sub": json.RawMessage("null")}},
			{"sub, null, with client_id", "bad_claims", jsonObject{"sub": null, "client_id": "app"}},
			{"aud, null", "bad_claims", jsonObject{"aud": null}},
			{"iss, null", "active", jsonObject{"iss": null}},
			{"client_id, null", "active", jsonObject{"client_id": null}},
			{"jti, null", "active", jsonObject{"jti": null}},
			{"iat and nbf, null", "active", jsonObject{"iat": null, "nbf": null}},
			{"exp, null", "bad_claims", jsonObject{"exp": null}},
			{"scope, null", "insufficient_scope", jsonObject{"scope": null}},
			{"token_type, null", "wrong_type", jsonObject{"token_type": null}},
			{"username, null", "active", jsonObject{"username": null}},
			{"token_use, null", "wrong_type", jsonObject{"token_use": null}},
			{"at_hash, null", "wrong_type", jsonObject{"at_hash": null}},
			{"events, null", "wrong_type", jsonObject{"events": null}},
			{"sub with a NUL", "bad_claims", jsonObject{"sub": "a\x00"}},
			{"cnf, a text", "bad_claims", jsonObject{"cnf": "x"}},
			{"cnf, null", "bad_claims", jsonObject{"cnf": json.RawMessage("null")}},
		}
		if len(rows) < 45 {
			t.Errorf("only %d rows", len(rows))
		}
		for _, r := range rows {
			v := introspecting(t, saying(func() []byte { return members(r.with) }))
			if got := outcome(t, v, "opaque", verify.Request{Scopes: []string{"read"}}); got != r.want {
				t.Errorf("%s: %s, want %s", r.name, got, r.want)
			}
		}
		for _, answer := range []string{``, `{`, `[]`, `{"active":true,"sub":"a","sub":"b"}`, `{"active":true}{}`} {
			v := introspecting(t, saying(func() []byte { return []byte(answer) }))
			if got := outcome(t, v, "opaque", verify.Request{}); got != "bad_claims" {
				t.Errorf("%s: %s", answer, got)
			}
		}
	})
}

func TestOpaque_untypedTokens(t *testing.T) {
	untyped := func(c *verify.IssuerConfig) { c.Types = []string{"at+jwt", "JWT"} }
	for want, with := range map[string]jsonObject{"active": {"token_type": nil}, "wrong_type": {"token_type": nil, "scope": nil, "client_id": nil}} {
		v := introspecting(t, saying(func() []byte { return members(with) }), untyped)
		if got := outcome(t, v, "opaque", verify.Request{}); got != want {
			t.Errorf("%v: %s, want %s", with, got, want)
		}
	}
	for _, kind := range []string{"refresh_token", "N_A", "mac"} {
		v := introspecting(t, saying(func() []byte { return members(jsonObject{"token_type": kind}) }), untyped)
		if got := outcome(t, v, "opaque", verify.Request{}); got != "wrong_type" {
			t.Errorf("%s: %s", kind, got)
		}
	}
	only := func(c *verify.IssuerConfig) { c.Types = []string{"JWT"} }
	if got := outcome(t, introspecting(t, saying(func() []byte { return members() }), only), "opaque", verify.Request{}); got != "active" {
		t.Errorf("a bearer token where JWTs are untyped: %s", got)
	}
}

// D17: only the form of a token makes it opaque. An opaque token is sent to one issuer, a
// text that looks like a JWT to none.
func TestOpaque_tokensSentToTheIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		all := says(func(_ context.Context, token string) (bool, []byte, error) {
			sent = append(sent, token)
			return true, members(), nil
		})
		key, unknownKey := josetest.New(t, "EdDSA", "k"), josetest.New(t, "EdDSA", "k")
		a, b := configOf(issuerA), configOf(issuerB)
		a.Introspection = &verify.Introspection{Endpoint: all}
		web := serve(josetest.Set(key.JWK()))
		v := load(t, newVerifier(t, web, a, b))
		fetched := web.fetches()

		jwt := key.Token(key.Header(), claims())
		parts := strings.Split(jwt, ".")
		pretty := key.Token("{\n \"alg\":\"EdDSA\", \"kid\":\"k\",\r\n\"typ\":\"at+jwt\"}", claims())
		plain := `{"alg":"EdDSA","kid":"k","typ":"at+jwt"}`
		tokenOfB := func(header string) string { return key.Token(header, claims(jsonObject{"iss": issuerB})) }
		inUTF16 := "\xfe\xff\x00" + strings.Join(strings.Split(plain, ""), "\x00")
		shapes := map[string]struct{ token, want string }{
			"a space before its header":         {tokenOfB(" " + plain), "active"},
			"white space before its header":     {tokenOfB("\r\n\t " + strings.Repeat(" ", 500) + plain), "active"},
			"too much white space before it":    {tokenOfB(strings.Repeat(" ", 3000) + plain), "malformed"},
			"a vertical tab before its header":  {tokenOfB("\v" + plain), "malformed"},
			"a byte order mark":                 {tokenOfB("\xef\xbb\xbf" + plain), "malformed"},
			"the same in the other alphabet":    {strings.Replace(tokenOfB("\xef\xbb\xbf"+plain), "77u_", "77u/", 1), "malformed"},
			"a header in UTF-16":                {tokenOfB(inUTF16), "malformed"},
			"white space twice in its header":   {tokenOfB(" { " + plain[1:]), "active"},
			"a header behind a space, four":     {tokenOfB(" "+plain) + ".x", "malformed"},
			"a JWT":                             {jwt, "active"},
			"of issuer B":                       {key.Token(key.Header(), claims(jsonObject{"iss": issuerB})), "active"},
			"a JWT with a header of its own":    {pretty, "active"},
			"with a bad signature":              {unknownKey.Token(unknownKey.Header(), claims()), "bad_signature"},
			"with an unknown key":               {key.Token(key.Header(jsonObject{"kid": "other"}), claims()), "unknown_key"},
			"with another algorithm":            {key.Token(key.Header(jsonObject{"alg": "none"}), claims()), "algorithm_not_allowed"},
			"expired":                           {key.Token(key.Header(), claims(jsonObject{"exp": time.Now().Unix() - 60})), "expired"},
			"an ID token":                       {key.Token(key.Header(jsonObject{"typ": "JWT"}), claims()), "wrong_type"},
			"of an unknown issuer":              {key.Token(key.Header(), claims(jsonObject{"iss": "https://other.example"})), "unknown_issuer"},
			"without an issuer":                 {key.Token(key.Header(), claims(jsonObject{"iss": nil})), "unknown_issuer"},
			"with crit":                         {key.Token(key.Header(jsonObject{"crit": []string{"x"}}), claims()), "unsupported"},
			"with unsound claims":               {key.Token(key.Header(), claims(jsonObject{"exp": "1"})), "bad_claims"},
			"padded":                            {jwt + "=", "malformed"},
			"with a part more":                  {jwt + ".x", "malformed"},
			"with an empty part more":           {jwt + ".", "malformed"},
			"with two empty parts more":         {jwt + "..", "malformed"},
			"with an empty part in front":       {"." + jwt, "malformed"},
			"with white space in front":         {" " + jwt, "malformed"},
			"with a line feed":                  {jwt + "\n", "malformed"},
			"with a broken payload":             {parts[0] + ".e30e30." + parts[2], "malformed"},
			"with an empty signature":           {parts[0] + "." + parts[1] + ".", "malformed"},
			"pretty, and padded":                {pretty + "=", "malformed"},
			"a JSON serialization":              {`{"payload":"` + parts[1] + `"}`, "malformed"},
			"nothing":                           {"", "malformed"},
			"a dot":                             {".", "malformed"},
			"padding":                           {"==", "malformed"},
			"a text with a space":               {"opaque token", "malformed"},
			"with a percent sign":               {"opaque%20", "malformed"},
			"not ASCII":                         {"opaqüe", "malformed"},
			"with a NUL":                        {"opaque\x00", "malformed"},
			"too long":                          {strings.Repeat("a", 16<<10+1), "malformed"},
			"a text of many parts":              {strings.Repeat("ey.", 100) + "ey", "malformed"},
			"a JWT behind the name of a scheme": {"Bearer " + jwt, "malformed"},
		}
		for _, when := range []string{"at first", "when the good ones are remembered"} {
			for name, tt := range shapes {
				if got := outcome(t, v, tt.token, verify.Request{}); got != tt.want {
					t.Errorf("%s, %s: %s, want %s", name, when, got, tt.want)
				}
			}
		}
		if len(sent) != 0 || web.fetches() != fetched {
			t.Errorf("the issuer was shown %q; keys were fetched %d times", sent, web.fetches()-fetched)
		}
		for _, token := range []string{
			"opaque", "ory_at_abc.def", "v4.public.abc", "a.b.c.d", "abc~+/==", "eyJhbGciOiJkaXIifQ..iv.text.tag", "ey", "eyJ.x", strings.Repeat("a", 16<<10),
		} {
			sent = nil
			if got := outcome(t, v, token, verify.Request{}); got != "active" || len(sent) != 1 || sent[0] != token {
				t.Errorf("%.40q: %s, shown %d times", token, got, len(sent))
			}
		}
		sent = nil
		for _, token := range []string{"opaque", "v4.public.abc"} {
			if got := outcome(t, v, token, verify.Request{Caller: true}); got != "malformed" || len(sent) != 0 {
				t.Errorf("%s where only JWTs are accepted: %s, shown %d times", token, got, len(sent))
			}
		}
		for _, pin := range []string{issuerB, "https://other.example", issuerA + "/"} {
			for _, token := range []string{"opaque", "never-seen"} {
				if got := outcome(t, v, token, verify.Request{Issuer: pin}); got != "unknown_issuer" {
					t.Errorf("%s asked of %s: %s", token, pin, got)
				}
			}
		}
		if len(sent) != 0 {
			t.Errorf("tokens that were asked of another issuer were shown: %q", sent)
		}
		if got := outcome(t, newVerifier(t, web, configOf(issuerA)), "opaque", verify.Request{}); got != "malformed" {
			t.Errorf("without introspection: %s", got)
		}
	})
}

// D25: New refuses an invalid configuration.
func TestBadIntrospectionIsRefused(t *testing.T) {
	endpoint := saying(func() []byte { return members() })
	for name, bad := range map[string]verify.Introspection{
		"no endpoint":                 {},
		"answers used for too long":   {Endpoint: endpoint, Cache: 5*time.Minute + 1},
		"a default lifetime too long": {Endpoint: endpoint, DefaultLifetime: 24*time.Hour + 1},
		"a negative default lifetime": {Endpoint: endpoint, DefaultLifetime: -1},
	} {
		c := configOf(issuerA)
		c.Introspection = &bad
		if _, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{c}}, nil); err == nil || !strings.HasPrefix(err.Error(), "issuer ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzIntrospected searches for an accepted response that encoding/json reads differently.
func FuzzIntrospected(f *testing.F) {
	far := time.Now().Add(23 * time.Hour).Unix()
	good := string(members(jsonObject{"exp": far, "iat": nil, "aud": []string{"x", audience}}))
	for _, seed := range []string{
		good, good[:len(good)-1] + `,"sub":"mallory"}`, good[:len(good)-1] + `,"Sub":"mallory"}`, good + "{}", "[" + good + "]", "{}", "",
		fmt.Sprintf(`{"client_id":"c","aud":%q,"exp":1e10,"token_type":"bearer"}`, audience),
		fmt.Sprintf(`{"sub":"s\ud800","aud":[%q],"exp":%d,"token_type":"Bearer"}`, audience, far),
		fmt.Sprintf(`{"sub":"s","aud":%q,"exp":%d,"token_type":"Bearer","token_use":"refresh_token"}`, audience, far),
		fmt.Sprintf(`{"sub":"s","aud":%q,"exp":%d,"token_type":null}`, audience, far),
		good[:len(good)-1] + `,"username":null,"nbf":null,"vendor":[null]}`,
		fmt.Sprintf(`{"sub":null,"client_id":"c","aud":%q,"exp":%d,"token_type":"Bearer"}`, audience, far),
		fmt.Sprintf(`{"sub":"s","aud":null,"exp":%d,"token_type":"Bearer"}`, far),
		fmt.Sprintf(`{"sub":"s","aud":%q,"exp":%d,"token_type":"Bearer","cnf":null,"at_hash":null}`, audience, far),
	} {
		f.Add(seed)
	}
	for _, without := range []jsonObject{{"aud": nil}, {"sub": nil}, {"aud": nil, "sub": nil}, {"sub": "", "client_id": nil}} {
		f.Add(string(members(jsonObject{"exp": far, "iat": nil}, without)))
	}
	var answer atomic.Value
	answer.Store("")
	says := &verify.Introspection{Endpoint: saying(func() []byte { return []byte(answer.Load().(string)) }), Cache: -1}
	settings := newRelaxed(f, serve(josetest.Set(josetest.New(f, "EdDSA", "k").JWK())), func() verify.IssuerConfig {
		c := configOf(issuerA)
		c.Introspection = says
		return c
	})
	v := settings.strict
	f.Fuzz(func(t *testing.T, body string) {
		answer.Store(body)
		settings.hold(t, "opaque", []byte(body))
		result, err := v.Verify(t.Context(), redact.New("opaque"), verify.Request{})
		if word(t, result, err) != "active" {
			return
		}
		var reference map[string]any
		if err := json.Unmarshal([]byte(body), &reference); err != nil {
			t.Fatalf("%q was accepted: %v", body, err)
		}
		for _, name := range []string{"sub", "aud", "cnf", "token_use", "at_hash", "events"} {
			if value, present := reference[name]; present && value == nil {
				t.Errorf("%q was accepted, with a null %s", body, name)
			}
		}
		facts := result.Facts
		kind, _ := reference["token_type"].(string)
		exp, isNumber := reference["exp"].(float64)
		if facts.Subject == "" || facts.Subject != reference["sub"] && facts.Subject != reference["client_id"] || !isNumber || exp < float64(time.Now().Unix()-30) ||
			reference["iss"] != nil && reference["iss"] != issuerA || !strings.EqualFold(kind, "Bearer") && !strings.EqualFold(kind, "DPoP") {
			t.Errorf("%q was accepted as %+v", body, facts)
		}
	})
}

// FuzzIntrospectedMember adds a member to a valid response: an unknown member changes
// nothing.
func FuzzIntrospectedMember(f *testing.F) {
	for _, name := range []string{"username", "x", "Sub", "scp"} {
		for _, value := range []string{`null`, `1`, `"\u0000"`, `[null,{"a":1}]`, `false`} {
			f.Add(name, value)
		}
	}
	read := []string{
		"active", "iss", "sub", "aud", "exp", "nbf", "iat", "jti", "scope", "client_id", "token_type", "cnf",
		"at_hash", "c_hash", "events", "htm", "htu", "token_use", "typ",
	}
	var answer atomic.Value
	v := introspecting(f, saying(func() []byte { return []byte(answer.Load().(string)) }), func(c *verify.IssuerConfig) { c.Introspection.Cache = -1 })
	f.Fuzz(func(t *testing.T, name, value string) {
		quoted, err := json.Marshal(name)
		if err != nil || slices.Contains(read, name) {
			return
		}
		good := string(members(jsonObject{"exp": time.Now().Add(23 * time.Hour).Unix(), "iat": nil}))
		body := good[:len(good)-1] + "," + string(quoted) + ":" + value + "}"
		if _, err := jose.ParseObject([]byte(body)); err != nil {
			return
		}
		answer.Store(body)
		if got := outcome(t, v, "opaque", verify.Request{}); got != "active" {
			t.Errorf("%s: %s", body, got)
		}
	})
}
