package config

import (
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/secretsource"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// ClientSecret defines where a client's secret is: a reference, or exactly one source
// that is read at intervals.
type ClientSecret struct {
	// Ref is zero if a source is given.
	Ref secret.Ref `yaml:"-"`
	// The output of a command is the secret: for every secret manager with a command line. One
	// replica runs it.
	Exec *ExecSource `yaml:"exec" jsonschema:"oneof_required=exec"`
}

// ExecSource defines the command that prints a secret.
type ExecSource struct {
	// The absolute path of the file and its arguments. No shell reads them. Other users must not be
	// able to write the file or its directory.
	Command []string `yaml:"command" jsonschema:"required,minItems=1,maxItems=64,minLength=1,maxLength=4096"`
	// The time between two runs in the fleet, 10s to 24h.
	Every time.Duration `yaml:"every" jsonschema:"default=5m"`
	// The longest time that a run may take, 1s to 1m. The command is killed then, with all processes
	// that it started.
	Timeout time.Duration `yaml:"timeout" jsonschema:"default=10s"`
	// The names of the environment variables that the command gets, such as PATH and HOME. It gets
	// no others.
	Environment []string `yaml:"environment" jsonschema:"minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
}

// Supplied reports whether the broker reads the secret from where another program keeps it.
func (s ClientSecret) Supplied() bool { return s.Exec != nil }

// Managed reports whether operators send the secret to the broker, which keeps it in its
// store.
func (s ClientSecret) Managed() bool { return s.Ref.Managed() }

// String describes the location, such as "exec:/usr/local/bin/print-secret".
func (s ClientSecret) String() string {
	if s.Exec != nil && len(s.Exec.Command) > 0 {
		return "exec:" + s.Exec.Command[0]
	}
	return s.Ref.String()
}

// decodeClientSecret decodes a reference or a mapping with a source.
func decodeClientSecret(n yamlconf.Node, v reflect.Value) {
	switch {
	case !n.IsMapping():
		decodeReference(n, v.FieldByName("Ref"))
	case n.HasOnly("exec"):
		n.Struct(v)
	default: // a key may be the secret itself, so the message does not repeat it
		n.Addf("expected file:PATH, env:NAME, managed, or a mapping with exec; never the secret itself")
	}
}

// check checks what the decoder does not. path is that of the secret.
func (s ClientSecret) check(path string, findings *yamlconf.Findings) {
	if s.Exec != nil {
		s.Exec.check(yamlconf.Join(path, "exec"), findings)
	}
}

const (
	leastEvery, mostEvery     = 10 * time.Second, 24 * time.Hour
	leastTimeout, mostTimeout = time.Second, time.Minute
)

func (e *ExecSource) check(path string, findings *yamlconf.Findings) {
	findings.Within(yamlconf.Join(path, "every"), e.Every, leastEvery, mostEvery)
	findings.Within(yamlconf.Join(path, "timeout"), e.Timeout, leastTimeout, mostTimeout)
	if !secretsource.Supported {
		findings.Addf(path, "commands are supported on Linux and macOS only: give the secret as file:PATH")
	}
	if command := yamlconf.Join(path, "command"); len(e.Command) > 0 && e.Command[0] != "" && !filepath.IsAbs(e.Command[0]) {
		findings.Addf(yamlconf.Item(command, 0), "expected an absolute path such as /usr/local/bin/print-secret: the broker searches no PATH, and no shell reads the command")
	}
	for i, name := range e.Environment {
		if strings.ContainsAny(name, "=\x00") {
			findings.Addf(yamlconf.Item(yamlconf.Join(path, "environment"), i), "expected the name of a variable, without its value")
		}
	}
}
