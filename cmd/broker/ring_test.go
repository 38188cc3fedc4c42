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

// ring runs a command of the group and returns what it wrote to stdout and stderr.
func ring(args ...string) (out, told string, err error) {
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

// next is the command that the last one told to run.
func next(t *testing.T, told string) []string {
	t.Helper()
	match := regexp.MustCompile(`(?m)^  broker ring (.*)$`).FindStringSubmatch(told)
	if match == nil {
		t.Fatalf("no next command in %q", told)
	}
	return strings.Fields(match[1])
}

// A rotation is done by running what each step tells to run next.
func TestRing_rotationStepByStep(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring.json")
	out, _, err := ring("new")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	first := readRing(t, path)

	out, told, err := ring("add", path)
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

	_, told, err = ring(next(t, told)...)
	if err != nil {
		t.Fatal(err)
	}
	promoted := readRing(t, path)
	if len(promoted.IDs()) != 2 || promoted.Primary() == first.Primary() {
		t.Fatalf("after promote: %v", promoted)
	}

	if _, _, err = ring(next(t, told)...); err != nil {
		t.Fatal(err)
	}
	if dropped := readRing(t, path); len(dropped.IDs()) != 1 || dropped.Primary() != promoted.Primary() {
		t.Fatalf("after drop: %v", dropped)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v, %v", entries, err)
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
		if out, _, err := ring(args...); err == nil || !strings.Contains(err.Error(), want) || out != "" {
			t.Errorf("%q: printed %q, error %v, want %q", args, out, err, want)
		}
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed: %v", err)
	}
}

// Who types the command of earlier versions learns the new one.
func TestKeygenSuggestsRing(t *testing.T) {
	root := newRoot()
	root.SetArgs([]string{"keygen", "--add", "ring.json"})
	if err := root.Execute(); err == nil || !strings.Contains(err.Error(), "ring") {
		t.Errorf("keygen: %v", err)
	}
}
