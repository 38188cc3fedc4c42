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

// SecretChange is what all changes of a client's secret have in common.
type SecretChange struct {
	Client string
	// Expected is the version that must be in force for the change to happen.
	// Empty: any, or none.
	Expected string
	// Request identifies the call: made again, it goes on where it was, and when it
	// is done it changes nothing. Required.
	Request string
	// Reason is why, for the audit log.
	Reason string
}

// Rotation brings a new secret.
type Rotation struct {
	SecretChange

	Secret redact.String
	// StageOnly: neither prove it nor put it in force.
	StageOnly bool
	// Compromised: the old secret is known to others. There is no way back to it,
	// and the tokens that were obtained before are dropped.
	Compromised bool
}

// Step is one step of a change.
type Step struct {
	Name    string // stage, prove, activate, retire, purge or import
	OK      bool
	Message string
	// Warning is what whoever asked for it must know besides. Empty: nothing.
	Warning string
	Took    time.Duration
}

// Rotated is what a change of a secret came to, or how far it got.
type Rotated struct {
	Version SecretVersion // that the change was about
	Steps   []Step
}

// RotationError is the error of a change of a secret that began and failed.
type RotationError struct {
	// Err is the reason.
	Err *apierror.Error
	// Rotated says how far the change got.
	Rotated Rotated
}

func (e *RotationError) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *RotationError) Unwrap() error { return e.Err }

// What a change may be refused for beside what [secret.History] does.
var (
	errNotExpected   = errors.New("another version is in force than was expected")
	errRequestReused = errors.New("the request ID was used for another call")
	errRefusedBefore = errors.New("the IdP refused the secret of this call before")
)

// RotateSecret takes a new secret, proves it by obtaining a token with it, and puts
// it in force. What fails leaves the old one in force. One that the IdP refuses is
// not kept; one that could not be proved for another reason stays staged. The error
// is an [*apierror.Error] if the change did not begin, else a [*RotationError].
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

// ActivateSecret proves a staged secret and puts it in force. No version: whichever
// is staged. Errors are those of [Broker.RotateSecret].
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

// RollbackSecret puts the previous secret back in force, once it has proved that it
// still works. Errors are those of [Broker.RotateSecret].
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

// RetireSecret wipes a version that is not in force, and keeps its record. Errors are
// those of [Broker.RotateSecret].
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
