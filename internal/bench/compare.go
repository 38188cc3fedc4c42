package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// sample is one round of one case on one server. Times are in microseconds.
type sample struct {
	cpu, rate, p50, p99 float64 // cpu is per call, rate in calls per second
}

// contest is a case with the rounds of both servers, by round.
type contest struct {
	name         string
	echo, broker []sample
}

// compare drives the echo and the broker in turn.
func (b *bench) compare(ctx context.Context, broker *server) (string, error) {
	echo, err := b.startEcho(ctx, broker)
	if err != nil {
		return "", err
	}
	defer echo.stop()
	contests := []*contest{{name: caseGet}, {name: caseVerify}}
	for _, c := range contests { // warms both
		for _, s := range []*server{echo, broker} {
			if _, err := b.drive(ctx, s, c.name, clientName(0), min(b.length, time.Second)); err != nil {
				return "", err
			}
		}
	}
	for round := range b.rounds {
		for _, c := range contests {
			if err := b.playRound(ctx, c, round, echo, broker); err != nil {
				return "", err
			}
		}
	}
	return table(contests), nil
}

// playRound measures both servers. Neither always goes first.
func (b *bench) playRound(ctx context.Context, c *contest, round int, echo, broker *server) error {
	turns := []func() error{
		func() error { return b.measure(ctx, echo, c.name, &c.echo) },
		func() error { return b.measure(ctx, broker, c.name, &c.broker) },
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

func (b *bench) measure(ctx context.Context, s *server, name string, samples *[]sample) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	o, err := b.drive(ctx, s, name, clientName(0), b.length)
	if err != nil {
		return err
	}
	after, err := s.cpu()
	if err != nil {
		return err
	}
	*samples = append(*samples, sample{
		cpu:  float64(after-before) / float64(time.Microsecond) / float64(o.Calls),
		rate: float64(o.Calls) / o.Seconds,
		p50:  o.P50,
		p99:  o.P99,
	})
	return nil
}

func table(contests []*contest) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%-12s %-7s %12s %9s %8s %8s  %s\n", "case", "server", "CPU us/call", "calls/s", "p50 us", "p99 us", "CPU ratio to echo")
	for _, c := range contests {
		text.WriteString(row(c.name, "echo", c.echo) + "  1.00\n")
		ratios := c.ratios()
		fmt.Fprintf(&text, "%s  %.2f (rounds: %.2f to %.2f)\n", row(c.name, "broker", c.broker),
			median(ratios), slices.Min(ratios), slices.Max(ratios))
	}
	return text.String()
}

func row(name, server string, samples []sample) string {
	of := func(field func(sample) float64) float64 {
		values := make([]float64, len(samples))
		for i, s := range samples {
			values[i] = field(s)
		}
		return median(values)
	}
	return fmt.Sprintf("%-12s %-7s %12.1f %9.0f %8.0f %8.0f", name, server,
		of(func(s sample) float64 { return s.cpu }),
		of(func(s sample) float64 { return s.rate }),
		of(func(s sample) float64 { return s.p50 }),
		of(func(s sample) float64 { return s.p99 }))
}

// ratios are those of the rounds: what disturbs the machine for longer than a
// round disturbs both sides of a ratio.
func (c *contest) ratios() []float64 {
	ratios := make([]float64, len(c.broker))
	for i := range ratios {
		ratios[i] = c.broker[i].cpu / c.echo[i].cpu
	}
	return ratios
}

// median returns the middle value, of which there must be at least one, or the
// mean of the middle two.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
