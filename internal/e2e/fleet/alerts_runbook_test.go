package fleet

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

// Each alert and each finding has a section in the runbook, with all that a reader needs.
// Each link within the page leads somewhere, and each command exists.
func TestRunbookHasASectionForEachAlertAndFinding(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(runbookFile)
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	page, anchors := string(text), map[string]int{}
	for _, id := range regexp.MustCompile(`<a id="([^"]+)"></a>`).FindAllStringSubmatch(page, -1) {
		anchors[id[1]]++
	}
	var alerts []string
	for _, heading := range regexp.MustCompile(`(?m)^## (Tokenbroker\w+)$`).FindAllStringSubmatch(page, -1) {
		anchors[strings.ToLower(heading[1])]++
		alerts = append(alerts, heading[1])
	}
	wanted := []string{"which-fault-shows-how"}
	anchors[wanted[0]]++
	for _, url := range regexp.MustCompile(`docs/runbook\.md#(\S+)`).FindAllStringSubmatch(string(rules), -1) {
		wanted = append(wanted, url[1])
	}
	idp := harness.SimpleIdP(t, time.Hour)
	b := harness.StartBroker(t, "store: {memory: {}}\n"+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	for _, series := range regexp.MustCompile(`(?m)^tokenbroker_findings\{id="([^"]+)"`).FindAllStringSubmatch(b.Metrics(t), -1) {
		wanted = append(wanted, series[1])
	}
	if len(wanted) < 60 {
		t.Fatalf("only %d alerts and findings", len(wanted))
	}
	for anchor, times := range anchors {
		if times != 1 || !slices.Contains(wanted, anchor) {
			t.Errorf("the anchor %s is there %d times, or is neither an alert nor a finding", anchor, times)
		}
	}
	for _, link := range regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(page, -1) {
		wanted = append(wanted, link[1])
	}
	_, table, _ := strings.Cut(page, "<!-- table -->")
	table, _, _ = strings.Cut(table, "<!-- end of the table -->")
	if rows := strings.Count(table, "\n| ") - 1; rows < 15 {
		t.Errorf("the table has only %d faults", rows)
	}
	for _, anchor := range wanted {
		if anchors[anchor] == 0 {
			t.Errorf("there is no section for %s", anchor)
		}
	}
	for _, alert := range alerts {
		checkSection(t, alert, sectionOf(page, alert))
	}
}

// sectionOf returns the text below the heading of an alert.
func sectionOf(page, alert string) string {
	_, rest, _ := strings.Cut(page, "\n## "+alert+"\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	return section
}

func checkSection(t *testing.T, alert, section string) {
	t.Helper()
	for _, part := range []string{"**Meaning.** ", "**Impact.** ", "**Action.**\n\n1. ", "**Over when** "} {
		if !strings.Contains(section, part) {
			t.Errorf("%s has no part %q", alert, part)
		}
	}
	block := console.FindStringSubmatch(section)
	if block == nil {
		t.Errorf("%s has no commands", alert)
		return
	}
	commands := strings.Split("\n"+block[1], "\n$ ")[1:]
	if len(commands) < 2 {
		t.Errorf("%s has fewer than two commands", alert)
	}
	for _, command := range commands {
		line, output, _ := strings.Cut(command, "\n")
		if strings.TrimSpace(output) == "" {
			t.Errorf("%s: %q has no output", alert, line)
		}
	}
	for _, used := range regexp.MustCompile("(?:^|\\$ |`)broker ([a-z][a-z-]+(?: (?:rotate|rollback|activate|retire|export|promote|drop))?)").FindAllStringSubmatch(section, -1) {
		if res := harness.Run(t, append(strings.Fields(used[1]), "--help")...); res.Code != 0 {
			t.Errorf("%s: there is no command broker %s", alert, used[1])
		}
	}
}
