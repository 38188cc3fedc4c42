package main

import (
	"context"
	"crypto/rand"
	"fmt"

	"github.com/spf13/cobra"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

func newPurge() *cobra.Command {
	var (
		conn   connection
		reason string
	)
	cmd := &cobra.Command{
		Use:   "purge CLIENT",
		Short: "Drop all tokens of a client, on all replicas",
		Long: `Have all replicas drop every token of CLIENT that was obtained before now: after a leak, or
when permissions were changed at the IdP. New tokens are fetched on the next request.

The command succeeds once the purge is stored; a replica that misses the notification
drops the tokens within 5 s. APIs that verify locally go on accepting the old tokens until
they expire: see "broker revocations".`,
		Example: `  broker purge orders-api --reason "permissions changed"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
				_, err := admin.PurgeTokens(ctx, &tokenbrokerv1.PurgeTokensRequest{ClientName: args[0], RequestId: rand.Text(), Reason: reason})
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "every token of %s that was obtained before now is dropped, on all replicas within 5 s\n", args[0])
				return err
			})
		},
	}
	conn.flags(cmd)
	conn.completeClients(cmd, 0, 0)
	cmd.Flags().StringVar(&reason, "reason", "", "reason, for the audit log")
	return cmd
}
