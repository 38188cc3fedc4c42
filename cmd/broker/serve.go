package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/escape"
)

func newServe() *cobra.Command {
	var fromFlag string
	cmd := exitWith(exitNegative, &cobra.Command{
		Use:   "serve FILE",
		Short: "Run the broker",
		Long: `Run the broker with the configuration in FILE until SIGTERM or Ctrl-C, and then finish
calls in progress before it exits.

The broker does not start with an invalid configuration: each problem is reported with
the file, the line and the fix. "broker check-config FILE" does the same checks without
starting.

A changed file is reloaded within 2 s, or at once on SIGHUP: clients, issuers, callers
and roles are replaced as one. An invalid file changes nothing; the log names changes
that need a restart.

The process cannot be dumped, and debuggers cannot attach to it.`,
		Example: `  broker serve /etc/tokenbroker/broker.yaml
  broker serve --config /etc/tokenbroker/broker.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := configFile(args, fromFlag)
			if err != nil {
				return err
			}
			config, err := config.Load(path)
			if err != nil {
				return err
			}
			log := newLogger(os.Stderr, config.Log)
			slog.SetDefault(log)
			if err := protectMemory(); err != nil {
				log.Warn("the memory of this process is not protected", "error", err)
			}
			hangup := make(chan os.Signal, 1)
			signal.Notify(hangup, syscall.SIGHUP)
			defer signal.Stop(hangup)
			broker, err := app.New(config, app.Options{Logger: log, File: path, Hangup: hangup})
			if err != nil {
				return err
			}
			return broker.Run(cmd.Context())
		},
	})
	cmd.Flags().StringVar(&fromFlag, "config", "", "configuration file, in place of the argument FILE")
	return cmd
}

// configFile returns the configuration file from the argument or the flag.
func configFile(args []string, flag string) (path string, err error) {
	switch {
	case len(args) == 0 && flag == "":
		return "", usageError{errors.New("the configuration file is missing: broker serve FILE")}
	case len(args) > 0 && flag != "":
		return "", usageError{errors.New("the configuration file is given twice: as an argument and by --config. Remove one of them")}
	case len(args) > 0:
		return args[0], nil
	default:
		return flag, nil
	}
}

func newLogger(w io.Writer, cfg config.Log) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level)) // the configuration was checked
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: formatDurations}
	w = escape.NewWriter(w)
	if cfg.Format == "text" {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

// formatDurations writes durations as text: JSON would have them in nanoseconds.
func formatDurations(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	return a
}
