package fleet

import (
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const (
	runbookFile = "../../../docs/runbook.md"
	// updateVariable has TestEachFaultIsReported write the table and the outputs of
	// commands into the runbook. Its value is a regular expression for the names of faults.
	updateVariable = "TOKENBROKER_RUNBOOK"

	scrapeInterval = 5 * time.Second
	reportPatience = 8 * time.Minute
)

// places are where a fault must show, in the order of the table.
var places = []string{"broker status", "status page", "log", "alert"}

// report is what a place said, and when.
type report struct {
	text  string
	after time.Duration
}

// runbook is the file that several faults update.
type runbook struct {
	mu   sync.Mutex
	rows []string // in the order of dramas; empty: not run
}

// Each fault shows in "broker status", on the status page, in the log and by an alert of a
// real Prometheus with the rules, and nothing else shows. It is over once it is mended.
func TestEachFaultIsReported(t *testing.T) {
	long(t)
	for _, peer := range []string{"redis-server", "prometheus", "promtool"} {
		harness.Need(t, peer)
	}
	chosen := regexp.MustCompile(os.Getenv(updateVariable))
	book := &runbook{rows: make([]string, len(dramas))}
	t.Run("faults", func(t *testing.T) {
		for i, d := range dramas {
			switch {
			case !chosen.MatchString(d.name):
			case d.reported != nil:
				t.Run(d.name, func(t *testing.T) {
					t.Parallel()
					book.rows[i] = d.report(t, book)
				})
			case chosen.String() != "" && d.alerts != nil:
				t.Run(d.name, func(t *testing.T) {
					t.Parallel()
					d.illustrate(t, book)
				})
			}
		}
	})
	table := tableHead + strings.Join(slices.DeleteFunc(slices.Clone(book.rows), func(row string) bool { return row == "" }), "")
	t.Logf("\n%s", table)
	if os.Getenv(updateVariable) == "." && !t.Failed() {
		book.update(t, func(text string) string {
			return regexp.MustCompile(`(?s)(<!-- table -->\n\n).*?(\n<!-- end of the table -->)`).ReplaceAllString(text, "${1}"+strings.ReplaceAll(table, "$", "$$")+"${2}")
		})
	}
}

const tableHead = "| fault | `broker status` and the status page | log | alert |\n|---|---|---|---|\n"

// report has the fault befall a fleet, and returns its row of the table.
func (d drama) report(t *testing.T, book *runbook) string {
	s := d.begin(t)
	prometheus := s.startPrometheus(t)
	s.learnNames(t)
	testkit.Succeeds(t, "a fleet without findings", func() error {
		if found := s.status(t, 0).GetFindings(); len(found) > 0 {
			return fmt.Errorf("there are findings: %v", found)
		}
		if text := s.page(t, 0); !strings.Contains(text, "Everything works.") {
			return fmt.Errorf("the page does not say that everything works: %s", text)
		}
		return nil
	})
	rest(t, 2*scrapeInterval)
	if fired := firing(t, prometheus); len(fired) > 0 {
		t.Errorf("alerts of a healthy fleet: %v", fired)
	}

	logged := s.logs()
	s.struck = time.Now()
	d.strike(t, s)
	seen := d.await(t, s, prometheus, logged)
	s.learnNames(t)
	d.onlyExpected(t, s, prometheus)
	if os.Getenv(updateVariable) != "" {
		book.capture(t, d, s)
	}
	d.mend(t, s)
	testkit.Succeeds(t, "the fault is over", func() error {
		ids := s.findings(t)
		if slices.Contains(ids, d.reported.findings[0]) || len(ids) > 0 && !d.reported.lasting {
			return fmt.Errorf("there are still findings: %v", ids)
		}
		return nil
	})
	names := s.names()
	row := "| " + d.reported.fault + " |"
	for i, place := range places {
		text := names.Replace(seen[place].text)
		if i == 1 {
			row = strings.TrimSuffix(row, " |") + fmt.Sprintf("; page %s |", whole(seen[place].after))
			continue
		}
		row += fmt.Sprintf(" %s: %s |", text, whole(seen[place].after))
	}
	return row + "\n"
}

func whole(d time.Duration) string { return fmt.Sprintf("%.0f s", d.Seconds()) }

// illustrate has the fault befall a fleet, for the outputs of commands in the runbook.
func (d drama) illustrate(t *testing.T, book *runbook) {
	s := d.begin(t)
	s.learnNames(t)
	if d.strike != nil {
		d.strike(t, s)
	}
	rest(t, 30*time.Second)
	book.capture(t, d, s)
}

// await waits until the fault shows in all places.
func (d drama) await(t *testing.T, s *scene, prometheus string, logged []string) map[string]report {
	t.Helper()
	seen := map[string]report{}
	id := d.reported.findings[0]
	look := map[string]func() string{
		"broker status": func() string {
			for _, one := range s.status(t, 0).GetFindings() {
				if one.GetId() == id {
					return fmt.Sprintf("%s [`%s`](#%s)", one.GetMessage(), id, id)
				}
			}
			return ""
		},
		"status page": func() string {
			if text := s.page(t, 0); strings.Contains(text, "docs/runbook.md#"+id+`"`) {
				return "the same"
			}
			return ""
		},
		"log": func() string {
			for i, text := range s.logs() {
				for line := range strings.Lines(strings.TrimPrefix(text, logged[min(i, len(logged)-1)])) {
					if containsAll(line, d.reported.log) {
						return summaryOf(t, line)
					}
				}
			}
			return ""
		},
		"alert": func() string {
			if slices.Contains(firing(t, prometheus), d.alerts[0]) {
				return fmt.Sprintf("[`%s`](#%s)", d.alerts[0], strings.ToLower(d.alerts[0]))
			}
			return ""
		},
	}
	for deadline := time.Now().Add(reportPatience); len(seen) < len(places); rest(t, 500*time.Millisecond) {
		for _, place := range places {
			if _, ok := seen[place]; ok {
				continue
			}
			if text := look[place](); text != "" {
				seen[place] = report{text, time.Since(s.struck)}
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v the fault shows only here: %v; findings %v, alerts %v", time.Since(s.struck), seen, s.findings(t), firing(t, prometheus))
		}
	}
	return seen
}

func containsAll(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(text, word) })
}

