package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

func newRevoke() *cobra.Command {
	var (
		conn     connection
		reason   string
		duration time.Duration
		asJSON   bool
	)
	cmd := &cobra.Command{
		Use:   "revoke -|TOKEN",
		Short: "Revoke one token",
		Long: `Have all replicas reject this token from now on: the command reads the token's issuer and
its ID (jti) and revokes the ID, as "broker revocations add" does with --token-id. The
token is not sent to the broker.

With "-" the token is read from standard input, which keeps it out of the shell's
history and of the list of processes.

If the token is one that this broker hands out, also run "broker purge CLIENT": otherwise
callers get the same token until it is replaced.

A token that is no JWT, or that has no jti, cannot be revoked alone: revoke the tokens
of its subject or client by "broker revocations add".`,
		Example: `  broker revoke - --reason "in a bug report" < token.txt
  broker get orders-api | broker revoke -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := tokenArgument(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			revocation, err := revocationOfToken(token)
			if err != nil {
				return err
			}
			revocation.Reason = reason
			if duration != 0 {
				revocation.ExpiresAt = timestamppb.New(time.Now().Add(duration))
			}
			return conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
				resp, err := admin.RevokeTokens(ctx, &tokenbrokerv1.RevokeTokensRequest{Revocation: revocation, RequestId: rand.Text()})
				if err != nil {
					return err
				}
				if asJSON {
					return printMessage(cmd.OutOrStdout(), resp.GetRevocation())
				}
				_, err = fmt.Fprintln(cmd.OutOrStdout(), resp.GetRevocation().GetId())
				return err
			})
		},
	}
	conn.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "reason, shown in the list of revocations")
	cmd.Flags().DurationVar(&duration, "for", 0, "how long the revocation lasts; by default as long as tokens of the issuer may live")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// revocationOfToken returns the revocation of a JWT by its ID. It does not verify the token:
// whoever may revoke by ID may revoke any ID. The errors do not quote the token.
func revocationOfToken(token string) (*tokenbrokerv1.Revocation, error) {
	parts := strings.Split(token, ".")
	var claims struct {
		Issuer string `json:"iss"`
		ID     string `json:"jti"`
	}
	if len(parts) != 3 {
		return nil, errors.New("the token is not a JWT, so that it has no ID to revoke: revoke the tokens of its subject or client with \"broker revocations add\"")
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		return nil, errors.New("the token is not a valid JWT: pass the whole token, as the API received it")
	}
	if claims.Issuer == "" || claims.ID == "" {
		return nil, errors.New("the token has no claim iss or jti, so that it cannot be revoked alone: revoke the tokens of its subject or client with \"broker revocations add\"")
	}
	return &tokenbrokerv1.Revocation{Issuer: claims.Issuer, Target: &tokenbrokerv1.Revocation_TokenId{TokenId: claims.ID}}, nil
}
