package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/escape"
)

// Exit codes of status.
const (
	exitFindings    = 1
	exitUnreachable = 2
)

func newStatus() *cobra.Command {
	var (
		conn          connection
		watch, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the status of the fleet and what needs attention",
		Long: `Show the status of all replicas, the store, the clients and the issuers, and below it the
findings: what is wrong, since when, and what to do.

The exit code is 0 without findings, 1 with findings, and 2 if the broker did not answer.`,
		Example: `  broker status
  broker status --watch
  broker status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := 0
			show := func(out io.Writer) error {
				return conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
					status, err := admin.GetStatus(ctx, &tokenbrokerv1.GetStatusRequest{})
					if err != nil {
						return err
					}
					findings = len(status.GetFindings())
					if asJSON {
						return printMessage(out, status)
					}
					return printStatus(out, status, time.Now())
				})
			}
			if watch {
				return repeat(cmd.Context(), cmd.OutOrStdout(), show)
			}
			if err := show(cmd.OutOrStdout()); err != nil {
				_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "broker: "+explain(err))
				return exit(exitUnreachable)
			}
			if findings > 0 {
				return exit(exitFindings)
			}
			return nil
		},
	}
	conn.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every 2 s, until interrupted")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, one object")
	return cmd
}

// printStatus prints a line for each part, and then the findings.
func printStatus(out io.Writer, s *tokenbrokerv1.GetStatusResponse, now time.Time) error {
	var page bytes.Buffer
	table := tabwriter.NewWriter(&page, 0, 0, 2, ' ', 0)
	line := func(part, text string) { _, _ = fmt.Fprintf(table, "%s\t%s\n", part, escape.Text(text)) }
	line("replicas", replicasLine(s))
	line("store", storeLine(s.GetStore()))
	line("clients", clientsLine(s.GetClients()))
	line("issuers", issuersLine(s.GetIssuers()))
	if certificates := s.GetCertificates(); len(certificates) > 0 {
		first := certificates[0]
		line("certificates", fmt.Sprintf("the first expires on %s: %s %s", first.GetExpiresAt().AsTime().Format(time.DateOnly), first.GetUse(), first.GetName()))
	}
	_ = table.Flush() // a buffer does not fail
	_, _ = fmt.Fprintln(&page)
	if len(s.GetFindings()) == 0 {
		_, _ = fmt.Fprintln(&page, "No findings.")
	}
	for _, one := range s.GetFindings() {
		severity := "warning"
		if one.GetSeverity() == tokenbrokerv1.FindingSeverity_FINDING_SEVERITY_CRITICAL {
			severity = "CRITICAL"
		}
		_, _ = fmt.Fprintf(&page, "%-8s  %s\n", severity, escape.Text(one.GetMessage()))
		_, _ = fmt.Fprintf(&page, "          For %s. %s [%s]\n", since(one.GetSince(), now), escape.Text(one.GetAction()), one.GetId())
	}
	_, err := page.WriteTo(out)
	return err
}

func replicasLine(s *tokenbrokerv1.GetStatusResponse) string {
	alive := 0
	var versions []string
	for _, one := range s.GetReplicas() {
		if one.GetPresence() == tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_ALIVE {
			alive++
			versions = append(versions, one.GetVersion())
		}
	}
	slices.Sort(versions)
	text := fmt.Sprintf("%d alive of %d, version %s", alive, len(s.GetReplicas()), strings.Join(slices.Compact(versions), ", "))
	if s.GetIncomplete() {
		text += "; the others are unknown"
	}
	return text
}

func storeLine(s *tokenbrokerv1.StoreStatus) string {
	for _, one := range s.GetServers() {
		switch {
		case !one.GetReads():
			return s.GetKind() + " " + one.GetName() + " cannot be reached"
		case !one.GetWrites():
			return s.GetKind() + " " + one.GetName() + " refuses writes"
		}
	}
	return s.GetKind() + ", reads and writes work"
}

func clientsLine(all []*tokenbrokerv1.ClientStatus) string {
	count := map[tokenbrokerv1.ClientState]int{}
	for _, one := range all {
		count[one.GetState()]++
	}
	parts := []string{fmt.Sprintf("%d configured", len(all))}
	for state := range int32(len(tokenbrokerv1.ClientState_name)) { //nolint:gosec // a few states
		if n := count[tokenbrokerv1.ClientState(state)]; n > 0 {
			name := strings.TrimPrefix(tokenbrokerv1.ClientState(state).String(), "CLIENT_STATE_")
			parts = append(parts, fmt.Sprintf("%d %s", n, strings.ToLower(strings.ReplaceAll(name, "_", " "))))
		}
	}
	return strings.Join(parts, ", ")
}

func issuersLine(all []*tokenbrokerv1.IssuerStatus) string {
	if len(all) == 0 {
		return "none configured"
	}
	failing := 0
	for _, one := range all {
		if one.GetLastError() != "" || one.GetKeysLoadedAt() == nil {
			failing++
		}
	}
	if failing > 0 {
		return fmt.Sprintf("%d configured, the keys of %d cannot be fetched", len(all), failing)
	}
	return fmt.Sprintf("%d configured, all keys are fetched", len(all))
}
