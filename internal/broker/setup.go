package broker

import (
	"fmt"
	"slices"

	"github.com/cezzis/tokenbroker/internal/policy"
)

// Apply replaces clients, issuers and policy as one: a call is answered by the
// old ones or by the new, and a watch goes on by the new. A client that is the
// same as before, to its IdP and Secret, keeps its tokens and its failures; of
// one that is configured anew the purges are remembered. On an error the old
// ones stay.
func (b *Broker) Apply(next Setup) error {
	b.setting.Lock()
	defer b.setting.Unlock()
	before := b.setup.Load()
	made := &setup{clients: make(map[string]*client, len(next.Clients)), verifier: next.Verifier, policy: next.Policy}
	if made.policy == nil {
		made.policy = policy.New(policy.Config{})
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
			made.clients[cfg.Name] = old
			continue
		}
		made.clients[cfg.Name] = b.newClient(cfg).after(old)
	}
	b.setup.Store(made)
	for name, old := range before.clients {
		if made.clients[name] != old {
			for _, subscription := range old.subscriptions {
				subscription.Close()
			}
			old.entry.goes()
		}
	}
	b.applied.fire()
	return nil
}

// Rejudge has every watch ask again who its caller is: those by whom callers are
// recognised have changed.
func (b *Broker) Rejudge() { b.applied.fire() }

// is reports whether a client is as configured.
func (c *client) is(cfg ClientConfig) bool {
	return c.idp == cfg.IdP && c.secrets.source == cfg.Secret && c.secrets.managed == cfg.Managed && c.own.Audience == cfg.Audience &&
		slices.Equal(c.own.Resources, cfg.Resources) && slices.Equal(c.own.Scopes, canonicalScopes(cfg.Scopes))
}

// after carries over what belongs to a client's name, for as long as there is one
// of that name.
func (c *client) after(old *client) *client {
	if old != nil {
		c.epoch.Store(old.epoch.Load())
		c.fence.Store(old.fence.Load())
		c.secrets.after(old.secrets)
	}
	return c
}

// Policy returns the policy in force, by which callers are recognised. What they
// may is asked of the caller.
func (b *Broker) Policy() *policy.Policy { return b.setup.Load().policy }

// client returns the client of that name, nil if there is none.
func (b *Broker) client(name string) *client { return b.setup.Load().clients[name] }
