// Command dashboard generates the Grafana dashboards in deploy/grafana from the table of
// metrics in docs/metrics.md.
package main

//go:generate go run . ../..

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: dashboard ROOT, the root of the repository")
	}
	files, err := generate(filepath.Join(args[0], "docs", "metrics.md"))
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(args[0], "deploy", "grafana", name), data, 0o644); err != nil { //nolint:gosec // no secret
			return err
		}
	}
	return nil
}

// metric is one row of the table.
type metric struct {
	name, kind string
	labels     []string
	meaning    string
}

func (m metric) has(label string) bool { return slices.Contains(m.labels, label) }

// generate returns the dashboards by file name.
func generate(page string) (map[string][]byte, error) {
	text, err := os.ReadFile(page) //nolint:gosec // the developer names the repository
	if err != nil {
		return nil, err
	}
	metrics := table(string(text))
	if len(metrics) == 0 {
		return nil, fmt.Errorf("%s has no table of metrics", page)
	}
	instance := variable("instance", "tokenbroker_build_info")
	client := variable("client", "tokenbroker_client_backoff")
	files := map[string][]byte{}
	for _, d := range []struct {
		file, title string
		shows       func(metric) bool
		variables   []any
	}{
		{"fleet.json", "Token broker: fleet", func(m metric) bool { return !m.has("client") }, []any{dataSource(), instance}},
		{"client.json", "Token broker: client", func(m metric) bool { return m.has("client") }, []any{dataSource(), instance, client}},
	} {
		if files[d.file], err = dashboard(d.title, d.variables, slices.DeleteFunc(slices.Clone(metrics), func(m metric) bool { return !d.shows(m) })); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// table returns the rows of the table of metrics.
func table(page string) []metric {
	var metrics []metric
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (counter|gauge|histogram) \\| ([^|]*) \\| (.*) \\|$|(?m)^\\| `(\\w+)` \\| (counter|gauge|histogram) \\| \\| (.*) \\|$").FindAllStringSubmatch(page, -1) {
		m := metric{name: row[1] + row[5], kind: row[2] + row[6], meaning: row[4] + row[7]}
		for _, label := range regexp.MustCompile("`(\\w+)`(?:,|$)").FindAllStringSubmatch(strings.TrimSpace(row[3]), -1) {
			m.labels = append(m.labels, label[1])
		}
		metrics = append(metrics, m)
	}
	return metrics
}

// sections are the rows of a dashboard, by the beginnings of the names in them.
func sections() []struct {
	title    string
	prefixes []string
} {
	return []struct {
		title    string
		prefixes []string
	}{
		{"Calls", []string{"grpc_", "tokenbroker_http_", "tokenbroker_limited_"}},
		{"Tokens and identity providers", []string{"tokenbroker_token_", "tokenbroker_idp_", "tokenbroker_cache_", "tokenbroker_client_"}},
		{"Secrets", []string{"tokenbroker_secret_"}},
		{"Verification", []string{"tokenbroker_verif", "tokenbroker_jwks_", "tokenbroker_introspections_", "tokenbroker_revocations"}},
		{"Store", []string{"tokenbroker_store_", "tokenbroker_redis_"}},
		{"Connections and certificates", []string{"tokenbroker_handshake_", "tokenbroker_tls_"}},
		{"Audit, configuration and versions", []string{"tokenbroker_"}},
	}
}

// Sizes in Grafana's grid.
const (
	gridWidth   = 24
	panelWidth  = 8
	panelHeight = 8
)

func dashboard(title string, variables []any, metrics []metric) ([]byte, error) {
	var panels []any
	y := 0
	for _, section := range sections() {
		x := 0
		for _, m := range metrics {
			if !slices.ContainsFunc(section.prefixes, func(prefix string) bool { return strings.HasPrefix(m.name, prefix) }) {
				continue
			}
			if x == 0 && (len(panels) == 0 || !slices.Contains(titles(panels), section.title)) {
				panels = append(panels, panel{"id": len(panels) + 1, "type": "row", "title": section.title, "collapsed": false, "gridPos": grid(0, y, gridWidth, 1)})
				y++
			}
			panels = append(panels, m.panel(len(panels)+1, x, y))
			if x += panelWidth; x == gridWidth {
				x, y = 0, y+panelHeight
			}
		}
		if x > 0 {
			y += panelHeight
		}
		metrics = slices.DeleteFunc(metrics, func(m metric) bool {
			return slices.ContainsFunc(section.prefixes, func(prefix string) bool { return strings.HasPrefix(m.name, prefix) })
		})
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err := encoder.Encode(map[string]any{
		"uid": strings.ReplaceAll(strings.ToLower(strings.ReplaceAll(title, ":", "")), " ", "-"), "title": title, "tags": []string{"tokenbroker"},
		"schemaVersion": 39, "editable": true, "refresh": "30s", "time": map[string]string{"from": "now-6h", "to": "now"},
		"templating": map[string]any{"list": variables}, "panels": panels,
	})
	return out.Bytes(), err
}

type panel = map[string]any

func titles(panels []any) []string {
	var all []string
	for _, one := range panels {
		if of, ok := one.(panel); ok && of["type"] == "row" {
			all = append(all, fmt.Sprint(of["title"]))
		}
	}
	return all
}

func grid(x, y, w, h int) map[string]int { return map[string]int{"x": x, "y": y, "w": w, "h": h} }

const source = "${datasource}"

func (m metric) panel(id, x, y int) panel {
	var targets []any
	for i, q := range m.queries() {
		targets = append(targets, map[string]any{
			"refId": string(rune('A' + i)), "expr": q.expr, "legendFormat": q.legend, "datasource": map[string]string{"type": "prometheus", "uid": source},
		})
	}
	return panel{
		"id": id, "type": "timeseries", "title": m.title(), "description": strings.ReplaceAll(m.meaning, "`", ""), "targets": targets,
		"datasource":  map[string]string{"type": "prometheus", "uid": source},
		"fieldConfig": map[string]any{"defaults": map[string]any{"unit": m.unit(), "min": 0}, "overrides": []any{}},
		"gridPos":     grid(x, y, panelWidth, panelHeight),
	}
}

func (m metric) title() string {
	name := strings.TrimPrefix(m.name, "tokenbroker_")
	for _, suffix := range []string{"_total", "_timestamp_seconds", "_seconds", "_bytes"} {
		name = strings.TrimSuffix(name, suffix)
	}
	title := strings.ReplaceAll(name, "_", " ")
	switch {
	case m.kind == "counter":
		title += " per second"
	case m.isEnd():
		title += ": time left"
	case m.isTime():
		title += ": age"
	}
	return title
}

func (m metric) isTime() bool { return strings.HasSuffix(m.name, "_timestamp_seconds") }
func (m metric) isEnd() bool  { return strings.HasSuffix(m.name, "_expiry_timestamp_seconds") }

func (m metric) unit() string {
	switch {
	case m.kind == "counter":
		return "cps"
	case strings.HasSuffix(m.name, "_seconds"):
		return "s"
	case strings.HasSuffix(m.name, "_bytes"):
		return "bytes"
	default:
		return "short"
	}
}

type query struct{ expr, legend string }

// tooManySeries is the number of labels from which a panel leaves out series at 0.
const tooManySeries = 3

func (m metric) queries() []query {
	selector := `{instance=~"$instance"}`
	if m.has("client") {
		selector = `{instance=~"$instance",client=~"$client"}`
	}
	by := strings.Join(m.labels, ", ")
	legend := strings.Join(braced(m.labels), " ")
	switch {
	case m.kind == "histogram":
		var quantiles []query
		for _, q := range []string{"0.5", "0.99"} {
			quantiles = append(quantiles, query{
				fmt.Sprintf("histogram_quantile(%s, sum by (%s) (rate(%s_bucket%s[$__rate_interval])))", q, strings.Join(append([]string{"le"}, m.labels...), ", "), m.name, selector),
				strings.TrimSpace("p" + strings.TrimPrefix(q+"0", "0.")[:2] + " " + legend),
			})
		}
		return quantiles
	case m.kind == "counter":
		expr := fmt.Sprintf("sum by (%s) (rate(%s%s[$__rate_interval]))", by, m.name, selector)
		if len(m.labels) > tooManySeries {
			expr += " > 0"
		}
		return []query{{expr, legend}}
	}
	withInstance := append(slices.Clone(m.labels), "instance")
	by, legend = strings.Join(withInstance, ", "), strings.Join(braced(withInstance), " ")
	switch {
	case m.isEnd():
		return []query{{fmt.Sprintf("min by (%s) (%s%s) - time()", by, m.name, selector), legend}}
	case m.isTime():
		return []query{{fmt.Sprintf("time() - max by (%s) (%s%s)", by, m.name, selector), legend}}
	default:
		return []query{{fmt.Sprintf("max by (%s) (%s%s)", by, m.name, selector), legend}}
	}
}

func braced(labels []string) []string {
	all := make([]string, len(labels))
	for i, label := range labels {
		all[i] = "{{" + label + "}}"
	}
	return all
}

func dataSource() any {
	return map[string]any{"name": "datasource", "type": "datasource", "query": "prometheus"}
}

func variable(label, of string) any {
	return map[string]any{
		"name": label, "type": "query", "query": fmt.Sprintf("label_values(%s, %s)", of, label), "refresh": 2, "sort": 1,
		"multi": true, "includeAll": true, "allValue": ".*", "current": map[string]any{"text": "All", "value": "$__all"},
		"datasource": map[string]string{"type": "prometheus", "uid": source},
	}
}
