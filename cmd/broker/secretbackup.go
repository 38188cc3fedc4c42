package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// backupVersion is the version of the file format.
const backupVersion = 1

// backup is the content of a file with the sealed secrets of managed clients.
type backup struct {
	Version   int               `json:"v"`
	CreatedAt time.Time         `json:"created"`
	Clients   map[string][]byte `json:"clients"`
}

func newSecretExport() *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "export FILE [CLIENT...]",
		Short: "Write the managed secrets to a file, sealed",
		Long: `Write the secrets of all managed clients, or of the named ones, to FILE. They are
sealed with the broker's ring of sealing keys: only a broker with the same ring can read
them. Keep the file and the ring in different places.`,
		Example: `  broker secret export secrets.sealed`,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b := backup{Version: backupVersion, CreatedAt: time.Now().UTC().Truncate(time.Second), Clients: map[string][]byte{}}
			err := conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
				names, err := managedClients(ctx, admin, args[1:])
				if err != nil {
					return err
				}
				for _, name := range names {
					resp, err := admin.ExportSecret(ctx, &tokenbrokerv1.ExportSecretRequest{ClientName: name})
					if err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
					b.Clients[name] = resp.GetSealed()
				}
				return nil
			})
			if err != nil {
				return err
			}
			if len(b.Clients) == 0 {
				return errors.New("there is no managed client with a secret")
			}
			if err := writeBackup(args[0], b); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d clients written to %s\n", len(b.Clients), args[0])
			return err
		},
	}
	conn.flags(cmd)
	conn.completeClients(cmd, 1, math.MaxInt)
	return cmd
}

// managedClients returns the named clients, or all clients with a secret to export.
func managedClients(ctx context.Context, admin tokenbrokerv1.AdminServiceClient, named []string) ([]string, error) {
	if len(named) > 0 {
		return named, nil
	}
	clients, err := listClients(ctx, admin)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range clients {
		if c.GetSecretSource() == "managed" && len(c.GetSecretVersions()) > 0 {
			names = append(names, c.GetName())
		}
	}
	return names, nil
}

// writeBackup writes the file atomically, readable by its owner only.
func writeBackup(path string, b backup) error {
	data, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".secrets-*") // its mode is 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(append(data, '\n'))
	if err = errors.Join(err, temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
	}
	return err
}

func newSecretImport() *cobra.Command {
	var (
		c       = secretFlags{hasYes: true}
		replace bool
	)
	cmd := &cobra.Command{
		Use:   "import FILE [CLIENT...]",
		Short: "Restore exported secrets",
		Long: `Restore the secrets in FILE, of all clients in it or of the named ones. A client that has
a secret keeps it, unless --replace is given. The broker must have the ring of sealing
keys with which the file was sealed.`,
		Example: `  broker secret import secrets.sealed
  broker secret import secrets.sealed orders-api --replace`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := readBackup(args[0])
			if err != nil {
				return err
			}
			names := args[1:]
			if len(names) == 0 {
				names = slices.Sorted(maps.Keys(b.Clients))
			}
			if replace {
				if err := confirm(cmd, c.yes, fmt.Sprintf("The secrets of %d clients will be replaced by those of %v. Go on?", len(names), b.CreatedAt)); err != nil {
					return err
				}
			}
			failed := 0 // the exit code
			for _, name := range names {
				err := c.importSecret(cmd, name, b.Clients[name], replace)
				if call, ok := errors.AsType[*callError](err); ok && call.unreached {
					return err // so would the others be
				}
				if err != nil {
					failed = max(failed, exitCode(err))
					_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "broker: %s: %s\n", name, err)
				}
			}
			if failed > 0 {
				return exit(failed)
			}
			return nil
		},
	}
	c.flags(cmd)
	c.conn.completeClients(cmd, 1, math.MaxInt)
	cmd.Flags().BoolVar(&replace, "replace", false, "replace existing secrets")
	return cmd
}

func (c *secretFlags) importSecret(cmd *cobra.Command, name string, sealed []byte, replace bool) error {
	if len(sealed) == 0 {
		return errors.New("the file does not contain this client")
	}
	return c.conn.callAdmin(cmd, func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
		resp, err := admin.ImportSecret(ctx, &tokenbrokerv1.ImportSecretRequest{
			ClientName: name, Sealed: sealed, Replace: replace, RequestId: cmp.Or(c.requestID, rand.Text()), Reason: c.reason,
		})
		if err != nil {
			return err
		}
		if c.asJSON {
			return printImported(cmd.OutOrStdout(), name, resp)
		}
		_, _ = fmt.Fprintf(cmd.OutOrStdout(), "%s: version %s\n", name, resp.GetVersion().GetVersion())
		return c.printSteps(cmd.OutOrStdout(), resp)
	})
}

// printImported prints a response with the name of its client.
func printImported(out io.Writer, name string, resp *tokenbrokerv1.ImportSecretResponse) error {
	line, err := messageJSON(resp)
	if err != nil {
		return err
	}
	members := map[string]any{}
	if err := json.Unmarshal(line, &members); err != nil {
		return err
	}
	members["client_name"] = name
	return printJSON(out, members)
}

func readBackup(path string) (backup, error) {
	file, err := os.Open(path)
	if err != nil {
		return backup{}, err
	}
	defer func() { _ = file.Close() }()
	const limit = 64 << 20
	data, err := io.ReadAll(io.LimitReader(file, limit))
	if err != nil {
		return backup{}, err
	}
	var b backup
	if json.Unmarshal(data, &b) != nil || b.Version != backupVersion {
		return backup{}, fmt.Errorf("%s is not a file of \"broker secret export\" of this version", path)
	}
	return b, nil
}
