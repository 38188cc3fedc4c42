package app

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/peer"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/config"
)

// openAudit opens the configured audit; it returns nil if no audit is configured.
func openAudit(cfg *config.Audit, log *slog.Logger, registerer prometheus.Registerer) (*audit.Log, error) {
	if cfg == nil {
		return nil, nil //nolint:nilnil // a nil Log writes nothing down
	}
	opened, err := audit.Open(audit.Config{
		File: cfg.File, EveryToken: cfg.Tokens == "every", Verifications: config.Verifications()[cfg.Verifications], Refuse: cfg.WhenFull == "refuse",
		From: peerOf, Logger: log, Registerer: registerer,
	})
	if err != nil {
		return nil, fmt.Errorf("audit.file: %w", err)
	}
	return opened, nil
}

// peerOf returns the remote address of a call.
func peerOf(ctx context.Context) string {
	if from, ok := peer.FromContext(ctx); ok && from.Addr != nil {
		return from.Addr.String()
	}
	return ""
}

// reloaded writes the result of a reload to the audit.
func (a *App) reloaded(digest [32]byte, err error) {
	e := audit.Event{Event: audit.Reload, Outcome: audit.OK, ConfigSHA256: digest}
	if err != nil {
		// The audit has the first line only: the error may be long, and the log has all
		// of it.
		e.Outcome, e.Detail = audit.Refused, firstLine(err.Error())
	}
	a.parts.audit.Record(&e)
}

func firstLine(text string) string {
	first, _, more := strings.Cut(text, "\n")
	if more {
		first += " (and more)"
	}
	return first
}
