package config

import (
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// namedFile is a file with a secret, and the key of the configuration that names it.
type namedFile struct{ path, key string }

// secretFiles are all files with secrets, keys or tokens that the configuration names.
func (c *Config) secretFiles() []namedFile {
	var files []namedFile
	add := func(key, path string) {
		if path != "" {
			files = append(files, namedFile{path, key})
		}
	}
	addRef := func(key string, ref secret.Ref) {
		if ref.Kind() == "file" {
			add(key, ref.Name())
			add(key, filepath.Join(ref.Name(), "current"))
			add(key, filepath.Join(ref.Name(), "previous"))
		}
	}
	if c.Listen.TLS != nil {
		add("listen.tls.key", c.Listen.TLS.Key)
	}
	addRef("store.sealing_keys", c.Store.SealingKeys)
	if redis := c.Store.Redis; redis != nil {
		addRef("store.redis.password", redis.Password)
		addRef("store.redis.sentinel_password", redis.SentinelPassword)
		if redis.TLS != nil {
			add("store.redis.tls.key", redis.TLS.Key)
		}
	}
	add("store.bolt", c.Store.Bolt)
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		client, key := c.Clients[name], yamlconf.Join("clients", name)
		addRef(yamlconf.Join(key, "secret"), client.Secret.Ref)
		if v := client.Secret.Vault; v != nil {
			in := yamlconf.Join(key, "secret.vault")
			add(yamlconf.Join(in, "jwt_file"), v.JWTFile)
			add(yamlconf.Join(in, "token_file"), v.TokenFile)
			addRef(yamlconf.Join(in, "role_id"), v.RoleID)
			addRef(yamlconf.Join(in, "secret_id"), v.SecretID)
		}
		add(yamlconf.Join(yamlconf.Join(key, "assertion"), "file"), client.Assertion.File)
		add(yamlconf.Join(key, "exchange.actor"), client.Exchange.ActorFile())
		if client.TLS != nil {
			add(yamlconf.Join(yamlconf.Join(key, "tls"), "key"), client.TLS.Key)
		}
	}
	return append(files, c.tokenFiles...)
}

// tokenFiles are the files with tokens that the issuers of a configuration file name.
func tokenFiles(issuers []Issuer) (files []namedFile) {
	for i := range issuers {
		if path := issuers[i].JWKSTokenFile; path != "" {
			files = append(files, namedFile{path, yamlconf.Join(yamlconf.Item("issuers", i), "jwks_token_file")})
		}
	}
	return files
}

// CertificateFile is a file with certificates, and the key of the configuration that names
// it.
type CertificateFile struct {
	Path, Key string
	Line      int
	// CA: it contains authorities that the broker trusts, rather than its own certificate.
	CA bool
}

// CertificateFiles returns all files with certificates that the configuration names.
func (c *Config) CertificateFiles() []CertificateFile {
	var files []CertificateFile
	add := func(key, path string, ca bool) {
		if path != "" {
			files = append(files, CertificateFile{Path: path, Key: key, Line: max(c.findings.Line(key), 1), CA: ca})
		}
	}
	if tls := c.Listen.TLS; tls != nil {
		add("listen.tls.cert", tls.Cert, false)
		add("listen.tls.client_ca", tls.ClientCA, true)
	}
	if redis := c.Store.Redis; redis != nil && redis.TLS != nil {
		add("store.redis.tls.cert", redis.TLS.Cert, false)
		add("store.redis.tls.ca", redis.TLS.CA, true)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		client, key := c.Clients[name], yamlconf.Join("clients", name)
		add(yamlconf.Join(yamlconf.Join(key, "assertion"), "certificate"), client.Assertion.Certificate, false)
		if client.TLS != nil {
			add(yamlconf.Join(yamlconf.Join(key, "tls"), "cert"), client.TLS.Cert, false)
			add(yamlconf.Join(yamlconf.Join(key, "tls"), "ca"), client.TLS.CA, true)
		}
	}
	for i := range c.Issuers {
		if i == 0 || c.issuerItems[i] != c.issuerItems[i-1] { // not another tenant
			add(yamlconf.Join(yamlconf.Join(yamlconf.Item("issuers", c.issuerItems[i]), "tls"), "ca"), c.Issuers[i].CA(), true)
		}
	}
	return files
}

// EmptyFiles reports files with secrets that are empty.
func (c *Config) EmptyFiles() []yamlconf.Problem {
	var problems []yamlconf.Problem
	for _, file := range c.secretFiles() {
		info, err := os.Stat(file.path)
		if err == nil && info.Mode().IsRegular() && info.Size() == 0 && file.key != "store.bolt" {
			problems = append(problems, c.findings.At(file.key, "%s is empty: write the secret into it, or correct the path", file.path))
		}
	}
	return problems
}

// ExposedFiles warns of files with secrets that every user of the machine may read or
// write. It looks at their permissions only; a file that is absent is not reported.
func (c *Config) ExposedFiles() []yamlconf.Problem {
	var problems []yamlconf.Problem
	for _, file := range c.secretFiles() {
		if secret.Exposed(file.path) {
			problems = append(problems, c.findings.At(file.key, "every user of this machine may read or write %s: take the permissions away from others, as with chmod o-rw", file.path))
		}
	}
	yamlconf.Sort(problems)
	return problems
}
