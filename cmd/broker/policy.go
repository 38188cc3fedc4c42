package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/config"
)

func newPolicy() *cobra.Command {
	return newGroup(&cobra.Command{
		Use:   "policy",
		Short: "Explain the permissions of callers",
	}, newPolicyExplain())
}

func newPolicyExplain() *cobra.Command {
	return &cobra.Command{
		Use:   "explain FILE CALLER",
		Short: "Explain which requests a caller may make, and which role grants them",
		Long: `Show how the configuration in FILE identifies CALLER, which requests CALLER may make, and
which of its roles grants them. No broker needs to run.`,
		Example: `  broker policy explain broker.yaml checkout`,
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := config.Load(args[0])
			if err != nil {
				return err
			}
			lines, ok := config.Explain(args[1])
			if !ok {
				return fmt.Errorf("no caller %q in %s; the callers there are: %s", args[1], args[0], strings.Join(config.CallerNames(), ", "))
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.Join(lines, "\n"))
			return err
		},
	}
}
