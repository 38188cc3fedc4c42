package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

func newSecret() *cobra.Command {
	return newGroup(&cobra.Command{
		Use:   "secret",
		Short: "Change, back up and restore the secrets of clients",
		Long: `Change the secret of a client that is configured with "secret: managed", or back up and
restore such secrets. A secret in a file is changed by changing the file.`,
	}, newSecretRotate(), newSecretActivate(), newSecretRollback(), newSecretRetire(), newSecretExport(), newSecretImport())
}

// secretFlags are the common flags of the commands that change a secret.
type secretFlags struct {
	conn              connection
	requestID, reason string
	expected          string
	asJSON, yes       bool
	hasExpect, hasYes bool // the command has these flags
}

func (c *secretFlags) flags(cmd *cobra.Command) {
	c.conn.flags(cmd)
	flags := cmd.Flags()
	flags.StringVar(&c.requestID, "request-id", "", "resume an earlier call, which may have been interrupted, instead of starting a new one")
	flags.StringVar(&c.reason, "reason", "", "reason, for the audit log")
	jsonFlag(cmd, &c.asJSON)
	if c.hasExpect {
		flags.StringVar(&c.expected, "expect", "", "proceed only if this version is active")
	}
	if c.hasYes {
		flags.BoolVar(&c.yes, "yes", false, "do not ask for confirmation")
	}
}

// secretResponse is the response of the calls that change a secret.
type secretResponse interface {
	proto.Message
	GetVersion() *tokenbrokerv1.SecretVersion
	GetSteps() []*tokenbrokerv1.RotationStep
}

// run makes a call and prints its steps, or the completed steps if the call fails.
func (c *secretFlags) run(cmd *cobra.Command, call func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (secretResponse, error)) error {
	if c.requestID == "" {
		c.requestID = rand.Text()
	}
	var resp secretResponse
	err := c.conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (err error) {
		resp, err = call(ctx, admin)
		return err
	})
	if err != nil {
		if partial := completedSteps(err); partial != nil {
			_ = c.printSteps(cmd.OutOrStdout(), partial)
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
			_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "to resume: run the same command with --request-id %s\n", c.requestID)
		default:
		}
		return err
	}
	return c.printSteps(cmd.OutOrStdout(), resp)
}

// completedSteps returns the completed steps of a failed change.
func completedSteps(err error) *tokenbrokerv1.RotateSecretResponse {
	for _, detail := range status.Convert(err).Details() {
		if resp, ok := detail.(*tokenbrokerv1.RotateSecretResponse); ok {
			return resp
		}
	}
	return nil
}

func (c *secretFlags) printSteps(out io.Writer, resp secretResponse) error {
	if c.asJSON {
		return printMessage(out, resp)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	warnings := map[string]bool{}
	for _, step := range resp.GetSteps() {
		outcome := "ok"
		if !step.GetOk() {
			outcome = "FAILED"
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", step.GetName(), outcome, step.GetTook().AsDuration().Round(time.Millisecond), step.GetMessage())
		warnings[step.GetWarning()] = true
	}
	_ = table.Flush()
	delete(warnings, "")
	for warning := range warnings {
		_, _ = fmt.Fprintf(out, "WARNING: %s\n", warning)
	}
	return nil
}

func newSecretRotate() *cobra.Command {
	var (
		c                              = secretFlags{hasExpect: true, hasYes: true}
		file                           string
		stageOnly, compromised, revoke bool
	)
	cmd := &cobra.Command{
		Use:   "rotate CLIENT",
		Short: "Stage, prove and activate a new secret",
		Long: `Rotate to a new secret of CLIENT: it is staged, proved by obtaining a token with it, and
activated. If a step fails, the old secret stays active. The old one is kept as a fallback.

The secret is read from standard input, or from a file; it is never an argument, which
others could see. One line end after it does not count.

--stage-only: for an IdP that has one secret only. Stage the new one, change it at the
IdP, then run "broker secret activate". Tokens stay available throughout.

--compromised: the old secret is known to others. It is wiped at once, is no
fallback, and every token obtained before is dropped on all replicas. APIs that verify
locally go on accepting those tokens until they expire: the command offers to have
VerifyToken reject them.`,
		Example: `  broker secret rotate orders-api < new-secret
  broker secret rotate orders-api --file new-secret --stage-only
  broker secret rotate orders-api --compromised --reason "laptop stolen" < new-secret`,
		Args: oneClientArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := readSecret(cmd, file)
			if err != nil {
				return err
			}
			if warning := secret.Warning(redact.New(string(value))); warning != "" && !bytes.Contains(value, []byte("-----BEGIN")) && !json.Valid(value) {
				_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "WARNING: the secret %s; it is sent as it is\n", warning)
			}
			if compromised {
				if err := confirm(cmd, c.yes, fmt.Sprintf("The old secret of %q will be wiped, and all its tokens dropped. Go on?", args[0])); err != nil {
					return err
				}
			}
			start := time.Now().Truncate(time.Second) // iat has whole seconds: the new tokens must stay valid
			err = c.run(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (secretResponse, error) {
				return admin.RotateSecret(ctx, &tokenbrokerv1.RotateSecretRequest{
					ClientName: args[0], Secret: value, StageOnly: stageOnly, Compromised: compromised,
					ExpectedCurrentVersion: c.expected, RequestId: c.requestID, Reason: c.reason,
				})
			})
			if err != nil || !compromised {
				return err
			}
			return c.offerRevocation(cmd, args[0], start, revoke)
		},
	}
	c.flags(cmd)
	c.conn.completeClients(cmd, 0, 0)
	flags := cmd.Flags()
	flags.StringVar(&file, "file", "", "read the secret from this file instead of standard input")
	flags.BoolVar(&stageOnly, "stage-only", false, "stage the secret without proving or activating it")
	flags.BoolVar(&compromised, "compromised", false, "wipe the old secret and drop its tokens")
	flags.BoolVar(&revoke, "revoke", false, "with --compromised: have VerifyToken reject tokens issued before now, without confirmation")
	cmd.MarkFlagsMutuallyExclusive("stage-only", "compromised")
	return cmd
}

