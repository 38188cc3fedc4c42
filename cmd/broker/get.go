package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/client"
)

func newGet() *cobra.Command {
	var (
		conn     connection
		audience string
		resource []string
		scope    []string
		minTTL   time.Duration
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "get CLIENT",
		Short: "Get an access token",
		Long: `Get an access token of CLIENT, a name in the broker's configuration, and print it.

Audience, resources and scopes default to those of the client.`,
		Example: `  broker get orders-api
  curl -H "Authorization: Bearer $(broker get orders-api)" https://orders.example.com/
  broker get orders-api --scope read --min-ttl 10m --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return conn.call(cmd, func(ctx context.Context, broker *client.Client) error {
				token, err := broker.Token(ctx, args[0], client.WithAudience(audience),
					client.WithResources(resource...), client.WithScopes(scope...), client.WithMinTTL(minTTL))
				if err != nil {
					return err
				}
				return printToken(cmd, token, asJSON)
			})
		},
	}
	conn.flags(cmd)
	conn.completeClients(cmd, 0, 0)
	flags := cmd.Flags()
	flags.StringVar(&audience, "audience", "", "audience to request")
	flags.StringArrayVar(&resource, "resource", nil, "resource to request (repeatable)")
	flags.StringSliceVar(&scope, "scope", nil, "scope to request (repeatable, or separated by commas)")
	flags.DurationVar(&minTTL, "min-ttl", 0, "minimum remaining lifetime of the token")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printToken(cmd *cobra.Command, token *client.Token, asJSON bool) error {
	if !asJSON {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), token.AccessToken())
		return err
	}
	return printJSON(cmd.OutOrStdout(), struct {
		AccessToken string    `json:"access_token"`
		TokenType   string    `json:"token_type"`
		ExpiresAt   time.Time `json:"expires_at"`
		RefreshAt   time.Time `json:"refresh_at,omitzero"`
		Scopes      []string  `json:"scopes"`
		Origin      string    `json:"origin"`
		Degraded    bool      `json:"degraded"`
	}{token.AccessToken(), token.Type(), token.ExpiresAt(), token.RefreshAt(), notNil(token.Scopes()), token.Origin(), token.Degraded()})
}
