package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// polling makes a client poll.
func polling() client.Option { return client.WithMaxWatches(0) }

// watchingAndPolling runs a test with a source that watches and with one that polls.
func watchingAndPolling(t *testing.T, test func(t *testing.T, opts ...client.Option)) {
	t.Helper()
	t.Run("watching", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { test(t) }) })
	t.Run("polling", func(t *testing.T) { synctest.Test(t, func(t *testing.T) { test(t, polling()) }) })
}

func TestColdCallersShareOneCall(t *testing.T) {
	watchingAndPolling(t, func(t *testing.T, opts ...client.Option) {
		b := brokertest.New(t)
		b.SetIdPDelay(300 * time.Millisecond)
		source := b.Client(opts...).TokenSource(name)
		const callers = 10_000
		tokens := make([]*client.Token, callers)
		var wg sync.WaitGroup
		for i := range tokens {
			wg.Go(func() { tokens[i], _ = source.Token(t.Context()) })
		}
		wg.Wait()
		for _, token := range tokens {
			if token == nil || token != tokens[0] {
				t.Fatal("a caller got another token, or none")
			}
		}
		if calls := b.Calls(); calls.GetToken+calls.WatchToken != 1 || b.IdPRequests() != 1 {
			t.Errorf("%+v, %d at the IdP", calls, b.IdPRequests())
		}
	})
}

func TestSameRequestSharesASource(t *testing.T) {
	b := brokertest.New(t)
	c := b.Client()
	if c.TokenSource(name, client.WithScopes("read", "write")) != c.TokenSource(name, client.WithScopes("write", "read", "write")) {
		t.Error("the order of scopes makes a difference")
	}
	sources := map[*client.Source]bool{}
	for _, opts := range [][]client.SourceOption{
		{}, {client.WithAudience("a")}, {client.WithScopes("a")}, {client.WithResources("a")}, {client.WithResources("a", "b")}, {client.WithResources("b", "a")},
		{client.WithScopes("a", "b")}, {client.WithScopes(`a""b`)}, {client.WithResources("a"), client.WithScopes("b")},
	} {
		sources[c.TokenSource(name, opts...)] = true
	}
	if len(sources) != 9 {
		t.Errorf("9 requests have %d sources", len(sources))
	}
}

// In a day of calls, the token is always valid, no caller waits, and the IdP gets no more
// requests than needed.
func TestTokenIsRefreshedAhead(t *testing.T) {
	watchingAndPolling(t, func(t *testing.T, opts ...client.Option) {
		b := brokertest.New(t)
		source := b.Client(opts...).TokenSource(name)
		mustToken(t, source)
		tokens := map[string]bool{}
		for range 24 * 60 * 60 / 10 {
			time.Sleep(10 * time.Second)
			start := time.Now()
			token := mustToken(t, source)
			if time.Since(start) > 0 {
				t.Fatal("a caller waited")
			}
			if left := time.Until(token.ExpiresAt()); left < 10*time.Minute {
				t.Fatalf("a token of an hour was not replaced with %v left", left)
			}
			tokens[token.AccessToken()] = true
		}
		if got := len(tokens); got < 24 || got > 24*3/2 || b.IdPRequests() > got+1 {
			t.Errorf("%d tokens in 24 h, %d requests", got, b.IdPRequests())
		}
		calls := b.Calls()
		t.Logf("in 24 h: %+v", calls)
		if len(opts) == 0 && calls.GetToken > 0 {
			t.Errorf("a source that watches made %d calls", calls.GetToken)
		}
		if limit := 24 * 60 * 12 / 10; calls.GetToken > limit {
			t.Errorf("a source that polls made %d calls", calls.GetToken)
		}
	})
}

// Without a broker a token is returned until its margin, and not after. Once the broker is
// back, there is soon another.
func TestTokenServesWithoutABroker(t *testing.T) {
	watchingAndPolling(t, func(t *testing.T, opts ...client.Option) {
		b := brokertest.New(t)
		source := b.Client(opts...).TokenSource(name)
		held := mustToken(t, source)
		b.Kill()
		var failed time.Duration // before the end
		for failed == 0 {
			time.Sleep(time.Second)
			token, err := source.Token(t.Context())
			left := time.Until(held.ExpiresAt())
			switch {
			case err != nil && status.Code(err) == codes.Unavailable:
				failed = left
			case err != nil:
				t.Fatal(err)
			case token != held || left <= 0:
				t.Fatalf("another token, or %v before the end", left)
			}
		}
		if failed > 12*time.Second {
			t.Errorf("a good token was withheld %v before its end", failed)
		}
		b.Start()
		for back := time.Now(); ; time.Sleep(100 * time.Millisecond) {
			if _, err := source.Token(t.Context()); err == nil {
				t.Logf("no token from %v before the end; another %v after the broker was back", failed, time.Since(back))
				break
			}
			if time.Since(back) > 20*time.Second {
				t.Fatal("the broker is back, and there is no token")
			}
		}
	})
}

