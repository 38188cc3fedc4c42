package app_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// lockedBuffer collects a log.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// A command that prints the secret gives the client its tokens, in memory and in a file. A
// failure of it changes nothing.
func TestExecSuppliesASecret(t *testing.T) {
	for _, kind := range []string{"memory", "bolt"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			kept := filepath.Join(dir, "kept")
			testkit.WriteFile(t, kept, "right\n")
			text := strings.Replace(sampleText(t, 1), "issuers:", fmt.Sprintf(
				"  printed: {issuer: %q, client_id: abc, audience: \"https://orders.example.com\", secret: {exec: {command: [/bin/sh, -c, 'cat \"$1\" || exit 7', sh, %s], every: 10s, environment: [PATH]}}}\nissuers:", idpIssuer, kept), 1)
			if kind == "bolt" {
				ring := filepath.Join(dir, "ring")
				if err := sealed.WriteRing(ring, sealed.GenerateRing()); err != nil {
					t.Fatal(err)
				}
				text += fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(dir, "bolt"), "file:"+ring)
			}
			idp, log := devIDP(t), new(lockedBuffer)
			served, err := app.New(parsed(t, text), app.Options{Logger: slog.New(slog.NewJSONHandler(log, nil)), Transport: idp.RoundTripper()})
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- served.Run(ctx) }()
			defer func() { stop(); <-ended }()
			awaitText(t, func() string {
				if _, err := served.Broker().Get(t.Context(), policy.Self(), broker.Ask{Client: "printed"}); err != nil {
					return err.Error()
				}
				return "token"
			}, "token")

			idp.SetSecrets("abc", redact.New("right"), redact.New("newer"))
			testkit.WriteFile(t, kept, "newer\n")
			awaitText(t, func() string {
				status, err := served.Broker().Client(t.Context(), policy.Self(), "printed")
				if err != nil {
					t.Fatal(err)
				}
				return fmt.Sprint(len(status.Versions), status.Versions[0].State, " by ", status.Versions[0].CreatedBy)
			}, "2 current by exec:/bin/sh")

			if err := os.Remove(kept); err != nil {
				t.Fatal(err)
			}
			awaitText(t, func() string { _, page := read(t, "http://"+served.OpsAddr()+"/metrics"); return page },
				`tokenbroker_findings{id="secret-source-failing",severity="warning"} 1`)
			if _, err := served.Broker().Get(t.Context(), policy.Self(), broker.Ask{Client: "printed"}); err != nil {
				t.Error(err)
			}
			testkit.WriteFile(t, kept, "newer\n")
			awaitText(t, log.String, "a secret can be read from its source again")
			if got := log.String(); !strings.Contains(got, "/bin/sh: it ended with exit code 7 (it wrote ") || strings.Count(got, `"msg":"a secret cannot be read from its source`) != 1 {
				t.Errorf("the log does not have the failure once:\n%s", got)
			}
		})
	}
}

// awaitText waits until a text contains a part.
func awaitText(t *testing.T, text func() string, part string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !strings.Contains(text(), part) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %s", part, text())
		}
		time.Sleep(50 * time.Millisecond)
	}
}
