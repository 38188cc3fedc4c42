package fleet

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The recordings replay faster than they were made: a scrape every 2 s becomes one
// every 15 s, the usual interval of Prometheus.
const (
	recordInterval = 2 * time.Second
	replayInterval = 15 * time.Second
	// replayStart is when the recording begins in the replay, so that times before its
	// beginning are not negative.
	replayStart = time.Hour
)

const (
	rulesFile     = "../../../deploy/prometheus/tokenbroker.rules.yaml"
	recordingsDir = "../../../deploy/prometheus/tests"
)

// recordVariable has TestRecordFaults run. Its value is a regular expression for the
// names of recordings.
const recordVariable = "TOKENBROKER_RECORD"

// TestRecordFaults records the metrics of a fleet during faults, for the tests of the
// alerts. It runs on request, because it takes minutes and replaces files.
func TestRecordFaults(t *testing.T) {
	chosen := os.Getenv(recordVariable)
	if chosen == "" {
		t.Skipf("records the faults anew: set %s to a regular expression for their names", recordVariable)
	}
	for _, d := range dramas {
		if !regexp.MustCompile(chosen).MatchString(d.name) {
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			d.record(t)
		})
	}
}

func (d drama) record(t *testing.T) {
	d = d.timed()
	s := d.begin(t)
	s.tape = newTape(t, s)
	s.tape.record(d.healthy)
	if d.strike != nil {
		struck := make(chan struct{})
		go func() {
			defer close(struck)
			d.strike(t, s)
		}()
		s.tape.recordUntil(struck)
		s.tape.record(d.faulty)
	}
	if d.mend != nil {
		d.mend(t, s)
	}
	s.tape.record(d.mended)
	path := filepath.Join(recordingsDir, d.name+".yaml")
	if err := os.WriteFile(path, []byte(s.tape.test(d, strings.NewReplacer(s.renames()...))), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, "test", "rules", path); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// timed returns the drama with the times that it does not set.
func (d drama) timed() drama {
	if d.strike != nil && d.healthy == 0 {
		d.healthy = 20 * time.Second
	}
	if d.mend != nil && d.mended == 0 {
		d.mended = 40 * time.Second
	}
	if d.strike != nil && d.faulty == 0 && d.mended != 90*time.Second {
		d.faulty = time.Minute
	}
	return d
}

// tape is the recorded series of a fleet.
type tape struct {
	t      *testing.T
	scene  *scene
	names  *regexp.Regexp // of the metrics that the rules use
	begun  time.Time
	ticks  int
	series map[string][]string // samples by tick; empty: there was none
}

func newTape(t *testing.T, s *scene) *tape {
	t.Helper()
	rules, err := os.ReadFile(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\b(tokenbroker|grpc)_\w+`).FindAllString(string(rules), -1)
	slices.Sort(names)
	return &tape{
		t: t, scene: s, series: map[string][]string{}, begun: time.Now(),
		names: regexp.MustCompile(`^(` + strings.Join(slices.Compact(names), "|") + `)(?:\{(.*)\})? (\S+)$`),
	}
}

func (p *tape) record(d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); {
		p.tick()
	}
}

func (p *tape) recordUntil(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
			p.tick()
		}
	}
}

// tick scrapes all replicas once, in time.
func (p *tape) tick() {
	rest(p.t, time.Until(p.begun.Add(time.Duration(p.ticks)*recordInterval)))
	for i, address := range p.scene.targets() {
		instance := fmt.Sprintf(`instance="broker-%d:9090",job="tokenbroker"`, i+1)
		text, up := scrape(p.t, address)
		p.put("up{"+instance+"}", up)
		for line := range strings.Lines(text) {
			sample := p.names.FindStringSubmatch(strings.TrimSpace(line))
			if sample == nil || strings.HasPrefix(sample[1], "grpc_") && !strings.Contains(sample[2], `grpc_service="tokenbroker`) {
				continue
			}
			labels := instance
			if sample[2] != "" {
				labels = sample[2] + "," + instance
			}
			p.put(sample[1]+"{"+labels+"}", p.rebased(sample[1], sample[3]))
		}
	}
	p.ticks++
}

