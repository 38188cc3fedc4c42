package app

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"sync"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/secretsource"
)

// supplied returns the source of a client's secret: the one from before, if its
// configuration did not change, because it has a lease and a status.
func (s *setup) supplied(name string, cfg *config.Client, old *secretsource.Source) (*secretsource.Source, error) {
	if v := cfg.Secret.Vault; v != nil && v.CA != "" && s.trusting[v.CA] == nil {
		network, err := s.network.WithAuthorities(v.CA)
		if err != nil {
			return nil, fmt.Errorf("secret.vault.ca: %w", err)
		}
		s.trusting[v.CA] = network
	}
	if before := s.before.config.Clients[name]; old != nil && reflect.DeepEqual(before.Secret, cfg.Secret) {
		return old, nil
	}
	encoded, err := json.Marshal(cfg.Secret) //nolint:musttag // only its digest is used
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(encoded)
	source := &secretsource.Source{Name: cfg.Secret.String(), Digest: hex.EncodeToString(digest[:8])}
	if e := cfg.Secret.Exec; e != nil {
		source.Every, source.Timeout = e.Every, e.Timeout
		source.Reader = &secretsource.Exec{Command: e.Command, Timeout: e.Timeout, Environment: e.Environment}
		return source, nil
	}
	v := cfg.Secret.Vault
	source.Every, source.Timeout = v.Every, v.Timeout
	source.Reader = secretsource.NewVault(secretsource.VaultConfig{
		Address: v.Address, Namespace: v.Namespace, Mount: v.Mount, Path: v.Path, Field: v.Field,
		Auth: secretsource.VaultAuth(v.Auth), AuthMount: cmp.Or(v.AuthMount, v.Auth), Role: v.Role,
		Credential: v.Credential(), RoleID: v.RoleID, Every: v.Every,
		HTTP: s.networkOf(v.CA).ClientFor(v.Address, true), // the operator configures the address
	})
	return source, nil
}

// sourceReads are the reads of sources by a Probe, each at most once.
type sourceReads struct {
	mu   sync.Mutex
	done map[string]func() (string, error) // by client
}

// HasSource reports whether a client's secret is kept by another program, and its source can
// be tried.
func (p *Probe) HasSource(name string) bool {
	client, ok := p.alone.setup.Load().named(name)
	return ok && client.Supplied != nil
}

// ReadSource reads the source of a client's secret once, and returns a description of the
// value without the value.
func (p *Probe) ReadSource(ctx context.Context, name string) (found string, err error) {
	p.sources.mu.Lock()
	read := p.sources.done[name]
	if read == nil {
		read = sync.OnceValues(func() (string, error) { return p.readSource(ctx, name) })
		if p.sources.done == nil {
			p.sources.done = map[string]func() (string, error){}
		}
		p.sources.done[name] = read
	}
	p.sources.mu.Unlock()
	return read()
}

func (p *Probe) readSource(ctx context.Context, name string) (string, error) {
	client, _ := p.alone.setup.Load().named(name)
	ctx, cancel := context.WithTimeout(ctx, client.Supplied.Timeout)
	defer cancel()
	value, err := client.Supplied.Read(ctx)
	if err != nil {
		return "", err
	}
	set := p.alone.broker.Secrets(name)
	if _, err := set.Supply(ctx, value); err != nil {
		return "", err
	}
	found := client.Supplied.Name + " has a secret"
	if value.Version != "" {
		found += ", " + value.Version
	}
	if doubt := client.IdP.SecretWarning(value.Secret); doubt != "" {
		found += "; it " + doubt
	}
	return found, nil
}
