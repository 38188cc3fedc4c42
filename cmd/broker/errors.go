package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/escape"
	"github.com/cezzis/tokenbroker/internal/fleet"
)

// The exit codes of all commands; 0 is success. The help of the root command and
// docs/command-line.md have the same table.
const (
	// exitNegative is the code if the broker refuses the request or cannot start, and if a
	// check has a negative result: a rejected token, findings, differences, an invalid file.
	exitNegative = 1
	// exitTrouble is the code of all other errors: there is no result. Commands with a
	// negative result of their own exit with it on each error.
	exitTrouble = 2
)

const exitCodesHelp = `Exit codes of all commands:
  0  success
  1  the broker refused the request or cannot start, or a check has a negative result: a
     rejected token, findings, differences, an invalid configuration
  2  no result: the command line or a file that it names is wrong, no broker can be reached,
     or the broker does not identify the caller or does not permit the call`

// exit is an error that only sets the exit code: its message is printed already.
type exit int

func (e exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// codedError is an error with an exit code.
type codedError struct {
	error

	code int
}

// Unwrap returns the error without the code.
func (e codedError) Unwrap() error { return e.error }

// callError is a failed call to a broker, explained in a sentence.
type callError struct {
	sentence string
	code     int
	cause    error
	// unreached is set if the call did not reach a broker.
	unreached bool
}

func (e *callError) Error() string { return e.sentence }

// Unwrap returns the error of the call, for its status.
func (e *callError) Unwrap() error { return e.cause }

// usageError is a wrong command line.
type usageError struct{ error }

// exitWith makes each error of the command set this exit code.
func exitWith(code int, cmd *cobra.Command) *cobra.Command {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := run(cmd, args)
		_, isExit := errors.AsType[exit](err)
		_, isUsage := errors.AsType[usageError](err)
		if isExit || isUsage || err == nil {
			return err
		}
		return codedError{err, code}
	}
	return cmd
}

// exitCode returns the exit code of a program that ends with err.
func exitCode(err error) int {
	if code, ok := errors.AsType[exit](err); ok {
		return int(code)
	}
	if coded, ok := errors.AsType[codedError](err); ok {
		return coded.code
	}
	if call, ok := errors.AsType[*callError](err); ok {
		return call.code
	}
	return exitTrouble
}

// printError prints the error with which a command ends, and the usage if the command line
// is wrong.
func printError(out io.Writer, cmd *cobra.Command, err error) {
	text := "broker: " + err.Error() + "\n"
	if _, ok := errors.AsType[usageError](err); ok {
		usage := cmd.UseLine()
		if cmd.HasAvailableSubCommands() {
			usage = cmd.CommandPath() + " COMMAND"
		}
		text += fmt.Sprintf("usage: %s\n\"%s --help\" shows the flags and examples.\n", usage, cmd.CommandPath())
	}
	_, _ = io.WriteString(escape.NewWriter(out), text)
}

// explain turns the error of a call into a sentence that says what to do. The broker's
// own errors are such sentences; others are the errors of gRPC, whose cause is
// examined.
func (c *connection) explain(ctx context.Context, broker *client.Client, err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	if ctx.Err() != nil {
		return &callError{"interrupted", exitTrouble, err, true}
	}
	info := infoOf(st)
	if info == nil {
		if sentence := c.unreachable(ctx, st); sentence != "" {
			return &callError{sentence, exitTrouble, err, true}
		}
	}
	var text strings.Builder
	text.WriteString(cmp.Or(st.Message(), "the call failed"))
	if name := similarClient(ctx, broker, info); name != "" {
		_, _ = fmt.Fprintf(&text, "\n  did you mean the client %q?", name)
	}
	if info != nil {
		_, _ = fmt.Fprintf(&text, "\n  reason: %s (%s)", info.GetReason(), st.Code())
	} else {
		_, _ = fmt.Fprintf(&text, " (%s)", st.Code())
	}
	for _, detail := range st.Details() {
		if retry, ok := detail.(*errdetails.RetryInfo); ok {
			_, _ = fmt.Fprintf(&text, "\n  try again in: %s", fleet.Span(max(retry.GetRetryDelay().AsDuration(), time.Second)))
		}
	}
	return &callError{text.String(), codeOf(st.Code()), err, false}
}

// codeOf returns the exit code for an error of the broker.
func codeOf(code codes.Code) int {
	if code == codes.Unauthenticated || code == codes.PermissionDenied {
		return exitTrouble
	}
	return exitNegative
}

// infoOf returns the reason that the broker gave, or nil if the error is not the broker's.
func infoOf(st *status.Status) *errdetails.ErrorInfo {
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// suggestionTimeout bounds the search for a similar name.
const suggestionTimeout = 2 * time.Second

// similarClient returns the client whose name is most similar to the denied one, among those
// that the caller may list. It returns "" if there is none.
func similarClient(ctx context.Context, broker *client.Client, info *errdetails.ErrorInfo) string {
	denied := info.GetMetadata()["client"]
	if info.GetReason() != apierror.ReasonNotEntitled || denied == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, suggestionTimeout)
	defer cancel()
	clients, err := listClients(ctx, tokenbrokerv1.NewAdminServiceClient(broker.Conn()))
	if err != nil {
		return "" // the caller may not list clients
	}
	names := make([]string, len(clients))
	for i, one := range clients {
		names[i] = one.GetName()
	}
	return nearest(denied, names)
}

// nearest returns the name with the smallest edit distance to a misspelt one, or "" if all
// differ in more than a third of its characters.
func nearest(misspelt string, names []string) string {
	best, least := "", max(2, len(misspelt)/3)+1
	for _, name := range names {
		if name == misspelt {
			return "" // it exists, and something else is not permitted
		}
		if d := editDistance(strings.ToLower(misspelt), strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	return best
}

// editDistance is the number of characters to insert, remove or replace.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
