package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/doctor"
)

func newCheckConfig() *cobra.Command {
	var live bool
	d := examination{verbose: true}
	cmd := exitWith(exitNegative, &cobra.Command{
		Use:   "check-config FILE",
		Short: "Check a configuration file",
		Long: `Check a configuration file as "broker serve" does, and report all problems
with line numbers. No other file is read, but files with secrets that every user of
this machine may read or write are reported.

--live is an alias of "broker doctor FILE --verbose", and --mint of "broker doctor FILE
--verbose --mint", except that the running fleet is not asked, and that only errors set the
exit code 1. Use "broker doctor" in new scripts.

"broker policy explain" says what a caller may request.`,
		Example: `  broker check-config broker.yaml
  broker doctor broker.yaml`,
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
			if live || d.options.Mint {
				report, err := d.run(cmd, args[0], config)
				if errors := report.Count(doctor.Error); err == nil && errors > 0 {
					err = fmt.Errorf("%d of the live checks failed", errors)
				}
				return err
			}
			for _, warning := range slices.Concat(config.Warnings, config.ExposedFiles()) {
				_, _ = fmt.Fprintf(out, "warn  %s\n", warning)
			}
			return nil
		},
	})
	cmd.Flags().BoolVar(&live, "live", false, `an alias of "broker doctor"`)
	cmd.Flags().BoolVar(&d.options.Mint, "mint", false, `an alias of "broker doctor --mint"`)
	return cmd
}
