package scale_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const costsFile = "testdata/redis.json"

// costs are the work of a real Redis for one trip of a kind.
type costs struct {
	// Count reads a counter, as replicas do at rest. Look reads the nine keys of a request
	// with its token. Put writes a token of 1,200 bytes with its proof and releases a lease.
	// Message is the part of one subscriber in a message.
	Count   cost `json:"count"`
	Look    cost `json:"look"`
	Put     cost `json:"put"`
	Message cost `json:"message"`
}

type cost struct {
	CPU float64 `json:"cpu_us"`
	In  float64 `json:"bytes_in"`
	Out float64 `json:"bytes_out"`
}

// The simulation and docs/sizing.md use these costs.
func TestRedisCosts(t *testing.T) {
	if os.Getenv("TOKENBROKER_LONG") == "" {
		t.Skip("set TOKENBROKER_LONG to measure a real Redis")
	}
	m := startMeasured(t)
	token := make([]byte, 1200)
	keys := make([]string, 9) // of the first caller
	for i := range keys {
		keys[i] = nameOf(strconv.Itoa(i), "0")
	}
	put := func(number int) func(context.Context, string, int) error {
		return func(ctx context.Context, caller string, n int) error {
			change := store.Change{
				Puts:    []store.Put{{Key: nameOf("0", caller), Number: uint64(number + n), Value: token, TTL: time.Minute}, {Key: nameOf("1", caller), Number: uint64(number + n), Value: token[:100], TTL: time.Minute}},
				Release: store.Lease{Key: nameOf("lease", ""), Owner: "x", Fence: 1},
			}
			_, err := m.store.Apply(ctx, change)
			return err
		}
	}
	var all costs
	all.Put = m.measure(t, put(1))
	all.Look = m.measure(t, func(ctx context.Context, _ string, _ int) error {
		_, err := m.store.Get(ctx, keys...)
		return err
	})
	all.Count = m.measure(t, func(ctx context.Context, _ string, _ int) error {
		_, err := m.store.Get(ctx, "{counter}")
		return err
	})
	const subscribers = 100
	m.subscribe(t, subscribers)
	heard := m.measure(t, put(1<<40))
	const changes = 2 // the token and the proof
	all.Message = cost{CPU: rounded((heard.CPU - all.Put.CPU) / subscribers / changes), Out: rounded((heard.Out - all.Put.Out) / subscribers / changes)}
	t.Logf("%+v", all)
	if all.Count.CPU <= 0 || all.Message.CPU <= 0 || all.Message.Out <= 0 {
		t.Error("a trip or a message costs nothing")
	}
	if os.Getenv(updateVariable) != "" {
		writeJSON(t, costsFile, all)
	}
}

// nameOf returns a key as long as those of the broker.
func nameOf(kind, caller string) string {
	return "{kTz3bKq0n3sS7wUQv1xN4A}kTz3bKq0n3sS7wUQv1xN4B:" + kind + ":" + caller
}

// measured is a Redis, and its store.
type measured struct {
	server *redistest.Server
	store  *redisstore.Store
}

func startMeasured(t *testing.T) *measured {
	t.Helper()
	server := redistest.Start(t, redistest.Options{Config: []string{"appendonly yes"}})
	opened, err := redisstore.New(redisstore.Config{Addresses: []string{server.Addr()}, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = opened.Close() })
	return &measured{server, opened}
}

// measure makes a call many times, several at once, as a fleet does.
func (m *measured) measure(t *testing.T, call func(ctx context.Context, caller string, n int) error) cost {
	t.Helper()
	const callers, each = 8, 2500
	before := m.usage(t)
	var calling sync.WaitGroup
	for i := range callers {
		calling.Go(func() {
			for n := range each {
				if err := call(t.Context(), strconv.Itoa(i), n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	calling.Wait()
	after := m.usage(t)
	const calls = callers * each
	return cost{rounded((after.CPU - before.CPU) / calls), rounded((after.In - before.In) / calls), rounded((after.Out - before.Out) / calls)}
}

func rounded(value float64) float64 { return math.Round(value*10) / 10 }

// usage is what the server has used so far.
func (m *measured) usage(t *testing.T) cost {
	t.Helper()
	values := map[string]float64{}
	for _, section := range []string{"cpu", "stats"} {
		for line := range strings.Lines(m.server.CLI("info", section)) {
			name, text, _ := strings.Cut(strings.TrimSpace(line), ":")
			if value, err := strconv.ParseFloat(text, 64); err == nil {
				values[name] = value
			}
		}
	}
	return cost{(values["used_cpu_user"] + values["used_cpu_sys"]) * 1e6, values["total_net_input_bytes"], values["total_net_output_bytes"]}
}

// subscribe opens connections that receive all events.
func (m *measured) subscribe(t *testing.T, n int) {
	t.Helper()
	for range n {
		conn, err := net.Dial("tcp", m.server.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if _, err := conn.Write([]byte("SUBSCRIBE " + redisstore.DefaultPrefix + "ev\r\n")); err != nil {
			t.Fatal(err)
		}
		received := bufio.NewReader(conn)
		if _, err := received.ReadString(':'); err != nil { // the number of subscriptions ends the response
			t.Fatal(err)
		}
		go func() { _, _ = io.Copy(io.Discard, received) }()
	}
	testkit.Eventually(t, "all are subscribed", func() bool {
		return strings.Contains(m.server.CLI("pubsub", "numsub", redisstore.DefaultPrefix+"ev"), strconv.Itoa(n))
	})
}

func writeJSON(t *testing.T, path string, value any) {
	t.Helper()
	text, err := json.MarshalIndent(value, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}
