package app

import (
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/config"
)

// serverLimits are the limits shared by all callers.
func serverLimits(l *config.Limits) caller.Limits {
	return caller.Limits{
		Connections:      l.Connections,
		Streams:          uint32(l.Streams), //nolint:gosec // its bounds are checked
		InFlight:         l.InFlight,
		ConnectionAge:    l.ConnectionAge,
		HandshakeTimeout: l.HandshakeTimeout,
		MessageSize:      l.MessageSize(),
		HeaderSize:       uint32(l.HeaderKiB) << 10, //nolint:gosec // its bounds are checked
		TokenSize:        uint32(l.TokenSize()),     //nolint:gosec // its bounds are checked
	}
}
