package rotation

import (
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// Reasons to refuse a change, besides the errors of [secret.History].
var (
	errNotExpected   = errors.New("the current version is not the expected one")
	errRequestReused = errors.New("the request ID was used for another call")
	errRefusedBefore = errors.New("the IdP refused the secret of this call before")
	errExists        = errors.New("there is a secret already")
)

// changeError translates the error of a change of a history: a refusal of the change, or a
// failure to store it.
func changeError(s *credential.Set, err error, version string) *apierror.Error {
	told := &apierror.Error{Code: apierror.FailedPrecondition, Metadata: map[string]string{"client": s.Client}, Cause: err}
	if version != "" {
		told.Metadata["secret_version"] = version
	}
	say := func(reason, format string, args ...any) *apierror.Error {
		told.Reason, told.Message = reason, fmt.Sprintf("client %q: ", s.Client)+fmt.Sprintf(format, args...)
		return told
	}
	u := s.View()
	pending, _ := u.History.In(secret.Pending)
	switch {
	case errors.Is(err, secret.ErrAnotherPending) && s.Made.Makes():
		return say(apierror.ReasonSecretStaged, "version %s is published already, and becomes current by itself: see `broker key list %s`", pending.ID, s.Client)
	case errors.Is(err, secret.ErrAnotherPending):
		return say(apierror.ReasonSecretStaged, "version %s is staged, and the IdP may already accept only that one: activate it or retire it first", pending.ID)
	case errors.Is(err, secret.ErrUnknown) && version == "":
		told.Code = apierror.NotFound
		return say(apierror.ReasonNoSuchSecret, "no secret is staged: version %q is current", u.History.CurrentID())
	case errors.Is(err, secret.ErrUnknown):
		told.Code = apierror.NotFound
		return say(apierror.ReasonNoSuchSecret, "there is no version %q of its secret: see `broker clients %s`", version, s.Client)
	case errors.Is(err, secret.ErrNoPrevious):
		return say(apierror.ReasonNoPreviousSecret, "there is no previous secret to reactivate: it was retired, or never existed")
	case errors.Is(err, secret.ErrNotStaged):
		return s.NotStaged(version)
	case errors.Is(err, secret.ErrInUse) && version == u.History.CurrentID():
		return say(apierror.ReasonSecretInForce, "version %s is current: activate another one first", version)
	case errors.Is(err, secret.ErrInUse):
		return say(apierror.ReasonSecretInForce, "version %s is the previous secret: reactivate it with `broker secret rollback %s`", version, s.Client)
	case errors.Is(err, errExists):
		return say(apierror.ReasonSecretInForce, "it already has a secret (version %s): replace it only if the backup is newer", u.History.CurrentID())
	case errors.Is(err, errRefusedBefore):
		return say(apierror.ReasonCredentialsRefused, "the IdP refused the secret of this request_id before, and it was not kept: use a new request_id")
	case errors.Is(err, errNotExpected):
		told.Metadata["current_version"] = u.History.CurrentID()
		return say(apierror.ReasonSecretChanged, "the current version is %q and not the expected one: check `broker clients %s` and decide again", u.History.CurrentID(), s.Client)
	case errors.Is(err, errRequestReused):
		told.Code, told.Field = apierror.InvalidArgument, "request_id"
		return say(apierror.ReasonInvalidRequest, "request_id: it was used for another call: use a new one")
	case u.Fault != nil:
		return say(apierror.ReasonSecretsUnreadable, "%v", u.Fault)
	default:
		return s.Unconfirmed(err)
	}
}

// notManaged returns an error that names the place to change the secret.
func notManaged(s *credential.Set) *apierror.Error {
	told := &apierror.Error{Code: apierror.FailedPrecondition, Reason: apierror.ReasonSecretNotManaged, Metadata: map[string]string{"client": s.Client}}
	switch {
	case s.Source == nil:
		told.Message = fmt.Sprintf("client %q authenticates without a secret that the broker keeps", s.Client)
	case s.Source.CanChange():
		told.Metadata["secret"] = s.Source.Ref().String()
		told.Message = fmt.Sprintf("client %q has its secret in %s: change it there on each replica; the broker sees it within 20 s, proves it, and goes on with the old one until then",
			s.Client, s.Source.Ref())
	default:
		told.Metadata["secret"] = s.Source.Ref().String()
		told.Message = fmt.Sprintf("client %q has its secret in %s, which is read at the start only: change it there and restart", s.Client, s.Source.Ref())
	}
	return told
}

// suppliedElsewhere is the error for a change of a secret that the broker reads from where
// another program keeps it. A change here would last until the next read.
func suppliedElsewhere(s *credential.Set) *apierror.Error {
	return &apierror.Error{
		Code: apierror.FailedPrecondition, Reason: apierror.ReasonSecretNotManaged,
		Metadata: map[string]string{"client": s.Client, "secret": s.Supplied.Name},
		Message: fmt.Sprintf("client %q has its secret in %s: change it there; the broker reads it every %v, proves it, and goes on with the old one until then",
			s.Client, s.Supplied.Name, s.Supplied.Every),
	}
}

// provenByUse is the error for a compromised secret of a client that cannot prove the new
// one at once: the old one would be wiped before it is known that the new one works.
func provenByUse(s *credential.Set) *apierror.Error {
	return &apierror.Error{
		Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Field: "compromised", Metadata: map[string]string{"client": s.Client},
		Message: fmt.Sprintf("compromised: client %q proves a new secret by its next exchange (exchange.prove), so the old one cannot be wiped now: rotate without compromised, retire the old version after an exchange, and purge the tokens", s.Client),
	}
}

// madeByBroker is the error for a secret that an operator brings, of a client whose key the
// broker makes.
func madeByBroker(s *credential.Set) *apierror.Error {
	return &apierror.Error{
		Code: apierror.FailedPrecondition, Reason: apierror.ReasonSecretNotManaged, Metadata: map[string]string{"client": s.Client},
		Message: fmt.Sprintf("client %q signs with a key that the broker makes and activates itself: rotate it with `broker key rotate %s`", s.Client, s.Client),
	}
}

// notMade is the error for a client whose key the broker does not make.
func notMade(s *credential.Set) *apierror.Error {
	return &apierror.Error{
		Code: apierror.FailedPrecondition, Reason: apierror.ReasonSecretNotManaged, Metadata: map[string]string{"client": s.Client},
		Message: fmt.Sprintf("client %q has no key that the broker makes: configure clients.%s.key, or change its secret", s.Client, s.Client),
	}
}

// notShown is the error for a key that the document at the client's URL lacks.
func notShown(s *credential.Set, err error) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonKeyNotReady, RetryAfter: time.Second, Metadata: map[string]string{"client": s.Client}, Cause: err,
		Message: fmt.Sprintf("client %q: %v; publish the document of `broker key publish %s` there, or check listen.public_keys.url; the broker continues by itself, and the old key stays in use until then", s.Client, err, s.Client),
	}
}