// summaryOf returns the level and the message of a line of the log.
func summaryOf(t *testing.T, line string) string {
	t.Helper()
	var fields struct{ Level, Msg string }
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		t.Fatalf("a line of the log is not JSON: %s", line)
	}
	return "`" + fields.Level + " " + fields.Msg + "`"
}

// onlyExpected checks that nothing else is reported.
func (d drama) onlyExpected(t *testing.T, s *scene, prometheus string) {
	t.Helper()
	for _, id := range s.findings(t) {
		if !slices.Contains(d.reported.findings, id) {
			t.Errorf("an unexpected finding: %s", id)
		}
	}
	for _, alert := range firing(t, prometheus) {
		if !slices.Contains(d.alerts, alert) {
			t.Errorf("an unexpected alert: %s", alert)
		}
	}
}

// status returns the status that a replica reports.
func (s *scene) status(t *testing.T, i int) *tokenbrokerv1.GetStatusResponse {
	t.Helper()
	res := s.Replicas[i].Run(t, "status", "--json")
	var status tokenbrokerv1.GetStatusResponse
	if err := protojson.Unmarshal([]byte(res.Stdout), &status); err != nil {
		t.Fatalf("status: %v: %v", err, res)
	}
	if (res.Code == 1) != (len(status.GetFindings()) > 0) {
		t.Errorf("%d findings, and the exit code %d", len(status.GetFindings()), res.Code)
	}
	return &status
}

// findings returns the ids of the findings.
func (s *scene) findings(t *testing.T) (ids []string) {
	t.Helper()
	for _, one := range s.status(t, 0).GetFindings() {
		ids = append(ids, one.GetId())
	}
	return ids
}

func (s *scene) page(t *testing.T, i int) string {
	t.Helper()
	text, err := fetched(t, &http.Client{Timeout: harness.Patience}, "http://"+s.targets()[i]+"/")
	if err != nil {
		t.Fatal(err)
	}
	return html.UnescapeString(text)
}

// logs returns the logs of the replicas.
func (s *scene) logs() (all []string) {
	for _, r := range s.Replicas {
		all = append(all, r.Process.Output.String())
	}
	return all
}

// learnNames learns the names of the processes that run now.
func (s *scene) learnNames(t *testing.T) {
	t.Helper()
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range s.Replicas {
		select {
		case <-r.Process.Exited:
		default:
			id := s.status(t, i).GetReplicas()[0].GetId()
			s.ids = append(s.ids, id, fmt.Sprintf("broker-%d/%s", i+1, strings.TrimPrefix(id, host+"/")))
		}
	}
}

// names replaces addresses and names of replicas, which differ from run to run.
func (s *scene) names() *strings.Replacer {
	return strings.NewReplacer(append(s.renames(), s.ids...)...)
}

