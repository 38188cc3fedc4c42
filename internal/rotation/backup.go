package rotation

import (
	"context"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// Backup holds the versions of a managed client's secret and their history, sealed with the
// ring of sealing keys and bound to the client's name.
type Backup struct {
	Sealed []byte
	// Current is the current version. Empty: no version is current.
	Current string
}

// Export returns a backup of a client's secret. The error is always an
// [*apierror.Error].
func (r *Rotator) Export(ctx context.Context, caller *policy.Caller, name string) (Backup, error) {
	made, err := r.export(ctx, caller, name)
	about := audit.Event{Client: name, SecretVersion: made.Current}
	if err != nil {
		r.broker.Actions().Record(ctx, caller, policy.ExportSecret, err, about)
		return Backup{}, err
	}
	r.broker.Actions().Record(ctx, caller, policy.ExportSecret, nil, about)
	return made, nil
}

func (r *Rotator) export(ctx context.Context, caller *policy.Caller, name string) (Backup, *apierror.Error) {
	secrets, denied := r.managed(caller, policy.ExportSecret, name)
	switch {
	case denied != nil:
		return Backup{}, denied
	case r.rings == nil:
		return Backup{}, noRings(name)
	}
	h, err := secrets.Change(ctx, func(h secret.History) (secret.History, error) { return h, nil })
	if err != nil {
		return Backup{}, changeError(secrets, err, "")
	}
	if h.Generation == 0 {
		return Backup{}, secrets.NoSecret()
	}
	return Backup{Sealed: r.rings.Current().SealBackup(name, h.Stored()), Current: h.CurrentID()}, nil
}

// Import restores a backup. It replaces an existing secret of the client only if
// replace is true. Errors are as in [Rotator.Rotate].
func (r *Rotator) Import(ctx context.Context, caller *policy.Caller, sealed []byte, replace bool, change Change) (Result, error) {
	p, err := r.restore(ctx, caller, sealed, replace, change)
	return p.result(ctx, err)
}

func (r *Rotator) restore(ctx context.Context, caller *policy.Caller, sealed []byte, replace bool, change Change) (*procedure, *apierror.Error) {
	p, failed := r.begin(caller, policy.ImportSecret, change, string(sealed))
	switch {
	case failed != nil:
		return p, failed
	case r.rings == nil:
		return p, noRings(change.Client)
	}
	stored, err := r.rings.Current().OpenBackup(change.Client, sealed)
	if err != nil {
		return p, badBackup(err)
	}
	backup, err := secret.FromStored(stored)
	if err != nil {
		return p, badBackup(err)
	}
	p.version = backup.CurrentID()
	p.step(ctx, stepImport, func() (string, *apierror.Error) {
		err := p.change(ctx, func(h secret.History, _ time.Time) (secret.History, error) {
			if !replace && h.CurrentID() != "" {
				return h, errExists
			}
			return h.Restore(backup), nil
		}, done)
		return fmt.Sprintf("generation %d of the backup is active", backup.Generation), err
	})
	return p, nil
}

func badBackup(err error) *apierror.Error {
	return &apierror.Error{
		Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Field: "sealed", Cause: err,
		Message: fmt.Sprintf("sealed: the backup cannot be read: %v", err),
	}
}

func noRings(client string) *apierror.Error {
	return &apierror.Error{
		Code: apierror.FailedPrecondition, Reason: apierror.ReasonSecretNotManaged, Metadata: map[string]string{"client": client},
		Message: fmt.Sprintf("client %q: this broker has no sealing keys: configure store.sealing_keys", client),
	}
}
