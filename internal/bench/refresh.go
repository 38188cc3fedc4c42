package main

import (
	"context"
	"fmt"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// A token that lives 30 s is refreshed when 6 to 9 s are left, and is served until 3 s
// are left: time enough for an IdP that takes 2 s.
const (
	shortLife     = 30 * time.Second
	slowIdP       = 2 * time.Second
	refreshWindow = 4 * time.Second
	beforeRefresh = time.Second
)

// slowRefresh drives hits while the broker waits for a slow IdP in the background, and
// before that for the same time without a refresh.
func (b *bench) slowRefresh(ctx context.Context) (string, error) {
	connection, err := connect(b.broker.address, b.broker.proof)
	if err != nil {
		return "", err
	}
	defer func() { _ = connection.Close() }()
	broker := tokenbrokerv1.NewTokenBrokerServiceClient(connection)
	request := &tokenbrokerv1.GetTokenRequest{ClientName: clientName(1)}
	hits := workload{name: caseGet, client: request.GetClientName()}

	b.idp.SetLifetime(shortLife)
	defer b.idp.SetLifetime(time.Hour)
	old, err := fetch(ctx, broker, request)
	if err != nil {
		return "", err
	}
	b.idp.SetDelay(slowIdP)
	defer b.idp.SetDelay(0)

	calm, err := b.drive(ctx, b.broker, hits, refreshWindow)
	if err != nil {
		return "", err
	}
	if err := wait(ctx, time.Until(old.GetRefreshAt().AsTime())-beforeRefresh); err != nil {
		return "", err
	}
	slow, err := b.drive(ctx, b.broker, hits, refreshWindow)
	if err != nil {
		return "", err
	}
	fresh, err := fetch(ctx, broker, request)
	if err != nil {
		return "", err
	}
	refreshed := fresh.GetAccessToken() != old.GetAccessToken()
	return windows(calm, slow, refreshed), nil
}

func windows(calm, slow outcome, refreshed bool) string {
	row := func(name string, o outcome) string {
		return fmt.Sprintf("%-22s %8d %7d %8.0f %8.0f %8.0f\n", name, o.Calls, o.Failed, o.P50, o.P99, o.Max)
	}
	text := fmt.Sprintf("%-22s %8s %7s %8s %8s %8s\n", "hits, "+refreshWindow.String(), "calls", "failed", "p50 us", "p99 us", "max us") +
		row("undisturbed", calm) + row("during a 2 s refresh", slow)
	if !refreshed {
		text += "The refresh did not end within its window, so these numbers say nothing: run again.\n"
	}
	return text
}
