package main

import (
	"encoding/json"
	"runtime"
	"strings"
	"testing"
)

// output runs the command line and returns its standard output.
func output(t *testing.T, args ...string) string {
	t.Helper()
	root := newRoot()
	root.SetArgs(args)
	var out strings.Builder
	root.SetOut(&out)
	if err := root.Execute(); err != nil {
		t.Fatalf("broker %s: %v", strings.Join(args, " "), err)
	}
	return out.String()
}

func TestVersion_text(t *testing.T) {
	line := output(t, "version")
	if !strings.HasPrefix(line, "tokenbroker ") || strings.Count(line, "\n") != 1 {
		t.Errorf("not one line that names the program: %q", line)
	}
	for _, want := range []string{runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH} {
		if !strings.Contains(line, want) {
			t.Errorf("%q does not name %s", line, want)
		}
	}
	if flag := output(t, "--version"); flag != line {
		t.Errorf("--version prints %q, version prints %q", flag, line)
	}
}

func TestVersion_json(t *testing.T) {
	line := output(t, "version", "--json")
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil || strings.Count(line, "\n") != 1 {
		t.Fatalf("not one line of JSON: %q, %v", line, err)
	}
	for _, key := range []string{"version", "commit", "commit_time", "modified", "go_version", "platform"} {
		if _, found := got[key]; !found {
			t.Errorf("%s has no %s", line, key)
		}
	}
	if got["go_version"] != runtime.Version() || got["platform"] != runtime.GOOS+"/"+runtime.GOARCH || got["version"] == "" {
		t.Errorf("got %s", line)
	}
}
