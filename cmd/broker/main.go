// Command broker serves OAuth access tokens and is the command-line client of a broker.
// Each command has its own file; the implementation is in the packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/internal/escape"
	"github.com/cezzis/tokenbroker/internal/fleet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:]))
}

// exit is an error that only sets the exit code: its message is printed already.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// exitTrouble is the exit code for an error of a command whose exit code 1 has another
// meaning, as that of diff.
const exitTrouble = 2

// troubleExit makes the command exit with exitTrouble on each error, also on a wrong
// argument or flag.
func troubleExit(cmd *cobra.Command, args cobra.PositionalArgs, run func(cmd *cobra.Command, args []string) error) *cobra.Command {
	trouble := func(cmd *cobra.Command, err error) error {
		if err == nil {
			return nil
		}
		if code, ok := err.(exit); ok { //nolint:errorlint // run returns it as it is
			return code
		}
		printError(cmd.ErrOrStderr(), err)
		return exit(exitTrouble)
	}
	cmd.Args = func(cmd *cobra.Command, given []string) error { return trouble(cmd, args(cmd, given)) }
	cmd.RunE = func(cmd *cobra.Command, given []string) error { return trouble(cmd, run(cmd, given)) }
	cmd.SetFlagErrorFunc(trouble)
	return cmd
}

func run(ctx context.Context, args []string) int {
	return runTo(ctx, args, os.Stdout, os.Stderr)
}

func runTo(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(escape.NewWriter(stdout))
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exit](err); ok {
		return int(code)
	}
	printError(stderr, err)
	return 1
}

// printError prints the error with which a command ends.
func printError(out io.Writer, err error) {
	_, _ = fmt.Fprintln(escape.NewWriter(out), "broker: "+explain(err))
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "broker",
		Short: "Share OAuth access tokens with a fleet, and verify presented tokens",
		Long: `tokenbroker holds OAuth client credentials, fetches each access token once for all
services that need it, and verifies presented tokens.

New here? "broker dev" runs everything on this machine and shows what it does.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(escape.NewWriter(os.Stdout))
	root.AddCommand(newServe(), newDev(), newGet(), newVerify(), newCheckConfig(), newDoctor(), newPolicy(), newRing(), newStatus(), newClients(), newSecret(), newPurge(), newRevocations(), newHealthcheck(), newVersion())
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

// explain formats a gRPC status for people.
func explain(err error) string {
	st, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s: %s", st.Code(), st.Message())
	for _, detail := range st.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			fmt.Fprintf(&text, "\n  reason: %s", detail.GetReason())
		case *errdetails.RetryInfo:
			fmt.Fprintf(&text, "\n  try again in: %s", fleet.Span(max(detail.GetRetryDelay().AsDuration(), time.Second)))
		}
	}
	return text.String()
}
