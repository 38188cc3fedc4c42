package main

import (
	"fmt"
	"log/slog"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
)

func newCheckConfig() *cobra.Command {
	var live, mint bool
	cmd := &cobra.Command{
		Use:   "check-config FILE",
		Short: "Check a configuration file",
		Long: `Check a configuration file as "broker serve" does, and report all problems
with line numbers. No other file is read, but files with secrets that every user of
this machine may read or write are reported.

With --live also read certificates and secrets, find the token endpoints of the clients and
load the keys of the issuers. With --mint, which implies --live, also get a token
for each client; some IdPs bill for those.

"broker policy explain" says what a caller may request.`,
		Example: `  broker check-config broker.yaml
  broker check-config broker.yaml --live --mint`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := config.Load(args[0])
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if _, err := fmt.Fprintf(out, "ok    %s: %d clients, %d issuers\n", args[0], len(config.Clients), len(config.Issuers)); err != nil {
				return err
			}
			for _, warning := range slices.Concat(config.Warnings, config.ExposedFiles()) {
				_, _ = fmt.Fprintf(out, "warn  %s\n", warning)
			}
			if !live && !mint {
				return nil
			}
			failures := 0
			options := app.Options{Logger: slog.New(slog.DiscardHandler)} // findings are printed instead
			err = app.Check(cmd.Context(), config, options, mint, func(finding app.Finding) {
				switch {
				case finding.Err != nil:
					failures++
					_, _ = fmt.Fprintf(out, "FAIL  %s: %v\n", finding.What, finding.Err)
				case finding.Warning:
					_, _ = fmt.Fprintf(out, "warn  %s: %s\n", finding.What, finding.Detail)
				default:
					_, _ = fmt.Fprintf(out, "ok    %s: %s\n", finding.What, finding.Detail)
				}
			})
			if err == nil && failures > 0 {
				err = fmt.Errorf("%d of the live checks failed", failures)
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&live, "live", false, "also try certificates, secrets, discovery and keys")
	cmd.Flags().BoolVar(&mint, "mint", false, "also get a token for each client (implies --live)")
	return cmd
}
