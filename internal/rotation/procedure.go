package rotation

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// procedure is a change of a client's secret in steps. Each step is stored before the next
// one begins, so that a caller with its request ID can resume it after any interruption.
type procedure struct {
	broker  Broker
	secrets *credential.Set // nil: it may not begin
	caller  *policy.Caller
	action  policy.Action
	asked   Change
	digest  string // of the request

	version string // subject of the change
	begun   bool
	base    secret.Record // current version when it began
	over    bool          // no steps are left
	steps   []Step
	failure *apierror.Error
}

// The steps beside those of package credential.
const (
	stepRetire = "retire"
	stepPurge  = "purge"
	stepImport = "import"
)

// begin begins a change. The digest of its action and content detects another change
// with the same request ID.
func (r *Rotator) begin(caller *policy.Caller, action policy.Action, asked Change, content ...string) (*procedure, *apierror.Error) {
	p, err := r.authorize(caller, action, asked)
	if err == nil {
		p.setDigest(content...)
	}
	return p, err
}

func (r *Rotator) authorize(caller *policy.Caller, action policy.Action, asked Change) (*procedure, *apierror.Error) {
	p := &procedure{broker: r.broker, caller: caller, action: action, asked: asked}
	secrets, err := r.managed(caller, action, asked.Client)
	p.secrets = secrets
	return p, err
}

// managed returns the secret of a managed client, if the caller may perform the action.
func (r *Rotator) managed(caller *policy.Caller, action policy.Action, client string) (*credential.Set, *apierror.Error) {
	secrets, err := r.broker.Credentials(caller, action, client)
	if err != nil {
		return nil, err
	}
	if !secrets.Managed {
		return nil, notManaged(secrets)
	}
	if secrets.Supplied != nil && action != policy.RetireSecret && action != policy.ExportSecret {
		return nil, suppliedElsewhere(secrets)
	}
	return secrets, nil
}

func (p *procedure) setDigest(content ...string) {
	parts := [][]byte{[]byte(p.action), []byte(p.asked.Expected)}
	for _, part := range content {
		parts = append(parts, []byte(part))
	}
	p.digest = p.secrets.Digest("procedure", parts...)
}

// result returns the result of the change after it was written to the audit log.
// unbegun is the reason why the change did not begin, or nil.
func (p *procedure) result(ctx context.Context, unbegun *apierror.Error) (Result, error) {
	got, err := p.outcome(unbegun)
	p.broker.Actions().Record(ctx, p.caller, p.action, err, p.about())
	return got, err
}

func (p *procedure) outcome(unbegun *apierror.Error) (Result, error) {
	if unbegun != nil {
		return Result{}, unbegun
	}
	got := Result{Version: p.secrets.View().Describe(p.version), Steps: p.steps}
	if p.failure != nil {
		return Result{}, &Error{Err: p.failure, Result: got}
	}
	return got, nil
}

// about returns the audit event of the procedure.
func (p *procedure) about() audit.Event {
	return audit.Event{Client: p.asked.Client, SecretVersion: p.version, RequestID: p.asked.Request, Comment: p.asked.Reason}
}

// step does one step and reports whether it succeeded.
func (p *procedure) step(ctx context.Context, name string, do func() (message string, err *apierror.Error)) bool {
	if p.over {
		return true
	}
	begun := time.Now()
	made := Step{Name: name, OK: true}
	message, err := do()
	switch {
	case err == nil && p.over:
		made.Message = doneBefore
	case err == nil:
		made.Message = message
		if name != credential.StepProve && name != stepPurge { // it changed the history
			made.Message, made.Warning = p.confirmed(ctx, message)
		}
	default:
		made.OK, made.Message, p.failure = false, err.Message, err
	}
	made.Took = time.Since(begun)
	p.steps = append(p.steps, made)
	e := p.about()
	e.Caller = p.caller.Name()
	p.secrets.RecordStep(ctx, name, e, err)
	return made.OK
}

// confirmed adds to a message where the store has the change.
func (p *procedure) confirmed(ctx context.Context, message string) (string, string) {
	safety := p.secrets.Confirm(ctx)
	return strings.TrimSpace(message + "; stored " + safety.String()), safety.Doubt
}

// outcome is the state of the procedure after a step.
type outcome int

const (
	goesOn  outcome = iota // more steps follow
	done                   // it was the last step
	dropped                // abandoned because the IdP refuses the version
)

// change applies one change to the history, only while the current version is the initial
// one of the procedure, or its subject.
func (p *procedure) change(ctx context.Context, step func(h secret.History, now time.Time) (secret.History, error), leaves outcome) *apierror.Error {
	_, err := p.secrets.Change(ctx, func(h secret.History) (secret.History, error) {
		if err := p.goOn(h); err != nil || p.over {
			return h, err
		}
		next, err := step(h, time.Now().UTC().Truncate(time.Millisecond))
		if err != nil {
			return h, err
		}
		made := secret.Request{
			ID: p.asked.Request, Digest: p.digest, Version: p.version, Base: p.base.ID, BaseSince: p.base.Since,
			Done: leaves != goesOn, Refused: leaves == dropped,
		}
		known, again := h.Request(made.ID)
		if again {
			made.Base, made.BaseSince = known.Base, known.BaseSince
		}
		switch {
		case next.ID != h.ID:
		case known == made:
			return h, nil
		default:
			next = h.Advance()
		}
		return next.With(made), nil
	})
	if err != nil {
		return changeError(p.secrets, err, p.version)
	}
	return nil
}

