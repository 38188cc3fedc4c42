// Package model_test checks the models of the fleet with Spin. docs/model.md explains them.
package model_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// scenario is a model in one size.
type scenario struct {
	name, model, size string
}

var scenarios = []scenario{
	{"three replicas, a crash", "lease", "REPLICAS=3 REFRESHES=1 CRASHES=1"},
	{"cuts and a crash", "lease", "REFRESHES=2 CUTS=1 CRASHES=1"},
	{"a store that stays away", "lease", "REFRESHES=1 CUTS=1 AWAY"},
	{"a loss and a cut", "lease", "REFRESHES=1 LOSSES=1 CUTS=1"},
	{"a purge and a crash", "lease", "REFRESHES=0 PURGES=1 CRASHES=1"},
	{"a purge and a loss", "lease", "REFRESHES=0 PURGES=1 LOSSES=1"},
	{"a purge after a lost one", "lease", "REFRESHES=0 PURGES=1 LOST_PURGE"},
	{"a purge with a late clock", "lease", "REFRESHES=0 PURGES=1 LOST_PURGE BEHIND"},
	{"two calls and a crash", "history", "CRASHES=1"},
	{"two calls, one repeated", "history", "REPEATS=1"},
	{"two calls, a refused secret", "history", "REFUSED=2 CRASHES=1"},
	{"two calls and a loss", "history", "LOSSES=1"},
	{"two calls and an outage", "history", "OUTAGE"},
}

// guard is a guard of the code that the model can do without. property is in the line of the
// assertion that then fails.
type guard struct {
	name, model, size, property string
}

var guards = []guard{
	{"LEASE", "lease", "REFRESHES=0 CRASHES=1", "R[n].at != fetching"},
	{"RENEW", "lease", "REFRESHES=0 CRASHES=1", "R[n].at != fetching"},
	{"OWNER", "lease", "REFRESHES=1 CUTS=1", "R[n].at != fetching"},
	{"CONFIRM", "lease", "REFRESHES=0", "faults > 0"},
	{"EXPIRY", "lease", "REFRESHES=0 CRASHES=1", "R[n].at == idle"},
	{"ALONE", "lease", "REFRESHES=0 CUTS=1 AWAY", "R[n].at == idle"},
	{"NEWER_IN_STORE", "lease", "REFRESHES=2 CUTS=1", "in_order(stored"},
	{"NEWER_IN_REPLICA", "lease", "REFRESHES=2 CUTS=1", "in_order(me.held"},
	{"FLOOR", "lease", "REFRESHES=2 LOSSES=1", "me.held.number < max"},
	{"PUT_BACK_FENCE", "lease", "REFRESHES=2 LOSSES=1 CUTS=1", "in_order("},
	{"EPOCH", "lease", "REFRESHES=0 PURGES=1", ".due)"},
	{"EPOCH_AT_START", "lease", "REFRESHES=0 PURGES=1", ".due)"},
	{"PUT_BACK_EPOCH", "lease", "REFRESHES=0 PURGES=1 LOSSES=1", ".due)"},
	{"CLOCK", "lease", "REFRESHES=0 PURGES=1 LOST_PURGE", ".due)"},
	{"ABOVE", "lease", "REFRESHES=0 PURGES=1 LOST_PURGE BEHIND", ".due)"},
	{"OPENS", "lease", "REFRESHES=0 PURGES=1 LOST_PURGE BEHIND", ".due)"},
	{"BASE", "history", "", "activated[T.current]"},
	{"RESUMED_BASE", "history", "CRASHES=1", "activated[T.current]"},
	{"EXPECTED", "history", "OUTAGE", "activated[T.current]"},
	{"SINCE", "history", "OUTAGE", "activated[T.current]"},
	{"DONE", "history", "REPEATS=1", "activated[T.current]"},
	{"PROVE", "history", "", "proved & bit(v)"},
	{"SWAP", "history", "", "H[stored].pending == n"},
	{"ONE_PENDING", "history", "", "H[stored].pending == n"},
	{"MERGE", "history", "LOSSES=1", "H[stored].pending == n"},
	{"DESCENDS", "history", "LOSSES=1", "H[stored].pending == n"},
	{"REPAIR", "history", "LOSSES=1", "has[n] == stored"},
	{"IN_USE", "history", "", "current != 0"},
}

