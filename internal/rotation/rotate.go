// Package rotation changes the secrets of managed clients step by step, as operators
// request it, and exports and imports backups of them.
package rotation

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/clientkeys"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
)

// Change holds the fields that all changes of a client's secret share.
type Change struct {
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

// NewSecret is a change to a new secret.
type NewSecret struct {
	Change

	Secret redact.String
	// StageOnly: neither prove nor activate the secret.
	StageOnly bool
	// Compromised: the old secret has leaked. It cannot be rolled back to, and the tokens
	// that were obtained before are dropped.
	Compromised bool
}

// Step is one step of a change.
type Step struct {
	Name    string // stage, publish, prove, activate, retire, purge or import
	OK      bool
	Message string
	// Warning is additional information for the caller. Empty: no warning.
	Warning string
	Took    time.Duration
}

// Result is the result of a change of a secret, or its progress on failure.
type Result struct {
	Version credential.VersionStatus // subject of the change
	Steps   []Step
}

// Error is the error of a change of a secret that began and failed.
type Error struct {
	// Err is the reason.
	Err *apierror.Error
	// Result is the progress of the change.
	Result Result
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// Broker is what a rotation needs of a token broker, beside the clients' secrets.
type Broker interface {
	// Credentials returns the secret of a client. The error says that the caller may not
	// perform the action on the client, that there is no such client, or that the audit
	// log cannot record the action.
	Credentials(caller *policy.Caller, action policy.Action, client string) (*credential.Set, *apierror.Error)
	// Actions records the results of actions in the audit log.
	Actions() authz.Actions
}

// Rotator changes secrets. It is safe for concurrent use.
type Rotator struct {
	broker Broker
	rings  *sealed.RingFile // nil: no backups
	// Keys are the keys that the broker makes. Nil: it makes none.
	Keys Keys
}

// Keys is what a rotation needs of the keys that the broker makes.
type Keys interface {
	// Shown returns nil if the document at the client's URL contains a key.
	Shown(ctx context.Context, secrets *credential.Set, key secret.Record) error
	// Status describes the keys of a client.
	Status(secrets *credential.Set) clientkeys.Status
}

// New returns a Rotator. rings seal backups of secrets; nil: no backups.
func New(b Broker, rings *sealed.RingFile) *Rotator { return &Rotator{broker: b, rings: rings} }

// Rotate takes a new secret, proves it by obtaining a token with it, and activates
// it. After a failure the old secret stays current. A secret that the IdP refuses is
// discarded; one that could not be proved for another reason stays staged. The error is an
// [*apierror.Error] if the change did not begin, else a [*Error].
func (r *Rotator) Rotate(ctx context.Context, caller *policy.Caller, asked NewSecret) (Result, error) {
	p, err := r.rotate(ctx, caller, asked)
	return p.result(ctx, err)
}

func (r *Rotator) rotate(ctx context.Context, caller *policy.Caller, asked NewSecret) (*procedure, *apierror.Error) {
	p, err := r.authorize(caller, policy.RotateSecret, asked.Change)
	if err != nil {
		return p, err
	}
	if p.secrets.Made.Makes() {
		return p, madeByBroker(p.secrets)
	}
	v := p.secrets.NewVersion(asked.Secret)
	p.setDigest(v.ID, strconv.FormatBool(asked.StageOnly), strconv.FormatBool(asked.Compromised))
	if check := p.secrets.Check; check != nil {
		if err := check(asked.Secret); err != nil {
			return p, &apierror.Error{Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Field: "secret", Message: fmt.Sprintf("secret: %v", err)}
		}
	}
	p.version = v.ID
	if p.secrets.ProvesByUse && asked.Compromised {
		return p, provenByUse(p.secrets)
	}
	switch {
	case asked.StageOnly, p.secrets.ProvesByUse:
		p.stage(ctx, v, done)
	case !p.stage(ctx, v, goesOn):
	case !p.prove(ctx):
		if p.failure.Reason == apierror.ReasonCredentialsRefused {
			p.discard(ctx)
		}
	case asked.Compromised:
		if p.activate(ctx, true, goesOn) {
			p.purge(ctx)
		}
	default:
		p.activate(ctx, false, done)
	}
	return p, nil
}

// Activate proves a staged secret and activates it. An empty version selects the
// staged one. Errors are as in [Rotator.Rotate].
func (r *Rotator) Activate(ctx context.Context, caller *policy.Caller, version string, change Change) (Result, error) {
	p, err := r.begin(caller, policy.ActivateSecret, change, version)
	if err == nil && p.secrets.Made.Makes() {
		err = madeByBroker(p.secrets)
	}
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

// Rollback reactivates the previous secret after proving that it still works. Errors
// are as in [Rotator.Rotate].
func (r *Rotator) Rollback(ctx context.Context, caller *policy.Caller, change Change) (Result, error) {
	p, err := r.begin(caller, policy.RollbackSecret, change)
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

// Retire wipes a version that is not current, and keeps its record. Errors are those
// of [Rotator.Rotate].
func (r *Rotator) Retire(ctx context.Context, caller *policy.Caller, version string, change Change) (Result, error) {
	p, err := r.begin(caller, policy.RetireSecret, change, version)
	if err != nil {
		return p.result(ctx, err)
	}
	p.version = version
	p.step(ctx, stepRetire, func() (string, *apierror.Error) {
		return "wiped; its record stays", p.change(ctx, func(h secret.History, now time.Time) (secret.History, error) {
			return h.Retire(version, now)
		}, done)
	})
	return p.result(ctx, nil)
}