// goOn checks whether the procedure can begin, or resume, from a history. It sets over if
// no steps are left.
func (p *procedure) goOn(h secret.History) error {
	known, again := h.Request(p.asked.Request)
	switch {
	case again && known.Digest != p.digest:
		return errRequestReused
	case again && known.Refused:
		p.version = known.Version
		return errRefusedBefore
	case again && known.Done:
		p.over, p.version = true, known.Version
		return nil
	case p.begun && replaced(h, p.base.ID, p.base.Since) && h.CurrentID() != p.version,
		// Another change became current between the first call and this repetition.
		!p.begun && again && known.Base != "" && replaced(h, known.Base, known.BaseSince) && h.CurrentID() != known.Version,
		!p.begun && !again && p.asked.Expected != "" && h.CurrentID() != p.asked.Expected:
		return errNotExpected
	}
	p.begun = true
	p.base, _ = h.In(secret.Current)
	return nil
}

// replaced reports whether another version became current since, or the same one again. The
// time is unknown in the records of earlier brokers.
func replaced(h secret.History, base string, since time.Time) bool {
	current, _ := h.In(secret.Current)
	return current.ID != base || !since.IsZero() && !current.Since.Equal(since)
}

// stage stores the new secret beside the current one.
func (p *procedure) stage(ctx context.Context, v secret.Version, leaves outcome) bool {
	return p.step(ctx, credential.StepStage, func() (string, *apierror.Error) {
		message := fmt.Sprintf("kept as version %s, not active yet", v.ID)
		if p.secrets.ProvesByUse {
			message += "; the next exchange tries it, and a success makes it current"
		}
		if doubt := p.secrets.IdP.SecretWarning(v.Value); doubt != "" {
			message += "; it " + doubt + ", and is sent to the IdP as it is"
		}
		err := p.change(ctx, func(h secret.History, now time.Time) (secret.History, error) {
			if h.CurrentID() == v.ID {
				message = fmt.Sprintf("version %s: it is the current secret", v.ID)
				return h, nil
			}
			return h.Stage(v, p.caller.Name(), now)
		}, leaves)
		return message, err
	})
}

// choose finds the version to change, and reports whether any steps are left for it.
func (p *procedure) choose(ctx context.Context, find func(h secret.History) (version string, err error)) bool {
	_, err := p.secrets.Change(ctx, func(h secret.History) (secret.History, error) {
		if err := p.goOn(h); err != nil || p.over {
			return h, err
		}
		version, err := find(h)
		p.version = version
		return h, err
	})
	if err != nil {
		p.failure = changeError(p.secrets, err, p.version)
		return false
	}
	if p.over {
		p.steps = append(p.steps, Step{Name: credential.StepActivate, OK: true, Message: doneBefore})
	}
	return !p.over
}

const doneBefore = "nothing to do: a call with this request_id is already complete"

// prove obtains a token with the version.
func (p *procedure) prove(ctx context.Context) bool {
	return p.step(ctx, credential.StepProve, func() (string, *apierror.Error) {
		u := p.secrets.View()
		v := u.Named(p.version)
		switch {
		case v == nil:
			return "", p.secrets.NotStaged(p.version)
		case v == u.Current:
			return "it is the current version, which was proved before", nil
		case p.secrets.ProvesByUse:
			return "skipped: the client only exchanges tokens of users, so it cannot obtain a token for a proof", nil
		}
		if err := p.secrets.Prove(ctx, v); err != nil {
			return "", err
		}
		return "the IdP issued a token for it", nil
	})
}

// activate makes the version current. The version before it becomes the previous one, or is
// wiped.
func (p *procedure) activate(ctx context.Context, drop bool, leaves outcome) bool {
	return p.step(ctx, credential.StepActivate, func() (string, *apierror.Error) {
		message := "active"
		err := p.change(ctx, func(h secret.History, now time.Time) (secret.History, error) {
			before := h.CurrentID()
			next, err := h.Activate(p.version, drop, now)
			if previous, there := next.In(secret.Previous); drop && there && err == nil { // it was already activated in the background
				before = previous.ID
				next, err = next.Retire(previous.ID, now)
				next = next.Unpublish(previous.ID)
			}
			switch {
			case before == "" || before == p.version:
			case drop:
				message = fmt.Sprintf("active; version %s, which it replaces, is wiped", before)
			default:
				message = fmt.Sprintf("active; version %s, which it replaces, is kept as a fallback", before)
			}
			return next, err
		}, leaves)
		return message, err
	})
}

// discard wipes a version that was refused, so that it is not retried.
func (p *procedure) discard(ctx context.Context) {
	refusal := p.failure
	p.step(ctx, stepRetire, func() (string, *apierror.Error) {
		return "the refused secret was not kept", p.change(ctx, func(h secret.History, now time.Time) (secret.History, error) {
			return h.Discard(p.version, now)
		}, dropped)
	})
	p.failure = refusal
}

// purge drops the tokens that were obtained before. The call is complete only after that.
func (p *procedure) purge(ctx context.Context) {
	p.step(ctx, stepPurge, func() (string, *apierror.Error) {
		if err := p.secrets.DropTokens(ctx); err != nil {
			return "", err
		}
		return "every token that was obtained before now is dropped, on all replicas within 5 s",
			p.change(ctx, func(h secret.History, _ time.Time) (secret.History, error) { return h, nil }, done)
	})
}
