package config

import (
	"time"

	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Limits bounds the load on the broker. The limits of a single caller can be overridden
// for that caller.
type Limits struct {
	// The sustained rate of each caller, in calls per second. 0: unlimited.
	PerSecond int `yaml:"per_second" jsonschema:"default=5000,minimum=0,maximum=1000000"`
	// How many calls each caller may make at once. Absent: as many as per_second.
	Burst int `yaml:"burst" jsonschema:"minimum=1,maximum=1000000"`
	// How many calls each caller may have in progress. 0: unlimited.
	Concurrent int `yaml:"concurrent" jsonschema:"default=2000,minimum=0,maximum=1000000"`
	// How many watches each caller may have. 0: unlimited.
	Watches int `yaml:"watches" jsonschema:"default=2000,minimum=0,maximum=1000000"`
	// How many calls of all callers together may be in progress.
	InFlight int `yaml:"in_flight" jsonschema:"default=10000,minimum=1,maximum=1000000"`
	// How many connections may be open.
	Connections int `yaml:"connections" jsonschema:"default=10000,minimum=1,maximum=1000000"`
	// How many calls one connection may have open; half of them may be watches.
	Streams int `yaml:"streams" jsonschema:"default=250,minimum=1,maximum=100000"`
	// The age of a connection, plus or minus a tenth, at which the broker requests a reconnect, 1m to
	// 24h.
	ConnectionAge time.Duration `yaml:"connection_age" jsonschema:"default=30m"`
	// How long a client may take to complete the handshakes before its first call, 1s to 1m.
	HandshakeTimeout time.Duration `yaml:"handshake_timeout" jsonschema:"default=10s"`
	// The maximum size of a token, in KiB: issued by an IdP, verified, or presented by a caller.
	TokenKiB int `yaml:"token_kib" jsonschema:"default=16,minimum=4,maximum=64"`
	// The maximum size of a received message, in KiB, in addition to a token.
	MessageKiB int `yaml:"message_kib" jsonschema:"default=64,minimum=16,maximum=1024"`
	// The maximum size of the headers of a call, in KiB, in addition to a token.
	HeaderKiB int `yaml:"header_kib" jsonschema:"default=16,minimum=4,maximum=64"`
}

// CallerLimits are the limits of one caller, in place of the common limits.
type CallerLimits struct {
	// The sustained rate of the caller, in calls per second. 0: unlimited.
	PerSecond *int `yaml:"per_second" jsonschema:"minimum=0,maximum=1000000"`
	// How many calls the caller may make at once. Absent: as many as per_second, if that is given
	// here.
	Burst *int `yaml:"burst" jsonschema:"minimum=1,maximum=1000000"`
	// How many calls the caller may have in progress. 0: unlimited.
	Concurrent *int `yaml:"concurrent" jsonschema:"minimum=0,maximum=1000000"`
	// How many watches the caller may have. 0: unlimited.
	Watches *int `yaml:"watches" jsonschema:"minimum=0,maximum=1000000"`
}

func checkLimits(l *Limits, findings *yamlconf.Findings) {
	findings.Within("limits.connection_age", l.ConnectionAge, time.Minute, 24*time.Hour)
	findings.Within("limits.handshake_timeout", l.HandshakeTimeout, time.Second, time.Minute)
}

// forCaller returns the limits of a caller. If own is not nil, its values override the common
// ones.
func (l *Limits) forCaller(own *CallerLimits) *policy.Limits {
	perSecond, burst, concurrent, watches := l.PerSecond, l.Burst, l.Concurrent, l.Watches
	if own != nil {
		if own.PerSecond != nil {
			perSecond, burst = *own.PerSecond, 0
		}
		for into, value := range map[*int]*int{&burst: own.Burst, &concurrent: own.Concurrent, &watches: own.Watches} {
			if value != nil {
				*into = *value
			}
		}
	}
	if burst == 0 {
		burst = perSecond
	}
	return &policy.Limits{PerSecond: float64(perSecond), Burst: burst, Concurrent: concurrent, Watches: watches}
}

// TokenSize is the maximum length of a token, in bytes.
func (l *Limits) TokenSize() int { return l.TokenKiB << 10 }

// MessageSize is the maximum size of a message with a token, in bytes.
func (l *Limits) MessageSize() int { return l.MessageKiB<<10 + l.TokenSize() }

// HeaderSize is the maximum size of a request's headers with a token, in bytes.
func (l *Limits) HeaderSize() int { return l.HeaderKiB<<10 + l.TokenSize() }
