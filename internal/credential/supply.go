package credential

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/secretsource"
)

// ErrUnfit is the error of Supply for a value that can never be a secret of the client.
var ErrUnfit = errors.New("the value cannot be a secret of this client")

// Supply takes the value that the source of the secret has now. A value that is not current
// takes the path of every other new secret: it is staged, proved and activated, and the one
// before stays a fallback. waits reports that another version is staged, which the IdP may
// already require: the value has to wait until that one is proved or refused.
func (s *Set) Supply(ctx context.Context, value secretsource.Value) (waits bool, err error) {
	if s.Check != nil {
		if err := s.Check(value.Secret); err != nil {
			return false, fmt.Errorf("%w: %w", ErrUnfit, err)
		}
	}
	v, by := s.NewVersion(value.Secret), s.Supplied.Name
	if value.Version != "" {
		by += ", " + value.Version
	}
	staged := false
	_, err = s.Change(ctx, func(h secret.History) (secret.History, error) {
		before, _ := h.In(secret.Pending)
		next, err := h.Supply(v, by, s.refused(before.ID), time.Now().UTC().Truncate(time.Millisecond))
		pending, _ := next.In(secret.Pending)
		staged = err == nil && pending.ID == v.ID && before.ID != v.ID
		return next, err
	})
	switch {
	case errors.Is(err, secret.ErrAnotherPending):
		s.proveWanted()
		return true, nil
	case err != nil:
		return false, err
	case staged:
		s.fleet.Log.Info("the source of a secret has a new value", "client", s.Client, "secret_version", v.ID, "source", by)
		if warning := s.IdP.SecretWarning(v.Value); warning != "" {
			s.fleet.Log.Warn("the new secret "+warning+"; it is sent to the IdP as it is", "client", s.Client, "secret_version", v.ID)
		}
		s.RecordStep(ctx, StepStage, audit.Event{SecretVersion: v.ID, Comment: "from " + by}, nil)
		s.Confirm(ctx)
	}
	s.proveWanted()
	return false, nil
}

// refused reports whether the IdP refused a version the last time.
func (s *Set) refused(id string) bool {
	v := s.View().Named(id)
	return v != nil && (v.Refusal() != nil || v.unfit != nil)
}
