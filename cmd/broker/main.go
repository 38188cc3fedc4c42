// Command broker serves OAuth access tokens and is the command-line client of a broker.
// Each command has its own file; the implementation is in the packages.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/escape"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:]))
}

func run(ctx context.Context, args []string) int {
	return runTo(ctx, args, os.Stdin, os.Stdout, os.Stderr)
}

func runTo(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(escape.NewWriter(stdout))
	root.SetErr(stderr)
	started := markStart(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exit](err); ok {
		return int(code)
	}
	if !*started {
		err = usageError{err}
	}
	printError(stderr, cmd, err)
	return exitCode(err)
}

// markStart sets the result once a command runs. Errors before that are those of the
// command line.
func markStart(cmd *cobra.Command) (started *bool) {
	started = new(bool)
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if run := cmd.RunE; run != nil {
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				*started = true
				return run(cmd, args)
			}
		}
		for _, child := range cmd.Commands() {
			visit(child)
		}
	}
	visit(cmd)
	return started
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "broker",
		Short: "Share OAuth access tokens with a fleet, and verify presented tokens",
		Long: `tokenbroker holds OAuth client credentials, fetches each access token once for all
services that need it, and verifies presented tokens.

New here? "broker dev" runs everything on this machine and shows what it does.

` + exitCodesHelp,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	build := app.ReadBuild()
	root.Version = build.Version // cobra adds the flag --version
	root.SetVersionTemplate(versionLine(build))
	root.SetOut(escape.NewWriter(os.Stdout))
	root.AddCommand(newServe(), newDev(), newGet(), newVerify(), newCheckConfig(), newDoctor(), newPolicy(), newRing(), newStatus(), newClients(), newSecret(), newKey(), newPurge(), newRevoke(), newRevocations(), newHealthcheck(), newVersion(), newMan())
	return root
}

// newGroup makes a command that has only subcommands. An unknown subcommand is an error:
// cobra alone would print the help and succeed.
func newGroup(group *cobra.Command, commands ...*cobra.Command) *cobra.Command {
	group.Args = cobra.NoArgs
	group.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	group.AddCommand(commands...)
	return group
}
