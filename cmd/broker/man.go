package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cezzis/tokenbroker/internal/app"
)

// newMan makes the command that packages of the broker are built with.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:    "man DIRECTORY",
		Short:  "Write a manual page for each command",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return writeManual(cmd.Root(), args[0])
		},
	}
}

// writeManual writes the pages of a command and its subcommands into a directory.
func writeManual(cmd *cobra.Command, dir string) error {
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	file, err := os.Create(filepath.Join(dir, pageName(cmd)+".1")) //nolint:gosec // the user names the directory
	if err != nil {
		return err
	}
	writePage(file, cmd, app.ReadBuild())
	if err := file.Close(); err != nil {
		return err
	}
	for _, child := range subcommands(cmd) {
		if err := writeManual(child, dir); err != nil {
			return err
		}
	}
	return nil
}

func pageName(cmd *cobra.Command) string { return strings.ReplaceAll(cmd.CommandPath(), " ", "-") }

func subcommands(cmd *cobra.Command) (shown []*cobra.Command) {
	for _, child := range cmd.Commands() {
		if child.IsAvailableCommand() {
			shown = append(shown, child)
		}
	}
	return shown
}

// writePage writes a page in the macros of man(7).
func writePage(out io.Writer, cmd *cobra.Command, build app.Build) {
	date, _, _ := strings.Cut(build.CommitTime, "T")
	section := func(name string) { _, _ = fmt.Fprintf(out, ".SH %s\n", name) }
	_, _ = fmt.Fprintf(out, ".TH %q 1 %q %q\n", strings.ToUpper(pageName(cmd)), date, "tokenbroker "+build.Version)
	section("NAME")
	_, _ = fmt.Fprintf(out, "%s \\- %s\n", roff(pageName(cmd)), roff(cmd.Short))
	section("SYNOPSIS")
	_, _ = fmt.Fprintf(out, ".B %s\n", roff(cmd.UseLine()))
	section("DESCRIPTION")
	writeParagraphs(out, cmd.Long+"\n\n"+sentence(cmd))
	if children := subcommands(cmd); len(children) > 0 {
		section("COMMANDS")
		for _, child := range children {
			_, _ = fmt.Fprintf(out, ".TP\n.B %s\n%s; see\n.BR %s (1)\n", roff(child.Name()), roff(child.Short), roff(pageName(child)))
		}
	}
	section("OPTIONS")
	cmd.Flags().VisitAll(func(flag *pflag.Flag) { writeOption(out, flag) })
	if cmd.HasExample() {
		section("EXAMPLES")
		writeLiteral(out, cmd.Example)
	}
	if cmd.HasParent() {
		section("SEE ALSO")
		_, _ = fmt.Fprintf(out, ".BR %s (1)\n", roff(pageName(cmd.Parent())))
	}
}

// sentence is the description of a command that has no long one.
func sentence(cmd *cobra.Command) string {
	if cmd.Long != "" {
		return ""
	}
	return cmd.Short + "."
}

func writeOption(out io.Writer, flag *pflag.Flag) {
	if flag.Hidden {
		return
	}
	argument, usage := pflag.UnquoteUsage(flag)
	name := "--" + flag.Name
	if flag.Shorthand != "" {
		name = "-" + flag.Shorthand + ", " + name
	}
	if flag.DefValue != "" && flag.DefValue != "false" && flag.DefValue != "[]" {
		usage += " (default " + flag.DefValue + ")"
	}
	_, _ = fmt.Fprintf(out, ".TP\n\\fB%s\\fR \\fI%s\\fR\n%s\n", roff(name), roff(argument), roff(usage))
}

// writeParagraphs fills the lines of a paragraph, unless they are indented.
func writeParagraphs(out io.Writer, text string) {
	for paragraph := range strings.SplitSeq(strings.Trim(text, "\n"), "\n\n") {
		if strings.HasPrefix(paragraph, " ") {
			writeLiteral(out, paragraph)
			continue
		}
		_, _ = fmt.Fprintf(out, ".PP\n%s\n", roff(paragraph))
	}
}

func writeLiteral(out io.Writer, text string) {
	_, _ = fmt.Fprintf(out, ".PP\n.nf\n%s\n.fi\n", roff(text))
}

// roff escapes text for a page: backslashes, hyphens that are minus signs, and lines that
// would be macros.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`).Replace(text)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			lines[i] = `\&` + line
		}
	}
	return strings.Join(lines, "\n")
}
