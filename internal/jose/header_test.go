package jose_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/jose"
)

func TestParseHeader_ignoresUnknownParameters(t *testing.T) {
	h, err := jose.ParseHeader([]byte(`{"alg":"RS256","kid":"k 1","typ":"at+jwt","cty":"","x5t":"abc","x5c":["not a certificate"],"vendor":{"a":1},"ALG":"none"}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := (jose.Header{Algorithm: "RS256", KeyID: "k 1", Type: "at+jwt"}); h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	for _, name := range []string{"jku", "x5u"} {
		h, err := jose.ParseHeader([]byte(`{"alg":"RS256","kid":"k","` + name + `":"https://evil.example"}`))
		if want := (jose.Header{Algorithm: "RS256", KeyID: "k", KeyPlace: name}); err != nil || h != want {
			t.Errorf("%s: header %+v, %v", name, h, err)
		}
	}
	longest := strings.Repeat("k", 256)
	if h, err := jose.ParseHeader([]byte(`{"alg":"RS256","kid":"` + longest + `"}`)); err != nil || h.KeyID != longest {
		t.Errorf("a kid of 256 bytes: %v", err)
	}
	if h, err := jose.ParseHeader([]byte(`{"alg":"RS256"}`)); err != nil || h.KeyID != "" || h.Type != "" {
		t.Errorf("a header of nothing but alg: %+v, %v", h, err)
	}
}

func TestParseHeaderRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		header      string
		unsupported bool
	}{
		"crit, unknown":            {`{"alg":"RS256","crit":["exp"],"exp":1}`, true},
		"crit, empty":              {`{"alg":"RS256","crit":[]}`, true},
		"crit naming alg":          {`{"alg":"RS256","crit":["alg"]}`, true},
		"crit, null":               {`{"alg":"RS256","crit":null}`, true},
		"b64 false":                {`{"alg":"RS256","b64":false}`, true},
		"b64 true":                 {`{"alg":"RS256","b64":true}`, true},
		"b64 yes":                  {`{"alg":"RS256","b64":"yes"}`, true},
		"zip":                      {`{"alg":"RS256","zip":"DEF"}`, true},
		"enc":                      {`{"alg":"RSA-OAEP","enc":"A256GCM"}`, true},
		"jwk":                      {`{"alg":"RS256","jwk":{"kty":"RSA"}}`, true},
		"jku, null":                {`{"alg":"RS256","jku":null}`, false},
		"x5u, a list":              {`{"alg":"RS256","x5u":["https://evil.example"]}`, false},
		"jwk, null":                {`{"alg":"RS256","jwk":null}`, true},
		"cty JWT":                  {`{"alg":"RS256","cty":"JWT"}`, true},
		"cty, not a string":        {`{"alg":"RS256","cty":1}`, true},
		"crit in other spelling":   {`{"alg":"RS256","cr\u0069t":["exp"]}`, true},
		"no alg":                   {`{"kid":"k"}`, false},
		"alg, null":                {`{"alg":null}`, false},
		"alg, a list":              {`{"alg":["RS256"]}`, false},
		"alg twice":                {`{"alg":"RS256","alg":"none"}`, false},
		"kid twice":                {`{"alg":"RS256","kid":"a","kid":"b"}`, false},
		"kid, a number":            {`{"alg":"RS256","kid":1}`, false},
		"kid, null":                {`{"alg":"RS256","kid":null}`, false},
		"kid of 257 bytes":         {`{"alg":"RS256","kid":"` + strings.Repeat("k", 257) + `"}`, false},
		"kid with a line feed":     {`{"alg":"RS256","kid":"a\nb"}`, false},
		"kid with a NUL":           {`{"alg":"RS256","kid":"a\u0000"}`, false},
		"typ, a number":            {`{"alg":"RS256","typ":1}`, false},
		"typ with a line feed":     {`{"alg":"RS256","typ":"at+jwt\n"}`, false},
		"a second object":          {`{"alg":"RS256"}{}`, false},
		"an array":                 {`["RS256"]`, false},
		"invalid UTF-8":            {"{\"alg\":\"RS256\",\"kid\":\"\xff\"}", false},
		"a lone surrogate":         {`{"alg":"RS256","kid":"\ud800"}`, false},
		"deep nesting of no use":   {`{"alg":"RS256","x":` + strings.Repeat("[", 400) + strings.Repeat("]", 400) + `}`, false},
		"a byte order mark":        {"\ufeff{\"alg\":\"RS256\"}", false},
		"64 further members":       {`{"alg":"RS256",` + wide(64)[1:], false},
		"a header that is no JSON": {`alg=RS256`, false},
	} {
		_, err := jose.ParseHeader([]byte(tt.header))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if unsupported := jose.UnsupportedError(""); errors.As(err, &unsupported) != tt.unsupported {
			t.Errorf("%s: unsupported = %v: %v", name, !tt.unsupported, err)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	for _, seed := range []string{
		`{"alg":"RS256","kid":"k","typ":"at+jwt"}`, `{"alg":"none"}`, `{"alg":"RS256","crit":["b64"],"b64":false}`, `{"alg":"RS256","kid":"\u0000"}`,
		`{"alg":"RS256","cty":""}`, `{"\u0061lg":"RS256"}`, `{"alg":"RS256","jwk":{"kty":"oct","k":"AA"}}`, `{}`, ``,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := jose.ParseHeader(data)
		if err != nil {
			return
		}
		if len(h.KeyID) > 256 || strings.ContainsAny(h.KeyID+h.Algorithm+h.Type, "\x00\r\n\x1b\x7f") {
			t.Errorf("%q was accepted as %+v", data, h)
		}
	})
}
