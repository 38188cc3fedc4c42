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

// FuzzVerify looks for a token that is accepted although another library finds
// no good signature on it, and for one on which the cache makes a difference (D21
// I1 I7).
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
	off := v.WithoutCache()
	run(f, v)
	f.Fuzz(func(t *testing.T, token string) {
		got := outcome(t, v, token, verify.Request{})
		again, without := outcome(t, v, token, verify.Request{}), outcome(t, off, token, verify.Request{})
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

// FuzzSignedClaims signs whatever it is given, and looks for a token that is
// accepted although encoding/json reads something else in it.
func FuzzSignedClaims(f *testing.F) {
	key := josetest.New(f, "EdDSA", "k")
	v := load(f, newVerifier(f, serve(josetest.Set(key.JWK())), configOf(issuerA)))
	run(f, v)
	header := string(josetest.Marshal(key.Header()))
	good := string(josetest.Marshal(claims(jsonObject{"exp": time.Now().Add(23 * time.Hour).Unix(), "cnf": jsonObject{"jkt": "x"}, "aud": []string{"x", audience}})))
	for _, seed := range []string{
		good, good[:len(good)-1] + `,"sub":"mallory"}`, good[:len(good)-1] + `,"Sub":"mallory"}`, good + "{}", "[" + good + "]", "{}", `{"iss":"` + issuerA + `"}`,
		fmt.Sprintf(`{"iss":%q,"sub":"s","aud":%q,"exp":1e10}`, issuerA, audience),
		fmt.Sprintf(`{"iss":%q,"sub":"s\ud800","aud":[%q],"exp":9999999999,"scope":"a  b"}`, issuerA, audience),
	} {
		f.Add(header, seed)
	}
	f.Add(`{"alg":"EdDSA","kid":"k","typ":"application/AT+JWT","alg":"none"}`, good)
	f.Add(`{"alg":"EdDSA","kid":"k","typ":"at+jwt","b64":false,"crit":["b64"]}`, good)
	f.Fuzz(func(t *testing.T, header, payload string) {
		if header == "" || payload == "" {
			return
		}
		now := time.Now()
		result, err := v.Verify(t.Context(), redact.New(key.Token(header, payload)), verify.Request{})
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
