package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/server"
)

// auditLine is what the tests look at in a line of the audit.
type auditLine struct {
	Event, Outcome, Caller, Action, Reason, Detail, Peer string
	Count                                                int
}

// times is for how many acts the line stands.
func (l auditLine) times() int { return max(l.Count, 1) }

// book opens an audit, and returns its lines once it is closed.
func book(t *testing.T) (log *audit.Log, closed func() []auditLine) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	log, err := audit.Open(audit.Config{File: file, From: func(ctx context.Context) string {
		from, _ := peer.FromContext(ctx)
		return from.Addr.String()
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return log, func() (lines []auditLine) {
		if err := log.Close(); err != nil {
			t.Fatal(err)
		}
		content := must(os.ReadFile(file))
		for text := range bytes.Lines(content) {
			var one auditLine
			if err := json.Unmarshal(text, &one); err != nil {
				t.Fatal(err)
			}
			lines = append(lines, one)
		}
		return lines
	}
}

// Every call of every stranger has a line, or is counted in one.
func TestUnidentifiedCallersAreAudited(t *testing.T) {
	log, closed := book(t)
	w := newWorldOf(t, allowing(withBatch()...), func(c *server.Config) { c.Audit = log })
	calls, refused := 0, map[string]bool{}
	for name, s := range w.theStrangers() {
		for rpc, err := range rpcs(t, w.connect(s.config), s.header) {
			if status.Code(err) != s.code {
				t.Fatalf("%s, %s: %v", name, rpc, err)
			}
			if s.refused == "" {
				calls++
			}
		}
		if s.refused != "" {
			refused[s.refused] = true
		}
	}
	written, connections := 0, map[string]int{}
	for _, l := range closed() {
		switch {
		case l.Outcome != "unidentified" || l.Caller != "":
			t.Errorf("line %+v", l)
		case l.Event == "connection":
			connections[l.Reason] += l.times()
			if l.Count == 0 && l.Reason == "expired" && !strings.Contains(l.Detail, checkout) {
				t.Errorf("it does not say what was presented: %+v", l)
			}
		case l.Event == "call":
			written += l.times()
			if l.Count == 0 && (l.Reason != apierror.ReasonUnidentified || l.Peer == "" || !strings.HasPrefix(l.Action, "/") || !strings.Contains(l.Detail, "could not be identified")) {
				t.Errorf("line %+v", l)
			}
		}
	}
	if written != calls || calls < 1000 {
		t.Errorf("%d calls were made and %d written down", calls, written)
	}
	if connections[""] == 0 { // otherwise each has its reason
		for reason := range refused {
			if connections[reason] == 0 {
				t.Errorf("connections that were refused: %v, none for %s", connections, reason)
			}
		}
	}
}

func TestLimitErrorsAreAudited(t *testing.T) {
	log, closed := book(t)
	limited := slices.Clone(callersOfTheWorld())
	for i := range limited {
		limited[i].Limits = &policy.Limits{PerSecond: 0.001, Burst: 1, Watches: 1}
	}
	w := newWorldOf(t, allowing(limited...), func(c *server.Config) { c.Audit = log })
	api := w.api(w.with(w.ca, template(checkout)))
	ask := &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}
	_, first := api.GetToken(t.Context(), ask)
	_, second := api.GetToken(t.Context(), ask)
	if first != nil || status.Code(second) != codes.ResourceExhausted {
		t.Fatal(first, second)
	}
	lines := closed()
	if len(lines) != 1 || lines[0].Event != "call" || lines[0].Outcome != "limited" || lines[0].Caller == "" || lines[0].Reason != apierror.ReasonRateLimited || lines[0].Action != tokenbrokerv1.TokenBrokerService_GetToken_FullMethodName {
		t.Errorf("lines: %+v", lines)
	}
}
