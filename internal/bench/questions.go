package main

import (
	"context"
	"fmt"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
)

// Distinct requests of one client: each of its audiences with each of its scopes.
const (
	side         = 400
	maxQuestions = side * side
)

// questioner is the client of the distinct requests. Its long name makes its tokens
// about 900 bytes: they hold it twice, and their signature is shorter than that of
// RS256.
const questioner = "client-of-many-questions.its-name-stands-for-the-claims-of-large-identity-providers.groups-roles-tenants-entitlements"

func questionAudience(i int) string { return fmt.Sprintf("%s/%03d", audience, i) }

func questionScope(i int) string { return fmt.Sprintf("orders.%03d", i) }

// question is one of maxQuestions requests.
func question(client string, i int) *tokenbrokerv1.GetTokenRequest {
	return &tokenbrokerv1.GetTokenRequest{
		ClientName: client,
		Audience:   questionAudience(i / side),
		Scopes:     []string{questionScope(i % side)},
	}
}

// questionProvider starts an IdP for the requests. It signs with EdDSA, which takes a
// small part of the time of RS256: the broker is the subject of the measurement.
func questionProvider(ctx context.Context, dir string, over way) (*provider, error) {
	client := devidp.Client{ID: questioner}
	for i := range side {
		client.Audiences = append(client.Audiences, questionAudience(i))
		client.Scopes = append(client.Scopes, questionScope(i))
	}
	return startProvider(ctx, dir, "EdDSA", []devidp.Client{client}, over)
}

// manyQuestions makes brokers hold a token for each request, in memory only and with
// Redis, and then requests them from the first one at random.
func (b *bench) manyQuestions(ctx context.Context) (string, error) {
	idp, err := questionProvider(ctx, b.dir, way{})
	if err != nil {
		return "", err
	}
	defer idp.close()
	inMemory, hits, err := b.holdInMemory(ctx, idp)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%-18s %10s %10s %15s %15s %13s %12s\n", fmt.Sprintf("%d tokens", b.questions),
		"fetched in", "fetches/s", "broker us/fetch", "resident B/each", "heap B/each", "Redis B/each") + inMemory.row("memory")
	if hasRedis() {
		shared, err := b.holdInRedis(ctx, idp)
		if err != nil {
			return "", err
		}
		text += shared.row("Redis")
	} else {
		text += fmt.Sprintf("%-18s %s", "Redis", withoutRedis)
	}
	return text + "\n" + table(hits), nil
}

// holding is the cost of getting a token for each request, and of holding them. Bytes
// are per token.
type holding struct {
	questions int
	elapsed   time.Duration
	cpu       time.Duration // the broker's
	resident  float64
	heap      float64 // after a garbage collection
	redis     float64
}

func (b *bench) holdInMemory(ctx context.Context, idp *provider) (*holding, *contest, error) {
	broker, err := b.startBroker(ctx, setting{idp: idp, clients: 1, profiled: true})
	if err != nil {
		return nil, nil, err
	}
	defer broker.stop()
	held, err := b.hold(ctx, broker, nil)
	if err != nil {
		return nil, nil, err
	}
	hits := &contest{
		label:    fmt.Sprintf("GetToken of %d", b.questions),
		workload: workload{name: caseGet, client: questioner, questions: b.questions},
		server:   broker,
	}
	return held, hits, b.compete(ctx, hits)
}

func (b *bench) holdInRedis(ctx context.Context, idp *provider) (held *holding, err error) {
	err = b.withRedis(ctx, setting{idp: idp, clients: 1, profiled: true}, func(broker *server, redis *redisServer) error {
		held, err = b.hold(ctx, broker, redis)
		return err
	})
	return held, err
}

// footprint is the memory of a broker, in bytes, and its CPU time.
type footprint struct {
	resident, heap, redis float64
	cpu                   time.Duration
}

// hold makes every request once.
func (b *bench) hold(ctx context.Context, broker *server, redis *redisServer) (*holding, error) {
	before, err := measureFootprint(ctx, broker, redis)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	err = fetchAll(ctx, broker, b.questions, func(i int) *tokenbrokerv1.GetTokenRequest { return question(questioner, i) })
	if err != nil {
		return nil, err
	}
	elapsed := time.Since(start)
	after, err := measureFootprint(ctx, broker, redis)
	if err != nil {
		return nil, err
	}
	n := float64(b.questions)
	return &holding{
		questions: b.questions,
		elapsed:   elapsed,
		cpu:       after.cpu - before.cpu,
		resident:  (after.resident - before.resident) / n,
		heap:      (after.heap - before.heap) / n,
		redis:     (after.redis - before.redis) / n,
	}, nil
}

// measureFootprint reads the heap last, because that collects garbage.
func measureFootprint(ctx context.Context, broker *server, redis *redisServer) (f footprint, err error) {
	if f.cpu, err = broker.cpu(); err != nil {
		return f, err
	}
	resident, err := broker.memory("VmRSS")
	if err != nil {
		return f, err
	}
	f.resident = resident * (1 << 20)
	if redis != nil {
		if f.redis, err = redis.usedMemory(ctx); err != nil {
			return f, err
		}
	}
	f.heap, err = broker.liveHeap(ctx)
	return f, err
}

func (h *holding) row(store string) string {
	shared := "-"
	if h.redis > 0 {
		shared = fmt.Sprintf("%.0f", h.redis)
	}
	n := float64(h.questions)
	return fmt.Sprintf("%-18s %9.1fs %10.0f %15.0f %15.0f %13.0f %12s\n", store, h.elapsed.Seconds(), n/h.elapsed.Seconds(),
		float64(h.cpu.Microseconds())/n, h.resident, h.heap, shared)
}
