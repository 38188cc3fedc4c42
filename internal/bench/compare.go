package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// sample is one round of one case on one server. Times are in microseconds.
type sample struct {
	cpu, rate, p50, p99 float64 // cpu is per call, rate in calls per second
	calls               int
	// trips are the broker's round trips to Redis in the round, whichever server was
	// driven.
	trips float64
}

// contest is a case with the rounds of both servers, by round.
type contest struct {
	workload

	label        string
	other        string  // name of the server beside the broker; empty: echo
	server       *server // the broker
	echo, broker []sample
	// shared: the broker has a Redis, and its trips to it are counted.
	shared bool
}

// compare drives the echo and the broker in turn, and a broker with Redis.
func (b *bench) compare(ctx context.Context) (string, error) {
	contests, err := b.measureHits(ctx)
	if err != nil {
		return "", err
	}
	text := table(contests...)
	if !hasRedis() {
		return text + "GetToken, Redis: " + withoutRedis, nil
	}
	return text + tripsOf(contests[1]), nil
}

// measureHits runs the contests of the first client. The one with Redis is the second;
// it is omitted without a Redis.
func (b *bench) measureHits(ctx context.Context) ([]*contest, error) {
	get, verify := workload{name: caseGet, client: clientName(0)}, workload{name: caseVerify, client: clientName(0)}
	contests := []*contest{
		{workload: get, label: caseGet, server: b.broker},
		{workload: verify, label: caseVerify, server: b.broker},
	}
	if !hasRedis() {
		return contests, b.compete(ctx, contests...)
	}
	err := b.withRedis(ctx, setting{idp: b.idp, clients: 1}, func(broker *server, _ *redisServer) error {
		contests = slices.Insert(contests, 1, &contest{workload: get, label: "GetToken, Redis", server: broker, shared: true})
		return b.compete(ctx, contests...)
	})
	return contests, err
}

// compareProved drives an echo and a broker over TLS: by a caller with a certificate,
// and by one with a JWT.
func (b *bench) compareProved(ctx context.Context) (string, error) {
	contests, err := b.measureProved(ctx)
	if err != nil {
		return "", err
	}
	return table(contests...), nil
}

func (b *bench) measureProved(ctx context.Context) ([]*contest, error) {
	by, err := b.prove(b.dir)
	if err != nil {
		return nil, err
	}
	broker, err := b.startBroker(ctx, setting{idp: b.idp, clients: 1, proof: by})
	if err != nil {
		return nil, err
	}
	defer broker.stop()
	client := clientName(0)
	contests := []*contest{
		{workload: workload{name: caseGet, client: client}, label: "GetToken, mTLS", server: broker},
		{workload: workload{name: caseVerify, client: client}, label: "VerifyToken, mTLS", server: broker},
		{workload: workload{name: caseGet, client: client, jwt: true}, label: "GetToken, JWT", server: broker},
	}
	return contests, b.compete(ctx, contests...)
}

// compete runs the rounds of contests, all for the same client, between their brokers
// and an echo of the first one, or the other build of the broker.
func (b *bench) compete(ctx context.Context, contests ...*contest) error {
	echo, err := b.startBeside(ctx, contests[0])
	if err != nil {
		return err
	}
	defer echo.stop()
	for _, c := range contests { // warms both
		c.other = contests[0].other
		for _, s := range []*server{echo, c.server} {
			if _, err := b.drive(ctx, s, c.workload, min(b.length, time.Second)); err != nil {
				return err
			}
		}
	}
	for round := range b.rounds {
		for _, c := range contests {
			if err := b.playRound(ctx, c, round, echo); err != nil {
				return err
			}
		}
	}
	return nil
}

// startBeside starts the server that is compared with the broker of a contest.
func (b *bench) startBeside(ctx context.Context, c *contest) (s *server, err error) {
	if b.beside == "" {
		return b.startEcho(ctx, c.server, c.client)
	}
	c.other = "other"
	with := c.server.setting
	if with.http != "" {
		if with.http, err = freeAddress(ctx); err != nil {
			return nil, err
		}
	}
	return b.startBuild(ctx, b.beside, with)
}

