package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// manyClients starts a broker with all clients and has it fetch a token for
// each. The other broker is idle meanwhile.
func (b *bench) manyClients(ctx context.Context, _ *server) (string, error) {
	s, err := b.startBroker(ctx, clientCount)
	if err != nil {
		return "", err
	}
	defer s.stop()
	empty, err := s.memory("VmRSS")
	if err != nil {
		return "", err
	}
	begun := time.Now()
	if err := fetchAll(ctx, s); err != nil {
		return "", err
	}
	fetched := time.Since(begun)
	full, err := s.memory("VmRSS")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d clients: serving after %.2f s with %.0f MiB resident; with a token for each (fetched in %.1f s) %.0f MiB\n",
		clientCount, s.startup.Seconds(), empty, fetched.Seconds(), full), nil
}

// fetchAll has the broker fetch the token of each client, some at a time.
func fetchAll(ctx context.Context, s *server) error {
	connection, err := connect(s.address)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	broker := tokenbrokerv1.NewTokenBrokerServiceClient(connection)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(callers)
	for i := range clientCount {
		group.Go(func() error {
			_, err := fetch(ctx, broker, clientName(i))
			return err
		})
	}
	return group.Wait()
}
