package main

import (
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/app"
)

func TestLogsTellDurationsAsPeopleDo(t *testing.T) {
	for format, want := range map[string]string{"json": `"took":"1.5s"`, "text": "took=1.5s"} {
		var out strings.Builder
		newLogger(&out, app.LogConfig{Level: "info", Format: format}).Info("slow call", "took", 1500*time.Millisecond)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s, want %s", format, out.String(), want)
		}
	}
}
