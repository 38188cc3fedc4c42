// Command mutants changes the code in many small ways, one at a time, and reports the changes
// that no test notices. Gremlins makes the changes and runs the tests; this command selects
// the files and the tests, and compares the survivors with docs/mutants.md. "make mutants"
// runs it from the root of the repository.
//
// Gremlins runs "go test" in the package of the changed file. Some packages have their tests
// elsewhere, Gremlins takes a change that does not compile for one that a test has noticed,
// and it leaves out the conditions of cases, which coverage profiles do not have. So this
// command puts itself before go in the PATH of Gremlins, and corrects all three.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

const module = "github.com/cezzis/tokenbroker/"

// target is a package whose mutants are tested.
type target struct {
	pkg   string
	files []string // empty: all
	// tests are the packages with the tests that must notice a mutant; empty: pkg.
	tests []string
	// run and skip are regular expressions for names of tests. They leave out those that
	// take long and test other code.
	run, skip string
}

var targets = []target{
	{pkg: "internal/policy"},
	{pkg: "internal/jose"},
	{pkg: "internal/verify", files: []string{"judge.go", "claims.go", "confirmation.go", "tenant.go", "opaque_facts.go"}},
	{pkg: "internal/secret"},
	{pkg: "internal/credential", files: []string{"history.go", "view.go"}, tests: []string{"internal/broker"}},
	{pkg: "internal/epoch"},
	{pkg: "internal/lease"},
	{pkg: "internal/broker", files: []string{"entry.go", "fleet.go", "flight.go"}},
}

const (
	document = "docs/mutants.md"
	// testTimeout bounds the tests of one mutant. A mutant that hangs is noticed.
	testTimeout = "90s"
	// coefficient makes the time limit of Gremlins irrelevant: a multiple of the first run,
	// which is short if the build cache is warm.
	coefficient = "1000"

	// The variables for this command in place of go.
	goVariable      = "MUTANTS_GO"
	testsVariable   = "MUTANTS_TESTS"
	packageVariable = "MUTANTS_PACKAGE"
)

func main() {
	log.SetFlags(0)
	if filepath.Base(os.Args[0]) == "go" {
		code, err := insteadOfGo(os.Args[1:])
		if err != nil {
			log.Print(err)
		}
		os.Exit(code) //nolint:forbidigo // as go ends
	}
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

// insteadOfGo runs go for Gremlins. It returns 2 for a package that does not compile.
func insteadOfGo(args []string) (int, error) {
	if len(args) == 0 || args[0] != "test" {
		command := exec.Command(os.Getenv(goVariable), args...)
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		err := command.Run()
		return command.ProcessState.ExitCode(), err
	}
	if i := slices.Index(args, "-coverprofile"); i >= 0 {
		if err := writeProfile(args[i+1]); err != nil {
			return 3, err
		}
	}
	test := []string{"test", "-vet=off", "-failfast", "-timeout", testTimeout}
	command := exec.Command(os.Getenv(goVariable), append(test, strings.Fields(os.Getenv(testsVariable))...)...)
	out, err := command.CombinedOutput()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		return 3, err
	}
	_, _ = os.Stdout.Write(out)
	if bytes.Contains(out, []byte("[build failed]")) || bytes.Contains(out, []byte("[setup failed]")) {
		return 2, nil
	}
	return command.ProcessState.ExitCode(), nil
}

// writeProfile writes a coverage profile by which tests reach the whole package. A change in
// code that no test reaches survives.
func writeProfile(path string) error {
	pkg := os.Getenv(packageVariable)
	files, err := filepath.Glob(filepath.Join(pkg, "*.go"))
	if err != nil {
		return err
	}
	var profile strings.Builder
	profile.WriteString("mode: set\n")
	for _, file := range files {
		profile.WriteString(module + file + ":1.1,1000000.1 1 1\n")
	}
	return os.WriteFile(path, []byte(profile.String()), 0o600)
}

func run() error {
	only := flag.String("only", "", "a regular expression for the packages")
	atOnce := flag.Int("n", 2, "mutants at once")
	dir := flag.String("dir", "bin/mutants", "the directory for results")
	flag.Parse()
	chosen, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o750); err != nil {
		return err
	}
	var results []result
	for _, t := range targets {
		if !chosen.MatchString(t.pkg) {
			continue
		}
		begun := time.Now()
		if err := t.test(*dir, *atOnce); err != nil {
			return fmt.Errorf("%s: %w", t.pkg, err)
		}
		log.Printf("%s took %v", t.pkg, time.Since(begun).Round(time.Second))
		found, err := t.read(*dir)
		if err != nil {
			return err
		}
		results = append(results, found...)
	}
	summarize(os.Stdout, results)
	return explained(results, *only == "")
}

// test has Gremlins test the mutants of a target.
func (t target) test(dir string, atOnce int) error {
	work, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	// Gremlins copies the whole directory for each worker, so it gets one without binaries.
	source := filepath.Join(work, "source")
	if err := copySource(source); err != nil {
		return err
	}
	environment, err := t.environment(work)
	if err != nil {
		return err
	}
	output, err := filepath.Abs(t.output(dir))
	if err != nil {
		return err
	}
	args := []string{
		"unleash", "--workers", strconv.Itoa(atOnce), "--timeout-coefficient", coefficient, "--output", output,
		"--invert-logical", "--invert-loopctrl",
	}
	excluded, err := t.excluded()
	if err != nil {
		return err
	}
	for _, pattern := range excluded {
		args = append(args, "--exclude-files", pattern)
	}
	gremlins, err := exec.LookPath("gremlins")
	if err != nil {
		return err
	}
	command := exec.Command(gremlins, append(args, "./"+t.pkg)...)
	command.Dir, command.Env = source, environment
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	return command.Run()
}

