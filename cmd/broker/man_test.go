package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func TestManual_describesEachCommand(t *testing.T) {
	dir := t.TempDir()
	output(t, "man", dir)
	pages := 0
	var check func(cmd *cobra.Command)
	check = func(cmd *cobra.Command) {
		pages++
		content, err := os.ReadFile(filepath.Join(dir, pageName(cmd)+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		page := string(content)
		cmd.Flags().VisitAll(func(flag *pflag.Flag) {
			if !strings.Contains(page, roff("--"+flag.Name)) {
				t.Errorf("the page of %q has no --%s", cmd.CommandPath(), flag.Name)
			}
		})
		for _, child := range subcommands(cmd) {
			if !strings.Contains(page, roff(pageName(child))) {
				t.Errorf("the page of %q does not refer to %q", cmd.CommandPath(), child.CommandPath())
			}
			check(child)
		}
	}
	root := newRoot()
	root.InitDefaultCompletionCmd() // as when it is run
	check(root)
	if files, err := os.ReadDir(dir); err != nil || len(files) != pages || pages < 20 {
		t.Errorf("%d commands, %d files, %v", pages, len(files), err)
	}
}

func TestRoff(t *testing.T) {
	for text, want := range map[string]string{
		"--json":     `\-\-json`,
		`C:\x`:       `C:\ex`,
		".SH\n'x\n.": "\\&.SH\n\\&'x\n\\&.",
		"a. b":       "a. b",
	} {
		if got := roff(text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}