// oneClientArg accepts only the name of a client, and explains why not the secret.
func oneClientArg(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return errors.New("give only the client's name: the secret is read from standard input or --file, because other users can see arguments")
	}
	return cobra.ExactArgs(1)(cmd, args)
}

func readSecret(cmd *cobra.Command, file string) ([]byte, error) {
	var in io.Reader = cmd.InOrStdin()
	switch {
	case file != "":
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer func() { _ = f.Close() }()
		in = f
	case onTerminal(in):
		line, err := readHidden("The new secret (it is not shown): ")
		if err == nil && len(line) == 0 {
			err = errors.New("no secret was given")
		}
		return line, err
	}
	data, err := io.ReadAll(io.LimitReader(in, secret.MaxSize+3))
	if err != nil {
		return nil, err
	}
	data = secret.TrimLineEnd(data)
	switch {
	case len(data) == 0:
		return nil, errors.New("standard input or --file contains no secret")
	case len(data) > secret.MaxSize:
		return nil, fmt.Errorf("more than %d bytes: is it a secret?", secret.MaxSize)
	}
	return data, nil
}

// offerRevocation revokes the tokens issued to the client if a flag or a person confirms
// it; otherwise it prints the command for it.
func (c *secretFlags) offerRevocation(cmd *cobra.Command, name string, before time.Time, revoke bool) error {
	return c.conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
		resp, err := admin.GetClient(ctx, &tokenbrokerv1.GetClientRequest{ClientName: name})
		if err != nil {
			return err
		}
		issuer, id := resp.GetClient().GetIssuer(), resp.GetClient().GetClientId()
		command := fmt.Sprintf("broker revocations add --issuer %s --client-id %s --issued-before %s", cmp.Or(issuer, "ISSUER"), id, before.UTC().Format(time.RFC3339))
		if issuer == "" {
			revoke = false
		} else if !revoke && !c.yes && onTerminal(cmd.ErrOrStderr()) {
			if revoke, err = promptYesNo(fmt.Sprintf("Have VerifyToken reject every token that %s issued to %s before this rotation?", issuer, id)); err != nil {
				return err
			}
		}
		if !revoke {
			out := cmd.OutOrStdout()
			if c.asJSON {
				out = cmd.ErrOrStderr()
			}
			_, err := fmt.Fprintln(out, "tokens issued before the rotation are still accepted; to have VerifyToken reject them:\n  "+command)
			return err
		}
		revoked, err := admin.RevokeTokens(ctx, revocationOfClient(issuer, id, before, c.reason))
		if err != nil {
			return fmt.Errorf("the secret is rotated, but tokens issued before are not revoked: %w", err)
		}
		if c.asJSON {
			return printMessage(cmd.OutOrStdout(), revoked.GetRevocation())
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "revoke    ok  VerifyToken rejects tokens issued before (revocation %s)\n", revoked.GetRevocation().GetId())
		return err
	})
}

