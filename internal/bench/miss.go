package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const (
	// missShare is the share of the requests that a round of misses makes.
	missShare = 20
	// burstMisses are the callers of a burst, each with another request.
	burstMisses = 1000
)

// ways are the protocols between the IdP and its clients.
func ways() []way {
	return []way{{name: "HTTP/1.1"}, {name: "HTTP/1.1, TLS", tls: true}, {name: "HTTP/2, TLS", tls: true, http2: true}}
}

// missSample is one round of misses. Times are CPU time in microseconds: of the broker per
// fetch, of the echo per call, and of a plain client per fetch from the same IdP.
type missSample struct {
	broker, echo, plain float64
	brokerRate          float64 // fetches per second
}

// ratio compares the broker with the least that its work takes: a call, and a fetch.
func (s missSample) ratio() float64 { return s.broker / (s.echo + s.plain) }

// missContest is a way to the IdP, or a store, with its rounds.
type missContest struct {
	label   string
	samples []missSample
}

// misses measures fetches of tokens that the broker does not have.
func (b *bench) misses(ctx context.Context) (string, error) {
	var text strings.Builder
	fmt.Fprintf(&text, "%-22s %15s %13s %16s %10s  %s\n", "miss", "broker us/fetch", "echo us/call", "plain us/fetch", "fetches/s", "CPU ratio to echo + plain")
	contests, bursts, err := b.measureMisses(ctx)
	if err != nil {
		return "", err
	}
	for _, c := range contests {
		text.WriteString(c.row())
	}
	if !hasRedis() {
		fmt.Fprintf(&text, "%-22s %s", "HTTP/1.1, Redis", withoutRedis)
	}
	return text.String() + "\n" + burstRow(bursts), nil
}

func (c *missContest) row() string {
	value := func(field func(missSample) float64) float64 { return medianOf(c.samples, field) }
	ratios := make([]float64, len(c.samples))
	for i, s := range c.samples {
		ratios[i] = s.ratio()
	}
	return fmt.Sprintf("%-22s %15.0f %13.1f %16.0f %10.0f  %.2f (rounds: %.2f to %.2f)\n", c.label,
		value(func(s missSample) float64 { return s.broker }), value(func(s missSample) float64 { return s.echo }),
		value(func(s missSample) float64 { return s.plain }), value(func(s missSample) float64 { return s.brokerRate }),
		median(ratios), slices.Min(ratios), slices.Max(ratios))
}

// measureMisses runs the rounds of each way with a store in memory, and of the first one
// with Redis. The bursts are of the first one in memory.
func (b *bench) measureMisses(ctx context.Context) (contests []*missContest, bursts []burstOutcome, err error) {
	for i, over := range ways() {
		measured, some, err := b.missesOver(ctx, over, i == 0)
		if err != nil {
			return nil, nil, fmt.Errorf("fetching over %s: %w", over.name, err)
		}
		contests, bursts = append(contests, measured...), append(bursts, some...)
	}
	return contests, bursts, nil
}

// missesOver measures one way to the IdP; with more, bursts and Redis as well.
func (b *bench) missesOver(ctx context.Context, over way, more bool) (contests []*missContest, bursts []burstOutcome, err error) {
	idp, err := questionProvider(ctx, b.dir, over)
	if err != nil {
		return nil, nil, err
	}
	defer idp.close()
	broker, err := b.startBroker(ctx, setting{idp: idp, clients: 1, profiled: true})
	if err != nil {
		return nil, nil, err
	}
	defer broker.stop()
	echo, err := b.startEcho(ctx, broker, questioner)
	if err != nil {
		return nil, nil, err
	}
	defer echo.stop()
	rounds := func(label string, broker *server) error {
		one, err := b.missRounds(ctx, label, idp, broker, echo)
		contests = append(contests, one)
		return err
	}
	if err := rounds(over.name, broker); err != nil || !more {
		return contests, nil, err
	}
	if bursts, err = b.missBursts(ctx, broker); err != nil || !hasRedis() {
		return contests, bursts, err
	}
	return contests, bursts, b.withRedis(ctx, setting{idp: idp, clients: 1}, func(broker *server, _ *redisServer) error {
		return rounds(over.name+", Redis", broker)
	})
}

