package jose_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
)

func TestSplit_compactForm(t *testing.T) {
	c, err := jose.Split(redact.New("aGVhZGVy.cGF5bG9hZA.c2ln"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%s|%s|%s|%s", c.Header, c.Payload, c.Signature, c.SigningInput); got != "header|payload|sig|aGVhZGVy.cGF5bG9hZA" {
		t.Errorf("Split: %s", got)
	}
}

func TestSplit_longestTokenAndHeader(t *testing.T) {
	longest := josetest.Base64(bytes.Repeat([]byte("x"), jose.MaxHeaderSize)) + ".AAAA."
	longest += strings.Repeat("A", jose.MaxTokenSize-len(longest))
	if c, err := jose.Split(redact.New(longest)); err != nil || len(c.Header) != jose.MaxHeaderSize {
		t.Errorf("%d bytes: %v", len(longest), err)
	}
}

// Each token has exactly one accepted encoding.
func TestSplitRefuses(t *testing.T) {
	signer := josetest.New(t, "EdDSA", "k")
	good := signer.Token(signer.Header(), josetest.JSON{"iss": "i"})
	if _, err := jose.Split(redact.New(good)); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	long := josetest.Base64(bytes.Repeat([]byte("x"), jose.MaxHeaderSize+1))
	for name, token := range map[string]string{
		"nothing":                       "",
		"an opaque token":               "2YotnFZFEjr1zCsicMWpAA",
		"two parts":                     parts[0] + "." + parts[1],
		"four parts":                    good + ".e30",
		"five parts":                    "a.b.c.d.e",
		"8,192 dots":                    strings.Repeat(".", 8192),
		"no header":                     "." + parts[1] + "." + parts[2],
		"no payload":                    parts[0] + ".." + parts[2],
		"no signature":                  parts[0] + "." + parts[1] + ".",
		"a JSON serialization":          `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"longer than 64 KiB":            parts[0] + "." + parts[1] + "." + strings.Repeat("A", jose.MaxTokenSize),
		"a header of 1,025 bytes":       long + "." + parts[1] + "." + parts[2],
		"padding":                       parts[0] + "=." + parts[1] + "." + parts[2],
		"the + of standard base64":      parts[0] + "." + parts[1] + "." + "+" + parts[2][1:],
		"the / of standard base64":      parts[0] + "." + parts[1] + "." + "/" + parts[2][1:],
		"a line feed in the header":     parts[0][:4] + "\n" + parts[0][4:] + "." + parts[1] + "." + parts[2],
		"a line feed in the payload":    parts[0] + "." + parts[1][:4] + "\n" + parts[1][4:] + "." + parts[2],
		"a line feed in the signature":  good[:len(good)-4] + "\n" + good[len(good)-4:],
		"CR LF at the end":              good + "\r\n",
		"a carriage return at the end":  good + "\r",
		"a space in front":              " " + good,
		"a space at the end":            good + " ",
		"a NUL at the end":              good + "\x00",
		"a spare bit in the signature":  good[:len(good)-1] + next(good[len(good)-1]),
		"a lone last character":         parts[0] + "." + parts[1] + ".AAAAA",
		"a letter that is not in ASCII": parts[0] + "." + parts[1] + ".ÄAAA",
	} {
		c, err := jose.Split(redact.New(token))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if c.Header != nil || c.Payload != nil {
			t.Errorf("%s: something was returned", name)
		}
		if unsupported := jose.UnsupportedError(""); errors.As(err, &unsupported) {
			t.Errorf("%s: %v is an UnsupportedError", name, err)
		}
	}
}

func TestSplit_namesOtherTokens(t *testing.T) {
	for token, want := range map[string]string{"opaque": "opaque", "a.b.c.d.e": "JWE", "a.b": "2 parts", "a.b.c.d": "4 parts"} {
		if _, err := jose.Split(redact.New(token)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", token, err)
		}
	}
}

// next returns the character after c in the alphabet. In the last character of a part the
// lowest bits are spare.
func next(c byte) string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(alphabet[strings.IndexByte(alphabet, c)+1])
}

func TestErrorsQuoteNothingOfTheToken(t *testing.T) {
	const canary = "canary7f3a"
	for _, token := range []string{canary, canary + "." + canary, canary + ".=." + canary, strings.Repeat(canary, 1000)} {
		if _, err := jose.Split(redact.New(token)); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("Split: %v", err)
		}
	}
	for _, text := range []string{
		canary, `{"` + canary, `{"` + canary + `":1,"` + canary + `":2}`, `{"alg":"x"}` + canary, `{"alg":"` + canary + "\x01\"}",
		`{"alg":"x","kid":["` + canary + `"]}`, `{"alg":"x","crit":["` + canary + `"]}`, `{"alg":"x","cty":"` + canary + `"}`,
	} {
		if _, err := jose.ParseHeader([]byte(text)); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("ParseHeader(%q): %v", text, err)
		}
		if _, err := jose.ParseSet([]byte(`{"keys":[` + text + `]}`)); err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("ParseSet(%q): %v", text, err)
		}
	}
}

func FuzzSplit(f *testing.F) {
	signer := josetest.New(f, "EdDSA", "k")
	good := signer.Token(signer.Header(), josetest.JSON{"iss": "i", "pad": "xx"})
	for _, seed := range []string{good, good + "\n", good + "=", " " + good, good[:40], strings.Repeat(".", 9000), "a.b.c", "AA.AA.AA", "AB.AA.AA", "....", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		c, err := jose.Split(redact.New(token))
		if err != nil {
			return
		}
		again := josetest.Base64(c.Header) + "." + josetest.Base64(c.Payload) + "." + josetest.Base64(c.Signature)
		if again != token {
			t.Errorf("%q was accepted; its spelling is %q", token, again)
		}
		if string(c.SigningInput) != token[:strings.LastIndexByte(token, '.')] {
			t.Errorf("signing input of %q: %q", token, c.SigningInput)
		}
	})
}
