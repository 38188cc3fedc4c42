package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

const prefix = "example.com/sample/"

// goTest writes a module, whose packages are named like the files, runs its tests and returns the report.
func goTest(t *testing.T, files map[string]string) (text string, failed bool) {
	t.Helper()
	dir := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		testkit.WriteFile(t, path, content)
	}
	write("go.mod", "module example.com/sample\n\ngo 1.26\n")
	for name, body := range files {
		write(name+"/"+name+".go", "package "+name+"\n")
		write(name+"/"+name+"_test.go", "package "+name+"\n\nimport \"testing\"\n\n"+body)
	}
	command := exec.CommandContext(t.Context(), "go", "test", "-json", "-vet=off", "./...")
	command.Dir = dir
	output, err := command.Output()
	if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var out strings.Builder
	failed, err = follow(strings.NewReader(string(output)), newReport(&out, prefix))
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), failed
}

func wantMatch(t *testing.T, text string, patterns ...string) {
	t.Helper()
	for _, pattern := range patterns {
		if !regexp.MustCompile("(?m)" + pattern).MatchString(text) {
			t.Errorf("%q is not in:\n%s", pattern, text)
		}
	}
}

const goodTests = `
func TestGood(t *testing.T) { t.Log("a good test's output"); t.Run("case", func(*testing.T) {}) }
func TestLater(t *testing.T) { t.Skip("it takes too long") }
`

func TestReportOfGoodTests(t *testing.T) {
	text, failed := goTest(t, map[string]string{"good": goodTests})
	if failed || strings.Contains(text, "Failed:") || strings.Contains(text, "a good test's output") {
		t.Errorf("failed = %v:\n%s", failed, text)
	}
	wantMatch(t, text,
		`^ok    good +[0-9.]+m?s  2 passed, 1 skipped$`,
		`^  good TestLater: good_test.go:\d+: it takes too long$`,
		`^2 passed, 0 failed, 1 skipped$`)
}

func TestReportOfFailures(t *testing.T) {
	text, failed := goTest(t, map[string]string{
		"good": goodTests,
		"bad": `
func TestGood(t *testing.T) { t.Log("a good test's output") }
func TestBad(t *testing.T) { t.Run("case", func(t *testing.T) { t.Error("a bad test's output") }) }
`,
		"broken": `func TestBroken(t *testing.T) { undefined() }`,
		"crash":  `func TestCrash(*testing.T) { panic("a crash") }`,
		"main":   `func TestMain(*testing.M) { panic("no test runs") }`,
	})
	if !failed || strings.Contains(text, "a good test's output") {
		t.Errorf("failed = %v:\n%s", failed, text)
	}
	wantMatch(t, text,
		`^FAIL  bad +[0-9.]+m?s  1 passed, 2 failed$`,
		`a bad test's output`,
		`^FAIL  broken `, `undefined: undefined`,
		`^FAIL  crash `, `panic: a crash`,
		`^FAIL  main `, `panic: no test runs`,
		`^Failed:\n  bad TestBad\n  bad TestBad/case\n  broken\n  crash TestCrash\n  main\n`,
		`^3 passed, 5 failed, 1 skipped$`)
}

func TestReportOfAnInputThatEndsEarly(t *testing.T) {
	var out strings.Builder
	failed, err := follow(strings.NewReader(`go: a message
{"Action":"run","Package":"example.com/sample/slow","Test":"TestSlow"}
`), newReport(&out, prefix))
	if !failed || err != nil {
		t.Errorf("failed = %v, %v", failed, err)
	}
	wantMatch(t, out.String(), `^go: a message$`, `^  slow: did not finish$`, `^0 passed, 1 failed, 0 skipped$`)
}

func TestReportShowsProgressWhileNothingFinishes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		in, to := io.Pipe()
		done := make(chan error)
		go func() {
			_, err := follow(in, newReport(&out, prefix))
			done <- err
		}()
		time.Sleep(heartbeat + time.Second)
		for _, line := range []string{
			`{"Action":"start","Package":"example.com/sample/slow"}`,
			`{"Action":"run","Package":"example.com/sample/slow","Test":"TestOne"}`,
			`{"Action":"pass","Package":"example.com/sample/slow","Test":"TestOne"}`,
			`{"Action":"run","Package":"example.com/sample/slow","Test":"TestTwo"}`,
		} {
			if _, err := io.WriteString(to, line+"\n"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(heartbeat)
		_ = to.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
		wantMatch(t, out.String(), `^\.\.\.   15s, 0 packages done, compiling$`, `^\.\.\.   30s, 0 packages done, running slow \(1 done\)$`)
	})
}
