package escape_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/escape"
)

func TestTextIsEscaped(t *testing.T) {
	for text, want := range map[string]string{
		"plain, Grüße, \u6f22, 🙂": "plain, Grüße, \u6f22, 🙂",
		"a\u202eb\u2066c":         `a\u202eb\u2066c`,
		"a\u200bb\ufeffc\u00ad":   `a\u200bb\ufeffc\u00ad`,
		"a\u2028b\u2029c\nd\te":   `a\u2028b\u2029c\u000ad\u0009e`,
		"a\x1b[31mb\x7fc\u009b":   `a\u001b[31mb\u007fc\u009b`,
		"a\U000e0041b\U000e0100":  `a\udb40\udc41b\udb40\udd00`,
		"a\xff\x9bb":              `a\xff\x9bb`,
		"a\u3164b\u034fc":         `a\u3164b\u034fc`,
	} {
		if got := escape.Text(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// All of the format characters are hidden, whatever version of Unicode adds.
func TestEveryFormatCharacterIsHidden(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if unicode.In(r, unicode.Cf, unicode.Cc, unicode.Zl, unicode.Zp, unicode.Bidi_Control) && !escape.Hidden(r) {
			t.Errorf("%U is shown raw", r)
		}
	}
}

func TestWriterKeepsTheMeaningOfJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringOf(rapid.OneOf(rapid.Rune(), rapid.SampledFrom([]rune("\u202e\u2066\u200b\u2028\x7f\u0085\n\U000e0041")))).Draw(t, "text")
		var out bytes.Buffer
		if err := json.NewEncoder(escape.NewWriter(&out)).Encode(text); err != nil {
			t.Fatal(err)
		}
		var got string
		if err := json.Unmarshal(out.Bytes(), &got); err != nil || got != strings.ToValidUTF8(text, "\ufffd") {
			t.Fatalf("%q became %q, %v", text, got, err)
		}
		if body := strings.TrimSuffix(out.String(), "\n"); strings.ContainsFunc(body, escape.Hidden) {
			t.Fatalf("%q is shown raw", body)
		}
	})
}

func TestLogLinesAreEscaped(t *testing.T) {
	var out bytes.Buffer
	to := escape.NewWriter(&out)
	for _, handler := range []slog.Handler{slog.NewJSONHandler(to, nil), slog.NewTextHandler(to, nil)} {
		out.Reset()
		slog.New(handler).Info("message \u202e", "subject", "a\u202eb\u200b")
		line := out.String()
		if strings.Count(line, "\n") != 1 || strings.ContainsFunc(strings.TrimSuffix(line, "\n"), escape.Hidden) || !strings.Contains(line, `a\u202eb\u200b`) {
			t.Errorf("%q", line)
		}
	}
}
