package app_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/policyreview"
)

// exampleIn returns the lines that follow a line of a file, up to one of another.
func exampleIn(t *testing.T, file, first, last string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(string(data), first+"\n")
	text, _, ended := strings.Cut(text, last)
	if !found || !ended {
		t.Fatalf("%s has no text between %q and %q", file, first, last)
	}
	return text
}

// The documents show requests that name no scopes, to clients with more default
// scopes than the role admits.
func TestExamplesAnswerRequestsWithoutScopes(t *testing.T) {
	kubernetes := exampleIn(t, "../../deploy/kubernetes/broker.yaml", "  broker.yaml: |", "---")
	tutorial := exampleIn(t, "../../docs/tutorial.md", "cat > broker.yaml <<'END'", "END\n")
	for caller, text := range map[string]string{
		"demo":     tutorial,
		"checkout": regexp.MustCompile(`(?m)^    `).ReplaceAllString(kubernetes, ""),
	} {
		t.Run(caller, func(t *testing.T) {
			config, err := config.Parse("broker.yaml", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			lines, _ := policyreview.Explain(config, caller)
			if !slices.Contains(lines, "a request for a token of client orders-api that names nothing else gets the scopes read") {
				t.Errorf("a request without scopes does not get what the role grants:\n%s", strings.Join(lines, "\n"))
			}
		})
	}
}
