package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// SecretInUse returns the secret with which a fetch for the client would begin now,
// for what else is asked of its IdP in its name. The error is always an [*Error].
func (b *Broker) SecretInUse(ctx context.Context, name string) (secret.Version, error) {
	c := b.client(name)
	if c == nil {
		return secret.Version{}, Fault(fmt.Errorf("there is no client %q", name))
	}
	if c.secrets.kept() && !c.secrets.now().loaded {
		b.lookAtSecrets(ctx, c)
	}
	now := time.Now()
	u := c.secrets.now()
	if v := u.next(now, nil); v != nil {
		return v.Version, nil
	}
	if t := u.refusal(now); t != nil {
		return secret.Version{}, t.told(now)
	}
	return secret.Version{}, c.noSecret(u)
}
