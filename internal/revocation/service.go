package revocation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Service makes, lists and deletes revocations for operators. It is safe for concurrent
// use.
type Service struct {
	Set     *Set
	Actions authz.Actions
	// MAC is the keyed hash of the IDs of revocations.
	MAC secret.MAC
	// MaxTokenLife returns how long after its issue a token of an issuer can be accepted,
	// and false if the issuer is not configured.
	MaxTokenLife func(issuer string) (life time.Duration, configured bool)
	Logger       *slog.Logger
}

// Revoke makes verification refuse tokens from now on, in this replica at once and in the
// others within 5 s. requested has all fields except ID, CreatedAt and CreatedBy. Repeating a
// revocation with the same request has no further effect. The error is always an
// [*apierror.Error]; nil means that the store has it.
func (s *Service) Revoke(ctx context.Context, caller *policy.Caller, requested Revocation, request string) (Revocation, error) {
	revoked, err := s.revoke(ctx, caller, requested, request)
	about := eventOf(&requested)
	about.Revocation, about.RequestID = revoked.ID, request
	s.Actions.Record(ctx, caller, policy.RevokeTokens, err, about)
	return revoked, err
}

func (s *Service) revoke(ctx context.Context, caller *policy.Caller, requested Revocation, request string) (Revocation, error) {
	if denied := s.Actions.Authorize(caller, policy.RevokeTokens, ""); denied != nil {
		return Revocation{}, denied
	}
	if err := s.check(&requested, time.Now()); err != nil {
		return Revocation{}, err
	}
	t := requested.Target()
	before := strconv.FormatInt(requested.IssuedBefore.UnixNano(), 10)
	// The letter keeps an ID from beginning with a hyphen, which command lines take for
	// a flag.
	requested.ID = "r" + secret.Name(s.MAC, "revocation", []byte(request), []byte(t.Issuer), []byte(t.Kind), []byte(t.Value), []byte(before))
	requested.CreatedAt, requested.CreatedBy = time.Now().UTC().Truncate(time.Millisecond), caller.Name()
	if err := s.Set.Put(ctx, &requested); err != nil {
		return Revocation{}, notRevoked(err)
	}
	s.Logger.Info("tokens revoked", "issuer", t.Issuer, "kind", t.Kind, "revocation", requested.ID, "expires_at", requested.ExpiresAt, "caller", caller.Name())
	return *s.Set.Find(requested.ID), nil
}

// check refuses a revocation that would not have its apparent effect. One without
// an expiry gets one after that of any possible token.
func (s *Service) check(r *Revocation, now time.Time) *apierror.Error {
	life, configured := s.MaxTokenLife(r.Issuer)
	if r.ExpiresAt.IsZero() {
		last := now
		if r.IssuedBefore.After(now) {
			last = r.IssuedBefore
		}
		r.ExpiresAt = last.Add(life + time.Second).UTC().Truncate(time.Second)
	}
	fault := func(field, format string, args ...any) *apierror.Error {
		return &apierror.Error{Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Field: field, Message: field + ": " + fmt.Sprintf(format, args...)}
	}
	named := 0
	for _, given := range []bool{r.TokenID != "", r.Subject != "", r.ClientID != "", r.All} {
		if given {
			named++
		}
	}
	switch {
	case !configured:
		return fault("revocation.issuer", "not one of the issuers that are configured, which are compared byte by byte")
	case named != 1:
		return fault("revocation", "name exactly one of token_id, subject, client_id and all")
	case r.All && r.IssuedBefore.IsZero():
		return fault("revocation.issued_before", "it is required with all, which would refuse every token of the issuer for ever otherwise")
	case !r.ExpiresAt.After(now):
		return fault("revocation.expires_at", "it must be in the future")
	case r.ExpiresAt.After(now.Add(MaxRevocationLife)):
		return fault("revocation.expires_at", "it must be within 10 years")
	case !r.IssuedBefore.IsZero() && r.ExpiresAt.Before(r.IssuedBefore.Add(life)):
		return fault("revocation.expires_at", "tokens issued before issued_before may live until %s: a revocation that ends sooner would bring them back",
			r.IssuedBefore.Add(life).UTC().Format(time.RFC3339))
	default:
		return nil
	}
}

