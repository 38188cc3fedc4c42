package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// introspectionRest is how long a version is not sent to the introspection endpoint after a
// refusal there.
const introspectionRest = time.Minute

// introspected is the status of a version at the introspection endpoint. It is separate
// from the token endpoint: a client may be allowed to introspect tokens but not to obtain
// them, and vice versa.
type introspected struct {
	accepted atomic.Bool                     // the endpoint accepted it, with no refusal since
	refusal  atomic.Pointer[backoff.Failure] // the last refusal; nil after a success
}

// SecretForIntrospection returns the secret with which the client introspects tokens at its
// IdP: the first that the introspection endpoint did not refuse lately. A version that only
// the token endpoint refuses comes last, unless introspection has accepted it. The error is
// always an [*apierror.Error].
func (b *Broker) SecretForIntrospection(ctx context.Context, name string) (secret.Version, error) {
	c := b.client(name)
	if c == nil {
		return secret.Version{}, apierror.Fault(fmt.Errorf("there is no client %q", name))
	}
	if c.secrets.kept() && !c.secrets.now().loaded {
		b.lookAtSecrets(ctx, c)
	}
	now := time.Now()
	u := c.secrets.now()
	fit := slices.DeleteFunc(u.all(), func(v *version) bool { return v.unfit != nil })
	if len(fit) == 0 {
		return secret.Version{}, c.noSecret(u)
	}
	usable := slices.DeleteFunc(slices.Clone(fit), func(v *version) bool { return v.introspected.refusal.Load().Active(now) })
	if len(usable) == 0 {
		return secret.Version{}, fit[0].introspected.refusal.Load().ErrorAt(now)
	}
	for _, v := range usable {
		if v.introspected.accepted.Load() || !v.refused.Load().Active(now) {
			return v.Version, nil
		}
	}
	return usable[0].Version, nil
}

// Introspected records whether the introspection endpoint accepted a version of a client's
// secret. An error that may be about the presented token does not count against the secret.
func (b *Broker) Introspected(name, version string, err error) {
	c := b.client(name)
	if c == nil {
		return
	}
	v := c.secrets.now().named(version)
	if v == nil {
		return
	}
	if err == nil {
		v.introspected.accepted.Store(true)
		v.introspected.refusal.Store(nil)
		return
	}
	if fault, ok := errors.AsType[*idp.Error](err); !ok || fault.Class != idp.CredentialRefused || fault.Ambiguous() {
		return
	}
	now := time.Now()
	v.introspected.accepted.Store(false)
	v.introspected.refusal.Store(&backoff.Failure{
		Class: idp.CredentialRefused, Err: refused(name, version, err), At: now, Until: now.Add(introspectionRest),
	})
}