func (t target) output(dir string) string { return filepath.Join(dir, filepath.Base(t.pkg)+".json") }

// copySource copies the files that git knows, or would add.
func copySource(to string) error {
	out, err := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		data, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, and not yet committed
		}
		if err != nil {
			return err
		}
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// environment returns the environment of Gremlins, with this command in place of go.
func (t target) environment(work string) ([]string, error) {
	goCommand, err := exec.LookPath("go")
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if err := os.Symlink(self, filepath.Join(work, "go")); err != nil {
		return nil, err
	}
	tests := t.tests
	if len(tests) == 0 {
		tests = []string{t.pkg}
	}
	var words []string
	if t.run != "" {
		words = append(words, "-run", t.run)
	}
	if t.skip != "" {
		words = append(words, "-skip", t.skip)
	}
	for _, pkg := range tests {
		words = append(words, module+pkg)
	}
	path := work + string(os.PathListSeparator) + os.Getenv("PATH")
	return append(os.Environ(), "PATH="+path, goVariable+"="+goCommand, testsVariable+"="+strings.Join(words, " "), packageVariable+"="+t.pkg), nil
}

// excluded returns patterns for the files of the package's directory that are not mutated.
func (t target) excluded() ([]string, error) {
	patterns := []string{"/"} // packages below this one
	if len(t.files) == 0 {
		return patterns, nil
	}
	files, err := filepath.Glob(filepath.Join(t.pkg, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, file := range t.files {
		if !slices.Contains(files, filepath.Join(t.pkg, file)) {
			return nil, fmt.Errorf("%s has no file %s", t.pkg, file)
		}
	}
	for _, path := range files {
		if name := filepath.Base(path); !slices.Contains(t.files, name) {
			patterns = append(patterns, "^"+regexp.QuoteMeta(name)+"$")
		}
	}
	return patterns, nil
}

// result is the verdict on one mutant.
type result struct {
	pkg, file, function string
	line                string // of the source
	column              int    // in the line, which is trimmed
	kind, status        string
}

// read reads the results that Gremlins has written.
func (t target) read(dir string) (results []result, err error) {
	text, err := os.ReadFile(t.output(dir))
	if err != nil {
		return nil, err
	}
	var report struct {
		Files []struct {
			Name      string `json:"file_name"`
			Mutations []struct {
				Type, Status string
				Line, Column int
			}
		}
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return nil, err
	}
	for _, file := range report.Files {
		path := filepath.Join(t.pkg, filepath.Base(file.Name))
		source, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		lines := strings.Split(string(source), "\n")
		for _, m := range file.Mutations {
			line := lines[m.Line-1]
			trimmed := strings.TrimLeft(line, "\t")
			results = append(results, result{
				pkg: t.pkg, file: path, function: functionAt(set, parsed, m.Line),
				line: trimmed, column: m.Column - (len(line) - len(trimmed)), kind: m.Type, status: m.Status,
			})
		}
	}
	return results, nil
}

// functionAt returns the name of the function that has the line.
func functionAt(set *token.FileSet, file *ast.File, line int) string {
	for _, declaration := range file.Decls {
		f, ok := declaration.(*ast.FuncDecl)
		if !ok || line < set.Position(f.Pos()).Line || line > set.Position(f.End()).Line {
			continue
		}
		if f.Recv == nil {
			return f.Name.Name
		}
		receiver := f.Recv.List[0].Type
		if pointer, ok := receiver.(*ast.StarExpr); ok {
			receiver = pointer.X
		}
		return fmt.Sprintf("%v.%s", receiver, f.Name.Name)
	}
	return "-"
}

// The statuses of Gremlins.
const (
	killed    = "KILLED"
	timedOut  = "TIMED OUT"
	lived     = "LIVED"
	notViable = "NOT VIABLE"
)

// summarize prints the table of results.
func summarize(w io.Writer, results []result) {
	table := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	_, _ = fmt.Fprint(table, "| package\t| mutants\t| killed\t| survived\t| did not compile\t|\n|---|---|---|---|---|\n")
	for _, t := range targets {
		count := map[string]int{}
		for _, r := range results {
			if r.pkg == t.pkg {
				count[r.status]++
			}
		}
		if len(count) > 0 {
			found := count[killed] + count[timedOut]
			_, _ = fmt.Fprintf(table, "| `%s`\t| %d\t| %d\t| %d\t| %d\t|\n", t.pkg, found+count[lived], found, count[lived], count[notViable])
		}
	}
	_ = table.Flush()
}

// item is the beginning of the document's item that explains a survivor.
func (r result) item() string {
	return fmt.Sprintf("- `%s`, `%s`, `%s` in column %d of `%s`", r.file, r.function, r.kind, r.column, r.line)
}

// explained returns an error for survivors that the document does not explain and, after a
// complete run, for explanations of mutants that did not survive.
func explained(results []result, complete bool) error {
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if i := strings.LastIndex(line, "`: "); strings.HasPrefix(line, "- `internal/") && i > 0 {
			known[line[:i+1]] = false
		}
	}
	var errs []error
	for _, r := range results {
		if r.status != lived {
			continue
		}
		if _, ok := known[r.item()]; !ok {
			errs = append(errs, fmt.Errorf("%s: a test must notice this, or %s must explain it", r.item(), document))
		}
		known[r.item()] = true
	}
	for item, found := range known {
		if complete && !found {
			errs = append(errs, fmt.Errorf("%s explains a mutant that does not survive: %s", document, item))
		}
	}
	return errors.Join(errs...)
}
