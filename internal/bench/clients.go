package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// manyClients starts a broker with all clients and makes it fetch a token for each.
func (b *bench) manyClients(ctx context.Context) (string, error) {
	s, err := b.startBroker(ctx, setting{idp: b.idp, clients: clientCount})
	if err != nil {
		return "", err
	}
	defer s.stop()
	empty, err := s.memory("VmRSS")
	if err != nil {
		return "", err
	}
	used, err := s.cpu()
	if err != nil {
		return "", err
	}
	start := time.Now()
	err = fetchAll(ctx, s, clientCount, func(i int) *tokenbrokerv1.GetTokenRequest {
		return &tokenbrokerv1.GetTokenRequest{ClientName: clientName(i)}
	})
	if err != nil {
		return "", err
	}
	fetched := time.Since(start)
	full, err := s.memory("VmRSS")
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d clients: serving after %.2f s and %.2f s of CPU time, with %.0f MiB resident; with a token for each (fetched in %.1f s) %.0f MiB\n",
		clientCount, s.startup.Seconds(), used.Seconds(), empty, fetched.Seconds(), full), nil
}

// fetchAll makes n requests to the broker, some of them in parallel.
func fetchAll(ctx context.Context, s *server, n int, question func(i int) *tokenbrokerv1.GetTokenRequest) error {
	connection, err := connect(s.address, s.proof)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	broker := tokenbrokerv1.NewTokenBrokerServiceClient(connection)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(callers)
	for i := range n {
		group.Go(func() error {
			_, err := fetch(ctx, broker, question(i))
			return err
		})
	}
	return group.Wait()
}
