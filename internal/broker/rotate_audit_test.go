package broker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/rotation"
)

// written is what the audit has of secrets since the last time, such as
// "stage prove! rotate_secret!", where ! marks what was not done.
func (b *book) written() string {
	b.t.Helper()
	if err := b.Flush(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	data, err := os.ReadFile(b.path)
	if err != nil {
		b.t.Fatal(err)
	}
	all := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	var words []string
	for _, text := range all[b.read:] {
		var one struct{ Event, Outcome, Step, Action, Caller, Client string }
		if err := json.Unmarshal(text, &one); err != nil {
			b.t.Fatal(err)
		}
		word := one.Step + one.Action
		if one.Outcome != "ok" {
			word += "!"
		}
		if one.Caller == "" {
			word = "(" + word + ")" // by itself
		}
		if one.Event == "rotation" || one.Event == "admin" && one.Client == "orders" {
			words = append(words, word)
		}
	}
	b.read = len(all)
	return strings.Join(words, " ")
}

func TestAudit_rotationSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBook(t, audit.Config{From: func(context.Context) string { return "10.0.0.1:1" }})
		r := startReplicas(t, 0)
		r.audit = b.Log
		r.takes("one", "two", "three")
		one := r.start(broker.ClientConfig{Managed: true})
		for _, tt := range []struct {
			what string
			call func() error
			want string
		}{
			{"a rotation", func() error {
				_, err := rotation.New(one, nil).Rotate(t.Context(), policy.Self(), rotationTo("one"))
				return err
			}, "stage prove activate rotate_secret"},
			{"the same again", func() error {
				_, err := rotation.New(one, nil).Rotate(t.Context(), policy.Self(), rotationTo("one"))
				return err
			}, "stage rotate_secret"},
			{"a wrong secret", func() error {
				_, err := rotation.New(one, nil).Rotate(t.Context(), policy.Self(), rotationTo("wrong"))
				return err
			}, "stage prove! retire rotate_secret!"},
			{"a staged one", func() error {
				asked := rotationTo("two")
				asked.StageOnly = true
				_, err := rotation.New(one, nil).Rotate(t.Context(), policy.Self(), asked)
				return err
			}, "stage rotate_secret"},
			{"an activation", func() error {
				_, err := rotation.New(one, nil).Activate(t.Context(), policy.Self(), "", change("a"))
				return err
			}, "prove activate activate_secret"},
			{"a rollback", func() error {
				_, err := rotation.New(one, nil).Rollback(t.Context(), policy.Self(), change("b"))
				return err
			}, "prove activate rollback_secret"},
			{"retiring", func() error {
				_, err := rotation.New(one, nil).Retire(t.Context(), policy.Self(), idOf("two"), change("c"))
				return err
			}, "retire retire_secret"},
			{"a compromise", func() error {
				asked := rotationTo("three")
				asked.Compromised = true
				_, err := rotation.New(one, nil).Rotate(t.Context(), policy.Self(), asked)
				return err
			}, "stage prove activate purge rotate_secret"},
			{"a purge", func() error { return one.Purge(t.Context(), policy.Self(), purgeOf("orders")) }, "purge_tokens"},
			{"a stranger", func() error {
				_, err := rotation.New(one, nil).Rotate(t.Context(), nil, rotationTo("four"))
				return err
			}, "rotate_secret!"},
			{"by itself", func() error {
				asked := rotationTo("one")
				asked.StageOnly, asked.Request = true, "d"
				_, err := rotation.New(one, nil).Rotate(t.Context(), policy.Self(), asked)
				r.takes("one")
				r.everybody(1, orders())
				time.Sleep(time.Second)
				return err
			}, "stage rotate_secret (activate)"},
		} {
			_ = tt.call()
			synctest.Wait()
			if got := b.written(); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.what, got, tt.want)
			}
		}
		if data, err := os.ReadFile(b.path); err != nil || strings.Contains(string(data), `"three"`) {
			t.Error("a secret is in the audit")
		}
	})
}

// What the operator said stays, whatever the error says.
func TestAudit_failedRotationKeepsTheComment(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := openBook(t, audit.Config{})
		r := startReplicas(t, 0)
		r.audit = b.Log
		r.takes("one")
		one := r.start(broker.ClientConfig{Managed: true})
		asked := rotationTo("wrong")
		asked.Request, asked.Reason = "4b1e", "ticket 123"
		if _, err := rotation.New(one, nil).Rotate(t.Context(), policy.Self(), asked); err == nil {
			t.Fatal("a wrong secret is in use")
		}
		lines, failed := b.news(), 0
		for _, l := range lines {
			if l.RequestID != "4b1e" || l.Comment != "ticket 123" || (l.Outcome == "ok") != (l.Detail == "") || (l.Outcome == "ok") != (l.Reason == "") {
				t.Errorf("%+v", l)
			}
			if l.Outcome != "ok" {
				failed++
			}
		}
		if len(lines) != 4 || failed != 2 {
			t.Errorf("%d lines, %d of them of failures: %+v", len(lines), failed, lines)
		}
	})
}
