package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// noSecret returns the reason why a client has no secret to authenticate with.
func (c *client) noSecret(u *usable) *apierror.Error {
	told := &apierror.Error{Code: apierror.FailedPrecondition, Metadata: map[string]string{"client": c.name}, Cause: u.fault}
	say := func(reason, format string, args ...any) *apierror.Error {
		told.Reason, told.Message = reason, fmt.Sprintf("client %q: ", c.name)+fmt.Sprintf(format, args...)
		return told
	}
	for _, v := range u.all() {
		if v.unfit != nil {
			return say(apierror.ReasonSecretUnusable, "its secret (version %s) cannot be used: %v", v.ID, v.unfit)
		}
	}
	switch {
	case u.fault != nil:
		return say(apierror.ReasonSecretsUnreadable, "%v", u.fault)
	case c.secrets.source != nil:
		return say(apierror.ReasonSecretUnusable, "what %s holds is version %s, which was retired: put the secret there that is in force",
			c.secrets.source.Ref(), c.secrets.source.Current().ID)
	case !u.loaded:
		told.Code, told.RetryAfter = apierror.Unavailable, time.Second
		return say(apierror.ReasonSecretsUnknown, "its secret could not be read from the store yet; ask again")
	default:
		return say(apierror.ReasonNoSecret, "it has no secret yet: bring it with `broker secret rotate %s`", c.name)
	}
}

// secretless returns the error of a client that is known to have no secret to authenticate
// with. It returns nil if it has one, or if that is not known yet.
func (c *client) secretless() *apierror.Error {
	u := c.secrets.now()
	for _, v := range u.all() {
		if v.unfit == nil {
			return nil
		}
	}
	if !u.loaded && u.fault == nil && c.secrets.managed {
		return nil
	}
	return c.noSecret(u)
}

// refusedMeanwhile returns the error of a fetch with only refused secrets, although one of
// them has since obtained a token in another fetch.
func refusedMeanwhile(client string) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonIdPUnavailable, RetryAfter: time.Second,
		Metadata: map[string]string{"client": client},
		Message:  fmt.Sprintf("client %q: the IdP refused it a moment ago, and takes it again by now; ask again", client),
	}
}

// secretError translates the error of a change of a history: a refusal of the change, or a
// failure to store it.
func (c *client) secretError(err error, version string) *apierror.Error {
	told := &apierror.Error{Code: apierror.FailedPrecondition, Metadata: map[string]string{"client": c.name}, Cause: err}
	if version != "" {
		told.Metadata["secret_version"] = version
	}
	say := func(reason, format string, args ...any) *apierror.Error {
		told.Reason, told.Message = reason, fmt.Sprintf("client %q: ", c.name)+fmt.Sprintf(format, args...)
		return told
	}
	u := c.secrets.now()
	pending, _ := u.history.In(secret.Pending)
	switch {
	case errors.Is(err, secret.ErrAnotherPending):
		return say(apierror.ReasonSecretStaged, "version %s is staged, and wiping it could wipe the one that the IdP takes: activate it or retire it first", pending.ID)
	case errors.Is(err, secret.ErrUnknown) && version == "":
		told.Code = apierror.NotFound
		return say(apierror.ReasonNoSuchSecret, "no secret is staged: version %q is in force", u.history.CurrentID())
	case errors.Is(err, secret.ErrUnknown):
		told.Code = apierror.NotFound
		return say(apierror.ReasonNoSuchSecret, "there is no version %q of its secret: see `broker clients %s`", version, c.name)
	case errors.Is(err, secret.ErrNoPrevious):
		return say(apierror.ReasonNoPreviousSecret, "there is no previous secret to go back to: it was retired, or there never was one")
	case errors.Is(err, secret.ErrNotStaged):
		return say(apierror.ReasonNoSuchSecret, "version %s is not staged: it was wiped; bring the secret again with `broker secret rotate %s`", version, c.name)
	case errors.Is(err, secret.ErrInUse) && version == u.history.CurrentID():
		return say(apierror.ReasonSecretInForce, "version %s is in force: put another one in force first", version)
	case errors.Is(err, secret.ErrInUse):
		return say(apierror.ReasonSecretInForce, "version %s is the previous secret: go back to it with `broker secret rollback %s`", version, c.name)
	case errors.Is(err, errThereIsOne):
		return say(apierror.ReasonSecretInForce, "it has a secret already (version %s): replace it only if you are sure that the backup is the newer one", u.history.CurrentID())
	case errors.Is(err, errRefusedBefore):
		return say(apierror.ReasonCredentialsRefused, "this call was made before, and the IdP refused the secret, which was not kept: make another call")
	case errors.Is(err, errNotExpected):
		told.Metadata["current_version"] = u.history.CurrentID()
		return say(apierror.ReasonSecretChanged, "the version in force is %q and not the one that was expected: look at `broker clients %s` and decide anew", u.history.CurrentID(), c.name)
	case errors.Is(err, errRequestReused):
		told.Code, told.Field = apierror.InvalidArgument, "request_id"
		return say(apierror.ReasonInvalidRequest, "request_id: it was used for another call: take a new one")
	case u.fault != nil:
		return say(apierror.ReasonSecretsUnreadable, "%v", u.fault)
	default:
		return storeUnconfirmed(c.name, err)
	}
}

func storeUnconfirmed(client string, cause error) *apierror.Error {
	return unconfirmed(cause, fmt.Sprintf("client %q: the store did not confirm the change", client), "ask again with the same request_id",
		map[string]string{"client": client})
}

// overtaken returns the error of a proof if the version no longer exists.
func (c *client) overtaken(version string) *apierror.Error {
	return c.secretError(secret.ErrNotStaged, version)
}

// notManaged returns an error that names the place to change the secret.
func (c *client) notManaged() *apierror.Error {
	told := &apierror.Error{Code: apierror.FailedPrecondition, Reason: apierror.ReasonSecretNotManaged, Metadata: map[string]string{"client": c.name}}
	switch {
	case c.secrets.source == nil:
		told.Message = fmt.Sprintf("client %q authenticates without a secret that the broker keeps", c.name)
	case c.secrets.source.CanChange():
		told.Metadata["secret"] = c.secrets.source.Ref().String()
		told.Message = fmt.Sprintf("client %q has its secret in %s: change it there on each replica; the broker sees it within 20 s, proves it, and goes on with the old one until then",
			c.name, c.secrets.source.Ref())
	default:
		told.Metadata["secret"] = c.secrets.source.Ref().String()
		told.Message = fmt.Sprintf("client %q has its secret in %s, which is read at the start only: change it there and restart", c.name, c.secrets.source.Ref())
	}
	return told
}
