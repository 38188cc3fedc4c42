package rotation

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/clientkeys"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// A call waits showTries times showPause for the document at a client's URL.
const (
	showTries = 10
	showPause = time.Second
	// proveTries bounds the proofs of a key that the IdP refuses: it may have read the
	// document before the key was in it.
	proveTries = 3
)

// NewKey is a change to a new key that the broker makes.
type NewKey struct {
	Change

	// Compromised: the key in use has leaked. The new key is used as soon as its URL shows
	// it, the old ones are unpublished, and the tokens that were obtained before are dropped.
	Compromised bool
}

// RotateKey makes a key now, in place of the time that the schedule has for it. It is
// published, and becomes current when it has been published for long enough. Errors are as
// in [Rotator.Rotate].
func (r *Rotator) RotateKey(ctx context.Context, caller *policy.Caller, asked NewKey) (Result, error) {
	p, err := r.rotateKey(ctx, caller, asked)
	return p.result(ctx, err)
}

func (r *Rotator) rotateKey(ctx context.Context, caller *policy.Caller, asked NewKey) (*procedure, *apierror.Error) {
	p, err := r.begin(caller, policy.RotateKey, asked.Change, strconv.FormatBool(asked.Compromised))
	switch {
	case err != nil:
		return p, err
	case r.Keys == nil || !p.secrets.Made.Makes():
		return p, notMade(p.secrets)
	case p.secrets.ProvesByUse && asked.Compromised:
		return p, provenByUse(p.secrets)
	}
	made, failed := clientkeys.Make(p.secrets)
	switch {
	case failed != nil:
		return p, apierror.Fault(failed)
	case !asked.Compromised:
		p.stageKey(ctx, made, false)
	case p.stageKey(ctx, made, true) && p.publish(ctx, r.Keys) && p.proveKey(ctx) && p.activate(ctx, true, goesOn):
		p.purge(ctx)
	}
	return p, nil
}

// stageKey stores a new key, which is then published. An urgent one is the staged key, if
// there is one: it has been published for longer.
func (p *procedure) stageKey(ctx context.Context, made clientkeys.Made, urgent bool) bool {
	return p.step(ctx, credential.StepStage, func() (string, *apierror.Error) {
		message, leaves := "", done
		if urgent {
			leaves = goesOn
		}
		err := p.change(ctx, func(h secret.History, now time.Time) (secret.History, error) {
			pending, staged := h.In(secret.Pending)
			known, again := h.Request(p.asked.Request)
			switch {
			case again:
				p.version, message = known.Version, fmt.Sprintf("version %s was made before", known.Version)
				return h, nil
			case staged && urgent && pending.Publication.Key != "" && h.CurrentID() != "":
				p.version, message = pending.ID, fmt.Sprintf("version %s is published already", pending.ID)
			default:
				var err error
				p.version, message = made.ID, fmt.Sprintf("made as version %s; it is published at %s", made.ID, p.secrets.Made.URL)
				if h, err = h.StageKey(made.Version, made.Public, p.caller.Name(), now); err != nil {
					return h, err
				}
			}
			if !urgent {
				message += fmt.Sprintf(", and becomes current when it was published for %v", p.secrets.Made.PublishBefore)
				return h, nil
			}
			record, _ := h.Find(p.version)
			record.Publication.Urgent = true
			return h.Publish(p.version, record.Publication)
		}, leaves)
		return message, err
	})
}

// publish waits until the document at the client's URL contains the key, and permits its
// use. The schedule may have done so before.
func (p *procedure) publish(ctx context.Context, keys Keys) bool {
	return p.step(ctx, clientkeys.StepPublish, func() (string, *apierror.Error) {
		for try := 1; ; try++ {
			record, _ := p.secrets.View().History.Find(p.version)
			if record.State != secret.Pending || record.Publication.Usable {
				return "its URL shows it", nil
			}
			err := keys.Shown(ctx, p.secrets, record)
			if err == nil {
				break
			}
			if try == showTries || !backoff.Sleep(ctx, nil, showPause) {
				return "", notShown(p.secrets, err)
			}
		}
		return "its URL shows it", p.change(ctx, func(h secret.History, now time.Time) (secret.History, error) {
			record, _ := h.Find(p.version)
			if record.State != secret.Pending {
				return h, nil
			}
			to := record.Publication
			if to.Usable = true; to.ShownAt.IsZero() {
				to.ShownAt = now
			}
			return h.Publish(p.version, to)
		}, goesOn)
	})
}

// proveKey obtains a token with the key. A key that stays refused remains staged, and the
// broker proves it again by itself.
func (p *procedure) proveKey(ctx context.Context) bool {
	return p.step(ctx, credential.StepProve, func() (string, *apierror.Error) {
		for try := 1; ; try++ {
			u := p.secrets.View()
			v := u.Named(p.version)
			switch {
			case v == nil:
				return "", p.secrets.NotStaged(p.version)
			case v == u.Current:
				return "it is in use already", nil
			}
			err := p.secrets.Prove(ctx, v)
			switch {
			case err == nil:
				return "the IdP issued a token for it", nil
			case err.Reason != apierror.ReasonCredentialsRefused, try == proveTries, !backoff.Sleep(ctx, nil, backoff.LeastPause):
				return "", err
			}
		}
	})
}

// ListKeys returns the public keys of a client. The error is always an [*apierror.Error].
func (r *Rotator) ListKeys(ctx context.Context, caller *policy.Caller, client string) (clientkeys.Status, error) {
	secrets, err := r.broker.Credentials(caller, policy.ListKeys, client)
	if err == nil && (r.Keys == nil || !secrets.Made.Makes()) {
		err = notMade(secrets)
	}
	if err != nil {
		r.broker.Actions().Record(ctx, caller, policy.ListKeys, err, audit.Event{Client: client})
		return clientkeys.Status{}, err
	}
	r.broker.Actions().Record(ctx, caller, policy.ListKeys, nil, audit.Event{Client: client})
	return r.Keys.Status(secrets), nil
}
