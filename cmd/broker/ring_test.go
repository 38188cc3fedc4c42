package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// runRing runs a command of the group and returns its output and error output.
func runRing(args ...string) (out, errOut string, err error) {
	var stdout, stderr strings.Builder
	root := newRoot()
	root.SetArgs(append([]string{"ring"}, args...))
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	err = root.Execute()
	return stdout.String(), stderr.String(), err
}

func readRing(t *testing.T, path string) *sealed.Ring {
	t.Helper()
	ring, err := sealed.ReadRing(path)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// nextCommand returns the arguments of the next command that a command printed.
func nextCommand(t *testing.T, errOut string) []string {
	t.Helper()
	match := regexp.MustCompile(`(?m)^  broker ring (.*)$`).FindStringSubmatch(errOut)
	if match == nil {
		t.Fatalf("no next command in %q", errOut)
	}
	return strings.Fields(match[1])
}

// A rotation consists of running the command that each step prints.
func TestRing_rotationStepByStep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring.json")
	out, _, err := runRing("new")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	first := readRing(t, path)

	out, errOut, err := runRing("add", path)
	if err != nil || out != "" {
		t.Fatalf("add printed %q, %v", out, err)
	}
	added := readRing(t, path)
	if len(added.IDs()) != 2 || added.Primary() != first.Primary() {
		t.Fatalf("after add: %v", added)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the changed file has the mode %v, %v", info.Mode(), err)
	}

	_, errOut, err = runRing(nextCommand(t, errOut)...)
	if err != nil {
		t.Fatal(err)
	}
	promoted := readRing(t, path)
	if len(promoted.IDs()) != 2 || promoted.Primary() == first.Primary() {
		t.Fatalf("after promote: %v", promoted)
	}

	if _, _, err = runRing(nextCommand(t, errOut)...); err != nil {
		t.Fatal(err)
	}
	if dropped := readRing(t, path); len(dropped.IDs()) != 1 || dropped.Primary() != promoted.Primary() {
		t.Fatalf("after drop: %v", dropped)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("leftover files: %v, %v", entries, err)
	}
}

func TestRing_refusalLeavesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring.json")
	before := sealed.GenerateRing().Reveal()
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	primary := readRing(t, path).Primary()
	broken := path + ".broken"
	testkit.WriteFile(t, broken, "{")
	for want, args := range map[string][]string{
		"a new ring is printed":     {"new", path},
		"accepts 1 arg":             {"add"},
		"accepts 2 arg":             {"promote", path},
		"does not exist: make it":   {"add", path + ".absent"},
		"is not JSON":               {"add", broken},
		"there is no key 00000000":  {"promote", path, "00000000"},
		"8 hexadecimal digits":      {"promote", path, "x"},
		"the primary already":       {"promote", path, primary},
		"promote another one first": {"drop", path, primary},
		"there is no key 00000001 ": {"drop", path, "00000001"},
		`unknown command "remove"`:  {"remove"},
	} {
		if out, _, err := runRing(args...); err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%q: printed %q, error %v, want %q", args, out, err, want)
		}
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed: %v", err)
	}
}

// The command of earlier versions suggests the new one.
func TestKeygenSuggestsRing(t *testing.T) {
	root := newRoot()
	root.SetArgs([]string{"keygen", "--add", "ring.json"})
	if err := root.Execute(); err == nil || !strings.Contains(err.Error(), "ring") {
		t.Errorf("keygen: %v", err)
	}
}
