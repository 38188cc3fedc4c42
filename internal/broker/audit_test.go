package broker_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// line is what the tests look at in a line of the audit.
type line struct {
	Event, Outcome, Caller, Action, Reason, Rejection, Detail, Comment, Client, Origin, Issuer, Subject, Revocation, Peer string

	Audiences, Scopes []string
	GrantedScopes     []string `json:"granted_scopes"`
	RequestID         string   `json:"request_id"`
	Count             int
	SHA256            string `json:"token_sha256"`
}

// book is an audit and its file.
type book struct {
	*audit.Log

	t    testing.TB
	path string
	read int // lines that were seen
}

func openBook(t testing.TB, cfg audit.Config) *book {
	t.Helper()
	if cfg.File == "" {
		cfg.File = filepath.Join(t.TempDir(), "audit.jsonl")
	}
	cfg.Logger = slog.New(slog.DiscardHandler)
	log, err := audit.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = log.Close() })
	return &book{Log: log, t: t, path: cfg.File}
}

// news are the lines since the last time.
func (b *book) news() (lines []line) {
	b.t.Helper()
	if err := b.Flush(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	file, err := os.Open(b.path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer file.Close()
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		var one line
		if err := json.Unmarshal(scanner.Bytes(), &one); err != nil {
			b.t.Fatal(err)
		}
		lines = append(lines, one)
	}
	lines, b.read = lines[b.read:], len(lines)
	return lines
}

// expect checks that there is one new line, and that it is so.
func (b *book) expect(what string, is func(line) bool) {
	b.t.Helper()
	if lines := b.news(); len(lines) != 1 || !is(lines[0]) {
		b.t.Errorf("%s: %+v", what, lines)
	}
}

func startAudited(t testing.TB, cfg audit.Config) (*fleet, *book) {
	t.Helper()
	b := openBook(t, cfg)
	f := startAs(t, nil, func(cfg *broker.Config) {
		cfg.Audit = b.Log
		cfg.Setup.Policy = policy.New(policy.Config{
			Callers: []policy.CallerConfig{{Name: "checkout", Roles: []string{"r"}}, {Name: "batch", Roles: []string{"r"}}, {Name: "reader", Roles: []string{"read"}}},
			Roles: map[string]policy.Role{
				"r":    {Get: []policy.GetGrant{{Client: "orders", Audiences: []string{"*"}}}},
				"read": {Get: []policy.GetGrant{{Client: "orders", Scopes: []string{"read"}}}},
			},
			Clients: map[string]policy.Defaults{"orders": {Audience: audience, Scopes: []string{"read", "write"}}},
		})
	})
	return f, b
}

func (f *fleet) get(t testing.TB, caller string, ask broker.Ask) (broker.Answer, error) {
	t.Helper()
	return f.Get(t.Context(), f.Policy().Named(caller), ask)
}

func TestAudit_tokens(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, b := startAudited(t, audit.Config{From: func(context.Context) string { return "10.0.0.1:1" }})
		ctx, cancel := context.WithCancel(t.Context())
		go f.Run(ctx)
		defer cancel()
		var digest string
		for i, want := range []line{{Caller: "checkout", Origin: "fetched"}, {Caller: "batch", Origin: "memory"}} {
			for range 3 {
				answer, err := f.get(t, want.Caller, orders())
				if err != nil {
					t.Fatal(err)
				}
				digest = hex.EncodeToString(answer.Token.SHA256[:])
			}
			b.expect(fmt.Sprint("caller ", i), func(l line) bool {
				return l.Event == "token" && l.Outcome == "ok" && l.Caller == want.Caller && l.Client == "orders" && l.Origin == want.Origin && l.SHA256 == digest &&
					fmt.Sprint(l.Audiences, l.Scopes, l.GrantedScopes) == fmt.Sprint([]string{audience}, []string{"read", "write"}, []string{"read", "write"}) && l.Peer == "10.0.0.1:1"
			})
		}
		time.Sleep(audit.SumInterval)
		synctest.Wait()
		lines := b.news()
		for _, l := range lines {
			if l.Count != 2 || l.SHA256 != digest || l.Client != "orders" {
				t.Errorf("line %+v", l)
			}
		}
		if len(lines) != 2 {
			t.Errorf("%d sums, want one of each caller: %+v", len(lines), lines)
		}
		// Another token is a line again.
		time.Sleep(31 * time.Second)
		if answer, err := f.get(t, "checkout", orders()); err != nil || hex.EncodeToString(answer.Token.SHA256[:]) == digest {
			t.Fatalf("the token is still the same: %v", err)
		}
		b.expect("another token", func(l line) bool { return l.Caller == "checkout" && l.SHA256 != digest && l.Count == 0 })
	})
}

