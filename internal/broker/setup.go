package broker

import (
	"fmt"
	"slices"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Apply replaces clients, issuers and policy together: a call uses either the old ones
// or the new ones, and a watch continues with the new ones. A client with the same
// IdP, Secret and settings keeps its tokens and failures; one with other settings
// keeps its purges. On an error the old setup stays.
func (b *Broker) Apply(next Setup) error {
	b.setting.Lock()
	defer b.setting.Unlock()
	before := b.setup.Load()
	created := &setup{clients: make(map[string]*client, len(next.Clients)), verifier: next.Verifier, policy: next.Policy}
	if created.policy == nil {
		created.policy = policy.New(policy.Config{})
	}
	named := map[string]bool{}
	for _, cfg := range next.Clients {
		if named[cfg.Name] {
			return fmt.Errorf("two clients are named %q", cfg.Name)
		}
		named[cfg.Name] = true
	}
	for _, cfg := range next.Clients {
		old := before.clients[cfg.Name]
		if old != nil && old.is(cfg) {
			created.clients[cfg.Name] = old
			continue
		}
		created.clients[cfg.Name] = b.newClient(cfg).after(old)
	}
	b.setup.Store(created)
	for name, old := range before.clients {
		if created.clients[name] != old {
			for _, subscription := range old.subscriptions {
				subscription.Close()
			}
			old.entry.evicted()
		}
	}
	b.applied.Fire()
	return nil
}

// Rejudge makes every watch identify its caller again, after a change of the
// authorities that identify callers.
func (b *Broker) Rejudge() { b.applied.Fire() }

// is reports whether a client has this configuration.
func (c *client) is(cfg ClientConfig) bool {
	return c.idp == cfg.IdP && c.secrets.Source == cfg.Secret && c.secrets.Managed == cfg.Managed && c.own.Audience == cfg.Audience &&
		slices.Equal(c.own.Resources, cfg.Resources) && slices.Equal(c.own.Scopes, canonicalScopes(cfg.Scopes))
}

// after takes over the state that belongs to the client's name, for as long as a
// client has that name.
func (c *client) after(old *client) *client {
	if old != nil {
		c.epoch.Store(old.epoch.Load())
		c.fence.Store(old.fence.Load())
		c.secrets.Inherit(old.secrets)
	}
	return c
}

// Policy returns the current policy, which identifies callers. Their permissions are
// in [policy.Caller].
func (b *Broker) Policy() *policy.Policy { return b.setup.Load().policy }

// client returns the client with this name, or nil.
func (b *Broker) client(name string) *client { return b.setup.Load().clients[name] }

// Credentials returns the secret of a client, or nil.
func (b *Broker) Credentials(name string) *credential.Set {
	if c := b.client(name); c != nil {
		return c.secrets
	}
	return nil
}
