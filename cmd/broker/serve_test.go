package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/config"
)

func TestLogDurationsAreReadable(t *testing.T) {
	for format, want := range map[string]string{"json": `"took":"1.5s"`, "text": "took=1.5s"} {
		var out strings.Builder
		newLogger(&out, config.Log{Level: "info", Format: format}).Info("slow call", "took", 1500*time.Millisecond)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s, want %s", format, out.String(), want)
		}
	}
}

// The file is an argument or a flag. The file is invalid, so that the error shows that it
// was read.
func TestServe_fileAsArgumentOrFlag(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.yaml")
	if err := os.WriteFile(file, []byte("log: {level: loud}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, want string
		args       []string
	}{
		{"argument", file + ":1: log.level", []string{file}},
		{"flag", file + ":1: log.level", []string{"--config", file}},
		{"both", "given twice", []string{file, "--config", file}},
		{"neither", "broker serve FILE", nil},
		{"two files", "at most 1 arg", []string{file, file}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := newRoot()
			root.SetArgs(append([]string{"serve"}, tt.args...))
			if err := root.Execute(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}