func TestAudit_denials(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, b := startAudited(t, audit.Config{})
		for _, tt := range []struct {
			what, caller string
			ask          broker.Ask
			audience     string // as it was judged
		}{
			{"no such client", "checkout", broker.Ask{Client: "billing", Audience: "a"}, "a"},
			{"nobody", "nobody", orders(), audience},
			{"another audience", "reader", broker.Ask{Client: "orders", Audience: "a", Scopes: []string{"read"}}, "a"},
		} {
			_, err := f.get(t, tt.caller, tt.ask)
			wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
			b.expect(tt.what, func(l line) bool {
				return l.Event == "token" && l.Outcome == "denied" && l.Caller == tt.caller && l.Client == tt.ask.Client && l.Reason == apierror.ReasonNotEntitled &&
					slices.Equal(l.Audiences, []string{tt.audience}) && l.SHA256 == ""
			})
		}
	})
}

func TestAudit_hitAllocatesNothing(t *testing.T) {
	f, _ := startAudited(t, audit.Config{})
	caller := f.Policy().Named("checkout")
	get := func() {
		if _, err := f.Get(t.Context(), caller, orders()); err != nil {
			t.Fatal(err)
		}
	}
	get()
	if n := testing.AllocsPerRun(1000, get); n > 0 {
		t.Errorf("%v allocations a hit", n)
	}
}

func TestAudit_sumsOutliveEviction(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := openBook(t, audit.Config{})
		f := startAs(t, nil, func(cfg *broker.Config) { cfg.Audit, cfg.MaxEntries = b.Log, 64 })
		twice := func(ask broker.Ask) {
			f.mustGet(t, ask)
			f.mustGet(t, ask)
		}
		total := func() (times int) {
			for _, l := range b.news() {
				times += max(l.Count, 1)
			}
			return times
		}
		twice(orders())
		for i := range 50 { // most find another one in their place and put it out
			twice(broker.Ask{Client: "orders", Audience: audienceNo(i)})
		}
		time.Sleep(91 * time.Second)
		twice(orders()) // another token
		if err := f.Apply(broker.Setup{}); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if got := total(); got != 104 {
			t.Errorf("%d times were written down, of 104", got)
		}
	})
}

func TestAudit_unwrittenIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f, b := startAudited(t, audit.Config{File: "/dev/full", Refuse: true})
		if _, err := f.get(t, "checkout", orders()); err != nil {
			t.Fatal(err) // it was not known yet
		}
		_ = b.Flush(t.Context())
		_, err := f.get(t, "batch", orders())
		if told := wantError(t, err, apierror.Unavailable, apierror.ReasonUnaudited); told.RetryAfter == 0 {
			t.Error("it does not say when to try again")
		}
		_, err = f.get(t, "nobody", orders())
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
		if _, err := f.get(t, "checkout", orders()); err != nil {
			t.Errorf("who has the token already is refused: %v", err)
		}
		wantError(t, f.Purge(t.Context(), policy.Self(), purgeOf("orders")), apierror.Unavailable, apierror.ReasonUnaudited)
		wantError(t, f.Purge(t.Context(), f.Policy().Named("checkout"), purgeOf("orders")), apierror.PermissionDenied, apierror.ReasonNotEntitled)
		if _, err := f.get(t, "checkout", orders()); err != nil {
			t.Errorf("the tokens were purged although that could not be written down: %v", err)
		}
		watched := 0
		err = f.Watch(t.Context(), func() (*policy.Caller, error) { return f.Policy().Named("batch"), nil }, orders(),
			func(broker.Answer) error { watched++; return nil })
		wantError(t, err, apierror.Unavailable, apierror.ReasonUnaudited)
		if watched > 0 {
			t.Error("a watch was given a token")
		}
	})
}

func TestAudit_operators(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := openBook(t, audit.Config{})
		j := startJudges(t, 0)
		j.audit = b.Log
		one := j.add(j.shared)
		made := j.revoke(one, revocation.Revocation{Subject: "alice", Reason: "left"}, "1")
		b.expect("a revocation", func(l line) bool {
			return l.Event == "admin" && l.Outcome == "ok" && l.Action == "revoke_tokens" && l.Subject == "alice" && l.Issuer == issuer && l.Revocation == made.ID && l.Caller == policy.Self().Name() &&
				l.RequestID == "1" && l.Comment == "left" && l.Detail == ""
		})
		if _, err := one.Revocations().List(t.Context(), policy.Self(), issuer); err != nil {
			t.Fatal(err)
		}
		b.expect("a list", func(l line) bool { return l.Action == "list_revocations" && l.Outcome == "ok" && l.Issuer == issuer })
		if err := one.Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: made.ID, Request: "2", Reason: "a mistake"}); err != nil {
			t.Fatal(err)
		}
		b.expect("its end", func(l line) bool {
			return l.Action == "delete_revocation" && l.Outcome == "ok" && l.Subject == "alice" && l.Revocation == made.ID && l.RequestID == "2" && l.Comment == "a mistake"
		})
		_ = one.Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: "none", Request: "3", Reason: "a mistake"})
		b.expect("the end of none", func(l line) bool {
			return l.Action == "delete_revocation" && l.Outcome == "refused" && l.Revocation == "none" && l.Reason == apierror.ReasonNoSuchRevocation &&
				l.RequestID == "3" && l.Comment == "a mistake" && l.Detail != ""
		})
		_, _ = one.Revocations().Revoke(t.Context(), policy.Self(), revocation.Revocation{Issuer: "x"}, "1")
		b.expect("a bad one", func(l line) bool { return l.Outcome == "refused" && l.Reason == apierror.ReasonInvalidRequest })
		_, _ = one.Revocations().Revoke(t.Context(), nil, revocation.Revocation{Issuer: issuer, Subject: "bob"}, "1")
		b.expect("by nobody", func(l line) bool { return l.Outcome == "denied" && l.Caller == "nobody" && l.Subject == "bob" })
		_ = one.Purge(t.Context(), nil, purgeOf("orders"))
		b.expect("a purge by nobody", func(l line) bool { return l.Outcome == "denied" && l.Action == "purge_tokens" && l.Client == "orders" })

		without := j.add(awayFrom(j))
		_ = without.Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: made.ID})
		b.expect("without a store", func(l line) bool { return l.Outcome == "failed" && l.Reason == apierror.ReasonRevocationsUnknown })
	})
}

