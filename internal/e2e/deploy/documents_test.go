package deploy

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

// The commands of the pages for newcomers work in a fresh clone, in order and as they are
// written, and print the documented output. Only the clone's URL and the ports are others.
func TestCommandsOfREADME(t *testing.T) {
	t.Parallel()
	runDocument(t, "README.md")
}

func TestCommandsOfTutorial(t *testing.T) {
	t.Parallel()
	harness.Need(t, "redis-server")
	runDocument(t, "docs/tutorial.md")
}

// documented is a block of commands and the output shown below it.
type documented struct{ commands, output string }

func blocksOf(t *testing.T, page string) []documented {
	t.Helper()
	var blocks []documented
	for _, fence := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(page, -1) {
		switch last := len(blocks) - 1; {
		case fence[1] == "sh":
			blocks = append(blocks, documented{commands: fence[2]})
		case fence[1] == "text" && last >= 0:
			blocks[last].output = fence[2]
		}
	}
	if len(blocks) < 2 {
		t.Fatalf("the page has only %d blocks of commands", len(blocks))
	}
	return blocks
}

func runDocument(t *testing.T, file string) {
	root := harness.Must(filepath.Abs("../../.."))
	page := string(harness.Must(os.ReadFile(filepath.Join(root, file))))
	page = strings.ReplaceAll(page, "https://github.com/cezzis/tokenbroker ", "file://"+root+" tokenbroker ")
	page = withFreePorts(t, page)
	blocks := blocksOf(t, page)
	var script strings.Builder
	for i, block := range blocks {
		fmt.Fprintf(&script, "echo '=== block %d'\n%s", i, strings.Replace(block.commands, "bin/broker dev\n", devInBackground(t), 1))
	}
	outputs := strings.Split(bash(t, script.String()), "=== block ")[1:]
	if len(outputs) != len(blocks) {
		t.Fatalf("%d of %d blocks were run; the last one printed:\n%s", len(outputs), len(blocks), outputs[len(outputs)-1])
	}
	for i, block := range blocks {
		if line, ok := printed(outputs[i], block.output); !ok {
			t.Errorf("%s: the commands\n%sdo not print the documented line %q, but:\n%s", file, block.commands, line, outputs[i])
		}
	}
}

// withFreePorts replaces each port in the page with a free one.
func withFreePorts(t *testing.T, page string) string {
	t.Helper()
	chosen := map[string]string{}
	return regexp.MustCompile(`(:|--port |-p )(\d{4,5})\b`).ReplaceAllStringFunc(page, func(port string) string {
		number := strings.TrimLeft(port, ":-port ")
		if chosen[number] == "" {
			_, chosen[number], _ = net.SplitHostPort(harness.FreeAddress(t))
		}
		return strings.TrimSuffix(port, number) + chosen[number]
	})
}

// devInBackground stands for "broker dev", which runs in a terminal of its own. A reader
// needs more than the second for which the status is cached.
func devInBackground(t *testing.T) string {
	t.Helper()
	addr := harness.FreeAddress(t)
	return fmt.Sprintf(`bin/broker dev --addr %s --http off --ops off > dev.log 2>&1 &
for i in $(seq 300); do grep -q "^Serving" dev.log && break; sleep 0.2; done
sleep 2
export TOKENBROKER_ADDR=%[1]s
`, addr)
}

// bash runs a script in an empty directory, and afterwards stops what it has started.
func bash(t *testing.T, script string) (output string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", "set -euo pipefail\n"+script)
	cmd.Dir = dir
	cmd.Env = harness.Environment("HOME="+dir, "GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"),
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A file, because the programs in the background keep it open after the script ends.
	out := harness.Must(os.Create(filepath.Join(t.TempDir(), "output")))
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	err := cmd.Run()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	printed := string(harness.Must(os.ReadFile(out.Name())))
	if err != nil {
		t.Errorf("%v, after printing:\n%s", err, printed)
	}
	return printed
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	return strings.TrimSpace(string(harness.Must(exec.CommandContext(t.Context(), "go", "env", name).Output())))
}

// printed reports whether the output has the documented lines in their order, in which …
// stands for any text, and else returns the first line that is missing.
func printed(output, documented string) (missing string, ok bool) {
	lines := strings.Split(output, "\n")
	for want := range strings.Lines(documented) {
		want = strings.TrimRight(want, "\n")
		if want == "" || want == "…" {
			continue
		}
		pattern := regexp.MustCompile("^" + strings.ReplaceAll(regexp.QuoteMeta(want), "…", ".*") + "$")
		at := -1
		for i, line := range lines {
			if pattern.MatchString(line) {
				at = i
				break
			}
		}
		if at < 0 {
			return want, false
		}
		lines = lines[at+1:]
	}
	return "", true
}