// startPrometheus starts a Prometheus with the rules, and returns its address. It reads the
// replicas again from a file, because some are started later or at other ports.
func (s *scene) startPrometheus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	targets := filepath.Join(dir, "targets.json")
	write := func() {
		var groups []map[string]any
		for i, address := range s.targets() {
			groups = append(groups, map[string]any{"targets": []string{address}, "labels": map[string]string{"instance": fmt.Sprintf("broker-%d:9090", i+1)}})
		}
		text, err := json.Marshal(groups)
		if err == nil {
			err = os.WriteFile(targets+".new", text, 0o600)
		}
		if err == nil {
			err = os.Rename(targets+".new", targets)
		}
		if err != nil {
			t.Error(err)
		}
	}
	write()
	go func() {
		for last := s.targets(); wait(t.Context(), 200*time.Millisecond); {
			if now := s.targets(); !slices.Equal(now, last) {
				last = now
				write()
			}
		}
	}()
	config := harness.WriteFile(t, "prometheus.yaml", fmt.Sprintf(
		"global: {scrape_interval: %v, evaluation_interval: %v}\nrule_files: [%q]\nscrape_configs: [{job_name: tokenbroker, file_sd_configs: [{files: [%q], refresh_interval: 1s}]}]\n",
		scrapeInterval, scrapeInterval, rules, targets))
	address := harness.FreeAddress(t)
	process := harness.Start(t, dir, nil, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	process.Ready(t, func() bool {
		return harness.Answers(t, &http.Client{Timeout: harness.Patience}, "http://"+address+"/-/ready")
	})
	return address
}

// firing returns the alerts that fire.
func firing(t *testing.T, prometheus string) (names []string) {
	t.Helper()
	text, err := fetched(t, &http.Client{Timeout: harness.Patience}, "http://"+prometheus+"/api/v1/alerts")
	if err != nil {
		t.Fatal(err)
	}
	var response struct {
		Data struct {
			Alerts []struct {
				State  string
				Labels struct{ Alertname string }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &response); err != nil {
		t.Fatal(err)
	}
	for _, alert := range response.Data.Alerts {
		if alert.State == "firing" {
			names = append(names, alert.Labels.Alertname)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// update changes the runbook.
func (b *runbook) update(t *testing.T, change func(text string) string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	text, err := os.ReadFile(runbookFile)
	if err == nil {
		err = os.WriteFile(runbookFile, []byte(change(string(text))), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// console is a block of commands with their outputs.
var console = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")

// capture runs the commands in the sections that show this fault, and puts the outputs
// there.
func (b *runbook) capture(t *testing.T, d drama, s *scene) {
	t.Helper()
	mark, names := "<!-- output: "+d.name+" -->", s.names()
	b.update(t, func(text string) string {
		sections := strings.Split(text, "\n## ")
		for i, section := range sections {
			if !strings.Contains(section, mark) {
				continue
			}
			sections[i] = console.ReplaceAllStringFunc(section, func(block string) string {
				var filled strings.Builder
				for line := range strings.Lines(block) {
					if command, ok := strings.CutPrefix(line, "$ "); ok {
						filled.WriteString(line + shortened(names.Replace(s.typed(t, strings.TrimSpace(command)))))
					}
				}
				return "```console\n" + filled.String() + "```"
			})
		}
		return strings.Join(sections, "\n## ")
	})
}

// typed runs a command as it is typed on the host of the first replica.
func (s *scene) typed(t *testing.T, command string) string {
	t.Helper()
	if args, is := strings.CutPrefix(command, "redis-cli "); is {
		return s.redis.CLI(strings.Fields(args)...) + "\n"
	}
	first := s.Replicas[0]
	log := harness.WriteFile(t, "log", strings.Join(s.logs(), ""))
	words := []string{"localhost:9090", first.Ops, "journalctl -u tokenbroker -o cat", "cat " + log, "FILE", filepath.Base(first.File)}
	shell := first.Command("")
	shell.Name = "sh"
	shell.Env = append(shell.Env, "COLUMNS=110")
	res := shell.Run(t, "-c", "cd "+filepath.Dir(first.File)+" && "+strings.NewReplacer(words...).Replace(command))
	return res.Stdout + res.Stderr
}

// shortened cuts long lines and many lines.
func shortened(text string) string {
	const most, width = 14, 220
	var short strings.Builder
	for i, line := range slices.Collect(strings.Lines(text)) {
		if i == most {
			short.WriteString("…\n")
			break
		}
		line = strings.TrimRight(line, " \r\n")
		if runes := []rune(line); len(runes) > width {
			line = string(runes[:width]) + "…"
		}
		short.WriteString(line + "\n")
	}
	return short.String()
}
