package config

import (
	"cmp"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/secretsource"
	"github.com/cezzis/tokenbroker/internal/urlcheck"
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
	// A field of a secret in HashiCorp Vault or OpenBao, in a KV engine of version 2. One replica
	// reads it.
	Vault *VaultSource `yaml:"vault" jsonschema:"oneof_required=vault"`
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

// VaultSource defines the field of a secret in Vault, and how the broker logs in.
type VaultSource struct {
	// The base URL, such as https://vault.example.com:8200. Plain http is accepted for loopback
	// hosts.
	Address string `yaml:"address" jsonschema:"required,minLength=1"`
	// The namespace, in Vault Enterprise and OpenBao. Absent: the root namespace.
	Namespace string `yaml:"namespace" jsonschema:"minLength=1,maxLength=256"`
	// The file with the certificates of the only authorities that are trusted for this server, in
	// PEM. Absent: the system's authorities.
	CA string `yaml:"ca" jsonschema:"minLength=1"`
	// The path of the KV engine.
	Mount string `yaml:"mount" jsonschema:"default=secret,minLength=1,maxLength=256"`
	// The path of the secret in the engine, without data/.
	Path string `yaml:"path" jsonschema:"required,minLength=1,maxLength=512"`
	// The name of the value in the secret.
	Field string `yaml:"field" jsonschema:"required,minLength=1,maxLength=256"`
	// How the broker logs in. token_file: it does not, because another program, such as Vault's
	// agent, writes a token to a file.
	Auth string `yaml:"auth" jsonschema:"default=kubernetes,values=vault_auths"`
	// The path of the auth method. Absent: the name of the method.
	AuthMount string `yaml:"auth_mount" jsonschema:"minLength=1,maxLength=256"`
	// The role, with kubernetes and jwt.
	Role string `yaml:"role" jsonschema:"minLength=1,maxLength=256"`
	// The file with the JWT, with kubernetes and jwt. It is read for each login. Absent with
	// kubernetes: the token of the pod's service account.
	JWTFile string `yaml:"jwt_file" jsonschema:"minLength=1"`
	// The location of the role_id, with approle: file:PATH or env:NAME.
	RoleID secret.Ref `yaml:"role_id"`
	// The location of the secret_id, with approle: file:PATH or env:NAME. It is read for each login.
	SecretID secret.Ref `yaml:"secret_id"`
	// The file with the token, with token_file. It is read each time.
	TokenFile string `yaml:"token_file" jsonschema:"minLength=1"`
	// The time between two reads in the fleet, 10s to 24h.
	Every time.Duration `yaml:"every" jsonschema:"default=5m"`
	// The longest time that a read may take, with its login, 1s to 1m.
	Timeout time.Duration `yaml:"timeout" jsonschema:"default=10s"`
}

// Supplied reports whether the broker reads the secret from where another program keeps it.
func (s ClientSecret) Supplied() bool { return s.Exec != nil || s.Vault != nil }

// Managed reports whether operators send the secret to the broker, which keeps it in its
// store.
func (s ClientSecret) Managed() bool { return s.Ref.Managed() }

// String describes the location, such as "exec:/usr/local/bin/print-secret".
func (s ClientSecret) String() string {
	if s.Exec != nil && len(s.Exec.Command) > 0 {
		return "exec:" + s.Exec.Command[0]
	}
	if v := s.Vault; v != nil {
		return "vault:" + v.Mount + "/" + v.Path + "#" + v.Field
	}
	return s.Ref.String()
}

// decodeClientSecret decodes a reference or a mapping with a source.
func decodeClientSecret(n yamlconf.Node, v reflect.Value) {
	switch {
	case !n.IsMapping():
		decodeReference(n, v.FieldByName("Ref"))
	case n.HasOnly("exec", "vault"):
		n.Struct(v)
	default: // a key may be the secret itself, so the message does not repeat it
		n.Addf("expected file:PATH, env:NAME, managed, or a mapping with exec or vault; never the secret itself")
	}
}

// check checks what the decoder does not. path is that of the secret.
func (s ClientSecret) check(path string, findings *yamlconf.Findings) {
	if s.Exec != nil && s.Vault != nil {
		findings.Addf(path, "exec and vault exclude each other: give one of them")
	}
	if s.Exec != nil {
		s.Exec.check(yamlconf.Join(path, "exec"), findings)
	}
	if s.Vault != nil {
		s.Vault.check(yamlconf.Join(path, "vault"), findings)
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

func (v *VaultSource) check(path string, findings *yamlconf.Findings) {
	findings.Within(yamlconf.Join(path, "every"), v.Every, leastEvery, mostEvery)
	findings.Within(yamlconf.Join(path, "timeout"), v.Timeout, leastTimeout, mostTimeout)
	address := yamlconf.Join(path, "address")
	if strings.HasPrefix(v.Address, "http:") && discovery.CheckURL(v.Address, true) == nil && discovery.CheckURL(v.Address, false) != nil {
		findings.Addf(address, "http:// beyond loopback would send the login and the secret unencrypted: use https://")
	} else {
		urlcheck.Endpoint(address, v.Address, false, true, findings)
	}
	if strings.HasPrefix(v.Path, "data/") {
		findings.Addf(yamlconf.Join(path, "path"), "give it without data/, which the broker adds")
	}
	if isJWT(v.JWTFile) {
		findings.Addf(yamlconf.Join(path, "jwt_file"), "names the file with the JWT, and must never be the JWT itself")
	}
	auth := secretsource.VaultAuth(v.Auth)
	for _, key := range []struct {
		name     string
		required bool
		with     []secretsource.VaultAuth
	}{
		{"role", true, []secretsource.VaultAuth{secretsource.VaultKubernetes, secretsource.VaultJWT}},
		{"jwt_file", auth != secretsource.VaultKubernetes, []secretsource.VaultAuth{secretsource.VaultKubernetes, secretsource.VaultJWT}},
		{"role_id", true, []secretsource.VaultAuth{secretsource.VaultAppRole}},
		{"secret_id", true, []secretsource.VaultAuth{secretsource.VaultAppRole}},
		{"token_file", true, []secretsource.VaultAuth{secretsource.VaultTokenFile}},
	} {
		applies, given := slices.Contains(key.with, auth), findings.Given(yamlconf.Join(path, key.name))
		switch {
		case applies && key.required && !given:
			findings.Addf(path, "%s is missing: auth: %s needs it", key.name, v.Auth)
		case !applies && given:
			findings.Addf(yamlconf.Join(path, key.name), "is not used with auth: %s: remove it, or change auth", v.Auth)
		}
	}
}

// Credential is the location of the credential for the login.
func (v *VaultSource) Credential() secret.Ref {
	file := func(path string) secret.Ref {
		ref, _ := secret.ParseRef("file:" + path) // the decoder refuses an empty path
		return ref
	}
	switch secretsource.VaultAuth(v.Auth) {
	case secretsource.VaultAppRole:
		return v.SecretID
	case secretsource.VaultTokenFile:
		return file(v.TokenFile)
	default:
		return file(cmp.Or(v.JWTFile, ServiceAccountDir+"token"))
	}
}
