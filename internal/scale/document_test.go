package scale_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
)

const (
	// updateVariable has the tests write their measurements, and the tables in the
	// document. The measurements of all sizes need TOKENBROKER_LONG too.
	updateVariable = "TOKENBROKER_SIZING"

	fleetsFile = "testdata/fleets.json"
	document   = "../../docs/sizing.md"
)

func readJSON(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The tables of the document are those of the committed measurements.
func TestSizingTablesAreThoseMeasured(t *testing.T) {
	var fleets []result
	var redis costs
	readJSON(t, fleetsFile, &fleets)
	readJSON(t, costsFile, &redis)
	page, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	text := string(page)
	for name, table := range map[string]string{"traffic": trafficTable(fleets, redis), "cold": coldTable(fleets), "spread": spreadTable(fleets), "redis": redisTable(redis), "plans": planTable(redis)} {
		updated := replaceTable(t, text, name, table)
		if os.Getenv(updateVariable) != "" {
			text = updated
		} else if updated != text {
			t.Errorf("the table %s in docs/sizing.md is not that of the measurements: run with %s=1", name, updateVariable)
		}
	}
	if text != string(page) {
		if err := os.WriteFile(document, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// replaceTable replaces the text between the comments of a table.
func replaceTable(t *testing.T, page, name, table string) string {
	t.Helper()
	place := regexp.MustCompile(`(?s)(<!-- ` + name + ` -->\n).*?(<!-- end of ` + name + ` -->)`)
	if !place.MatchString(page) {
		t.Fatalf("the document has no place for the table %s", name)
	}
	return place.ReplaceAllString(page, "${1}\n"+strings.ReplaceAll(table, "$", "$$")+"\n${2}")
}

func table(head []string, rows [][]string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat("---|", len(head)))
	for _, row := range rows {
		fmt.Fprintf(&out, "| %s |\n", strings.Join(row, " | "))
	}
	return out.String()
}

// Trips and messages that the simulation does not have, per second and replica: a probe
// every 2 s, a ping of the subscription every second, and an INFO each minute.
const unsimulated = 1./2 + 1 + 1./60

func trafficTable(fleets []result, redis costs) string {
	var rows [][]string
	for _, one := range fleets {
		outside := unsimulated * float64(one.Replicas)
		rows = append(rows, []string{
			count(float64(one.Replicas)), count(one.Rest.Trips + outside), count(one.Rest.Messages), percent(redis.busy(one.Rest, outside)), rate(redis.bandwidth(one.Rest, outside)),
			count(one.Load.Trips + outside), count(one.Load.Messages), percent(redis.busy(one.Load, outside)), rate(redis.bandwidth(one.Load, outside)), "simulated",
		})
	}
	return table([]string{"replicas", "at rest: trips/s", "messages/s", "Redis CPU", "network", "under load: trips/s", "messages/s", "Redis CPU", "network", "how"}, rows)
}

// busy is the share of a core that Redis works.
func (c costs) busy(r rates, outside float64) float64 {
	return ((r.Trips+outside)*c.Count.CPU + r.Messages*c.Message.CPU) / 1e6
}

// bandwidth is the network of Redis in bytes per second, in both directions: the frame of
// each trip, its keys and values, and the messages.
func (c costs) bandwidth(r rates, outside float64) float64 {
	return (r.Trips+outside)*(c.Count.In+c.Count.Out) + r.Bytes + r.Messages*c.Message.Out
}

func coldTable(fleets []result) string {
	var rows [][]string
	for _, one := range fleets {
		rows = append(rows, []string{
			count(float64(one.Replicas)), count(float64(one.Cold.Calls)), span(one.Cold.Half), span(one.Cold.Last), count(float64(one.Cold.Trips)), span(one.Cold.Slowest),
			count(float64(one.Load.Calls)), count(float64(one.Load.Tokens)), fmt.Sprintf("%.1f", one.KeyFetches), "simulated",
		})
	}
	return table([]string{"replicas", "cold: IdP calls", "wait p50", "wait max", "trips", "slowest trip", "10 min of load: IdP calls", "tokens", "key fetches per replica", "how"}, rows)
}

func spreadTable(fleets []result) string {
	var rows [][]string
	for _, one := range fleets {
		row := []string{count(float64(one.Replicas))}
		for _, s := range []spread{one.Purge, one.Revocation, one.Rotation, one.LostPurge, one.LostRevocation, one.LostRotation} {
			row = append(row, span(s.Half)+" / "+span(s.Last))
		}
		rows = append(rows, append(row, "simulated"))
	}
	return table([]string{"replicas", "purge", "revocation", "rotation", "purge, events lost", "revocation, events lost", "rotation, events lost", "how"}, rows)
}

// plan is a deployment to size.
type plan struct{ replicas, callers, tokens float64 }

const (
	// A token of one hour is refreshed after 45 minutes on average.
	refreshSeconds = 45 * 60.
	// idleTrips is what the simulation counts for each replica at rest, per second.
	idleTrips = 1.1
	// fetchTrips are those of the replica that fetches a token, otherTrips those of each other
	// replica that needs it, and fetchEvents the changes in the store that are events.
	fetchTrips, otherTrips, fetchEvents = 6, 1.5, 3
	// The bytes of docs/performance.md: of a token in a replica (resident) and in Redis, of a
	// connection, and of a broker without tokens. A replica holds at most maxTokens.
	tokenBytes, redisBytes, connectionBytes, brokerBytes = 4047, 1451, 65 << 10, 30 << 20
	maxTokens                                            = broker.DefaultMaxEntries
)

// planTable computes the worst case: each replica needs each token.
func planTable(redis costs) string {
	var rows [][]string
	for _, p := range []plan{{3, 100, 1e3}, {10, 1e3, 1e4}, {30, 1e4, 1e5}, {100, 1e5, 2e5}, {100, 1e5, 1e6}} {
		calls := p.tokens / refreshSeconds
		trips := p.replicas*(idleTrips+unsimulated) + calls*(fetchTrips+otherTrips*(p.replicas-1))
		messages := calls * fetchEvents * p.replicas
		network := trips*(redis.Look.In+redis.Look.Out) + messages*redis.Message.Out
		memory := brokerBytes + min(p.tokens, maxTokens)*tokenBytes + p.callers/p.replicas*connectionBytes
		rows = append(rows, []string{
			count(p.replicas), count(p.callers), count(p.tokens), count(calls), count(trips), count(messages),
			percent((trips*redis.Look.CPU + messages*redis.Message.CPU) / 1e6), rate(network), memoryText(p.tokens * redisBytes), memoryText(memory), "computed",
		})
	}
	return table([]string{"replicas", "callers", "tokens", "IdP calls/s", "trips/s", "messages/s", "Redis CPU", "network", "Redis memory", "memory of a replica", "how"}, rows)
}

func memoryText(bytes float64) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%.0f MiB", bytes/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", bytes/(1<<30))
}

func redisTable(redis costs) string {
	var rows [][]string
	for _, one := range []struct {
		what string
		cost
	}{
		{"read a counter", redis.Count}, {"read the nine keys of a request", redis.Look}, {"write a token and its proof", redis.Put}, {"deliver one message to one replica", redis.Message},
	} {
		rows = append(rows, []string{one.what, fmt.Sprintf("%.1f us", one.CPU), fmt.Sprintf("%.0f", one.In), fmt.Sprintf("%.0f", one.Out), "measured"})
	}
	return table([]string{"Redis", "CPU", "bytes received", "bytes sent", "how"}, rows)
}

// count formats a number with three digits at most.
func count(value float64) string {
	switch {
	case value >= 1e6:
		return fmt.Sprintf("%.3gM", value/1e6)
	case value >= 9999.5:
		return fmt.Sprintf("%.0fk", value/1e3)
	case value >= 9.95 || value == float64(int64(value)):
		return fmt.Sprintf("%.0f", value)
	default:
		return fmt.Sprintf("%.1f", value)
	}
}

func percent(share float64) string {
	if share < 0.01 {
		return "< 1 %"
	}
	return fmt.Sprintf("%.0f %%", 100*share)
}

func rate(bytes float64) string {
	if bytes < 1e6 {
		return fmt.Sprintf("%.0f kB/s", bytes/1e3)
	}
	return fmt.Sprintf("%.1f MB/s", bytes/1e6)
}

func span(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
