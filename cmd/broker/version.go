package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/app"
)

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, the commit and the version of Go",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), app.ReadBuild())
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), versionLine(app.ReadBuild()))
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, an object in each line")
	return cmd
}

func versionLine(b app.Build) string {
	return fmt.Sprintf("tokenbroker %s (commit %s, %s, %s)\n", b.Version, cmp.Or(b.Commit, "unknown"), b.GoVersion, b.Platform)
}