func TestPurgeReachesWatchesAndPolls(t *testing.T) {
	watchingAndPolling(t, func(t *testing.T, opts ...client.Option) {
		bound := time.Second
		if len(opts) > 0 {
			bound = client.DefaultPollInterval * 11 / 10
		}
		b := brokertest.New(t)
		source := b.Client(opts...).TokenSource(name)
		for range 20 {
			old := mustToken(t, source)
			time.Sleep(7 * time.Second)
			b.Purge(name)
			purged := time.Now()
			for mustToken(t, source) == old {
				time.Sleep(10 * time.Millisecond)
				if elapsed := time.Since(purged); elapsed > bound+10*time.Millisecond {
					t.Fatalf("not within %v", elapsed)
				}
			}
		}
	})
}

func TestRejectedTokenIsReportedOnce(t *testing.T) {
	watchingAndPolling(t, func(t *testing.T, opts ...client.Option) {
		b := brokertest.New(t)
		source := b.Client(opts...).TokenSource(name)
		old := mustToken(t, source)
		b.SetIdPDelay(200 * time.Millisecond)
		before := b.Calls().GetToken
		replacements := make([]*client.Token, 1000)
		var wg sync.WaitGroup
		for i := range replacements {
			wg.Go(func() { replacements[i], _ = source.Rejected(t.Context(), old) })
		}
		synctest.Wait()
		if mustToken(t, source) != old {
			t.Error("a caller that did not report the token must not wait for another")
		}
		wg.Wait()
		current := mustToken(t, source)
		for _, token := range replacements {
			if token == nil || token.AccessToken() != current.AccessToken() || token.AccessToken() == old.AccessToken() {
				t.Fatal("a caller got another token, or none")
			}
		}
		if calls := b.Calls().GetToken - before; calls != 1 || b.IdPRequests() != 2 {
			t.Errorf("%d reports, %d tokens fetched", calls, b.IdPRequests())
		}
		if late, err := source.Rejected(t.Context(), old); err != nil || late != current || b.Calls().GetToken != before+1 {
			t.Errorf("a late report did not get the current token from memory: %v", err)
		}
	})
}

// An API that refuses everything costs one report in 30 s, and one replacement.
func TestRepeatedRejectionsCostOneReplacement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		source := b.Client().TokenSource(name)
		start := time.Now()
		for time.Since(start) < 5*time.Minute {
			token := mustToken(t, source)
			next, err := source.Rejected(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			if next == nil {
				t.Fatal("neither a token nor an error")
			}
			time.Sleep(100 * time.Millisecond)
		}
		// 10 replacements; each token is also reported once without a replacement.
		if n := b.IdPRequests(); n < 8 || n > 12 || b.Calls().GetToken > 25 {
			t.Errorf("5 min: %d reports, %d tokens fetched", b.Calls().GetToken, n)
		}
	})
}

func TestRejectedTokenStaysWithoutABroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		source := b.Client().TokenSource(name)
		old := mustToken(t, source)
		b.Kill()
		if _, err := source.Rejected(t.Context(), old); status.Code(err) != codes.Unavailable {
			t.Errorf("error = %v", err)
		}
		if mustToken(t, source) != old {
			t.Error("the token that is still valid for other APIs was dropped")
		}
	})
}

// While the broker fails, not each call of a source calls it.
func TestFailureIsShared(t *testing.T) {
	watchingAndPolling(t, func(t *testing.T, opts ...client.Option) {
		b := brokertest.New(t)
		source := b.Client(opts...).TokenSource(name)
		b.SetIdPDown(true)
		failures := 0
		for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(10 * time.Millisecond) {
			if _, err := source.Token(t.Context()); status.Code(err) != codes.Unavailable {
				t.Fatalf("error = %v", err)
			}
			failures++
		}
		calls := b.Calls()
		if n := calls.GetToken + calls.WatchToken; n < 5 || n > 60 {
			t.Errorf("%d failures cost %d calls", failures, n)
		}
		b.SetIdPDown(false)
		time.Sleep(2 * time.Minute) // the broker backs off, too
		mustToken(t, source)
	})
}

