package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The dashboards in the repository are those that the table of metrics yields, and each
// metric is in one of them.
func TestDashboardsAreUpToDate(t *testing.T) {
	page := filepath.Join("..", "..", "docs", "metrics.md")
	files, err := generate(page)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join("..", "..", "deploy", "grafana", name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("deploy/grafana/%s is not what docs/metrics.md yields: run go generate ./internal/dashboard (%v)", name, err)
		}
		all.Write(want)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range table(string(text)) {
		if !strings.Contains(all.String(), m.name+"{") && !strings.Contains(all.String(), m.name+"_bucket{") {
			t.Errorf("no dashboard shows %s", m.name)
		}
	}
	if rows := strings.Count(string(text), "| counter |") + strings.Count(string(text), "| gauge |") + strings.Count(string(text), "| histogram |"); len(table(string(text))) != rows {
		t.Errorf("the table has %d rows, of which %d are read", rows, len(table(string(text))))
	}
}
