package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/escape"
)

// runbookURL is the page with a section for each finding; its anchor is the finding's id.
const runbookURL = "https://github.com/cezzis/tokenbroker/blob/main/docs/runbook.md"

func newStatus() *cobra.Command {
	var (
		conn          connection
		watch, asJSON bool
	)
	cmd := exitWith(exitTrouble, &cobra.Command{
		Use:   "status",
		Short: "Show the status of the fleet and what needs attention",
		Long: `Show the status of all replicas, the store, the clients and the issuers, and below it the
findings: what is wrong, since when, and what to do.

Exit code: 0 there is no finding, 1 there are findings, 2 there is no status: the broker
cannot be reached, does not permit the call, or the command line is wrong. With --watch it
is 0 once the command is interrupted.`,
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
					return printStatus(out, status, time.Now(), widthOf(cmd.OutOrStdout()))
				})
			}
			if watch {
				return repeat(cmd.Context(), cmd.OutOrStdout(), show)
			}
			if err := show(cmd.OutOrStdout()); err != nil {
				return err
			}
			if findings > 0 {
				return exit(exitNegative)
			}
			return nil
		}})
	conn.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every 2 s, until interrupted")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printStatus prints a line for each part, and then the findings, within so many columns;
// 0: any number.
func printStatus(out io.Writer, s *tokenbrokerv1.GetStatusResponse, now time.Time, width int) error {
	var page bytes.Buffer
	line := func(part, text string) {
		const indent = 14
		_, _ = fmt.Fprintf(&page, "%-12s  %s\n", part, wrapped(escape.Text(text), indent, width))
	}
	line("replicas", replicasLine(s))
	line("store", storeLine(s.GetStore()))
	line("clients", clientsLine(s.GetClients()))
	line("issuers", issuersLine(s.GetIssuers()))
	if certificates := s.GetCertificates(); len(certificates) > 0 {
		first := certificates[0]
		line("certificates", fmt.Sprintf("the first expires on %s: %s %s", first.GetExpiresAt().AsTime().Format(time.DateOnly), first.GetUse(), first.GetName()))
	}
	_, _ = fmt.Fprintln(&page) // a buffer does not fail
	if len(s.GetFindings()) == 0 {
		_, _ = fmt.Fprintln(&page, "No findings.")
	}
	for _, one := range s.GetFindings() {
		severity := "warning"
		if one.GetSeverity() == tokenbrokerv1.FindingSeverity_FINDING_SEVERITY_CRITICAL {
			severity = "CRITICAL"
		}
		const indent = 10
		action := fmt.Sprintf("For %s. %s [%s]", formatSince(one.GetSince(), now), one.GetAction(), one.GetId())
		_, _ = fmt.Fprintf(&page, "%-8s  %s\n%*s%s\n", severity, wrapped(escape.Text(one.GetMessage()), indent, width), indent, "", wrapped(escape.Text(action), indent, width))
	}
	if link := "Runbook: " + runbookURL + "#ID"; len(s.GetFindings()) > 0 && (width == 0 || len(link) <= width) { // a wrapped link is of no use
		_, _ = fmt.Fprintf(&page, "\n%s\n", link)
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
	text := s.GetKind() + ", reads and writes work"
	for _, one := range s.GetServers() {
		if !one.GetReads() || !one.GetWrites() {
			text = serverLine(s.GetKind(), one)
			break
		}
	}
	switch s.GetDurable() {
	case "yes":
		text += ", data is kept on disk"
	case "no":
		text += ", data is lost if it restarts"
	}
	if s.GetEvicts() == "yes" {
		text += ", data that must stay may be evicted"
	}
	return text
}

// serverLine describes a server that fails.
func serverLine(kind string, one *tokenbrokerv1.StoreServerStatus) string {
	server := strings.TrimSpace(kind + " " + one.GetName())
	switch {
	case !one.GetReads():
		return server + " cannot be reached"
	case one.GetError() == "":
		return server + " refuses writes"
	default:
		return server + " refuses writes: " + one.GetError()
	}
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
