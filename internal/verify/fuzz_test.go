package verify_test

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// FuzzVerify searches for an accepted token with a signature that another library rejects,
// and for a token for which the cache changes the result (D21 I1 I7).
func FuzzVerify(f *testing.F) {
	signers := map[string]*josetest.Signer{}
	var keys []jsonObject
	for _, algorithm := range []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"} {
		signer := josetest.New(f, algorithm, algorithm)
		signers[algorithm] = signer
		keys = append(keys, signer.JWK())
		token := forever23h(signer)
		for _, seed := range []string{token, token + "=", token[:len(token)-1], token[1:], "\n" + token} {
			f.Add(seed)
		}
		f.Add(signer.Token(signer.Header(jsonObject{"alg": "none"}), claims()))
		f.Add(signer.Token(signer.Header(jsonObject{"crit": []string{"exp"}}), claims()))
	}
	f.Add("..")
	f.Add("e30.e30.AA")
	v := load(f, newVerifier(f, serve(josetest.Set(keys...)), configOf(issuerA)))
	uncached := v.WithoutCache()
	run(f, v)
	f.Fuzz(func(t *testing.T, token string) {
		got := outcome(t, v, token, verify.Request{})
		again, without := outcome(t, v, token, verify.Request{}), outcome(t, uncached, token, verify.Request{})
		if again != got || without != got {
			t.Errorf("%q: %s, then %s, and %s without the cache", token, got, again, without)
		}
		if got != "active" {
			return
		}
		_, err := jwt.NewParser(jwt.WithStrictDecoding(), jwt.WithoutClaimsValidation()).Parse(token, func(parsed *jwt.Token) (any, error) {
			return signers[parsed.Header["kid"].(string)].Private.Public(), nil
		})
		if err != nil {
			t.Errorf("%q was accepted; golang-jwt says: %v", token, err)
		}
	})
}

func forever23h(key *josetest.Signer) string {
	return key.Token(key.Header(), claims(jsonObject{"exp": time.Now().Add(23 * time.Hour).Unix()}))
}

// relaxed are the Verifiers that admit tokens without aud, without sub and without both.
type relaxed struct{ strict, noAud, noSub, neither *verify.Verifier }

func newRelaxed(t testing.TB, web *site, config func() verify.IssuerConfig) relaxed {
	t.Helper()
	build := func(value string, missingSubject bool) *verify.Verifier {
		c := config()
		c.MissingAudience.Value, c.MissingSubject = value, missingSubject
		v := load(t, newCached(t, noCache, web, c))
		run(t, v)
		return v
	}
	return relaxed{build("", false), build(audience, false), build("", true), build(audience, true)}
}

// hold checks that a setting admits only tokens that lack the claim that it names, and
// changes no other result. members are the claims as encoding/json reads them.
func (r relaxed) hold(t *testing.T, token string, members []byte) {
	t.Helper()
	var reference map[string]any
	if json.Unmarshal(members, &reference) != nil {
		reference = nil
	}
	_, hasAud := reference["aud"]
	_, hasSub := reference["sub"]
	strict := outcome(t, r.strict, token, verify.Request{})
	for name, tt := range map[string]struct {
		v       *verify.Verifier
		admits  bool
		reasons []string // of rejections that the setting lifts
	}{
		"missing_aud": {r.noAud, !hasAud, []string{"wrong_audience"}}, "missing_sub": {r.noSub, !hasSub, []string{"bad_claims"}},
		"both": {r.neither, !hasAud || !hasSub, []string{"wrong_audience", "bad_claims"}},
	} {
		result, err := tt.v.Verify(t.Context(), redact.New(token), verify.Request{})
		got := word(t, result, err)
		lifted := tt.admits && slices.Contains(tt.reasons, strict)
		if strict == "active" && got != "active" || strict != "active" && got == "active" && !lifted {
			t.Errorf("%s: %q is %s, and %s without it", name, members, got, strict)
		}
		if got != "active" {
			continue
		}
		facts := result.Facts
		subject, subjectType := reference["sub"], verify.SubjectSub
		if sub, _ := subject.(string); sub == "" {
			subject, subjectType = reference["client_id"], verify.SubjectClientID
		}
		if facts.Subject == "" || facts.Subject != subject || facts.SubjectType != subjectType || !hasAud && !slices.Equal(facts.Audience, []string{audience}) {
			t.Errorf("%s: %q was accepted as %+v", name, members, facts)
		}
		if got := outcome(t, tt.v, token, verify.Request{Caller: true}); got == "active" && !hasAud {
			t.Errorf("%s: %q identifies a caller", name, members)
		}
	}
}

