package credential

import (
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/store"
)

// NoSecret returns the reason why the client has no secret to authenticate with.
func (s *Set) NoSecret() *apierror.Error {
	u := s.View()
	code, retry := apierror.FailedPrecondition, time.Duration(0)
	say := func(reason, format string, args ...any) *apierror.Error {
		return &apierror.Error{
			Code: code, Reason: reason, RetryAfter: retry, Metadata: map[string]string{"client": s.Client}, Cause: u.Fault,
			Message: fmt.Sprintf("client %q: ", s.Client) + fmt.Sprintf(format, args...),
		}
	}
	for _, v := range u.All() {
		if v.unfit != nil {
			return say(apierror.ReasonSecretUnusable, "its secret (version %s) cannot be used: %v", v.ID, v.unfit)
		}
	}
	switch {
	case u.Fault != nil:
		return say(apierror.ReasonSecretsUnreadable, "%v", u.Fault)
	case s.Source != nil:
		return say(apierror.ReasonSecretUnusable, "%s contains version %s, which was retired: replace it with the current secret",
			s.Source.Ref(), s.Source.Current().ID)
	case !u.Loaded:
		code, retry = apierror.Unavailable, time.Second
		return say(apierror.ReasonSecretsUnknown, "its secret could not be read from the store yet; try again")
	case s.Made.Makes():
		code, retry = apierror.Unavailable, time.Second
		return say(apierror.ReasonKeyNotReady, "its first key is not in use yet: the broker makes it, and uses it as soon as %s shows it and the IdP accepts it; see `broker key list %s`", s.Made.URL, s.Client)
	case s.Supplied != nil:
		code, retry = apierror.Unavailable, time.Second
		return say(apierror.ReasonNoSecret, "its secret was not read from %s yet: `broker status` shows a failure of the source", s.Supplied.Name)
	default:
		return say(apierror.ReasonNoSecret, "it has no secret yet: add one with `broker secret rotate %s`", s.Client)
	}
}

// Missing returns the error of a client that is known to have no secret to authenticate
// with. It returns nil if it has one, or if that is not known yet.
func (s *Set) Missing() *apierror.Error {
	u := s.View()
	for _, v := range u.All() {
		if v.unfit == nil {
			return nil
		}
	}
	if !u.Loaded && u.Fault == nil && s.Managed {
		return nil
	}
	return s.NoSecret()
}

// refusedMeanwhile returns the error of a fetch with only refused secrets, although one of
// them has since obtained a token in another fetch.
func (s *Set) refusedMeanwhile() *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonIdPUnavailable, RetryAfter: time.Second,
		Metadata: map[string]string{"client": s.Client},
		Message:  fmt.Sprintf("client %q: the IdP refused its secret, and has accepted it again since; try again", s.Client),
	}
}

// NotStaged returns the error for a version that is no longer staged.
func (s *Set) NotStaged(version string) *apierror.Error {
	return &apierror.Error{
		Code: apierror.FailedPrecondition, Reason: apierror.ReasonNoSuchSecret,
		Metadata: map[string]string{"client": s.Client, "secret_version": version},
		Message: fmt.Sprintf("client %q: version %s is not staged: it was wiped; add the secret again with `broker secret rotate %s`",
			s.Client, version, s.Client),
	}
}

// Unconfirmed returns the error for a change that the store did not confirm.
func (s *Set) Unconfirmed(cause error) *apierror.Error {
	return store.Unconfirmed(cause, fmt.Sprintf("client %q: the store did not confirm the change", s.Client), "ask again with the same request_id",
		map[string]string{"client": s.Client})
}
