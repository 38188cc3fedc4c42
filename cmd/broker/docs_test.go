package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Each command line of the broker in the documentation, in deploy and in the help of the
// commands is one that the command line accepts: the commands and flags exist. Where the
// line stands in a block to copy, its arguments are complete as well.
func TestDocumentedCommandsParse(t *testing.T) {
	found := 0
	check := func(where, line string, complete bool) {
		for _, args := range brokerCommands(line) {
			found++
			if err := parses(args, complete); err != nil {
				t.Errorf("%s: broker %s: %v", where, strings.Join(args, " "), err)
			}
		}
	}
	for _, page := range documents(t, ".md") {
		for _, line := range blockLines(page.text) {
			check(page.path, line, true)
		}
		for _, span := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(withoutBlocks(page.text), -1) {
			check(page.path, span[1], false)
		}
	}
	for _, script := range documents(t, ".sh", ".service") {
		for _, line := range joinedLines(script.text) {
			check(script.path, strings.TrimPrefix(line, "ExecStart="), true)
		}
	}
	eachCommand(newRoot(), func(cmd *cobra.Command) {
		for _, line := range joinedLines(cmd.Example) {
			check("examples of "+cmd.CommandPath(), line, true)
		}
		for _, quoted := range regexp.MustCompile(`"(broker [^"]+)"`).FindAllStringSubmatch(strings.ReplaceAll(cmd.Long, "\n", " "), -1) {
			check("help of "+cmd.CommandPath(), quoted[1], false)
		}
	})
	if found < 150 {
		t.Errorf("only %d commands were found", found)
	}
}