// TestModels_allGuards has no error in any scenario.
func TestModels_allGuards(t *testing.T) {
	requireSpin(t)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			result := check(t, s.model, s.size)
			if result.failed != "" {
				t.Errorf("with all guards, Spin finds an error at %q; see it with spin -a, gcc pan.c, ./pan and spin -t", result.failed)
			}
			t.Logf("%-30s %-8s %9d states %7.1f s", s.name, s.model, result.states, result.took.Seconds())
		})
	}
}

// TestModels_eachGuardIsNeeded finds a counterexample without each guard.
func TestModels_eachGuardIsNeeded(t *testing.T) {
	requireSpin(t)
	for _, g := range guards {
		t.Run(g.name, func(t *testing.T) {
			result := check(t, g.model, g.size+" OFF_"+g.name)
			switch {
			case result.failed == "":
				t.Errorf("without the guard Spin finds no error in %d states", result.states)
			case !strings.Contains(result.failed, g.property):
				t.Errorf("without the guard Spin finds an error at %q, want one with %q", result.failed, g.property)
			}
			t.Logf("%-18s %-8s %9d states %7.1f s, %d steps", g.name, g.model, result.states, result.took.Seconds(), result.steps)
		})
	}
}

// TestModels_tableHasEachGuard compares the table with the guards in the models.
func TestModels_tableHasEachGuard(t *testing.T) {
	known := map[string]bool{}
	for _, g := range guards {
		known[g.model+" "+g.name] = true
	}
	for _, model := range []string{"lease", "history"} {
		for _, found := range regexp.MustCompile(`OFF_([A-Z_]+)\b`).FindAllStringSubmatch(read(t, model+".pml"), -1) {
			if !known[model+" "+found[1]] {
				t.Errorf("no test removes the guard %s of %s.pml", found[1], model)
			}
		}
	}
}

func requireSpin(t *testing.T) {
	t.Helper()
	if os.Getenv("TOKENBROKER_LONG") == "" {
		t.Skip("runs only in make test-long")
	}
	for _, program := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("%v: apt-get install %s", err, program)
		}
	}
}

type result struct {
	states, steps int
	took          time.Duration
	failed        string // line of the assertion; empty: no error
}

// check compiles a model and tries all of its states.
func check(t *testing.T, model, size string) result {
	t.Helper()
	dir := t.TempDir()
	file := model + ".pml"
	if err := os.WriteFile(filepath.Join(dir, file), []byte(read(t, file)), 0o600); err != nil {
		t.Fatal(err)
	}
	var macros []string
	for macro := range strings.FieldsSeq(size) {
		macros = append(macros, "-D"+macro)
	}
	run := func(program string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), program, args...)
		cmd.Dir = dir
		output, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, output)
		}
		return string(output)
	}
	run("spin", append(append([]string{"-a"}, macros...), file)...)
	run("gcc", "-O1", "-DSAFETY", "-DCOLLAPSE", "-o", "pan", "pan.c")
	begun := time.Now()
	output := run("./pan", "-m1000000")
	made := result{took: time.Since(begun), states: number(t, output, `(\d+) states, stored`)}
	if strings.Contains(output, "max search depth too small") {
		t.Fatal("the search was not complete")
	}
	if number(t, output, `errors: (\d+)`) == 0 {
		return made
	}
	trail := run("spin", append(append([]string{"-t", "-p"}, macros...), file)...)
	line := number(t, trail, `pml:(\d+), Error: assertion violated`)
	made.failed = strings.TrimSpace(strings.Split(read(t, file), "\n")[line-1])
	made.steps = number(t, trail, `trail ends after (\d+) steps`)
	return made
}

func number(t *testing.T, text, pattern string) int {
	t.Helper()
	found := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no %q in the output:\n%.2000s", pattern, text)
	}
	value, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func read(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