// notRevoked returns the error for a revocation that the store did not confirm.
func notRevoked(err error) *apierror.Error {
	if errors.Is(err, ErrTooManyRevocations) {
		return &apierror.Error{
			Code: apierror.ResourceExhausted, Reason: apierror.ReasonTooManyRevocations, Cause: err,
			Message: fmt.Sprintf("%d revocations are kept and no more: revoke by subject, client or issued_before instead of token by token, or wait until some expire", MaxRevocations),
		}
	}
	return store.Unconfirmed(err, "the store did not confirm the revocation, or its end", "ask again", nil)
}

// List returns the active revocations of an issuer, or of all if it is empty, oldest
// first. The error is always an [*apierror.Error].
func (s *Service) List(ctx context.Context, caller *policy.Caller, issuer string) ([]Revocation, error) {
	listed, err := s.list(ctx, caller, issuer)
	s.Actions.Record(ctx, caller, policy.ListRevocations, err, audit.Event{Issuer: issuer})
	return listed, err
}

func (s *Service) list(ctx context.Context, caller *policy.Caller, issuer string) ([]Revocation, error) {
	if denied := s.Actions.Authorize(caller, policy.ListRevocations, ""); denied != nil {
		return nil, denied
	}
	if _, err := s.Set.View(ctx); err != nil {
		return nil, revocationsUnknown(err)
	}
	now := time.Now()
	var listed []Revocation
	for _, one := range s.Set.All() {
		if !one.Deleted && !one.Over(now) && (issuer == "" || one.Issuer == issuer) {
			listed = append(listed, *one)
		}
	}
	return listed, nil
}

// Deletion selects a revocation to delete.
type Deletion struct {
	ID string
	// Request identifies the call.
	Request string
	// Reason is recorded in the audit log.
	Reason string
}

// Delete deletes a revocation before it expires. Deleting it again has no effect.
// The error is always an [*apierror.Error].
func (s *Service) Delete(ctx context.Context, caller *policy.Caller, requested Deletion) error {
	deleted, err := s.delete(ctx, caller, requested.ID)
	about := eventOf(&deleted)
	about.Revocation, about.RequestID, about.Comment = requested.ID, requested.Request, requested.Reason
	s.Actions.Record(ctx, caller, policy.DeleteRevocation, err, about)
	return err
}

func (s *Service) delete(ctx context.Context, caller *policy.Caller, id string) (Revocation, error) {
	if denied := s.Actions.Authorize(caller, policy.DeleteRevocation, ""); denied != nil {
		return Revocation{}, denied
	}
	if _, err := s.Set.View(ctx); err != nil {
		return Revocation{}, revocationsUnknown(err)
	}
	current := s.Set.Find(id)
	if current == nil {
		s.Set.Poll(ctx, 0) // another replica may just have made it
		current = s.Set.Find(id)
	}
	if current == nil || current.Over(time.Now()) {
		return Revocation{}, &apierror.Error{Code: apierror.NotFound, Reason: apierror.ReasonNoSuchRevocation, Message: "no revocation has this id; it may have expired"}
	}
	deleted := *current
	deleted.Deleted = true
	if err := s.Set.Put(ctx, &deleted); err != nil {
		return *current, notRevoked(err)
	}
	s.Logger.Info("revocation deleted", "issuer", current.Issuer, "revocation", id, "caller", caller.Name())
	return *current, nil
}

// revocationsUnknown returns the error while the revocations are not known: any token may
// be revoked.
func revocationsUnknown(err error) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonRevocationsUnknown, RetryAfter: LoadInterval, Cause: err,
		Message: "this replica does not know all revocations, so it cannot accept any token; try again, and treat the token as not verified until then",
	}
}

// Check reports whether a token with these facts is revoked. The error says that this
// replica does not know all revocations.
func (s *Service) Check(ctx context.Context, facts *verify.Facts) (revoked bool, err error) {
	view, err := s.Set.View(ctx)
	if err != nil {
		return false, revocationsUnknown(err)
	}
	return view.Revokes(facts, time.Now()) != nil, nil
}

// eventOf converts a revocation into an audit event.
func eventOf(r *Revocation) audit.Event {
	return audit.Event{
		Revocation: r.ID, Issuer: r.Issuer, Subject: r.Subject, ClientID: r.ClientID, TokenID: r.TokenID,
		ExpiresAt: r.ExpiresAt, IssuedBefore: r.IssuedBefore, Comment: r.Reason,
	}
}
