package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const watchInterval = 2 * time.Second

func newClients() *cobra.Command {
	var (
		to            connection
		watch, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "clients [NAME]",
		Short: "Show the configured clients, their tokens and their secrets",
		Long: `Show the state of the configured clients: when their tokens expire and are due to be
replaced, which secrets they have, and the last failure on any replica within a day. Tokens
are those of the replica that responds.

With NAME, show all details of one client. The name of a secret's version is an opaque
string; the secret itself is never shown.`,
		Example: `  broker clients
  broker clients --watch
  broker clients orders-api --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			show := func(out io.Writer) error {
				return to.admin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
					if len(args) == 1 {
						got, err := admin.GetClient(ctx, &tokenbrokerv1.GetClientRequest{ClientName: args[0]})
						if err != nil {
							return err
						}
						return printClient(out, got.GetClient(), time.Now(), asJSON)
					}
					all, err := allClients(ctx, admin)
					if err != nil {
						return err
					}
					return printClients(out, all, time.Now(), asJSON)
				})
			}
			if !watch {
				return show(cmd.OutOrStdout())
			}
			return showAgain(cmd.Context(), cmd.OutOrStdout(), show)
		},
	}
	to.flags(cmd)
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every 2 s, until interrupted")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, an object in each line")
	return cmd
}

// showAgain calls show repeatedly; on a terminal it redraws in place.
func showAgain(ctx context.Context, out io.Writer, show func(out io.Writer) error) error {
	for {
		var page bytes.Buffer
		if err := show(&page); err != nil && ctx.Err() == nil {
			page.WriteString("broker: " + explain(err) + "\n") // the next attempt may succeed
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

func allClients(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) ([]*tokenbrokerv1.Client, error) {
	var all []*tokenbrokerv1.Client
	for page := ""; ; {
		some, err := admin.ListClients(ctx, &tokenbrokerv1.ListClientsRequest{PageToken: page})
		if err != nil {
			return nil, err
		}
		all = append(all, some.GetClients()...)
		if page = some.GetNextPageToken(); page == "" {
			return all, nil
		}
	}
}

func printClients(out io.Writer, all []*tokenbrokerv1.Client, now time.Time, asJSON bool) error {
	if asJSON {
		for _, one := range all {
			if err := printClient(out, one, now, true); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "CLIENT\tSTATE\tTOKEN ENDS\tREFRESH\tSECRET\tAGE\tALSO\tLAST ERROR")
	for _, c := range all {
		secret, age, others := secretColumns(c, now)
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.GetName(), stateOf(c), away(c.GetTokenExpiresAt(), now),
			away(c.GetNextRefreshAt(), now), secret, age, others, lastError(c, now))
	}
	return table.Flush()
}

// secretColumns returns the current version, its time in use and the other usable
// versions.
func secretColumns(c *tokenbrokerv1.Client, now time.Time) (secret, age, others string) {
	secret, age = "-", "-"
	var also []string
	for _, v := range c.GetSecretVersions() {
		switch state := v.GetState(); state {
		case tokenbrokerv1.SecretState_SECRET_STATE_CURRENT:
			secret, age = v.GetVersion(), since(v.GetStateSince(), now)
		case tokenbrokerv1.SecretState_SECRET_STATE_PENDING, tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS:
			also = append(also, v.GetVersion()+" "+secretState(v))
		default:
		}
	}
	if len(also) == 0 {
		also = []string{"-"}
	}
	return secret, age, strings.Join(also, ", ")
}

// stateOf returns the client's status in a word; an exclamation mark means that an
// operator should look at it.
func stateOf(c *tokenbrokerv1.Client) string {
	state := word(c.GetState().String(), "CLIENT_STATE_")
	if c.GetSecretFallback() {
		return state + ", on a fallback!"
	}
	switch c.GetState() {
	case tokenbrokerv1.ClientState_CLIENT_STATE_FAILING, tokenbrokerv1.ClientState_CLIENT_STATE_REFUSED,
		tokenbrokerv1.ClientState_CLIENT_STATE_THROTTLED, tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET:
		return state + "!"
	default:
		return state
	}
}

func resolved(c *tokenbrokerv1.Client) string {
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
	state := word(v.GetState().String(), "SECRET_STATE_")
	if v.GetState() == tokenbrokerv1.SecretState_SECRET_STATE_RETIRED && v.GetRefusedAt() != nil {
		state += ", refused"
	}
	return state
}

func word(enum, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(enum, prefix)), "_", " ")
}

func lastError(c *tokenbrokerv1.Client, now time.Time) string {
	failed := c.GetLastFailureAt()
	if failed == nil || c.GetLastFailureResolved() {
		return "-"
	}
	return since(failed, now) + " ago: " + strings.TrimPrefix(c.GetLastError(), fmt.Sprintf("client %q: ", c.GetName()))
}

// away formats the time until an instant, or a placeholder if it is unset.
func away(at *timestamppb.Timestamp, now time.Time) string {
	if at == nil {
		return "-"
	}
	if left := at.AsTime().Sub(now); left > 0 {
		return "in " + rough(left)
	}
	return "now"
}

// since formats the time since an instant, or a placeholder if it is unset.
func since(at *timestamppb.Timestamp, now time.Time) string {
	if at == nil {
		return "-"
	}
	return rough(max(now.Sub(at.AsTime()), 0))
}

// rough formats a duration in the largest unit that gives at least two.
func rough(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	default:
		return fmt.Sprintf("%ds", d/time.Second)
	}
}

func printClient(out io.Writer, c *tokenbrokerv1.Client, now time.Time, asJSON bool) error {
	if asJSON {
		return printMessage(out, c)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(what, format string, args ...any) { _, _ = fmt.Fprintf(table, what+"\t"+format+"\n", args...) }
	row("client", "%s", c.GetName())
	row("state", "%s", stateOf(c))
	row("client_id", "%s", c.GetClientId())
	if c.GetIssuer() != "" {
		row("issuer", "%s", c.GetIssuer())
	} else {
		row("token endpoint", "%s", c.GetTokenUrl())
	}
	row("authenticates by", "%s", c.GetAuthMethod())
	row("secret from", "%s", orNone(c.GetSecretSource()))
	row("token ends", "%s", away(c.GetTokenExpiresAt(), now))
	row("next refresh", "%s", away(c.GetNextRefreshAt(), now))
	row("last success", "%s", ago(c.GetLastSuccessAt(), now))
	row("last failure", "%s%s", ago(c.GetLastFailureAt(), now), resolved(c))
	if c.GetLastFailureAt() != nil {
		row("", "%s", c.GetLastError())
	}
	if c.GetBackoffUntil() != nil {
		row("left alone", "%s", away(c.GetBackoffUntil(), now))
	}
	if c.GetSecretFallback() {
		row("WARNING", "tokens are obtained with version %s, because the IdP refuses the active version", c.GetSecretInUse())
	}
	_ = table.Flush()
	if len(c.GetSecretVersions()) == 0 {
		return nil
	}
	_, _ = fmt.Fprintln(table, "\nVERSION\tSTATE\tSINCE\tBROUGHT\tBY\tLAST TOKEN\tREFUSED")
	for _, v := range c.GetSecretVersions() {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.GetVersion(), secretState(v), ago(v.GetStateSince(), now),
			ago(v.GetCreatedAt(), now), orNone(v.GetCreatedBy()), ago(v.GetLastSuccessAt(), now), ago(v.GetRefusedAt(), now))
	}
	return table.Flush()
}

func ago(at *timestamppb.Timestamp, now time.Time) string {
	if at == nil {
		return "-"
	}
	return since(at, now) + " ago"
}

func orNone(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