// awayFrom is a way to the judges' store on which nobody gets there.
func awayFrom(j *judges) *link {
	way := &link{}
	way.to.Store(j.shared.(*store.Memory))
	way.state.Store(refused)
	return way
}

func TestAudit_purge(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := openBook(t, audit.Config{})
		f := startAs(t, nil, func(cfg *broker.Config) { cfg.Audit = b.Log })
		if err := f.Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		b.expect("a purge", func(l line) bool {
			return l.Event == "admin" && l.Outcome == "ok" && l.Action == "purge_tokens" && l.Client == "orders"
		})
	})
}

func TestAudit_verifications(t *testing.T) {
	for which, want := range map[audit.Verifications][]string{
		audit.NoVerifications:       {"denied"},
		audit.RejectedVerifications: {"rejected", "denied"},
		audit.AllVerifications:      {"active", "rejected", "undecided", "denied"},
	} {
		inBubble(t, func(t *testing.T) {
			b := openBook(t, audit.Config{Verifications: which})
			j := startJudges(t, 0)
			j.audit = b.Log
			one, without := j.add(j.shared), j.add(awayFrom(j))
			good := j.token("alice", "app", "1")
			_, _ = one.Verify(t.Context(), policy.Self(), good, verify.Request{})
			_, _ = one.Verify(t.Context(), policy.Self(), redact.New("junk"), verify.Request{})
			_, _ = without.Verify(t.Context(), policy.Self(), good, verify.Request{})
			_, _ = one.Verify(t.Context(), nil, good, verify.Request{})
			var got []string
			for _, l := range b.news() {
				got = append(got, l.Outcome)
				reason := map[string]string{"undecided": apierror.ReasonRevocationsUnknown, "denied": apierror.ReasonNotEntitled}[l.Outcome]
				if l.Reason != reason || (l.Rejection == "malformed") != (l.Outcome == "rejected") {
					t.Errorf("%s: reason %q, rejection %q", l.Outcome, l.Reason, l.Rejection)
				}
				sum := good.SHA256()
				if of := l.SHA256 == hex.EncodeToString(sum[:]); l.Event != "verification" || of == (l.Outcome == "rejected") || (l.Subject == "alice") != (l.Outcome == "active") {
					t.Errorf("line %+v", l)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%v are told, want %v", got, want)
			}
		})
	}
}

func TestAudit_unwrittenVerificationFails(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		b := openBook(t, audit.Config{File: "/dev/full", Refuse: true, Verifications: audit.AllVerifications})
		j := startJudges(t, 0)
		j.audit = b.Log
		one := j.add(j.shared)
		b.Record(&audit.Event{Event: audit.Start})
		_ = b.Flush(t.Context())
		_, err := one.Verify(t.Context(), policy.Self(), j.token("alice", "app", "1"), verify.Request{})
		wantError(t, err, apierror.Unavailable, apierror.ReasonUnaudited)
		if result, err := one.Verify(t.Context(), policy.Self(), redact.New("junk"), verify.Request{}); err != nil || result.Rejection == nil {
			t.Errorf("a bad token is not rejected: %v", err)
		}
	})
}

func BenchmarkWarmGetAudited(b *testing.B) {
	for name, cfg := range map[string]*audit.Config{"off": nil, "first": {File: "/dev/null"}, "every": {File: "/dev/null", EveryToken: true}} {
		b.Run(name, func(b *testing.B) {
			f := startAs(b, nil, func(to *broker.Config) {
				if cfg != nil {
					to.Audit = openBook(b, *cfg).Log
				}
			})
			ctx, caller, ask := b.Context(), policy.Self(), orders()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := f.Get(ctx, caller, ask); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
