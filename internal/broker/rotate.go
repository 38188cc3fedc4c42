package broker

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// SecretChange holds the fields that all changes of a client's secret share.
type SecretChange struct {
	Client string
	// Expected is the version that must be current for the change to happen. Empty: no
	// condition.
	Expected string
	// Request identifies the call. A repeated call resumes the change; if it is complete,
	// the call changes nothing. Required.
	Request string
	// Reason is recorded in the audit log.
	Reason string
}

// Rotation is a change to a new secret.
type Rotation struct {
	SecretChange

	Secret redact.String
	// StageOnly: neither prove nor activate the secret.
	StageOnly bool
	// Compromised: the old secret has leaked. It cannot be rolled back to, and the tokens
	// that were obtained before are dropped.
	Compromised bool
}

// Step is one step of a change.
type Step struct {
	Name    string // stage, prove, activate, retire, purge or import
	OK      bool
	Message string
	// Warning is additional information for the caller. Empty: no warning.
	Warning string
	Took    time.Duration
}

// Rotated is the result of a change of a secret, or its progress on failure.
type Rotated struct {
	Version SecretVersion // subject of the change
	Steps   []Step
}

// RotationError is the error of a change of a secret that began and failed.
type RotationError struct {
	// Err is the reason.
	Err *apierror.Error
	// Rotated is the progress of the change.
	Rotated Rotated
}

func (e *RotationError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *RotationError) Unwrap() error { return e.Err }

// Reasons to refuse a change, besides the errors of [secret.History].
var (
	errNotExpected   = errors.New("another version is in force than was expected")
	errRequestReused = errors.New("the request ID was used for another call")
	errRefusedBefore = errors.New("the IdP refused the secret of this call before")
)

// RotateSecret takes a new secret, proves it by obtaining a token with it, and activates
// it. After a failure the old secret stays current. A secret that the IdP refuses is
// discarded; one that could not be proved for another reason stays staged. The error is an
// [*apierror.Error] if the change did not begin, else a [*RotationError].
func (b *Broker) RotateSecret(ctx context.Context, caller *policy.Caller, r Rotation) (Rotated, error) {
	p, err := b.rotate(ctx, caller, r)
	return p.result(ctx, err)
}

func (b *Broker) rotate(ctx context.Context, caller *policy.Caller, r Rotation) (*procedure, *apierror.Error) {
	v := secret.NewVersion(b.names.mac, r.Secret)
	p, err := b.procedure(caller, policy.RotateSecret, r.SecretChange, v.ID, strconv.FormatBool(r.StageOnly), strconv.FormatBool(r.Compromised))
	if err != nil {
		return p, err
	}
	if check := p.client.secrets.check; check != nil {
		if err := check(r.Secret); err != nil {
			return p, &apierror.Error{Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Field: "secret", Message: fmt.Sprintf("secret: %v", err)}
		}
	}
	p.version = v.ID
	switch {
	case r.StageOnly:
		p.stage(ctx, v, done)
	case !p.stage(ctx, v, goesOn):
	case !p.prove(ctx):
		if p.failure.Reason == apierror.ReasonCredentialsRefused {
			p.discard(ctx)
		}
	case r.Compromised:
		if p.activate(ctx, true, goesOn) {
			p.purge(ctx)
		}
	default:
		p.activate(ctx, false, done)
	}
	return p, nil
}

// ActivateSecret proves a staged secret and activates it. An empty version selects the
// staged one. Errors are as in [Broker.RotateSecret].
func (b *Broker) ActivateSecret(ctx context.Context, caller *policy.Caller, version string, change SecretChange) (Rotated, error) {
	p, err := b.procedure(caller, policy.ActivateSecret, change, version)
	if err != nil {
		return p.result(ctx, err)
	}
	if p.choose(ctx, func(h secret.History) (string, error) {
		pending, there := h.In(secret.Pending)
		switch named, known := h.Find(version); {
		case version == "" && there:
			return pending.ID, nil
		case version == "", !known:
			return version, secret.ErrUnknown
		case named.State == secret.Previous:
			return version, secret.ErrInUse
		default:
			return version, nil
		}
	}) && p.prove(ctx) {
		p.activate(ctx, false, done)
	}
	return p.result(ctx, nil)
}

// RollbackSecret reactivates the previous secret after proving that it still works. Errors
// are as in [Broker.RotateSecret].
func (b *Broker) RollbackSecret(ctx context.Context, caller *policy.Caller, change SecretChange) (Rotated, error) {
	p, err := b.procedure(caller, policy.RollbackSecret, change)
	if err != nil {
		return p.result(ctx, err)
	}
	if p.choose(ctx, func(h secret.History) (string, error) {
		previous, there := h.In(secret.Previous)
		if !there {
			return "", secret.ErrNoPrevious
		}
		return previous.ID, nil
	}) && p.prove(ctx) {
		p.activate(ctx, false, done)
	}
	return p.result(ctx, nil)
}

// RetireSecret wipes a version that is not current, and keeps its record. Errors are those
// of [Broker.RotateSecret].
func (b *Broker) RetireSecret(ctx context.Context, caller *policy.Caller, version string, change SecretChange) (Rotated, error) {
	p, err := b.procedure(caller, policy.RetireSecret, change, version)
	if err != nil {
		return p.result(ctx, err)
	}
	p.version = version
	p.step(ctx, retiring, func() (string, *apierror.Error) {
		return "wiped; its record stays", p.change(ctx, func(h secret.History, now time.Time) (secret.History, error) {
			return h.Retire(version, now)
		}, done)
	})
	return p.result(ctx, nil)
}
