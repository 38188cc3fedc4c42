package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/policyreview"
)

func newPolicy() *cobra.Command {
	return newGroup(&cobra.Command{
		Use:   "policy",
		Short: "Explain and compare the permissions of callers, and find unused ones",
	}, newPolicyExplain(), newPolicyDiff(), newPolicyUsage())
}

func newPolicyExplain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain FILE [CALLER]",
		Short: "Explain which requests a caller may make, and which role grants them",
		Long: `Show how the configuration in FILE identifies CALLER, which requests CALLER may make, and
which of its roles grants them, in which line. Without CALLER, explain all callers. No
broker needs to run.`,
		Example: `  broker policy explain broker.yaml checkout`,
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := config.Load(args[0])
			if err != nil {
				return err
			}
			callers := config.CallerNames()
			if len(args) == 2 {
				callers = args[1:]
			}
			for i, name := range callers {
				lines, ok := policyreview.Explain(config, name)
				if !ok {
					return fmt.Errorf("no caller %q in %s; the callers there are: %s", name, args[0], strings.Join(config.CallerNames(), ", "))
				}
				if i > 0 {
					lines = append([]string{""}, lines...)
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(lines, "\n")); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func newPolicyDiff() *cobra.Command {
	var (
		logs   []string
		asJSON bool
	)
	cmd := exitWith(exitTrouble, &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Show which permissions callers gain and lose from one file to another",
		Long: `Compare the permissions in two configuration files: - marks requests that only OLD allows, +
those that only NEW allows, and ~ other differences: another identity of a caller, other
defaults, listeners and gateway rules. No broker needs to run.

With --audit, also list the requests in an audit log that NEW would have denied, with the
grants of OLD that allow them, and the recorded denials that NEW would have allowed.

The exit code is 0 if there is no difference, 1 if there are differences, and 2 if a file
cannot be read or is not valid.`,
		Example: `  broker policy diff broker.yaml new.yaml
  broker policy diff broker.yaml new.yaml --audit audit.jsonl.1.gz --audit audit.jsonl
  git show HEAD:broker.yaml | broker policy diff /dev/stdin broker.yaml --json`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			old, err := policyreview.Load(args[0])
			if err != nil {
				return err
			}
			updated, err := policyreview.Load(args[1])
			if err != nil {
				return err
			}
			review := review{cmd: cmd, asJSON: asJSON}
			comparison := policyreview.Compare(old, updated)
			if err := review.comparison(comparison); err != nil {
				return err
			}
			if len(logs) > 0 {
				log, err := review.readLogs(logs)
				if err != nil {
					return err
				}
				requests, undecidable := comparison.Replay(log)
				if err := review.requests(updated, requests, log.Summary(old, undecidable), old); err != nil {
					return err
				}
				if log.Bad > 0 {
					return exit(exitTrouble)
				}
			}
			if !comparison.Equal() {
				return exit(exitNegative)
			}
			return nil
		}})
	cmd.Flags().StringArrayVar(&logs, "audit", nil, "an audit log, also one compressed by gzip; - for the standard input; repeatable")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func newPolicyUsage() *cobra.Command {
	var (
		logs   []string
		asJSON bool
	)
	cmd := exitWith(exitTrouble, &cobra.Command{
		Use:   "usage FILE --audit LOG",
		Short: "Show which grants the requests in an audit log needed, and which they did not",
		Long: `Count the requests in audit logs by the grants of FILE that allow them. A grant that was
never needed, and a role that a caller never needed, can be removed without a denial of a
recorded request. Also list the recorded requests that FILE decides otherwise. No broker
needs to run.

The exit code is 2 if a file cannot be read or is not valid.`,
		Example: `  broker policy usage broker.yaml --audit audit.jsonl`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := policyreview.Load(args[0])
			if err != nil {
				return err
			}
			if len(logs) == 0 {
				return usageError{errors.New("--audit is missing: name an audit log, or - for the standard input")}
			}
			review := review{cmd: cmd, asJSON: asJSON}
			log, err := review.readLogs(logs)
			if err != nil {
				return err
			}
			if err := review.usage(file.Usage(log)); err != nil {
				return err
			}
			requests, undecidable := file.Judge(log)
			if err := review.requests(file, requests, log.Summary(file, undecidable), file); err != nil {
				return err
			}
			if log.Bad > 0 {
				return exit(exitTrouble)
			}
			return nil
		}})
	cmd.Flags().StringArrayVar(&logs, "audit", nil, "an audit log, also one compressed by gzip; - for the standard input; repeatable (required)")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// review prints the results of package policyreview.
type review struct {
	cmd    *cobra.Command
	asJSON bool
}

// readLogs reads audit logs. It reports bad lines and continues.
func (r *review) readLogs(names []string) (*policyreview.Log, error) {
	log := policyreview.NewLog()
	for _, name := range names {
		if err := r.readLog(log, name); err != nil {
			return nil, err
		}
	}
	for _, line := range log.BadLines {
		printError(r.cmd.ErrOrStderr(), r.cmd, errors.New(line))
	}
	if more := log.Bad - uint64(len(log.BadLines)); more > 0 {
		printError(r.cmd.ErrOrStderr(), r.cmd, fmt.Errorf("%d more bad lines", more))
	}
	return log, nil
}

func (r *review) readLog(log *policyreview.Log, name string) error {
	if name == "-" {
		return log.Read("standard input", r.cmd.InOrStdin())
	}
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	return log.Read(name, file)
}

func (r *review) comparison(c *policyreview.Comparison) error {
	out := r.cmd.OutOrStdout()
	if !r.asJSON {
		return c.Text(out)
	}
	return cmp.Or(printTyped(out, "identity", c.Identities), printTyped(out, "permission", c.Permissions), printTyped(out, "setting", c.Settings))
}

// requests prints the requests that the file decides otherwise than the log has them. ref is
// the file under which the log was probably written.
func (r *review) requests(file *policyreview.File, requests []policyreview.Request, summary policyreview.Summary, ref *policyreview.File) error {
	out := r.cmd.OutOrStdout()
	if !r.asJSON {
		return cmp.Or(policyreview.RequestsText(out, file.Name, requests), summary.Text(out, ref.Name))
	}
	return cmp.Or(printTyped(out, "request", requests), printTyped(out, "log", []policyreview.Summary{summary}))
}

func (r *review) usage(u *policyreview.Usage) error {
	out := r.cmd.OutOrStdout()
	if !r.asJSON {
		return u.Text(out)
	}
	return cmp.Or(printTyped(out, "grant", u.Grants), printTyped(out, "unused_role", u.Roles))
}

// printTyped prints each value as a line, with its type as the first member.
func printTyped[T any](out io.Writer, name string, values []T) error {
	for _, value := range values {
		var line bytes.Buffer
		err := printJSON(&line, value)
		if err == nil {
			_, err = fmt.Fprintf(out, "{\"type\":%q,%s", name, line.Bytes()[1:])
		}
		if err != nil {
			return err
		}
	}
	return nil
}
