package credential

import (
	"context"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// PollSources rereads the sources of secrets until ctx ends. It calls sets before each round.
func PollSources(ctx context.Context, sets func() []*Set) {
	followed := func(source *secret.Source, do func(*Set)) {
		for _, s := range sets() {
			if s.Source != nil && (source == nil || s.Source == source) {
				do(s)
			}
		}
	}
	sources := func() (all []*secret.Source) {
		followed(nil, func(s *Set) { all = append(all, s.Source) })
		return all
	}
	secret.Poll(ctx, sources, func(source *secret.Source, err error) {
		followed(source, func(s *Set) { s.sourceChanged(err) })
	})
}

// sourceChanged handles a source that changed or could not be reread.
func (s *Set) sourceChanged(err error) {
	log := s.fleet.Log.With("client", s.Client, "secret", s.Source.Ref().String())
	if err != nil {
		log.Error("a secret could not be reread; the value read before stays in use", "error", err)
		return
	}
	v := s.Source.Current()
	log.Info("the source of a secret has a new value", "version", v.ID)
	if warning := s.IdP.SecretWarning(v.Value); warning != "" {
		log.Warn("the new secret "+warning+"; it is sent to the IdP as it is", "version", v.ID)
	}
	s.RecordStep(s.fleet.Lifetime, StepStage, audit.Event{SecretVersion: v.ID}, nil)
	s.proveWanted()
}

// proveWanted proves the new version from the source in the background, and activates it.
// A version that was refused waits for its backoff, unless the current version is refused
// too.
func (s *Set) proveWanted() {
	if s.wantedNow() == nil {
		return
	}
	s.proofs.Run(s.fleet.Spawn, func() {
		ctx, cancel := context.WithTimeout(s.fleet.Lifetime, FetchTimeout)
		defer cancel()
		if v := s.wantedNow(); v != nil {
			s.proveAndActivate(ctx, v)
		}
	})
}

// ProveStaged proves the staged version and makes it current, unless it was refused
// lately or only an exchange can prove it. It reports whether the version was tried.
func (s *Set) ProveStaged(ctx context.Context) bool {
	v := s.View().Pending
	if s.ProvesByUse || v == nil || v.unfit != nil || v.refused.Load().Active(time.Now()) {
		return false
	}
	s.proveAndActivate(ctx, v)
	return true
}

func (s *Set) proveAndActivate(ctx context.Context, v *Version) {
	expected, _ := s.View().History.In(secret.Current)
	err := s.Prove(ctx, v)
	s.RecordStep(ctx, StepProve, audit.Event{SecretVersion: v.ID}, err)
	if err != nil {
		s.fleet.Log.Warn("a new secret could not be proved; the current one stays", "client", s.Client, "secret_version", v.ID, "error", err)
		return
	}
	s.makeCurrent(ctx, v, expected)
}

// wantedNow returns the version to prove now, or nil.
func (s *Set) wantedNow() *Version {
	v := s.View().Pending
	if s.Source == nil && s.Supplied == nil || s.ProvesByUse || v == nil || v.unfit != nil || v.refused.Load().Active(time.Now()) {
		return nil
	}
	return v
}
