package fleet

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

func promtool(t *testing.T, args ...string) (out string, err error) {
	t.Helper()
	harness.Need(t, "promtool")
	said, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput()
	return string(said), err
}

// Each fault raises exactly its alerts in the recorded series; a healthy hour and a
// rolling restart raise none. Each alert is raised in some test.
func TestRules_recordedFaults(t *testing.T) {
	if out, err := promtool(t, "check", "rules", rulesFile); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(recordingsDir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	raised := ""
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		raised += string(text)
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			if out, err := promtool(t, "test", "rules", path); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
	for _, d := range dramas {
		if !slices.Contains(files, filepath.Join(recordingsDir, d.name+".yaml")) {
			t.Errorf("there is no recording of %s: TestRecordFaults makes it", d.name)
		}
	}
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(string(rules), -1) {
		if !strings.Contains(raised, `alertname="`+rule[1]+`"`) {
			t.Errorf("no test raises %s", rule[1])
		}
	}
}

// The table of alerts in the documentation has a row for each rule, with its severity,
// and each rule has what a person needs who is woken by it.
func TestRules_agreeWithTheDocs(t *testing.T) {
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	alerts := strings.Split(string(rules), "- alert: ")[1:]
	var inRules, inDocs []string
	for _, rule := range alerts {
		name, _, _ := strings.Cut(rule, "\n")
		severity := regexp.MustCompile(`labels: \{severity: (critical|warning|info)\}`).FindStringSubmatch(rule)
		if severity == nil || !strings.Contains(rule, "summary: ") || !strings.Contains(rule, "docs/runbook.md#"+strings.ToLower(name)+"\n") {
			t.Errorf("%s lacks a severity, a summary or its anchor in the runbook", name)
			continue
		}
		inRules = append(inRules, name+" "+severity[1])
		for _, metric := range regexp.MustCompile(`\b(?:tokenbroker|grpc)_\w+`).FindAllString(rule, -1) {
			if !strings.Contains(string(page), "| `"+metric+"` |") && !slices.Contains([]string{"grpc_service", "grpc_type", "grpc_code", "grpc_method"}, metric) {
				t.Errorf("%s uses %s, which is not documented", name, metric)
			}
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `(Tokenbroker\\w+)` \\| (\\w+) \\|").FindAllStringSubmatch(string(page), -1) {
		inDocs = append(inDocs, row[1]+" "+row[2])
	}
	slices.Sort(inRules)
	slices.Sort(inDocs)
	if !slices.Equal(inRules, inDocs) {
		t.Errorf("the rules have\n%s\nand the documentation has\n%s", strings.Join(inRules, "\n"), strings.Join(inDocs, "\n"))
	}
}
