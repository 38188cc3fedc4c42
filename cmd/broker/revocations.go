package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/escape"
)

func newRevocations() *cobra.Command {
	return newGroup(&cobra.Command{
		Use:   "revocations",
		Short: "List, add and remove revocations of tokens",
	}, newRevocationsAdd(), newRevocationsList(), newRevocationsDelete())
}

func newRevocationsAdd() *cobra.Command {
	var (
		conn                               connection
		revocation                         tokenbrokerv1.Revocation
		tokenID, subject, clientID, before string
		all, asJSON                        bool
		duration                           time.Duration
	)
	cmd := &cobra.Command{
		Use:   "add --issuer ISSUER (--token-id JTI|--subject SUB|--client-id ID|--all)",
		Short: "Revoke tokens of an issuer",
		Long: `Have all replicas reject tokens of an issuer from now on, even if they have not expired.
The command succeeds once the revocation is stored; the replica that was called rejects
them at once, the others within 5 s.

A gateway that caches results applies it after they expire (valid_until).`,
		Example: `  broker revocations add --issuer https://login.example.com --token-id 5f2c
  broker revocations add --issuer https://login.example.com --subject 248289761001 --issued-before now
  broker revocations add --issuer https://login.example.com --all --issued-before 2026-11-23T09:00:00Z`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case tokenID != "":
				revocation.Target = &tokenbrokerv1.Revocation_TokenId{TokenId: tokenID}
			case subject != "":
				revocation.Target = &tokenbrokerv1.Revocation_Subject{Subject: subject}
			case clientID != "":
				revocation.Target = &tokenbrokerv1.Revocation_ClientId{ClientId: clientID}
			case all:
				revocation.Target = &tokenbrokerv1.Revocation_All{All: true}
			}
			now := time.Now()
			issuedBefore, err := parseBefore(before, now)
			if err != nil {
				return err
			}
			revocation.IssuedBefore = issuedBefore
			if duration != 0 {
				revocation.ExpiresAt = timestamppb.New(now.Add(duration))
			}
			return conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
				resp, err := admin.RevokeTokens(ctx, &tokenbrokerv1.RevokeTokensRequest{Revocation: &revocation, RequestId: rand.Text()})
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
	flags := cmd.Flags()
	flags.StringVar(&revocation.Issuer, "issuer", "", "the issuer, as configured (required)")
	flags.StringVar(&tokenID, "token-id", "", "the token of this jti")
	flags.StringVar(&subject, "subject", "", "tokens of this subject")
	flags.StringVar(&clientID, "client-id", "", "tokens that were issued to this client")
	flags.BoolVar(&all, "all", false, "tokens of everybody; needs --issued-before")
	flags.StringVar(&before, "issued-before", "", "only tokens issued before this instant: now, or as 2026-11-23T09:00:00Z")
	flags.DurationVar(&duration, "for", 0, "how long the revocation lasts; by default as long as tokens of the issuer may live")
	flags.StringVar(&revocation.Reason, "reason", "", "reason, shown in the list")
	jsonFlag(cmd, &asJSON)
	_ = cmd.MarkFlagRequired("issuer")
	cmd.MarkFlagsOneRequired("token-id", "subject", "client-id", "all")
	cmd.MarkFlagsMutuallyExclusive("token-id", "subject", "client-id", "all")
	return cmd
}

// revocationOfClient revokes all tokens that an issuer issued to a client before an
// instant. It lasts longer than any of them.
func revocationOfClient(issuer, clientID string, before time.Time, reason string) *tokenbrokerv1.RevokeTokensRequest {
	return &tokenbrokerv1.RevokeTokensRequest{RequestId: rand.Text(), Revocation: &tokenbrokerv1.Revocation{
		Issuer: issuer, Target: &tokenbrokerv1.Revocation_ClientId{ClientId: clientID},
		IssuedBefore: timestamppb.New(before), Reason: reason,
	}}
}

func parseBefore(text string, now time.Time) (*timestamppb.Timestamp, error) {
	switch text {
	case "":
		return nil, nil //nolint:nilnil // unset
	case "now":
		return timestamppb.New(now), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return nil, errors.New("--issued-before: want now, or an instant such as 2026-11-23T09:00:00Z")
	}
	return timestamppb.New(at), nil
}

func newRevocationsList() *cobra.Command {
	var (
		conn   connection
		issuer string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the active revocations, oldest first",
		Example: `  broker revocations list --issuer https://login.example.com`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
				var revocations []*tokenbrokerv1.Revocation
				for page := ""; ; {
					resp, err := admin.ListRevocations(ctx, &tokenbrokerv1.ListRevocationsRequest{Issuer: issuer, PageToken: page})
					if err != nil {
						return err
					}
					revocations = append(revocations, resp.GetRevocations()...)
					if page = resp.GetNextPageToken(); page == "" {
						return printRevocations(cmd.OutOrStdout(), revocations, asJSON)
					}
				}
			})
		},
	}
	conn.flags(cmd)
	cmd.Flags().StringVar(&issuer, "issuer", "", "only revocations of this issuer")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func printRevocations(out io.Writer, revocations []*tokenbrokerv1.Revocation, asJSON bool) error {
	if asJSON {
		for _, r := range revocations {
			if err := printMessage(out, r); err != nil {
				return err
			}
		}
		return nil
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "ID\tISSUER\tWHAT\tISSUED BEFORE\tEXPIRES\tCREATED\tREASON")
	for _, r := range revocations {
		before := "any time"
		if r.GetIssuedBefore() != nil {
			before = formatTime(r.GetIssuedBefore())
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.GetId(), escape.Text(r.GetIssuer()), describeTarget(r), before,
			formatTime(r.GetExpiresAt()), formatTime(r.GetCreatedAt()), escape.Text(r.GetReason()))
	}
	return table.Flush()
}

func formatTime(at *timestamppb.Timestamp) string { return at.AsTime().UTC().Format(time.RFC3339) }

// describeTarget names the revoked tokens, quoted: subjects may contain any character.
func describeTarget(r *tokenbrokerv1.Revocation) string {
	quote := func(kind, value string) string {
		text, _ := json.Marshal(value) // strings can always be encoded
		return kind + " " + string(text)
	}
	switch target := r.GetTarget().(type) {
	case *tokenbrokerv1.Revocation_TokenId:
		return quote("token", target.TokenId)
	case *tokenbrokerv1.Revocation_Subject:
		return quote("subject", target.Subject)
	case *tokenbrokerv1.Revocation_ClientId:
		return quote("client", target.ClientId)
	default:
		return "all"
	}
}

func newRevocationsDelete() *cobra.Command {
	var (
		conn   connection
		reason string
	)
	cmd := &cobra.Command{
		Use:     "delete ID",
		Short:   "End a revocation before it expires",
		Example: `  broker revocations delete rV6XxZ3RkQ0mZ2m3p0vJ8Aw --reason "revoked by mistake"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
				_, err := admin.DeleteRevocation(ctx, &tokenbrokerv1.DeleteRevocationRequest{Id: args[0], RequestId: rand.Text(), Reason: reason})
				return err
			})
		},
	}
	conn.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "reason, for the audit log")
	return cmd
}
