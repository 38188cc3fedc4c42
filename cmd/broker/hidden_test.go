package main

import (
	"bytes"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/escape"
)

const hiddenText = "a\u202eb\u200bc\u2028d\x1b[2J"

func checkEscaped(t *testing.T, name, text string) {
	t.Helper()
	hidden := func(r rune) bool { return r != '\n' && escape.Hidden(r) }
	if strings.ContainsFunc(text, hidden) || !strings.Contains(text, `a\u202eb\u200bc\u2028d\u001b[2J`) {
		t.Errorf("%s: %q", name, text)
	}
}

func TestLogShowsHiddenCharacters(t *testing.T) {
	for _, format := range []string{"json", "text"} {
		var out bytes.Buffer
		newLogger(&out, config.Log{Level: "info", Format: format}).Info("m", "subject", hiddenText)
		// The handler for text quotes as Go does.
		checkEscaped(t, format, strings.ReplaceAll(out.String(), `\x1b`, `\u001b`))
	}
}

func TestRevocationListShowsHiddenCharacters(t *testing.T) {
	revocation := &tokenbrokerv1.Revocation{Id: "r1", Issuer: "https://a", Reason: hiddenText + "\nr2", ExpiresAt: timestamppb.Now(), CreatedAt: timestamppb.Now()}
	for _, asJSON := range []bool{true, false} {
		root := newRoot()
		var out bytes.Buffer
		w := root.OutOrStdout().(*escape.Writer)
		if w.Unwrap() == nil {
			t.Fatal("nothing is written")
		}
		if err := printRevocations(escape.NewWriter(&out), []*tokenbrokerv1.Revocation{revocation}, asJSON); err != nil {
			t.Fatal(err)
		}
		checkEscaped(t, "list", out.String())
		if lines := strings.Count(out.String(), "\n"); asJSON && lines != 1 || !asJSON && lines != 2 {
			t.Errorf("%d lines: %q", lines, out.String())
		}
	}
}
