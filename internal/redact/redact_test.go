package redact_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/redact"
)

const canary = "canary-7f3a"

type holder struct {
	Exported   redact.String
	unexported redact.String
	nested     struct{ deep *redact.String }
}

func TestPrintingHidesTheText(t *testing.T) {
	s := redact.New(canary)
	h := holder{Exported: s, unexported: s}
	h.nested.deep = &s

	var printed strings.Builder
	for _, value := range []any{s, &s, h, &h, []redact.String{s}, map[string]any{"k": s, "h": h}, fmt.Errorf("wrapped: %v", s)} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p"} {
			fmt.Fprintf(&printed, verb+"\n", value)
		}
		slog.New(slog.NewTextHandler(&printed, nil)).Error("text", "value", value)
		slog.New(slog.NewJSONHandler(&printed, nil)).Error("json", "value", value)
		if data, err := json.Marshal(value); err == nil {
			printed.Write(data)
		}
	}
	if data, err := xml.Marshal(s); err == nil {
		printed.Write(data)
	}

	out := printed.String()
	if n := strings.Count(out, "[redacted]"); n < 20 {
		t.Errorf("only %d placeholders were printed; the test does not test what it should", n)
	}
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary), fmt.Sprint([]byte(canary))} {
		if i := strings.Index(out, form); i >= 0 {
			t.Errorf("the text was printed: %s", out[max(0, i-80):min(len(out), i+40)])
		}
	}
}

func TestReveal(t *testing.T) {
	if got := redact.New(canary).Reveal(); got != canary {
		t.Errorf("Reveal() = %q", got)
	}
	var zero redact.String
	if !zero.IsZero() || zero.Reveal() != "" || !redact.New("").IsZero() {
		t.Error("the zero value is not the empty text")
	}
}

func TestEqual(t *testing.T) {
	a, b, c := redact.New("a"), redact.New(strings.Clone("a")), redact.New("c")
	if !a.Equal(b) || a.Equal(c) || a.Equal(redact.String{}) || !(redact.String{}).Equal(redact.New("")) {
		t.Error("Equal does not compare the texts")
	}
	if sum, other := a.SHA256(), b.SHA256(); !bytes.Equal(sum[:], other[:]) {
		t.Error("SHA256 does not depend on the text alone")
	}
}
