package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/doctor"
	"github.com/cezzis/tokenbroker/internal/fleet"
)

func newDoctor() *cobra.Command {
	var (
		d  examination
		to connection
	)
	cmd := exitWith(exitTrouble, &cobra.Command{
		Use:   "doctor FILE",
		Short: "Try everything that a configuration file names, and say what to do",
		Long: `Check a configuration file as "broker check-config" does, and then try what it names:
secrets, certificates and their ends, Redis, the token endpoints of the clients, the keys of
the issuers, introspection, and the clocks of all of them. Also report permissions that have
no effect, and whether the running fleet has this configuration. With --mint also get a
token for each client; some IdPs bill for those.

The running fleet is asked at --addr, or at the address of the file if it is on this
machine. That needs a caller with the action get_status.

The exit code is 0 if there is nothing worse than notes, 1 if there are errors or warnings,
and 2 if the file cannot be read or is not valid.`,
		Example: `  broker doctor broker.yaml
  broker doctor broker.yaml --mint --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := config.Load(args[0])
			if err != nil {
				return err
			}
			d.options.Fleet = to.fleet(cmd, config)
			report, err := d.run(cmd, args[0], config)
			if err == nil && report.Count(doctor.Error)+report.Count(doctor.Warning) > 0 {
				err = exit(exitNegative)
			}
			return err
		}})
	to.flags(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&d.options.Mint, "mint", false, "also get a token for each client")
	flags.BoolVar(&d.verbose, "verbose", false, "also list the checks that passed")
	jsonFlag(cmd, &d.asJSON)
	return cmd
}

// examination runs the checks and prints the report.
type examination struct {
	options         doctor.Options
	verbose, asJSON bool
}

func (d *examination) run(cmd *cobra.Command, file string, config *config.Config) (doctor.Report, error) {
	report := doctor.Run(cmd.Context(), file, config, d.options)
	if d.asJSON {
		return report, printReportJSON(cmd.OutOrStdout(), file, &report)
	}
	return report, d.print(cmd.OutOrStdout(), &report)
}

func printReportJSON(out io.Writer, file string, report *doctor.Report) error {
	return printJSON(out, struct {
		File     string           `json:"file"`
		Checks   int              `json:"checks"`
		Errors   int              `json:"errors"`
		Warnings int              `json:"warnings"`
		Notes    int              `json:"notes"`
		Findings []doctor.Finding `json:"findings"`
		Passed   []doctor.Pass    `json:"passed"`
	}{file, report.Checks, report.Count(doctor.Error), report.Count(doctor.Warning), report.Count(doctor.Note), report.Findings, report.Passed})
}

// print prints the findings in groups, the errors first, and then the counts.
func (d *examination) print(out io.Writer, report *doctor.Report) error {
	var page bytes.Buffer
	if d.verbose {
		for _, pass := range report.Passed {
			_, _ = fmt.Fprintf(&page, "ok    %s: %s\n", pass.Subject, pass.Detail)
		}
	}
	var before doctor.Severity
	for i := range report.Findings {
		one := &report.Findings[i]
		if one.Severity != before {
			_, _ = fmt.Fprintf(&page, "\n%s\n", map[doctor.Severity]string{doctor.Error: "Errors", doctor.Warning: "Warnings", doctor.Note: "Notes"}[one.Severity])
			before = one.Severity
		}
		place := ""
		if one.File != "" {
			place = fmt.Sprintf("%s:%d: ", one.File, one.Line)
		}
		_, _ = fmt.Fprintf(&page, "  %s%s: %s [%s]\n      %s\n", place, one.Subject, one.Message, one.ID, one.Action)
	}
	_, _ = fmt.Fprintf(&page, "\n%s: %s, %s, %s\n", fleet.Count(report.Checks, "check", "checks"), fleet.Count(report.Count(doctor.Error), "error", "errors"),
		fleet.Count(report.Count(doctor.Warning), "warning", "warnings"), fleet.Count(report.Count(doctor.Note), "note", "notes"))
	_, err := out.Write(bytes.TrimLeft(page.Bytes(), "\n"))
	return err
}

// fleet returns a function that reads the status of the fleet at the address of the flags,
// or else at an address of the configuration on this machine. It is nil if there is none.
func (c *connection) fleet(cmd *cobra.Command, config *config.Config) func(ctx context.Context) (doctor.Fleet, error) {
	if !cmd.Flags().Changed("addr") && os.Getenv("TOKENBROKER_ADDR") == "" {
		if c.addr = localAddress(&config.Listen); c.addr == "" {
			return nil
		}
	}
	return func(ctx context.Context) (all doctor.Fleet, err error) {
		broker, err := c.open(cmd)
		if err != nil {
			return all, err
		}
		defer func() { _ = broker.Close() }()
		limited, cancel := context.WithTimeout(ctx, min(c.timeout, doctor.DefaultLimit/2))
		defer cancel()
		status, err := tokenbrokerv1.NewAdminServiceClient(broker.Conn()).GetStatus(limited, &tokenbrokerv1.GetStatusRequest{})
		if err != nil {
			return all, c.explain(ctx, broker, err)
		}
		all.Findings = len(status.GetFindings())
		for _, one := range status.GetReplicas() {
			if one.GetPresence() == tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_ALIVE {
				all.Replicas = append(all.Replicas, doctor.Replica{Name: one.GetId(), Digest: one.GetConfigSha256()})
			}
		}
		return all, nil
	}
}

// localAddress returns the address at which a broker with this configuration is reached
// from its own machine.
func localAddress(listen *config.Listen) string {
	if listen.Unix != nil {
		return "unix:" + listen.Unix.Path
	}
	host, port, err := net.SplitHostPort(listen.GRPC.Address)
	switch ip := net.ParseIP(host); {
	case err != nil || port == "0":
		return ""
	case host == "" || ip != nil && ip.IsUnspecified():
		return net.JoinHostPort("127.0.0.1", port)
	default:
		return listen.GRPC.Address
	}
}
