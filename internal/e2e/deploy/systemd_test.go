package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

const unitFile = "../../../deploy/systemd/tokenbroker.service"

// unit reads the settings of a unit; of those that are given more than once, all.
func unit(t *testing.T) map[string][]string {
	t.Helper()
	content, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string][]string{}
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "[") {
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if !found {
			t.Fatalf("not a setting: %s", line)
		}
		settings[key] = append(settings[key], value)
	}
	return settings
}

func TestSystemdUnitMatchesTheDocumentation(t *testing.T) {
	t.Parallel()
	settings := unit(t)
	page, err := os.ReadFile("../../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "## As a service of systemd")
	section, _, _ = strings.Cut(section, "\n## ")
	named := 0
	_, table, _ := strings.Cut(section, "|---|")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, part := range strings.Split(table, "`")[1:] {
		key, value, isSetting := strings.Cut(part, "=")
		if !isSetting || strings.ContainsAny(key, " \n") {
			continue
		}
		named++
		if given := settings[key]; len(given) == 0 || value != "" && given[0] != value {
			t.Errorf("docs/security.md says %s, the unit %s=%q", part, key, given)
		}
	}
	if named < 10 {
		t.Errorf("docs/security.md names only %d settings", named)
	}
	// The command line is one that the broker understands.
	start := strings.Fields(settings["ExecStart"][0])
	if res := (harness.Command{Name: "broker"}).Run(t, append(start[1:], "--help")...); res.Code != 0 || filepath.Base(start[0]) != "broker" {
		t.Errorf("%s: %v", settings["ExecStart"][0], res)
	}
}

// What systemd itself says of the unit: that it is right, and how much it leaves
// open, from 0 to 10.
func TestSystemdRatesTheUnitSafe(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed: apt-get install systemd")
	}
	broker, err := exec.LookPath("broker")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	file := harness.WriteFile(t, "tokenbroker.service", strings.ReplaceAll(string(content), "/usr/local/bin/broker", broker))
	if res := (harness.Command{Name: "systemd-analyze"}).Run(t, "verify", file); res.Code != 0 || strings.Contains(res.Stderr, "tokenbroker.service") {
		t.Errorf("verify: %v", res)
	}
	if res := (harness.Command{Name: "systemd-analyze"}).Run(t, "security", "--offline=true", "--threshold=20", file); res.Code != 0 {
		t.Errorf("security: %v", res)
	}
}