// A flag that the text mentions alone is a flag of some command, unless it is listed here
// as one of another program.
func TestDocumentedFlagsExist(t *testing.T) {
	others := []string{
		"--service-account-issuer", "-federatesWith",
		"-DOFF_RENEW",                     // of Spin
		"-only", "-help", "-broker", "-n", // of the bench and of the mutants
	}
	known := func(flag string) (is bool) {
		name, long := strings.CutPrefix(flag, "--")
		eachCommand(newRoot(), func(cmd *cobra.Command) { is = is || long && cmd.Flags().Lookup(name) != nil })
		return is
	}
	found := 0
	for _, page := range documents(t, ".md") {
		for _, span := range regexp.MustCompile("`(-[^`\n]+)`").FindAllStringSubmatch(withoutBlocks(page.text), -1) {
			for _, flag := range regexp.MustCompile(`(?:^| )(--?[a-zA-Z][\w-]*)`).FindAllStringSubmatch(span[1], -1) {
				found++
				if !known(flag[1]) && !slices.Contains(others, flag[1]) {
					t.Errorf("%s: no command has the flag %s", page.path, flag[1])
				}
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d flags were found", found)
	}
}

func TestDocumentedCommandsParse_wrongOnesAreFound(t *testing.T) {
	for line, complete := range map[string]bool{
		"$ broker nosuch":                                        false,
		"broker secret nosuch orders-api":                        false,
		"broker revocations list|nosuch":                         false,
		"broker purge orders-api -cacert ca.crt":                 false,
		"broker get orders-api | broker verify - --audiences x":  true,
		"curl -H \"Bearer $(broker get a b)\" https://a.example": true,
		"TOKENBROKER_CA=ca.crt broker purge":                     true,
		"go run ./cmd/broker policy diff broker.yaml # x":        true,
		"broker revocations add --subject alice":                 true,
		"/usr/local/bin/broker serve --nosuch a":                 true,
	} {
		commands := brokerCommands(line)
		if len(commands) == 0 {
			t.Errorf("%s: no command was found", line)
		}
		if !slices.ContainsFunc(commands, func(args []string) bool { return parses(args, complete) != nil }) {
			t.Errorf("%s is accepted", line)
		}
	}
}

type document struct{ path, text string }

// documents returns the files with the extensions that tell people how to run the broker.
func documents(t *testing.T, extensions ...string) []document {
	t.Helper()
	var all []document
	for _, place := range []string{"README.md", "SECURITY.md", "docs", "deploy", "examples"} {
		err := filepath.WalkDir(filepath.Join("..", "..", place), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !slices.Contains(extensions, filepath.Ext(path)) {
				return err
			}
			text, err := os.ReadFile(path)
			all = append(all, document{path, string(text)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(all) == 0 {
		t.Fatalf("there is no document %v", extensions)
	}
	return all
}

var block = regexp.MustCompile("(?ms)^ *```(\\w*)\n(.*?)^ *```$")

// blockLines returns the lines of the blocks that a reader types: all lines of a script, and
// those after a prompt in a block with output.
func blockLines(page string) []string {
	var lines []string
	for _, one := range block.FindAllStringSubmatch(page, -1) {
		for _, line := range joinedLines(one[2]) {
			if typed := strings.HasPrefix(line, "$ "); typed || one[1] == "sh" || one[1] == "bash" {
				lines = append(lines, line)
			}
		}
	}
	return lines
}

func withoutBlocks(page string) string { return block.ReplaceAllString(page, "") }

// joinedLines returns the lines of text. It joins a line that ends with a backslash with the next.
func joinedLines(text string) []string {
	return strings.Split(strings.ReplaceAll(text, "\\\n", " "), "\n")
}

// brokerCommands returns the arguments of each call of the broker in a line for a shell.
// A word such as add|list stands for one command each.
func brokerCommands(line string) [][]string {
	line, _, _ = strings.Cut(" "+line, " #")
	var all [][]string
	for _, part := range regexp.MustCompile(` \|\|? |&&|[;()]`).Split(line, -1) {
		part = strings.NewReplacer("go run ./cmd/broker ", "broker ", `"$`, " ", "\n", " ").Replace(part)
		words := regexp.MustCompile(`"[^"]*"|'[^']*'|[^\s"']+`).FindAllString(part, -1)
		for len(words) > 0 && (words[0] == "$" || regexp.MustCompile(`^[A-Z_]+=`).MatchString(words[0])) {
			words = words[1:]
		}
		if len(words) < 2 || filepath.Base(words[0]) != "broker" {
			continue
		}
		all = append(all, alternatives(arguments(words[1:]))...)
	}
	return all
}

// arguments returns the words without redirections and quotation marks.
func arguments(words []string) []string {
	var args []string
	for i := 0; i < len(words); i++ {
		switch word := words[i]; {
		case word == ">" || word == "<" || word == "2>" || word == ">>":
			i++
		case strings.ContainsAny(word, "<>"), word == "&":
		default:
			args = append(args, strings.Trim(word, `"'`))
		}
	}
	return args
}

func alternatives(args []string) [][]string {
	i := slices.IndexFunc(args, func(arg string) bool { return regexp.MustCompile(`^\w+(\|\w+)+$`).MatchString(arg) })
	if i < 0 {
		return [][]string{args}
	}
	var all [][]string
	for one := range strings.SplitSeq(args[i], "|") {
		all = append(all, slices.Replace(slices.Clone(args), i, i+1, one))
	}
	return all
}

// parses tells whether the command line accepts the arguments. Incomplete ones lack
// arguments and required flags.
func parses(args []string, complete bool) error {
	root := newRoot()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.SetErr(io.Discard)
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err
	}
	cmd.InitDefaultHelpFlag()
	if err := cmd.Flags().Parse(rest); err != nil {
		return err
	}
	switch {
	case !complete && !cmd.HasSubCommands():
		return nil
	case !complete, cmd.DisableFlagParsing:
		return cmd.ValidateArgs(cmd.Flags().Args())
	}
	return errors.Join(cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups(), cmd.ValidateArgs(cmd.Flags().Args()))
}

func eachCommand(cmd *cobra.Command, do func(*cobra.Command)) {
	do(cmd)
	for _, sub := range cmd.Commands() {
		eachCommand(sub, do)
	}
}
