package credential

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

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

// ForIntrospection returns the version with which the client introspects tokens at its
// IdP: the first that the introspection endpoint did not refuse lately. A version that only
// the token endpoint refuses comes last, unless introspection has accepted it. The error is
// always an [*apierror.Error].
func (s *Set) ForIntrospection(ctx context.Context) (secret.Version, error) {
	if s.Kept() && !s.View().Loaded {
		s.fleet.Load(ctx, s)
	}
	now := time.Now()
	fit := slices.DeleteFunc(s.View().All(), func(v *Version) bool { return v.unfit != nil })
	if len(fit) == 0 {
		return secret.Version{}, s.NoSecret()
	}
	usable := slices.DeleteFunc(slices.Clone(fit), func(v *Version) bool { return v.introspected.refusal.Load().Active(now) })
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

// Introspected records whether the introspection endpoint accepted a version. An error
// that may be about the presented token does not count against the secret.
func (s *Set) Introspected(version string, err error) {
	v := s.View().Named(version)
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
		Class: idp.CredentialRefused, Err: backoff.ErrorOf(s.Client, version, err), At: now, Until: now.Add(introspectionRest),
	})
}