// A long outage is logged, but not each attempt; and so is its end.
func TestOutageIsLoggedInFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		var log strings.Builder
		source := b.Client(client.WithLogger(logTo(&log))).TokenSource(name)
		token := mustToken(t, source)
		b.Kill()
		time.Sleep(10 * time.Minute)
		mustToken(t, source)
		b.Start()
		time.Sleep(time.Minute)
		synctest.Wait()
		text := log.String()
		if warnings := strings.Count(text, "level=WARN"); warnings < 3 || warnings > 8 || !strings.Contains(text, "holding_one=true") {
			t.Errorf("%d lines for 10 min: %s", warnings, text)
		}
		if strings.Count(text, "returns tokens again") != 1 || strings.Contains(text, token.AccessToken()[:20]) {
			t.Error(text)
		}
	})
}

func TestCallerMayCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		b.SetIdPDelay(3 * time.Second)
		source := b.Client().TokenSource(name)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := source.Token(ctx)
		if status.Code(err) != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error = %v", err)
		}
		mustToken(t, source)
		if calls := b.Calls(); calls.WatchToken != 1 || b.IdPRequests() != 1 {
			t.Errorf("the second caller did not share the flight of the first: %+v, %d", calls, b.IdPRequests())
		}
	})
}

// An unused source lets its token expire, and makes no requests until the next use.
func TestIdleSourceStopsRefreshing(t *testing.T) {
	watchingAndPolling(t, func(t *testing.T, opts ...client.Option) {
		b := brokertest.New(t)
		source := b.Client(opts...).TokenSource(name)
		mustToken(t, source)
		time.Sleep(4 * time.Hour)
		idleRequests := b.IdPRequests()
		calls := b.Calls()
		time.Sleep(24 * time.Hour)
		if b.IdPRequests() != idleRequests || b.Calls() != calls {
			t.Errorf("an idle day: %d tokens fetched, %+v, before %+v", b.IdPRequests()-idleRequests, b.Calls(), calls)
		}
		if idleRequests > 4 {
			t.Errorf("%d tokens before it was idle", idleRequests)
		}
		for range 6 * 60 {
			mustToken(t, source)
			time.Sleep(time.Minute)
		}
		if got := b.IdPRequests() - idleRequests; got < 6 || got > 9 {
			t.Errorf("in use for 6 h: %d tokens", got)
		}
	})
}

// An idle source with a valid token returns it, and requests another at once.
func TestIdleSourceWakesWithItsToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t, brokertest.WithLifetime(24*time.Hour))
		source := b.Client(polling()).TokenSource(name)
		held := mustToken(t, source)
		time.Sleep(time.Hour)
		calls := b.Calls()
		b.Purge(name)
		time.Sleep(time.Hour)
		if b.Calls() != calls {
			t.Fatal("the source is not idle")
		}
		if mustToken(t, source) != held {
			t.Error("the source does not return the token that it holds")
		}
		synctest.Wait()
		if mustToken(t, source) == held {
			t.Error("the source did not request another")
		}
	})
}

func TestWatchesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		c := b.Client(client.WithMaxWatches(2))
		for _, scopes := range [][]string{{"read"}, {"write"}, {"read", "write"}, nil} {
			mustToken(t, c.TokenSource(name, client.WithScopes(scopes...)))
		}
		if calls := b.Calls(); calls.WatchToken != 2 || calls.GetToken != 2 {
			t.Errorf("%+v", calls)
		}
	})
}

// A call that is retried until the broker is back must not keep the source from opening
// the watch.
func TestWatchIsOpenedAgainHoweverLongTheBrokerIsAway(t *testing.T) {
	for away := time.Duration(0); away < 2*time.Second; away += 20 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			b := brokertest.New(t)
			source := b.Client().TokenSource(name)
			mustToken(t, source)
			time.Sleep(time.Minute)
			b.Stop()
			time.Sleep(away)
			b.Start()
			time.Sleep(10 * time.Second)
			if !watches(t, b, source) {
				t.Errorf("the source does not watch after the broker was away for %v", away)
			}
		})
	}
}

// watches reports whether a source notices a purge at once, which it does only by a watch.
func watches(t *testing.T, b *brokertest.Broker, source *client.Source) bool {
	t.Helper()
	old := mustToken(t, source)
	b.Purge(name)
	time.Sleep(time.Second)
	return mustToken(t, source) != old
}

func TestEndedWatchIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		source := b.Client(client.WithMaxWatches(1)).TokenSource(name)
		for round := range 5 {
			mustToken(t, source)
			time.Sleep(time.Minute)
			if round%2 == 0 {
				b.Stop()
			} else {
				b.Kill()
			}
			b.Start()
			time.Sleep(10 * time.Second)
			if !watches(t, b, source) {
				t.Fatalf("round %d: the source does not watch", round)
			}
		}
		if calls := b.Calls(); calls.GetToken > 5 {
			t.Errorf("%+v", calls)
		}
	})
}

