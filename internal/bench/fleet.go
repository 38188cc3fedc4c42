package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
)

// The cold fleet: so many callers at each replica request the same token at once, which
// no replica has, from a slow IdP.
const (
	callersEach = 100
	coldIdP     = 300 * time.Millisecond
)

// coldFleet requests tokens that are not cached from a fleet with one Redis.
func (b *bench) coldFleet(ctx context.Context) (string, error) {
	if !hasRedis() {
		return "a cold fleet: " + withoutRedis, nil
	}
	measured, err := b.measureFleet(ctx)
	if err != nil {
		return "", err
	}
	return measured.String(), nil
}

// fleetBursts are the rounds of the cold fleet.
type fleetBursts struct {
	replicas int
	rounds   []coldAndWarm
	// idpCalls are the requests to the IdP in the rounds.
	idpCalls []int
}

// measureFleet runs one extra round: the first warms all processes.
func (b *bench) measureFleet(ctx context.Context) (*fleetBursts, error) {
	redis, err := b.startRedis(ctx)
	if err != nil {
		return nil, err
	}
	defer redis.stop()
	fleet, err := b.startFleet(ctx, setting{idp: b.idp, clients: b.rounds + 1, redis: redis})
	defer stopAll(fleet)
	if err != nil {
		return nil, err
	}
	b.idp.SetDelay(coldIdP)
	defer b.idp.SetDelay(0)
	start := time.Now()
	rounds, err := b.burst(ctx, fleet)
	if err != nil {
		return nil, err
	}
	measured := &fleetBursts{replicas: len(fleet), rounds: rounds[1:]}
	for i := range measured.rounds {
		measured.idpCalls = append(measured.idpCalls, callsOf(b.idp.Server, clientName(i+1), start))
	}
	return measured, nil
}

// startFleet starts the replicas. It returns the started ones, even on an error.
func (b *bench) startFleet(ctx context.Context, each setting) (fleet []*server, err error) {
	for range b.replicas {
		s, err := b.startBroker(ctx, each)
		if err != nil {
			return fleet, err
		}
		fleet = append(fleet, s)
	}
	return fleet, nil
}

func stopAll(servers []*server) {
	for _, s := range servers {
		s.terminate()
	}
	for _, s := range servers {
		s.stop()
	}
}

// burst requests tokens of as many clients as there are rounds, and of one more. Failed
// calls are an error.
func (b *bench) burst(ctx context.Context, fleet []*server) ([]coldAndWarm, error) {
	var names []string
	for i := range b.rounds + 1 {
		names = append(names, clientName(i))
	}
	args := []string{burstCommand, "-clients", strings.Join(names, ","), "-callers", strconv.Itoa(callersEach)}
	for _, s := range fleet {
		args = append(args, s.address)
	}
	var rounds []coldAndWarm
	if err := b.load(ctx, time.Duration(len(names))*coldIdP, &rounds, args...); err != nil {
		return nil, fmt.Errorf("asking the fleet at once: %w", err)
	}
	if len(rounds) != len(names) {
		return nil, fmt.Errorf("the load made %d rounds of %d", len(rounds), len(names))
	}
	for _, round := range rounds {
		for _, o := range []burstOutcome{round.Cold, round.Warm} {
			if err := o.check("the fleet"); err != nil {
				return nil, err
			}
		}
	}
	return rounds, nil
}

// callsOf returns how many token requests of a client the IdP has received after since.
func callsOf(idp *devidp.Server, client string, since time.Time) int {
	n := 0
	for _, request := range idp.TokenRequests() {
		if request.ClientID == client && request.At.After(since) {
			n++
		}
	}
	return n
}

func (f *fleetBursts) String() string {
	row := func(name string, pick func(coldAndWarm) burstOutcome) string {
		inMS := func(value func(burstOutcome) float64) float64 {
			return medianOf(f.rounds, func(round coldAndWarm) float64 { return value(pick(round)) / 1000 })
		}
		p99 := inMS(func(o burstOutcome) float64 { return o.P99 })
		return fmt.Sprintf("%-18s %8.0f %8.0f %8.0f %12.2f %12.0f\n", name,
			inMS(func(o burstOutcome) float64 { return o.P50 }), p99,
			inMS(func(o burstOutcome) float64 { return o.Max }),
			p99/float64(coldIdP.Milliseconds()),
			inMS(func(o burstOutcome) float64 { return o.CPU }))
	}
	return fmt.Sprintf("%d replicas with one Redis, %d callers at each at once, an IdP that takes %v: at most %d IdP calls in each of %d rounds\n",
		f.replicas, callersEach, coldIdP, slices.Max(f.idpCalls), len(f.idpCalls)) +
		fmt.Sprintf("%-18s %8s %8s %8s %12s %12s\n", "wait", "p50 ms", "p99 ms", "max ms", "p99 / IdP", "load CPU ms") +
		row("token not held", func(round coldAndWarm) burstOutcome { return round.Cold }) +
		row("token held", func(round coldAndWarm) burstOutcome { return round.Warm })
}