func newSecretActivate() *cobra.Command {
	var (
		c    = secretFlags{hasExpect: true}
		wait time.Duration
	)
	cmd := &cobra.Command{
		Use:   "activate CLIENT [VERSION]",
		Short: "Prove and activate the staged secret",
		Long: `Prove the secret that is staged for CLIENT by obtaining a token with it, and activate it.
If VERSION is given, it must be the staged version.

With --wait the command tries again while the IdP refuses the secret or cannot be
reached, after 5, 15 and 45 s and then each minute: an IdP may need some time until it
accepts a new secret.`,
		Example: `  broker secret activate orders-api --wait 2m`,
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			version := ""
			if len(args) == 2 {
				version = args[1]
			}
			deadline := time.Now().Add(wait)
			for try := 0; ; try++ {
				err := c.run(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (secretResponse, error) {
					return admin.ActivateSecret(ctx, &tokenbrokerv1.ActivateSecretRequest{
						ClientName: args[0], Version: version, ExpectedCurrentVersion: c.expected, RequestId: c.requestID, Reason: c.reason,
					})
				})
				if resp := completedSteps(err); resp != nil { // it may become current by itself
					version = resp.GetVersion().GetVersion()
				}
				pause, retry := retryPause(err, try)
				if !retry || time.Now().Add(pause).After(deadline) {
					return err
				}
				select {
				case <-cmd.Context().Done():
					return err
				case <-time.After(pause):
				}
			}
		},
	}
	c.flags(cmd)
	c.conn.completeClients(cmd, 0, 0)
	cmd.Flags().DurationVar(&wait, "wait", 0, "how long to try again while the IdP refuses it")
	return cmd
}

// retryPause returns the pause before the next try, and whether the failure may be
// temporary. Pauses grow: an IdP may lock out a client after too many wrong secrets.
func retryPause(err error, try int) (pause time.Duration, retry bool) {
	pauses := []time.Duration{5 * time.Second, 15 * time.Second, 45 * time.Second, time.Minute}
	refused := false
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			refused = detail.GetReason() == "CLIENT_CREDENTIALS_REFUSED"
		case *errdetails.RetryInfo:
			pause = detail.GetRetryDelay().AsDuration()
		}
	}
	return max(pause, pauses[min(try, len(pauses)-1)]), refused || status.Code(err) == codes.Unavailable
}

func newSecretRollback() *cobra.Command {
	c := secretFlags{hasExpect: true}
	cmd := &cobra.Command{
		Use:   "rollback CLIENT",
		Short: "Activate the previous secret again",
		Long: `Prove that the previous secret of CLIENT still works, and activate it again; the version
that was active becomes the previous one. All replicas use it within 5 s.`,
		Example: `  broker secret rollback orders-api --reason "the new secret belongs to another tenant"`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (secretResponse, error) {
				return admin.RollbackSecret(ctx, &tokenbrokerv1.RollbackSecretRequest{
					ClientName: args[0], ExpectedCurrentVersion: c.expected, RequestId: c.requestID, Reason: c.reason,
				})
			})
		},
	}
	c.flags(cmd)
	c.conn.completeClients(cmd, 0, 0)
	return cmd
}

func newSecretRetire() *cobra.Command {
	c := secretFlags{hasYes: true}
	cmd := &cobra.Command{
		Use:   "retire CLIENT VERSION",
		Short: "Wipe a secret that is not active",
		Long: `Wipe a version of the secret of CLIENT that is staged or kept as a fallback. Its record
stays. The active version cannot be retired.`,
		Example: `  broker secret retire orders-api 3f9a1c22`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := confirm(cmd, c.yes, fmt.Sprintf("Version %s of the secret of %q will be wiped. Go on?", args[1], args[0])); err != nil {
				return err
			}
			return c.run(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) (secretResponse, error) {
				return admin.RetireSecret(ctx, &tokenbrokerv1.RetireSecretRequest{
					ClientName: args[0], Version: args[1], RequestId: c.requestID, Reason: c.reason,
				})
			})
		},
	}
	c.flags(cmd)
	c.conn.completeClients(cmd, 0, 0)
	return cmd
}