// FuzzSignedClaims signs arbitrary claims, and searches for an accepted token that
// encoding/json reads differently.
func FuzzSignedClaims(f *testing.F) {
	key := josetest.New(f, "EdDSA", "k")
	v := load(f, newVerifier(f, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	run(f, v)
	settings := newRelaxed(f, serve(josetest.Set(key.JWK())), func() verify.IssuerConfig { return configOf(issuerA) })
	header := string(josetest.Marshal(key.Header()))
	good := string(josetest.Marshal(claims(jsonObject{"exp": time.Now().Add(23 * time.Hour).Unix(), "cnf": jsonObject{"jkt": "x"}, "aud": []string{"x", audience}})))
	for _, seed := range []string{
		good, good[:len(good)-1] + `,"sub":"mallory"}`, good[:len(good)-1] + `,"Sub":"mallory"}`, good + "{}", "[" + good + "]", "{}", `{"iss":"` + issuerA + `"}`,
		fmt.Sprintf(`{"iss":%q,"sub":"s","aud":%q,"exp":1e10}`, issuerA, audience),
		fmt.Sprintf(`{"iss":%q,"sub":"s\ud800","aud":[%q],"exp":9999999999,"scope":"a  b"}`, issuerA, audience),
	} {
		f.Add(header, seed)
	}
	for _, without := range []jsonObject{{"aud": nil}, {"sub": nil}, {"aud": nil, "sub": nil}, {"sub": nil, "client_id": nil, "azp": "app"}, {"sub": "", "aud": nil}} {
		seed := string(josetest.Marshal(claims(jsonObject{"exp": time.Now().Add(23 * time.Hour).Unix()}, without)))
		f.Add(header, seed)
		f.Add(header, seed[:len(seed)-1]+`,"aud":null}`)
		f.Add(header, seed[:len(seed)-1]+`,"Sub":"x","sub":null}`)
	}
	f.Add(`{"alg":"EdDSA","kid":"k","typ":"application/AT+JWT","alg":"none"}`, good)
	f.Add(`{"alg":"EdDSA","kid":"k","typ":"at+jwt","b64":false,"crit":["b64"]}`, good)
	f.Fuzz(func(t *testing.T, header, payload string) {
		if header == "" || payload == "" {
			return
		}
		now := time.Now()
		token := key.Token(header, payload)
		settings.hold(t, token, []byte(payload))
		result, err := v.Verify(t.Context(), redact.New(token), verify.Request{})
		if word(t, result, err) != "active" {
			return
		}
		var reference map[string]any
		if err := json.Unmarshal([]byte(payload), &reference); err != nil {
			t.Fatalf("%q was accepted: %v", payload, err)
		}
		facts := result.Facts
		if reference["iss"] != issuerA || reference["sub"] != facts.Subject || facts.Subject == "" || string(facts.Claims) != payload {
			t.Errorf("%q was accepted as %+v", payload, facts)
		}
		if exp, ok := reference["exp"].(float64); !ok || math.Floor(exp)+30 < float64(now.Unix()) || facts.ExpiresAt.Unix() != int64(math.Floor(exp)) {
			t.Errorf("%q: exp %v was accepted as %v", payload, reference["exp"], facts.ExpiresAt)
		}
		if list, ok := reference["aud"].([]any); reference["aud"] != audience && (!ok || !slices.Contains(list, any(audience))) {
			t.Errorf("%q: aud %v was accepted", payload, reference["aud"])
		}
	})
}