func TestSourcePollsWithoutWatches(t *testing.T) {
	for label, watch := range map[string]func(*tokenbrokerv1.WatchTokenRequest, grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error{
		"not offered": nil,
		"refused": func(*tokenbrokerv1.WatchTokenRequest, grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error {
			return status.Error(codes.ResourceExhausted, "something on the way has no more streams")
		},
		"held back": func(_ *tokenbrokerv1.WatchTokenRequest, stream grpc.ServerStreamingServer[tokenbrokerv1.WatchTokenResponse]) error {
			<-stream.Context().Done()
			return stream.Context().Err()
		},
	} {
		t.Run(label, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n atomic.Int32
				s := &stub{watch: watch, get: func(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
					return newTokenResponse(fmt.Sprintf("token-%d", n.Add(1)), time.Hour), nil
				}}
				source := s.serve(t).TokenSource(name)
				mustToken(t, source)
				for range 60 {
					time.Sleep(time.Minute)
					mustToken(t, source)
				}
				gets, watches := s.calls()
				if gets < 40 || gets > 110 || watches > 80 {
					t.Errorf("in an hour: %d polls, %d watches tried", gets, watches)
				}
			})
		})
	}
}

// A replica that missed a replacement does not bring the old token back; the token of a
// replica that is ahead is adopted.
func TestLaggingReplicaBringsNoOldToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var current atomic.Value
		current.Store("first")
		s := &stub{get: func(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
			return newTokenResponse(current.Load().(string), time.Hour), nil
		}}
		source := s.serve(t, polling()).TokenSource(name)
		for _, step := range []struct{ broker, want string }{{"first", "first"}, {"second", "second"}, {"first", "second"}, {"third", "third"}, {"second", "third"}} {
			current.Store(step.broker)
			mustToken(t, source)
			time.Sleep(2 * time.Minute)
			if got := mustToken(t, source).AccessToken(); got != step.want {
				t.Errorf("the broker returns %s, the source %s", step.broker, got)
			}
		}
	})
}

func TestExpiredTokenIsNotReturned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &stub{get: func(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
			return newTokenResponse("old", -time.Minute), nil
		}}
		source := s.serve(t, polling()).TokenSource(name)
		token, err := source.Token(t.Context())
		if token != nil || status.Code(err) != codes.Unavailable {
			t.Errorf("error = %v", err)
		}
		if _, err := source.Rejected(t.Context(), &client.Token{}); status.Code(err) != codes.Unavailable {
			t.Errorf("error = %v", err)
		}
	})
}

func TestClosedClientReturnsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New(t)
		c := b.Client()
		source, idle := c.TokenSource(name), c.TokenSource(name, client.WithScopes("read"))
		mustToken(t, source)
		for range 2 {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, source := range []*client.Source{source, idle, c.TokenSource(name, client.WithScopes("write"))} {
			if _, err := source.Token(t.Context()); status.Code(err) != codes.Canceled {
				t.Errorf("error = %v", err)
			}
			if _, err := source.Rejected(t.Context(), &client.Token{}); status.Code(err) != codes.Canceled {
				t.Errorf("error = %v", err)
			}
		}
	})
}

// All operations at once, for the race detector. TestMain checks that no goroutine is
// left.
func TestCloseUnderLoad(t *testing.T) {
	b := brokertest.New(t, brokertest.WithLifetime(2*time.Second))
	for round := range 20 {
		c := b.Client()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 20 {
			source := c.TokenSource(name, client.WithScopes([]string{"read", "write"}[i%2]))
			wg.Go(func() {
				for ctx.Err() == nil {
					token, err := source.Token(ctx)
					if err != nil {
						continue
					}
					if token.AccessToken() == "" || !token.ExpiresAt().After(time.Now()) {
						t.Error("an empty or expired token")
					}
					if i == 0 {
						_, _ = source.Rejected(ctx, token)
					}
				}
			})
		}
		switch round % 4 {
		case 0:
			wg.Go(func() { b.Purge(name) })
		case 1:
			wg.Go(func() { b.Kill(); b.Start() })
		case 2:
			wg.Go(func() { b.SetIdPDown(true); b.SetIdPDown(false) })
		}
		timer := time.NewTimer(time.Duration(round*10) * time.Millisecond)
		<-timer.C
		wg.Go(func() { _ = c.Close() })
		_ = c.Close()
		cancel()
		wg.Wait()
	}
}
