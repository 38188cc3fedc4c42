package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

func newKey() *cobra.Command {
	return newGroup(&cobra.Command{
		Use:   "key",
		Short: "Show, publish and rotate the keys that the broker makes for clients",
		Long: `Show, publish and rotate the private keys of clients that are configured with "key". The
broker makes and rotates them by itself; these commands show how far it is, and make it
rotate at once. No command shows a private key.`,
	}, newKeyList(), newKeyRotate(), newKeyPublish())
}

func newKeyRotate() *cobra.Command {
	var (
		c           = secretFlags{hasExpect: true, hasYes: true}
		compromised bool
	)
	cmd := &cobra.Command{
		Use:   "rotate CLIENT",
		Short: "Make a new key now",
		Long: `Make a new key for CLIENT now, before the schedule does. The command returns when the key
is made. The broker publishes it, and uses it when it has been published for the
configured publish_before: "broker key list" shows the time.

--compromised: the key in use is known to others. The new key is used as soon as its URL
shows it and the IdP accepts it. Then the old keys are wiped and unpublished, and every
token obtained before is dropped on all replicas.`,
		Example: `  broker key rotate orders-api --reason "quarterly"
  broker key rotate orders-api --compromised --reason "disk stolen"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if compromised {
				if err := confirm(cmd, c.yes, fmt.Sprintf("The old keys of %q will be wiped, and all its tokens dropped. Go on?", args[0])); err != nil {
					return err
				}
			}
			return c.run(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (secretResponse, error) {
				return admin.RotateKey(ctx, &tokenbrokerv1.RotateKeyRequest{
					ClientName: args[0], Compromised: compromised, ExpectedCurrentVersion: c.expected, RequestId: c.requestID, Reason: c.reason,
				})
			})
		},
	}
	c.flags(cmd)
	c.conn.completeClients(cmd, 0, 0)
	cmd.Flags().BoolVar(&compromised, "compromised", false, "wipe and unpublish the old keys, and drop the tokens")
	return cmd
}

func newKeyList() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "list CLIENT",
		Short: "Show the public keys of a client, and the URL that the IdP reads",
		Long: `Show the keys of CLIENT that are published or will be: their state, when the URL first
showed them, and when they may be used. Register the URL at the IdP as jwks_uri.`,
		Example: `  broker key list orders-api`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := listKeys(cmd, &conn, args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return printMessage(cmd.OutOrStdout(), resp)
			}
			printKeys(cmd.OutOrStdout(), resp)
			return nil
		},
	}
	conn.flags(cmd)
	conn.completeClients(cmd, 0, 0)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func newKeyPublish() *cobra.Command {
	var (
		conn connection
		file string
	)
	cmd := &cobra.Command{
		Use:   "publish CLIENT",
		Short: "Write the document with the public keys, for another server",
		Long: `Write the JWK set with the public keys of CLIENT to standard output, or to a file that
another server publishes at the client's key.url. Do that regularly: the broker uses a new
key only after the URL has shown it.`,
		Example: `  broker key publish orders-api --file /var/www/orders/jwks.json`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			resp, err := listKeys(cmd, &conn, args[0])
			if err != nil {
				return err
			}
			if file == "" {
				_, err = cmd.OutOrStdout().Write(resp.GetJwks())
				return err
			}
			return replaceFile(file, resp.GetJwks())
		},
	}
	conn.flags(cmd)
	conn.completeClients(cmd, 0, 0)
	cmd.Flags().StringVar(&file, "file", "", "write to this file instead of standard output; it is replaced as a whole")
	return cmd
}

func listKeys(cmd *cobra.Command, conn *connection, client string) (resp *tokenbrokerv1.ListKeysResponse, err error) {
	err = conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (err error) {
		resp, err = admin.ListKeys(ctx, &tokenbrokerv1.ListKeysRequest{ClientName: client})
		return err
	})
	return resp, err
}

// replaceFile replaces a public file, so that no reader sees a part of it.
func replaceFile(path string, data []byte) error {
	fresh := path + ".new"
	if err := os.WriteFile(fresh, data, 0o644); err != nil { //nolint:gosec // the document is public
		return err
	}
	return os.Rename(fresh, path)
}

func printKeys(out io.Writer, resp *tokenbrokerv1.ListKeysResponse) {
	next := "as soon as possible"
	if at := resp.GetNextRotationAt(); at != nil {
		next = at.AsTime().UTC().Format(time.RFC3339)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(table, "url\t%s\nnext key in use\t%s\n", resp.GetUrl(), next)
	if problem := resp.GetProblem(); problem != "" {
		_, _ = fmt.Fprintf(table, "problem\t%s\n", problem)
	}
	_ = table.Flush()
	_, _ = fmt.Fprintln(out)
	table = tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "VERSION\tSTATE\tALGORITHM\tSHOWN\tNOTE\tKID")
	for _, key := range resp.GetKeys() {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", key.GetVersion(), enumWord(key.GetState().String(), "SECRET_STATE_"), key.GetAlgorithm(),
			timeOr(key.GetShownAt(), "not yet"), noteOn(key), key.GetKid())
	}
	_ = table.Flush()
}

// noteOn says what happens to a key next.
func noteOn(key *tokenbrokerv1.PublicKey) string {
	switch {
	case key.GetUsableFrom() != nil:
		return "usable from " + timeOr(key.GetUsableFrom(), "")
	case key.GetPublishedUntil() != nil:
		return "unpublished at " + timeOr(key.GetPublishedUntil(), "")
	default:
		return "-"
	}
}

func timeOr(at *timestamppb.Timestamp, absent string) string {
	if at == nil {
		return absent
	}
	return at.AsTime().UTC().Format(time.RFC3339)
}
