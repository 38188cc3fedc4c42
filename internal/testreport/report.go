package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// event is a line of "go test -json" (go doc test2json; go help buildjson).
type event struct {
	Action      string  `json:"Action"`
	Package     string  `json:"Package"`
	Test        string  `json:"Test"`
	Elapsed     float64 `json:"Elapsed"`
	Output      string  `json:"Output"`
	ImportPath  string  `json:"ImportPath"`  // of a build
	FailedBuild string  `json:"FailedBuild"` // the ImportPath of the build that kept the package from running
}

// report is the state of the tests so far.
type report struct {
	out    io.Writer
	prefix string // removed from package names
	begun  time.Time

	running  map[string]*suite   // by package
	builds   map[string][]string // output by ImportPath
	finished int                 // packages

	passed, failed  int
	skips, failures []string // with the reasons of the skips
}

// suite is a package with running tests.
type suite struct {
	passed, failed, skipped int
	// output of tests that have not passed, by name; "" is the package itself. The
	// keys other than "" are the tests that run or failed.
	output map[string][]string
	order  []string
	cached bool
}

func newReport(out io.Writer, prefix string) *report {
	return &report{out: out, prefix: prefix, begun: time.Now(), running: map[string]*suite{}, builds: map[string][]string{}}
}

// take adds a line of input and reports whether it printed anything.
func (r *report) take(line []byte) (printed bool) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil || e.Action == "" {
		fmt.Fprintf(r.out, "%s", line) // a message of the go command
		return true
	}
	switch {
	case e.Action == "build-output":
		r.builds[e.ImportPath] = append(r.builds[e.ImportPath], e.Output)
	case e.Package == "":
	case e.Test != "":
		r.takeTest(e)
	default:
		return r.takePackage(e)
	}
	return false
}

func (r *report) suite(name string) *suite {
	s := r.running[name]
	if s == nil {
		s = &suite{output: map[string][]string{}}
		r.running[name] = s
	}
	return s
}

func (r *report) takeTest(e event) {
	s := r.suite(e.Package)
	switch e.Action {
	case "run":
		s.output[e.Test] = nil
		s.order = append(s.order, e.Test)
	case "output":
		s.output[e.Test] = append(s.output[e.Test], e.Output)
	case "pass":
		s.passed++
		delete(s.output, e.Test)
	case "skip":
		s.skipped++
		r.skips = append(r.skips, r.name(e)+reason(s.output[e.Test]))
		delete(s.output, e.Test)
	case "fail":
		s.failed++
		r.failures = append(r.failures, r.name(e))
	}
}

func (r *report) takePackage(e event) (printed bool) {
	s := r.suite(e.Package)
	switch e.Action {
	case "output":
		s.cached = s.cached || strings.HasSuffix(e.Output, "\t(cached)\n")
		s.output[""] = append(s.output[""], e.Output)
		return false
	case "pass", "fail", "skip":
	default:
		return false
	}
	delete(r.running, e.Package)
	r.finished++
	r.passed += s.passed
	r.failed += s.failed
	if e.Action == "fail" {
		if s.failed == 0 { // a build, a race or a leak, TestMain
			r.failed++
			r.failures = append(r.failures, r.name(e))
		}
		r.print(e, s, "FAIL")
		r.printOutput(e, s)
		return true
	}
	if s.passed+s.skipped == 0 { // it has no tests
		return false
	}
	r.print(e, s, "ok")
	return true
}

func (r *report) name(e event) string {
	return strings.TrimSpace(strings.TrimPrefix(e.Package, r.prefix) + " " + e.Test)
}

func (r *report) print(e event, s *suite, how string) {
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(100 * time.Millisecond).String()
	if s.cached {
		took = "cached"
	}
	fmt.Fprintf(r.out, "%-4s  %-28s %8s  %s\n", how, r.name(e), took, counts(s.passed, s.failed, s.skipped))
}

func (r *report) printOutput(e event, s *suite) {
	write := func(lines []string) {
		for _, line := range lines {
			_, _ = io.WriteString(r.out, "      "+line)
		}
	}
	write(r.builds[e.FailedBuild])
	for _, test := range s.order {
		write(s.output[test])
		delete(s.output, test) // a test may have run more than once
	}
	write(s.output[""])
}

// reason is the message of a skipped test.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "--- ") && !strings.HasPrefix(line, "=== ") {
			return ": " + line
		}
	}
	return ""
}

// progress prints the running tests.
func (r *report) progress() {
	doing := "compiling"
	if len(r.running) > 0 {
		var names []string
		for _, name := range slices.Sorted(maps.Keys(r.running)) {
			s := r.running[name]
			names = append(names, fmt.Sprintf("%s (%d done)", strings.TrimPrefix(name, r.prefix), s.passed+s.failed+s.skipped))
		}
		doing = "running " + strings.Join(names, ", ")
	}
	fmt.Fprintf(r.out, "...   %v, %d packages done, %s\n", time.Since(r.begun).Round(time.Second), r.finished, doing)
}

func (r *report) summarize() {
	for name := range r.running { // the input ended early
		r.failed++
		r.failures = append(r.failures, r.name(event{Package: name})+": did not finish")
	}
	r.list("Skipped", r.skips)
	r.list("Failed", r.failures)
	fmt.Fprintf(r.out, "\n%d passed, %d failed, %d skipped\n", r.passed, r.failed, len(r.skips))
}

func (r *report) list(title string, names []string) {
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	fmt.Fprintf(r.out, "\n%s:\n", title)
	for _, name := range names {
		fmt.Fprintf(r.out, "  %s\n", name)
	}
}

// counts lists the numbers that are not zero.
func counts(passed, failed, skipped int) string {
	var parts []string
	for _, part := range []struct {
		n    int
		what string
	}{{passed, "passed"}, {failed, "failed"}, {skipped, "skipped"}} {
		if part.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	return strings.Join(parts, ", ")
}