// missRounds makes each request once. The first round warms all processes.
func (b *bench) missRounds(ctx context.Context, label string, idp *provider, broker, echo *server) (*missContest, error) {
	c := &missContest{label: label}
	n := b.missesPerRound()
	for round := range b.rounds + 1 {
		var s missSample
		errBroker := b.missBroker(ctx, broker, round*n, n, &s)
		errPlain := b.missPlain(ctx, idp, n, &s)
		errEcho := b.missEcho(ctx, echo, &s)
		if err := errors.Join(errBroker, errPlain, errEcho); err != nil {
			return c, err
		}
		if round > 0 {
			c.samples = append(c.samples, s)
		}
	}
	return c, nil
}

// missesPerRound leaves enough requests for the bursts.
func (b *bench) missesPerRound() int {
	return max(1, min(b.questions/missShare, (maxQuestions-(b.rounds+1)*burstMisses)/(b.rounds+1)))
}

func (b *bench) missBroker(ctx context.Context, broker *server, first, n int, s *missSample) error {
	before, err := broker.cpu()
	if err != nil {
		return err
	}
	start := time.Now()
	if err := fetchAll(ctx, broker, n, func(i int) *tokenbrokerv1.GetTokenRequest { return question(questioner, first+i) }); err != nil {
		return err
	}
	s.brokerRate = float64(n) / time.Since(start).Seconds()
	after, err := broker.cpu()
	s.broker = float64((after - before).Microseconds()) / float64(n)
	return err
}

func (b *bench) missEcho(ctx context.Context, echo *server, s *missSample) error {
	before, err := echo.cpu()
	if err != nil {
		return err
	}
	o, err := b.drive(ctx, echo, workload{name: caseGet, client: questioner, questions: b.questions}, b.length)
	if err != nil {
		return err
	}
	after, err := echo.cpu()
	s.echo = float64((after - before).Microseconds()) / float64(o.Calls)
	return err
}

func (b *bench) missPlain(ctx context.Context, idp *provider, n int, s *missSample) error {
	var o plainOutcome
	args := []string{plainCommand, "-client", questioner, "-secret", idp.secretPath(0), "-fetches", strconv.Itoa(n), "-ca", idp.ca}
	err := b.load(ctx, time.Minute, &o, append(args, idp.TokenEndpoint())...)
	s.plain = o.CPU
	return err
}

// missBursts has callers make different requests at once, after the rounds with the
// requests of before.
func (b *bench) missBursts(ctx context.Context, broker *server) ([]burstOutcome, error) {
	var rounds []burstOutcome
	for round := range b.rounds {
		first := (b.rounds+1)*b.missesPerRound() + round*burstMisses
		before, err := broker.cpu()
		if err != nil {
			return nil, err
		}
		var o burstOutcome
		args := []string{burstCommand, "-clients", questioner, "-question", strconv.Itoa(first), "-callers", strconv.Itoa(burstMisses)}
		if err := b.load(ctx, time.Minute, &o, append(args, broker.address)...); err != nil {
			return nil, err
		}
		if err := o.check("a burst of different requests"); err != nil {
			return nil, err
		}
		after, err := broker.cpu()
		if err != nil {
			return nil, err
		}
		o.CPU = float64((after - before).Microseconds()) / float64(o.Calls)
		rounds = append(rounds, o)
	}
	return rounds, nil
}

func burstRow(rounds []burstOutcome) string {
	value := func(field func(burstOutcome) float64) float64 { return medianOf(rounds, field) }
	return fmt.Sprintf("%d different requests at once: p50 %.0f ms, p99 %.0f ms, max %.0f ms; broker %.0f us/fetch\n", burstMisses,
		value(func(o burstOutcome) float64 { return o.P50 / 1000 }), value(func(o burstOutcome) float64 { return o.P99 / 1000 }),
		value(func(o burstOutcome) float64 { return o.Max / 1000 }), value(func(o burstOutcome) float64 { return o.CPU }))
}
