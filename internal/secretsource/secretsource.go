// Package secretsource reads secrets from the places where other programs keep them: from
// the output of a command (every secret manager with a command line), or from HashiCorp
// Vault and OpenBao. It caches no secret, and no error of it contains one.
package secretsource

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Source is a place where a secret is kept, and how often it is read. It must not be changed.
type Source struct {
	Reader

	// Name describes the source to operators, such as "exec:/usr/local/bin/print-secret".
	Name string
	// Digest identifies the configuration of the source, so that replicas with another
	// configuration read their own.
	Digest string
	// Every is the time between two reads in the fleet.
	Every time.Duration
	// Timeout bounds a read.
	Timeout time.Duration
}

// Value is the value that a source had when it was read.
type Value struct {
	Secret redact.String
	// Version is the number that the source gives this value, such as "version 7". Empty:
	// the source has no versions.
	Version string
}

// Reader reads a secret from its source. It is safe for concurrent use.
type Reader interface {
	// Read returns the current value, which is never empty. It ends when ctx does. The
	// error is a sentence that names the cause and contains no secret.
	Read(ctx context.Context) (Value, error)
}
