package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/escape"
)

// maxInput bounds the input from standard input: a token is never larger.
const maxInput = 64 << 10

func newVerify() *cobra.Command {
	var (
		conn     connection
		audience []string
		scope    []string
		asJSON   bool
	)
	// An error must not be mistaken for a rejection.
	cmd := exitWith(exitTrouble, &cobra.Command{
		Use:   "verify -|TOKEN",
		Short: "Verify an access token",
		Long: `Have the broker verify an access token, and print the result.

With "-" the token is read from standard input, which keeps it out of the shell's
history and of the list of processes.

A token that is bound to a key (cnf) is rejected: it is valid only for the holder of that
key, which this command cannot prove.

Exit code: 0 the token is valid, 1 it is rejected, 2 the broker could not decide.`,
		Example: `  broker get orders-api | broker verify -
  broker verify - --audience https://orders.example.com --scope read < token.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := tokenArgument(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			return conn.call(cmd, func(ctx context.Context, broker *client.Client) error {
				claims, err := broker.Verify(ctx, token, client.RequireAudience(audience...), client.RequireScopes(scope...))
				if rejected, ok := errors.AsType[*client.RejectedError](err); ok {
					return printRejected(cmd, rejected, asJSON)
				}
				if err != nil {
					return err
				}
				if claims.Confirmation != nil {
					return printRejected(cmd, bindingError(claims.Confirmation), asJSON)
				}
				return printClaims(cmd, claims, asJSON)
			})
		},
	})
	conn.flags(cmd)
	cmd.Flags().StringArrayVar(&audience, "audience", nil, "audience that the token must be for (repeatable: any of them)")
	cmd.Flags().StringSliceVar(&scope, "scope", nil, "scope that the token must have (repeatable: all of them)")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func tokenArgument(arg string, stdin io.Reader) (string, error) {
	if arg != "-" {
		return arg, nil
	}
	data, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading standard input: %w", err)
	case len(data) > maxInput:
		return "", errors.New("standard input holds more than a token")
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", errors.New("standard input is empty; pipe a token into it")
	}
	return token, nil
}

func printRejected(cmd *cobra.Command, rejected *client.RejectedError, asJSON bool) error {
	var err error
	if asJSON {
		err = printJSON(cmd.OutOrStdout(), struct {
			Active  bool   `json:"active"`
			Reason  string `json:"reason"`
			Message string `json:"message"`
		}{false, string(rejected.Reason), rejected.Message})
	} else {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "rejected: %s: %s\n", rejected.Reason, rejected.Message)
	}
	if err != nil {
		return err
	}
	return exit(exitNegative)
}

// bindingError rejects a token that is bound to a key: piping a token into this command
// does not prove possession of the key.
func bindingError(c *client.Confirmation) *client.RejectedError {
	var keys []string
	if c.JKT != "" {
		keys = append(keys, "the DPoP key jkt="+c.JKT)
	}
	if c.X5TS256 != "" {
		keys = append(keys, "the client certificate x5t#S256="+c.X5TS256)
	}
	holder := strings.Join(keys, " and ")
	if holder == "" {
		holder = "a key of another kind in its cnf claim"
	}
	return &client.RejectedError{Reason: client.ReasonWrongHolder, Message: "The token is valid, but only for the holder of " + holder + "."}
}

func printClaims(cmd *cobra.Command, c *client.Claims, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), struct {
			Active      bool               `json:"active"`
			Issuer      string             `json:"issuer"`
			Subject     string             `json:"subject"`
			SubjectType client.SubjectType `json:"subject_type,omitempty"`
			ClientID    string             `json:"client_id,omitempty"`
			Audiences   []string           `json:"audiences"`
			Scopes      []string           `json:"scopes"`
			IssuedAt    time.Time          `json:"issued_at,omitzero"`
			ExpiresAt   time.Time          `json:"expires_at,omitzero"`
			TokenID     string             `json:"token_id,omitempty"`
			ValidUntil  time.Time          `json:"valid_until,omitzero"`
			Claims      json.RawMessage    `json:"claims"`
		}{true, c.Issuer, c.Subject, c.SubjectType, c.ClientID, notNil(c.Audience), notNil(c.Scopes), c.IssuedAt, c.ExpiresAt, c.TokenID, c.ValidUntil, c.JSON})
	}
	subject := escape.Text(c.Subject)
	if c.SubjectType == client.SubjectClientID {
		subject += " (the client_id: the token has no sub)"
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "active\n  issuer   %s\n  subject  %s\n  audience %s\n  scopes   %s\n  expires  %s\n",
		escape.Text(c.Issuer), subject, escape.Text(strings.Join(c.Audience, " ")), escape.Text(strings.Join(c.Scopes, " ")), c.ExpiresAt.Format(time.RFC3339))
	return err
}
