package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// The commands in docs/rotation.md, in their order, with the answers that are given
// there. Versions, durations and the like differ from run to run, and stand for
// themselves.
func TestRunbookWorks(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	dir := t.TempDir()
	files := map[string]string{"new-secret": "second", "wrong-secret": "wrong", "next-secret": "third", "clean-secret": "fourth"}
	clients := strings.Replace(idp.Managed("orders-api"), fmt.Sprintf("token_url: %q", idp.Issuer()+"/token"), fmt.Sprintf("issuer: %q", idp.Issuer()), 1)
	testkit.WriteFile(t, filepath.Join(dir, "billing-secret"), "right")
	file := filepath.Join(dir, "billing-secret")
	clients += fmt.Sprintf("  billing-api: {issuer: %q, client_id: %q, secret: %q}\n", idp.Issuer(), idp.Client.ID, "file:"+file)
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.Client.Audiences[0])
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(dir, "broker.db"), "file:"+makeRing(t))
	b := harness.StartBroker(t, config+clients+issuers)
	idp.Takes("first")
	if res := b.Bring(t, "first", "secret", "rotate", "orders-api"); res.Code != 0 {
		t.Fatal(res)
	}
	atIdP := map[string][]string{ // what it takes from then on
		"new-secret works beside the old one":        {"first", "second"},
		"next-secret takes the place of the old one": {"third"},
		"both secrets work":                          {"second", "third"},
		"clean-secret works beside the old one":      {"second", "fourth"},
		"the old secret is deleted":                  {"second", "fourth"},
	}
	text, err := os.ReadFile("../../../docs/rotation.md")
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, block := range regexp.MustCompile("(?ms)^```console\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		for _, part := range regexp.MustCompile(`(?m)^[#$] .*\n(?:[^#$].*\n|\n)*`).FindAllString(block[1], -1) {
			line, answer, _ := strings.Cut(part, "\n")
			if action, ok := strings.CutPrefix(line, "# at the IdP: "); ok {
				if atIdP[action] == nil {
					t.Fatalf("what happens at the IdP: %q", action)
				}
				idp.Takes(atIdP[action]...)
				continue
			}
			commands++
			got := typed(t, b, dir, files, strings.TrimPrefix(line, "$ "))
			got = strings.NewReplacer(file, "billing-secret", "everybody", "operator").Replace(got)
			if plain(got) != plain(answer) {
				t.Errorf("%s\nanswers\n%s\nand is said to answer\n%s", line, got, answer)
			}
		}
	}
	if commands < 10 {
		t.Errorf("only %d commands", commands)
	}
}

// typed runs a command as it is typed into a shell. Versions of the document are
// those that the broker has at the time.
func typed(t *testing.T, b *harness.Broker, dir string, files map[string]string, line string) string {
	t.Helper()
	words := regexp.MustCompile(`"[^"]*"|\S+`).FindAllString(line, -1)
	input := ""
	var args []string
	for i := 1; i < len(words); i++ {
		word := strings.Trim(words[i], `"`)
		switch {
		case word == "<":
			i++
			input = files[words[i]] + "\n"
		case word == "secrets.sealed":
			args = append(args, filepath.Join(dir, word))
		case regexp.MustCompile(`^[0-9a-f]{8}$`).MatchString(word):
			args = append(args, inState(b.Client(t, "orders-api"), tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS))
		default:
			args = append(args, word)
		}
	}
	res := b.Command(input).Run(t, args...)
	return strings.ReplaceAll(res.Stdout+res.Stderr, dir+"/", "")
}

// plain leaves out what differs from run to run.
func plain(text string) string {
	for _, rule := range []struct{ pattern, by string }{
		{`\b[0-9a-f]{8}\b`, "VERSION"},
		{`revocation r[\w-]{22}`, "revocation ID"},
		{`127\.0\.0\.1:\d+`, "HOST"},
		{`\b[0-9.]+(ms|s|m|h)\b`, "TIME"},
		{`[ \t]+`, " "},
		{`(?m) $`, ""},
	} {
		text = regexp.MustCompile(rule.pattern).ReplaceAllString(text, rule.by)
	}
	return strings.TrimSpace(text)
}
