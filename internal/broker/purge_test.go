package broker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"os"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// purgeOf is a purge of its own.
func purgeOf(client string) broker.Purge { return broker.Purge{Client: client, Request: rand.Text()} }

func TestPurge_repeatedRequestID(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		get := func(at int) broker.Answer {
			t.Helper()
			answer, err := r.all[at].Get(t.Context(), policy.Self(), orders())
			if err != nil {
				t.Fatal(err)
			}
			return answer
		}
		purge := func(at int, request string) {
			t.Helper()
			if err := r.all[at].Purge(t.Context(), policy.Self(), broker.Purge{Client: "orders", Request: request}); err != nil {
				t.Fatal(err)
			}
		}
		first := get(0)
		purge(0, "one")
		second := get(0)
		if second.Token.SHA256 == first.Token.SHA256 || second.Token.Epoch <= first.Token.Epoch {
			t.Fatalf("the purge dropped nothing: %+v", second.Token)
		}
		purge(0, "one")
		purge(1, "one")
		if again := get(0); again.Token != second.Token {
			t.Error("the purge that was made again dropped a token")
		}
		purge(1, "two")
		third := get(1)
		if third.Token.Epoch <= second.Token.Epoch {
			t.Errorf("another purge opened the epoch %d", third.Token.Epoch)
		}
		time.Sleep(25 * time.Hour)
		purge(0, "one")
		if last := get(0); last.Token.Epoch <= third.Token.Epoch {
			t.Errorf("after its request was forgotten the purge opened the epoch %d", last.Token.Epoch)
		}
	})
}

// A purge that was remembered but not carried out, because the store went away
// between, is carried out when it is made again.
func TestPurge_repeatedAfterAFailure(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		b := r.all[0]
		if _, err := b.Get(t.Context(), policy.Self(), orders()); err != nil {
			t.Fatal(err)
		}
		asked := broker.Purge{Client: "orders", Request: "one"}
		failed := 0
		for calls := int64(0); ; calls++ {
			ctx, cancel := context.WithCancel(t.Context())
			before := b.link.calls.Load()
			go func() { // the calls of the store succeed so many times
				for b.link.calls.Load() <= before+calls && ctx.Err() == nil {
					time.Sleep(100 * time.Microsecond)
				}
				cancel()
			}()
			err := b.Purge(ctx, policy.Self(), asked)
			cancel()
			if err == nil {
				break
			}
			failed++
			wantError(t, err, apierror.Unavailable, apierror.ReasonStoreUnavailable)
		}
		answer, err := b.Get(t.Context(), policy.Self(), orders())
		if err != nil || answer.Token.Epoch == 0 || failed < 2 {
			t.Errorf("after %d failures: %+v, %v", failed, answer.Token, err)
		}
	})
}

func TestPurge_reasonIsAudited(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, b := startAudited(t, audit.Config{})
		if err := f.Purge(t.Context(), policy.Self(), broker.Purge{Client: "orders", Request: "one", Reason: "ticket 123"}); err != nil {
			t.Fatal(err)
		}
		b.expect("a purge", func(l line) bool { return l.Event == "admin" && l.Action == "purge_tokens" })
		text, err := os.ReadFile(b.path)
		if err != nil || !bytes.Contains(text, []byte(`"request_id":"one","comment":"ticket 123"`)) {
			t.Errorf("%s, %v", text, err)
		}
	})
}
