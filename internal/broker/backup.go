package broker

import (
	"context"
	"errors"
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

// ExportSecret returns a backup of a client's secret. The error is always an
// [*apierror.Error].
func (b *Broker) ExportSecret(ctx context.Context, caller *policy.Caller, name string) (Backup, error) {
	made, err := b.export(ctx, caller, name)
	about := audit.Event{Client: name, SecretVersion: made.Current}
	if err != nil {
		b.acted(ctx, caller, policy.ExportSecret, err, about)
		return Backup{}, err
	}
	b.acted(ctx, caller, policy.ExportSecret, nil, about)
	return made, nil
}

func (b *Broker) export(ctx context.Context, caller *policy.Caller, name string) (Backup, *apierror.Error) {
	if denied := b.mayAct(caller, policy.ExportSecret, name); denied != nil {
		return Backup{}, denied
	}
	c := b.client(name)
	switch {
	case c == nil:
		return Backup{}, mayNotDo(caller, policy.ExportSecret, name)
	case !c.secrets.managed:
		return Backup{}, c.notManaged()
	case b.rings == nil:
		return Backup{}, noRings(name)
	}
	h, err := b.changeHistory(ctx, c, func(h secret.History) (secret.History, error) { return h, nil })
	if err != nil {
		return Backup{}, c.secretError(err, "")
	}
	if h.Generation == 0 {
		return Backup{}, c.noSecret(c.secrets.now())
	}
	return Backup{Sealed: b.rings.Current().SealBackup(name, h.Stored()), Current: h.CurrentID()}, nil
}

// ImportSecret restores a backup. It replaces an existing secret of the client only if
// replace is true. Errors are as in [Broker.RotateSecret].
func (b *Broker) ImportSecret(ctx context.Context, caller *policy.Caller, sealed []byte, replace bool, change SecretChange) (Rotated, error) {
	p, err := b.bringBack(ctx, caller, sealed, replace, change)
	return p.result(ctx, err)
}

func (b *Broker) bringBack(ctx context.Context, caller *policy.Caller, sealed []byte, replace bool, change SecretChange) (*procedure, *apierror.Error) {
	p, failed := b.procedure(caller, policy.ImportSecret, change, string(sealed))
	switch {
	case failed != nil:
		return p, failed
	case b.rings == nil:
		return p, noRings(change.Client)
	}
	stored, err := b.rings.Current().OpenBackup(change.Client, sealed)
	if err != nil {
		return p, badBackup(err)
	}
	backup, err := secret.FromStored(stored)
	if err != nil {
		return p, badBackup(err)
	}
	p.version = backup.CurrentID()
	p.step(ctx, importing, func() (string, *apierror.Error) {
		err := p.change(ctx, func(h secret.History, _ time.Time) (secret.History, error) {
			if !replace && h.CurrentID() != "" {
				return h, errThereIsOne
			}
			return h.Restore(backup), nil
		}, done)
		return fmt.Sprintf("generation %d of the backup is in force", backup.Generation), err
	})
	return p, nil
}

var errThereIsOne = errors.New("there is a secret already")

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