// scrape returns the metrics of a replica, or an empty text if it does not answer.
func scrape(t *testing.T, address string) (text, up string) {
	t.Helper()
	quick := &http.Client{Timeout: recordInterval, Transport: &http.Transport{DisableKeepAlives: true}}
	text, err := fetched(t, quick, "http://"+address+"/metrics")
	if err != nil {
		return "", "0"
	}
	return text, "1"
}

func (p *tape) put(series, value string) {
	samples := p.series[series]
	for len(samples) < p.ticks {
		samples = append(samples, "")
	}
	p.series[series] = append(samples, value)
}

// rebased moves times into the time of the replay. Times that are near move faster, like
// all that happens in it; ends of certificates do not. Keys are fetched every 5 minutes
// of real time, so their age stays what it was.
func (p *tape) rebased(name, value string) string {
	number, err := strconv.ParseFloat(value, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	if !strings.HasSuffix(name, "_timestamp_seconds") || number == 0 {
		return strconv.FormatFloat(number, 'f', -1, 64)
	}
	distance, from := number-seconds(p.begun), replayStart
	switch {
	case strings.HasPrefix(name, "tokenbroker_jwks_"):
		distance, from = number-seconds(time.Now()), replayStart+time.Duration(p.ticks)*replayInterval
	case math.Abs(distance) < (24 * time.Hour).Seconds():
		distance *= replayInterval.Seconds() / recordInterval.Seconds()
	}
	return strconv.FormatFloat(math.Round(distance+from.Seconds()), 'f', -1, 64)
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// test is the recording as a test for promtool. The fleet may raise the alerts of the
// drama at any time, and no others.
func (p *tape) test(d drama, renamed *strings.Replacer) string {
	var text strings.Builder
	fmt.Fprintf(&text, "# Recorded by TestRecordFaults from a fleet of real brokers, every %v of real time; replayed every %v.\n# Left out: metrics that no rule uses, and codes of gRPC that never occurred.\n", recordInterval, replayInterval)
	fmt.Fprintf(&text, "rule_files: [../tokenbroker.rules.yaml]\nevaluation_interval: %v\ntests:\n  - interval: %v\n    name: %s\n    input_series:\n", replayInterval, replayInterval, d.name)
	names := make([]string, 0, len(p.series))
	for name, samples := range p.series {
		if strings.HasPrefix(name, "grpc_") && !slices.ContainsFunc(samples, func(sample string) bool { return sample != "0" && sample != "" }) {
			continue // hundreds of series that say nothing
		}
		names = append(names, name)
	}
	slices.Sort(names)
	first := int(replayStart / replayInterval)
	for _, name := range names {
		fmt.Fprintf(&text, "      - series: '%s'\n        values: '_x%d %s'\n", renamed.Replace(name), first, notation(p.series[name], p.ticks))
	}
	end := replayStart + time.Duration(p.ticks)*replayInterval
	fmt.Fprintf(&text, "    promql_expr_test:\n      - expr: group by (alertname) (count_over_time(ALERTS{alertstate=\"firing\"}[%v]))\n        eval_time: %v\n        exp_samples:", end, end)
	if len(d.alerts) == 0 {
		text.WriteString(" []")
	}
	text.WriteString("\n")
	for _, alert := range d.alerts {
		fmt.Fprintf(&text, "          - {labels: '{alertname=%q}', value: 1}\n", alert)
	}
	return text.String()
}

// notation writes samples as promtool reads them.
func notation(samples []string, ticks int) string {
	for len(samples) < ticks {
		samples = append(samples, "")
	}
	var parts []string
	for at := 0; at < len(samples); {
		next := at + 1
		for next < len(samples) && samples[next] == samples[at] {
			next++
		}
		run, value := next-at, samples[at]
		switch {
		case value == "" && at > 0: // Prometheus ends the series of a target that does not answer
			parts = append(parts, "stale")
			if run > 1 {
				parts = append(parts, fmt.Sprintf("_x%d", run-1))
			}
		case value == "":
			parts = append(parts, fmt.Sprintf("_x%d", run))
		case run == 1:
			parts = append(parts, value)
		default:
			parts = append(parts, fmt.Sprintf("%s+0x%d", value, run-1))
		}
		at = next
	}
	return strings.Join(parts, " ")
}
