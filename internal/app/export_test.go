package app

import (
	"context"
	"reflect"

	"golang.org/x/sync/errgroup"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// WarmUp gets a token for each client.
func (a *App) WarmUp(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, client := range a.parts.setup.Load().clients {
		group.Go(func() error {
			_, err := a.parts.broker.Get(ctx, policy.Self(), broker.Ask{Client: client.Name})
			return err
		})
	}
	return group.Wait()
}

// StatsHandlers is how many handlers of statistics the gRPC server has, who are
// told of each call.
func (a *App) StatsHandlers() int {
	return reflect.ValueOf(a.server).Elem().FieldByName("current").Elem().FieldByName("grpc").Elem().FieldByName("opts").FieldByName("statsHandlers").Len()
}

// Internals are values that hold secrets and tokens, as somebody might log them by
// mistake.
func (a *App) Internals(ctx context.Context) map[string]any {
	found := map[string]any{"ring": a.parts.storage.Rings.Current(), "password": a.parts.storage.Secrets[0].Current()}
	for _, client := range a.parts.setup.Load().clients {
		if client.Secret != nil { // not managed
			found["version of "+client.Name] = client.Secret.Current()
		}
		if answer, err := a.parts.broker.Get(ctx, policy.Self(), broker.Ask{Client: client.Name}); err == nil {
			found["answer of "+client.Name], found["token of "+client.Name] = answer, answer.Token
		}
	}
	return found
}

// OpenBackup opens a backup of a client's secret as the broker would.
func (a *App) OpenBackup(client string, backup []byte) ([]byte, error) {
	return a.parts.storage.Rings.Current().OpenBackup(client, backup)
}

// Broker makes the decisions of the App.
func (a *App) Broker() *broker.Broker { return a.parts.broker }

// Status is the status that this replica publishes.
func (a *App) Status() fleet.Record { return a.status.record() }

// CloseOps breaks the ops listener.
func (a *App) CloseOps() { _ = a.listen.ops.Close() }
