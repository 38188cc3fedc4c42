package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/escape"
	"github.com/cezzis/tokenbroker/internal/fleet"
)

const watchInterval = 2 * time.Second

func newClients() *cobra.Command {
	var (
		conn                          connection
		watch, asJSON, onlyTheFailing bool
	)
	cmd := &cobra.Command{
		Use:   "clients [NAME]",
		Short: "Show the configured clients, their tokens and their secrets",
		Long: `Show the state of the configured clients: when their tokens expire and are due to be
replaced, which secrets they have, and the last failure on any replica within a day. Tokens
are those of the replica that responds. Lines are cut to the width of the terminal.

With NAME, show all details of one client, and its last error as a whole. The name of a secret's version is an opaque
string; the secret itself is never shown.`,
		Example: `  broker clients
  broker clients --failing
  broker clients --watch
  broker clients orders-api --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && onlyTheFailing {
				return usageError{errors.New("--failing is for the list of all clients: leave out the flag or the name")}
			}
			write := func(out io.Writer) error {
				return conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
					if len(args) == 1 {
						resp, err := admin.GetClient(ctx, &tokenbrokerv1.GetClientRequest{ClientName: args[0]})
						if err != nil {
							return err
						}
						return printClient(out, resp.GetClient(), time.Now(), asJSON)
					}
					clients, err := listClients(ctx, admin)
					if err != nil {
						return err
					}
					if onlyTheFailing {
						clients = slices.DeleteFunc(clients, func(c *tokenbrokerv1.Client) bool { return !failing(c) })
					}
					return printClients(out, clients, time.Now(), asJSON, widthOf(cmd.OutOrStdout()))
				})
			}
			if !watch {
				return write(cmd.OutOrStdout())
			}
			return repeat(cmd.Context(), cmd.OutOrStdout(), write)
		},
	}
	conn.flags(cmd)
	conn.completeClients(cmd, 0, 0)
	cmd.Flags().BoolVar(&onlyTheFailing, "failing", false, "only clients that need attention: their state has an exclamation mark")
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every 2 s, until interrupted")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// repeat calls write at intervals; on a terminal it redraws in place.
func repeat(ctx context.Context, out io.Writer, write func(out io.Writer) error) error {
	for {
		var page bytes.Buffer
		if err := write(&page); err != nil && ctx.Err() == nil {
			page.WriteString("broker: " + err.Error() + "\n") // the next attempt may succeed
		}
		if onTerminal(out) {
			_, _ = io.WriteString(out, "\x1b[H\x1b[2J")
		}
		if _, err := page.WriteTo(out); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

func listClients(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) ([]*tokenbrokerv1.Client, error) {
	var clients []*tokenbrokerv1.Client
	for page := ""; ; {
		resp, err := admin.ListClients(ctx, &tokenbrokerv1.ListClientsRequest{PageToken: page})
		if err != nil {
			return nil, err
		}
		clients = append(clients, resp.GetClients()...)
		if page = resp.GetNextPageToken(); page == "" {
			return clients, nil
		}
	}
}

// printClients prints a line for each client, of so many columns at most; 0: any number.
func printClients(out io.Writer, clients []*tokenbrokerv1.Client, now time.Time, asJSON bool, width int) error {
	if asJSON {
		for _, c := range clients {
			if err := printClient(out, c, now, true); err != nil {
				return err
			}
		}
		return nil
	}
	var page bytes.Buffer
	table := tabwriter.NewWriter(&page, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "CLIENT\tSTATE\tTOKEN ENDS\tREFRESH\tSECRET\tAGE\tALSO\tLAST ERROR")
	for _, c := range clients {
		secret, age, others := secretColumns(c, now)
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.GetName(), stateOf(c), formatUntil(c.GetTokenExpiresAt(), now),
			formatUntil(c.GetNextRefreshAt(), now), secret, age, others, escape.Text(lastError(c, now)))
	}
	_ = table.Flush() // a buffer does not fail
	_, err := io.WriteString(out, cut(page.String(), width))
	return err
}

// secretColumns returns the current version, its age and the other usable versions.
func secretColumns(c *tokenbrokerv1.Client, now time.Time) (secret, age, others string) {
	secret, age = "-", "-"
	var usable []string
	for _, v := range c.GetSecretVersions() {
		switch state := v.GetState(); state {
		case tokenbrokerv1.SecretState_SECRET_STATE_CURRENT:
			secret, age = v.GetVersion(), formatSince(v.GetStateSince(), now)
		case tokenbrokerv1.SecretState_SECRET_STATE_PENDING, tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS:
			usable = append(usable, v.GetVersion()+" "+secretState(v))
		default:
		}
	}
	if len(usable) == 0 {
		usable = []string{"-"}
	}
	return secret, age, strings.Join(usable, ", ")
}

// stateOf returns the client's status in a word; an exclamation mark means that an
// operator should look at it.
func stateOf(c *tokenbrokerv1.Client) string {
	state := enumWord(c.GetState().String(), "CLIENT_STATE_")
	switch {
	case c.GetSecretFallback():
		return state + ", on a fallback!"
	case failing(c):
		return state + "!"
	default:
		return state
	}
}

// failing reports whether an operator should look at a client.
func failing(c *tokenbrokerv1.Client) bool {
	switch c.GetState() {
	case tokenbrokerv1.ClientState_CLIENT_STATE_FAILING, tokenbrokerv1.ClientState_CLIENT_STATE_REFUSED,
		tokenbrokerv1.ClientState_CLIENT_STATE_THROTTLED, tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET:
		return true
	default:
		return c.GetSecretFallback()
	}
}

func resolvedSuffix(c *tokenbrokerv1.Client) string {
	switch {
	case c.GetLastFailureAt() == nil:
		return ""
	case c.GetLastFailureResolved():
		return ", resolved"
	default:
		return ", not resolved"
	}
}

func secretState(v *tokenbrokerv1.SecretVersion) string {
	state := enumWord(v.GetState().String(), "SECRET_STATE_")
	if v.GetState() == tokenbrokerv1.SecretState_SECRET_STATE_RETIRED && v.GetRefusedAt() != nil {
		state += ", refused"
	}
	return state
}

func enumWord(enum, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(enum, prefix)), "_", " ")
}

func lastError(c *tokenbrokerv1.Client, now time.Time) string {
	at := c.GetLastFailureAt()
	if at == nil || c.GetLastFailureResolved() {
		return "-"
	}
	return formatSince(at, now) + " ago: " + strings.TrimPrefix(c.GetLastError(), fmt.Sprintf("client %q: ", c.GetName()))
}

// formatUntil formats the time until an instant, or a placeholder if it is unset.
func formatUntil(at *timestamppb.Timestamp, now time.Time) string {
	if at == nil {
		return "-"
	}
	if left := at.AsTime().Sub(now); left > 0 {
		return "in " + fleet.Span(left)
	}
	return "now"
}

// formatSince formats the time since an instant, or a placeholder if it is unset.
func formatSince(at *timestamppb.Timestamp, now time.Time) string {
	if at == nil {
		return "-"
	}
	return fleet.Span(max(now.Sub(at.AsTime()), 0))
}

func printClient(out io.Writer, c *tokenbrokerv1.Client, now time.Time, asJSON bool) error {
	if asJSON {
		return printMessage(out, c)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	addRow := func(label, format string, args ...any) { _, _ = fmt.Fprintf(table, label+"\t"+format+"\n", args...) }
	addRow("client", "%s", c.GetName())
	addRow("state", "%s", stateOf(c))
	addRow("client_id", "%s", c.GetClientId())
	if c.GetIssuer() != "" {
		addRow("issuer", "%s", c.GetIssuer())
	} else {
		addRow("token endpoint", "%s", c.GetTokenUrl())
	}
	addRow("authenticates by", "%s", c.GetAuthMethod())
	addRow("secret from", "%s", cmp.Or(c.GetSecretSource(), "-"))
	addRow("token ends", "%s", formatUntil(c.GetTokenExpiresAt(), now))
	addRow("next refresh", "%s", formatUntil(c.GetNextRefreshAt(), now))
	addRow("last success", "%s", formatAgo(c.GetLastSuccessAt(), now))
	addRow("last failure", "%s%s", formatAgo(c.GetLastFailureAt(), now), resolvedSuffix(c))
	if c.GetLastFailureAt() != nil {
		addRow("", "%s", c.GetLastError())
	}
	if c.GetBackoffUntil() != nil {
		addRow("left alone", "%s", formatUntil(c.GetBackoffUntil(), now))
	}
	if c.GetSecretFallback() {
		addRow("WARNING", "tokens are obtained with version %s, because the IdP refuses the active version", c.GetSecretInUse())
	}
	_ = table.Flush()
	if len(c.GetSecretVersions()) == 0 {
		return nil
	}
	_, _ = fmt.Fprintln(table, "\nVERSION\tSTATE\tSINCE\tBROUGHT\tBY\tLAST TOKEN\tREFUSED")
	for _, v := range c.GetSecretVersions() {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.GetVersion(), secretState(v), formatAgo(v.GetStateSince(), now),
			formatAgo(v.GetCreatedAt(), now), cmp.Or(v.GetCreatedBy(), "-"), formatAgo(v.GetLastSuccessAt(), now), formatAgo(v.GetRefusedAt(), now))
	}
	return table.Flush()
}

func formatAgo(at *timestamppb.Timestamp, now time.Time) string {
	if at == nil {
		return "-"
	}
	return formatSince(at, now) + " ago"
}