// playRound measures both servers, in alternating order.
func (b *bench) playRound(ctx context.Context, c *contest, round int, echo *server) error {
	turns := []func() error{
		func() error { return b.measure(ctx, echo, c, &c.echo) },
		func() error { return b.measure(ctx, c.server, c, &c.broker) },
	}
	if round%2 == 1 {
		slices.Reverse(turns)
	}
	for _, turn := range turns {
		if err := turn(); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) measure(ctx context.Context, s *server, c *contest, samples *[]sample) error {
	cpu, trips, err := c.read(ctx, s)
	if err != nil {
		return err
	}
	o, err := b.drive(ctx, s, c.workload, b.length)
	if err != nil {
		return err
	}
	cpuAfter, tripsAfter, err := c.read(ctx, s)
	if err != nil {
		return err
	}
	*samples = append(*samples, sample{
		cpu:   float64(cpuAfter-cpu) / float64(time.Microsecond) / float64(o.Calls),
		rate:  float64(o.Calls) / o.Seconds,
		p50:   o.P50,
		p99:   o.P99,
		calls: o.Calls,
		trips: tripsAfter - trips,
	})
	return nil
}

// read returns the CPU time of s so far, and the trips of the broker.
func (c *contest) read(ctx context.Context, s *server) (cpu time.Duration, trips float64, err error) {
	if c.shared {
		if trips, err = c.server.trips(ctx); err != nil {
			return 0, 0, err
		}
	}
	cpu, err = s.cpu()
	return cpu, trips, err
}

func table(contests ...*contest) string {
	var text strings.Builder
	other := cmp.Or(contests[0].other, "echo")
	fmt.Fprintf(&text, "%-18s %-7s %12s %9s %8s %8s  %s\n", "case", "server", "CPU us/call", "calls/s", "p50 us", "p99 us", "CPU ratio to "+other)
	for _, c := range contests {
		text.WriteString(row(c.label, other, c.echo) + "  1.00\n")
		ratios := c.ratios()
		fmt.Fprintf(&text, "%s  %.2f (rounds: %.2f to %.2f)\n", row(c.label, "broker", c.broker),
			median(ratios), slices.Min(ratios), slices.Max(ratios))
	}
	return text.String()
}

// tripsOf returns the round trips to Redis of a hit. While the echo is driven the broker
// is idle, so the rounds of the echo show its background trips.
func tripsOf(c *contest) string {
	hits, trips := total(c.broker)
	_, idle := total(c.echo)
	return fmt.Sprintf("trips to Redis: %.0f during %d hits, %.0f in as much time without any; %.4f per hit\n",
		trips, hits, idle, max(trips-idle, 0)/float64(hits))
}

// total returns the calls in samples, and the trips to Redis in that time.
func total(samples []sample) (calls int, trips float64) {
	for _, s := range samples {
		calls += s.calls
		trips += s.trips
	}
	return calls, trips
}

func row(label, server string, samples []sample) string {
	return fmt.Sprintf("%-18s %-7s %12.1f %9.0f %8.0f %8.0f", label, server,
		medianOf(samples, func(s sample) float64 { return s.cpu }),
		medianOf(samples, func(s sample) float64 { return s.rate }),
		medianOf(samples, func(s sample) float64 { return s.p50 }),
		medianOf(samples, func(s sample) float64 { return s.p99 }))
}

// ratios are the ratios per round: a disturbance of the machine that is longer than a
// round affects both sides of a ratio.
func (c *contest) ratios() []float64 {
	ratios := make([]float64, len(c.broker))
	for i := range ratios {
		ratios[i] = c.broker[i].cpu / c.echo[i].cpu
	}
	return ratios
}

func medianOf[T any](all []T, field func(T) float64) float64 {
	values := make([]float64, len(all))
	for i, one := range all {
		values[i] = field(one)
	}
	return median(values)
}

// median returns the middle value, or the mean of the middle two. It needs at least one
// value.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
