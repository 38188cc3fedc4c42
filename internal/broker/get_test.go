package broker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const (
	issuer   = "https://idp.example.com"
	audience = "https://orders.example.com"
)

// fleet is one broker and the IdP that it asks.
type fleet struct {
	*broker.Broker

	idp    *devidp.Server
	source *secret.Source
	secret string // path of the file
	config broker.ClientConfig
}

func start(t testing.TB) *fleet { return startWith(t, nil, 0) }

// startWith runs a broker with one client, "orders"; transport, if given, wraps
// the way to the IdP.
func startWith(t testing.TB, wrap func(http.RoundTripper) http.RoundTripper, maxEntries int) *fleet {
	t.Helper()
	return startAs(t, wrap, func(cfg *broker.Config) { cfg.MaxEntries = maxEntries })
}

// startAs is startWith for a broker that is configured otherwise.
func startAs(t testing.TB, wrap func(http.RoundTripper) http.RoundTripper, as func(*broker.Config)) *fleet {
	t.Helper()
	audiences := []string{audience}
	for i := range 50 {
		audiences = append(audiences, audienceNo(i))
	}
	server, err := devidp.New(devidp.Config{Issuer: issuer, Lifetime: 100 * time.Second, Algorithm: "EdDSA", Clients: []devidp.Client{
		{ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: audiences},
	}})
	if err != nil {
		t.Fatal(err)
	}
	transport := server.RoundTripper()
	if wrap != nil {
		transport = wrap(transport)
	}
	path := filepath.Join(t.TempDir(), "secret")
	testkit.WriteFile(t, path, "right")
	ref, err := secret.ParseRef("file:" + path)
	if err != nil {
		t.Fatal(err)
	}
	source, err := secret.Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	client, err := idp.New(idp.Config{TokenURL: issuer + devidp.TokenPath, ClientID: "abc", HTTP: discovery.NewHTTPClient(transport)})
	if err != nil {
		t.Fatal(err)
	}
	config := broker.ClientConfig{Name: "orders", IdP: client, Secret: source, Audience: audience, Scopes: []string{"write", "read"}}
	cfg := broker.Config{Setup: broker.Setup{Clients: []broker.ClientConfig{config}}, Logger: slog.New(slog.DiscardHandler)}
	as(&cfg)
	b, err := broker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return &fleet{b, server, source, path, config}
}

func audienceNo(i int) string { return fmt.Sprintf("https://api-%d.example.com", i) }

func (f *fleet) fetches() int { return f.idp.Requests(devidp.TokenPath) }

// changeSecret puts another value in the file and lets the broker see it.
func (f *fleet) changeSecret(t *testing.T, value string) {
	t.Helper()
	testkit.WriteFile(t, f.secret, value)
	for range 2 {
		if _, err := f.source.Reload(); err != nil {
			t.Fatal(err)
		}
	}
}

func (f *fleet) mustGet(t *testing.T, ask broker.Ask) broker.Answer {
	t.Helper()
	answer, err := f.Get(t.Context(), policy.Self(), ask)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return answer
}

func wantError(t *testing.T, err error, code apierror.Code, reason string) *apierror.Error {
	t.Helper()
	told, ok := errors.AsType[*apierror.Error](err)
	if !ok || told.Code != code || told.Reason != reason {
		t.Fatalf("error = %v (%+v), want code %d and reason %s", err, told, code, reason)
	}
	return told
}

func orders() broker.Ask { return broker.Ask{Client: "orders"} }

func inBubble(t *testing.T, test func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, test)
}

func TestColdCallersShareOneFetch(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetDelay(300 * time.Millisecond)
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if answer, err := f.Get(t.Context(), policy.Self(), orders()); err != nil || answer.Origin != broker.OriginFetched {
					t.Errorf("Get = %+v, %v", answer, err)
				}
			})
		}
		wg.Wait()
		if got := f.fetches(); got != 1 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestFlight_firstCallerCancels(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetDelay(2 * time.Second)
		ctx, cancel := context.WithCancel(t.Context())
		first := make(chan error, 1)
		go func() { _, err := f.Get(ctx, policy.Self(), orders()); first <- err }()
		synctest.Wait() // the first one's fetch is under way
		second := make(chan error, 1)
		go func() { _, err := f.Get(t.Context(), policy.Self(), orders()); second <- err }()
		synctest.Wait()
		cancel()
		wantError(t, <-first, apierror.Canceled, apierror.ReasonCallerGaveUp)
		if err := <-second; err != nil {
			t.Errorf("the second caller: %v", err)
		}
		if got := f.fetches(); got != 1 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestFlight_callerDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetDelay(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := f.Get(ctx, policy.Self(), orders())
		wantError(t, err, apierror.DeadlineExceeded, apierror.ReasonCallerGaveUp)
		time.Sleep(2 * time.Second)
		if answer := f.mustGet(t, orders()); answer.Origin != broker.OriginMemory {
			t.Error("the fetch of a caller who left was lost")
		}
	})
}

func TestFlight_minTTLOfEachCaller(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t) // tokens live 100 s
		f.idp.SetDelay(time.Second)
		results := make(chan error, 2)
		go func() {
			_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", MinTTL: 50 * time.Second})
			results <- err
		}()
		synctest.Wait()
		_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", MinTTL: 200 * time.Second})
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonMinTTLUnattainable)
		if err := <-results; err != nil {
			t.Errorf("the caller who wants less: %v", err)
		}
		if got := f.fetches(); got != 1 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestFreshTokenComesFromMemory(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		first := f.mustGet(t, orders())
		time.Sleep(60 * time.Second)
		second := f.mustGet(t, orders())
		if second.Token != first.Token || second.Origin != broker.OriginMemory || second.Degraded {
			t.Errorf("answer = %+v", second)
		}
		if got := f.fetches(); got != 1 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestDueTokenIsRefreshedInTheBackground(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		first := f.mustGet(t, orders())
		f.idp.SetDelay(2 * time.Second)
		time.Sleep(85 * time.Second)
		for range 100 {
			before := time.Now()
			answer := f.mustGet(t, orders())
			if answer.Token != first.Token || time.Since(before) != 0 || answer.Degraded {
				t.Fatalf("a hit waited for the refresh, or was not answered from memory: %+v", answer)
			}
			if hint := answer.RefreshAt.Sub(before); hint < 5*time.Second && !answer.RefreshAt.Equal(first.Token.UsableUntil) {
				t.Fatalf("the caller is told to ask again in %v", hint)
			}
		}
		time.Sleep(3 * time.Second)
		if answer := f.mustGet(t, orders()); answer.Token == first.Token || answer.Origin != broker.OriginMemory {
			t.Errorf("the token was not replaced: %+v", answer)
		}
		if got := f.fetches(); got != 2 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestHeldTokenServesWhileTheIdPIsDown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t) // usable for 90 s, due after 70 s to 80 s
		first := f.mustGet(t, orders())
		f.idp.SetDown(true)
		for second := range 90 {
			answer := f.mustGet(t, orders())
			if answer.Token != first.Token {
				t.Fatalf("after %d s: another token", second)
			}
			if past := time.Since(first.Token.RefreshAt); past > 2*time.Second && !answer.Degraded {
				t.Fatalf("%v past soft and not degraded", past)
			}
			if answer.Degraded && answer.Token.Fresh(time.Now()) {
				t.Fatalf("after %d s: degraded although fresh", second)
			}
			time.Sleep(time.Second)
		}
		_, err := f.Get(t.Context(), policy.Self(), orders())
		if told := wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable); told.RetryAfter <= 0 {
			t.Error("the caller is not told when to try again")
		}
		f.idp.SetDown(false)
		time.Sleep(time.Minute)
		if answer := f.mustGet(t, orders()); answer.Degraded {
			t.Error("still degraded after the IdP came back")
		}
	})
}

// step is what happens before one question of the property below.
type step struct {
	Down                           bool
	Lifetime, Delay, Sleep, MinTTL time.Duration
}

func drawSteps(t *rapid.T) []step {
	span := func(label string, most int, unit time.Duration) time.Duration {
		return time.Duration(rapid.IntRange(0, most).Draw(t, label)) * unit
	}
	steps := make([]step, rapid.IntRange(1, 30).Draw(t, "steps"))
	for i := range steps {
		steps[i] = step{
			Down:     rapid.Bool().Draw(t, "down"),
			Lifetime: time.Second + span("lifetime", 300, time.Second),
			Delay:    span("delay", 9000, time.Millisecond),
			Sleep:    span("sleep", 200_000, time.Millisecond),
			MinTTL:   span("min_ttl", 60, time.Second),
		}
	}
	return steps
}

// An expired token is never served, nor one within its margin, whatever the IdP
// and the clock do.
func TestExpiredTokenIsNeverServed(t *testing.T) {
	cases, served := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		cases++
		// The first step must be served, so that no case tests nothing.
		steps := append([]step{{Lifetime: time.Minute}}, drawSteps(rt)...)
		failure := ""
		inBubble(t, func(t *testing.T) {
			f := start(t)
			for _, step := range steps {
				f.idp.SetDown(step.Down)
				f.idp.SetLifetime(step.Lifetime)
				f.idp.SetDelay(step.Delay)
				time.Sleep(step.Sleep)
				answer, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", MinTTL: step.MinTTL})
				if err != nil {
					continue
				}
				served++
				now, tok := time.Now(), answer.Token
				if left := tok.ExpiresAt.Sub(now); left <= step.MinTTL || !now.Before(tok.UsableUntil) {
					failure = fmt.Sprintf("served with %v left of %v, min_ttl %v", left, tok.Lifetime(), step.MinTTL)
				}
			}
		})
		if failure != "" {
			rt.Fatal(failure)
		}
	})
	if served < cases {
		t.Errorf("only %d answers were checked in %d cases", served, cases)
	}
}

func TestRefusedClientIsBackedOff(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetSecrets("abc", redact.New("another"))
		for range 600 { // constant demand for 60 s
			before := time.Now()
			_, err := f.Get(t.Context(), policy.Self(), orders())
			told := wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
			if told.Metadata["client"] != "orders" || told.Metadata["secret_version"] == "" {
				t.Fatalf("metadata = %v", told.Metadata)
			}
			if time.Since(before) != 0 {
				t.Fatal("a caller had to wait for the refusal")
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := f.fetches(); got > 2 {
			t.Errorf("the IdP was asked %d times in 60 s", got)
		}
		time.Sleep(time.Hour)
		for range 3600 {
			_, _ = f.Get(t.Context(), policy.Self(), orders())
			time.Sleep(time.Second)
		}
		if got := f.fetches(); got > 2+10 {
			t.Errorf("the IdP was asked %d times in another hour", got)
		}
	})
}

func TestRefusedClient_manyAudiences(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetSecrets("abc", redact.New("another"))
		f.idp.SetDelay(100 * time.Millisecond)
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i)})
				wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
			})
		}
		wg.Wait()
		if got := f.fetches(); got != 1 {
			t.Errorf("the IdP saw %d attempts", got)
		}
	})
}

func TestAcceptedClientFetchesConcurrently(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.mustGet(t, orders())
		f.idp.SetDelay(time.Second)
		before := time.Now()
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() { f.mustGet(t, broker.Ask{Client: "orders", Audience: audienceNo(i)}) })
		}
		wg.Wait()
		if took := time.Since(before); took != time.Second {
			t.Errorf("30 audiences took %v", took)
		}
	})
}

func TestNewSecretEndsTheRefusal(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetSecrets("abc", redact.New("another"))
		_, err := f.Get(t.Context(), policy.Self(), orders())
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		f.changeSecret(t, "another")
		if answer := f.mustGet(t, orders()); answer.Token.SecretVersion != f.source.Current().ID {
			t.Errorf("the token was obtained with version %s", answer.Token.SecretVersion)
		}
	})
}

func TestThrottling_eachTokenOfTheClient(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.FailNext(1, http.StatusTooManyRequests, "", http.Header{"Retry-After": {"20"}})
		_, err := f.Get(t.Context(), policy.Self(), orders())
		if told := wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled); told.RetryAfter != 20*time.Second {
			t.Errorf("RetryAfter = %v", told.RetryAfter)
		}
		for i := range 199 {
			time.Sleep(100 * time.Millisecond)
			_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i % 50)})
			wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
		}
		if got := f.fetches(); got != 1 {
			t.Errorf("the IdP was asked %d times before Retry-After", got)
		}
		time.Sleep(200 * time.Millisecond)
		f.mustGet(t, orders())
	})
}

func TestThrottling_earlierFetchSucceeds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.mustGet(t, orders()) // proven: fetches go together from here on
		f.idp.SetDelay(2 * time.Second)
		slow := make(chan error, 1)
		go func() {
			_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)})
			slow <- err
		}()
		synctest.Wait()
		f.idp.SetDelay(0)
		f.idp.SetAnswer(func(w http.ResponseWriter, r *http.Request) bool {
			if r.PostFormValue("audience") == audienceNo(1) {
				return false
			}
			w.Header().Set("Retry-After", "60")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		})
		_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(2)})
		wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
		if err := <-slow; err != nil {
			t.Fatal(err)
		}
		before := f.fetches()
		_, err = f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(3)})
		wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
		if f.fetches() != before {
			t.Error("the IdP was asked before its Retry-After")
		}
	})
}

func TestUnknownScope_failsItsRequestOnly(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		for range 50 {
			_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Scopes: []string{"admin"}})
			wantError(t, err, apierror.FailedPrecondition, apierror.ReasonRequestRefused)
			time.Sleep(time.Second)
		}
		f.mustGet(t, orders())
		if got := f.fetches(); got != 2 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestFailingIdPIsBackedOff(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.FailNext(1000, http.StatusInternalServerError, "", nil)
		for range 1200 { // two minutes
			_, err := f.Get(t.Context(), policy.Self(), orders())
			wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable)
			time.Sleep(100 * time.Millisecond)
		}
		if got := f.fetches(); got < 4 || got > 14 {
			t.Errorf("the IdP was asked %d times in 2 min", got)
		}
	})
}

func TestRejectedToken_oneReplacement(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		first := f.mustGet(t, orders()).Token
		f.idp.SetDelay(time.Second)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				answer := f.mustGet(t, broker.Ask{Client: "orders", Rejected: &first.SHA256})
				if answer.Token == first || answer.Degraded {
					t.Errorf("answer = %+v", answer)
				}
			})
		}
		synctest.Wait()
		if answer := f.mustGet(t, orders()); answer.Token != first {
			t.Error("the old token does not serve the others until it is replaced")
		}
		wg.Wait()
		if got := f.fetches(); got != 2 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestRejectedToken_oneFetchPer30Seconds(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetLifetime(time.Hour)
		current := f.mustGet(t, orders()).Token
		for range 1200 { // two minutes
			answer := f.mustGet(t, broker.Ask{Client: "orders", Rejected: &current.SHA256})
			if answer.Token == current && !answer.Degraded {
				t.Fatal("the rejected token came back as if it were good")
			}
			current = answer.Token
			f.mustGet(t, orders())
			time.Sleep(100 * time.Millisecond)
		}
		if got := f.fetches(); got > 1+4 {
			t.Errorf("the IdP was asked %d times in 2 min", got)
		}
	})
}

func TestRejectedToken_idpIsDown(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		first := f.mustGet(t, orders()).Token
		f.idp.SetDown(true)
		answer := f.mustGet(t, broker.Ask{Client: "orders", Rejected: &first.SHA256})
		if answer.Token != first || !answer.Degraded {
			t.Errorf("answer = %+v", answer)
		}
	})
}

func TestMinTTL_forcesOneFetch(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.mustGet(t, orders())
		time.Sleep(20 * time.Second)
		wish := broker.Ask{Client: "orders", MinTTL: 95 * time.Second}
		if answer := f.mustGet(t, wish); answer.Origin != broker.OriginFetched {
			t.Errorf("answer = %+v", answer)
		}
		time.Sleep(10 * time.Second)
		_, err := f.Get(t.Context(), policy.Self(), wish)
		told := wantError(t, err, apierror.ResourceExhausted, apierror.ReasonForcedFetchLimited)
		if told.RetryAfter != 20*time.Second {
			t.Errorf("RetryAfter = %v", told.RetryAfter)
		}
		time.Sleep(told.RetryAfter)
		f.mustGet(t, wish)
		if got := f.fetches(); got != 3 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestMinTTL_beyondTheLifetime(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		wish := broker.Ask{Client: "orders", MinTTL: 100 * time.Second}
		for range 20 {
			_, err := f.Get(t.Context(), policy.Self(), wish)
			wantError(t, err, apierror.FailedPrecondition, apierror.ReasonMinTTLUnattainable)
			time.Sleep(time.Second)
		}
		f.mustGet(t, orders())
		if got := f.fetches(); got != 1 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

func TestEquivalentRequestsShareAToken(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		own := f.mustGet(t, orders()).Token
		for _, same := range []broker.Ask{
			{Client: "orders", Scopes: []string{"read", "write"}},
			{Client: "orders", Scopes: []string{"write", "read", "write"}},
			{Client: "orders", Audience: audience},
		} {
			if f.mustGet(t, same).Token != own {
				t.Errorf("%+v has a token of its own", same)
			}
		}
		for _, other := range []broker.Ask{
			{Client: "orders", Scopes: []string{"read"}},
			{Client: "orders", Audience: audienceNo(1)},
			{Client: "orders", Resources: []string{audienceNo(1)}},
		} {
			if f.mustGet(t, other).Token == own {
				t.Errorf("%+v shares a token with another question", other)
			}
		}
	})
}

func TestUnknownClient(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "nobody"})
		wantError(t, err, apierror.PermissionDenied, apierror.ReasonNotEntitled)
	})
}

type transportFunc func(*http.Request) (*http.Response, error)

func (f transportFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestFetch_panicIsAnError(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		crash := true
		f := startWith(t, func(way http.RoundTripper) http.RoundTripper {
			return transportFunc(func(r *http.Request) (*http.Response, error) {
				if crash {
					panic("canary")
				}
				return way.RoundTrip(r)
			})
		}, 0)
		_, err := f.Get(t.Context(), policy.Self(), orders())
		wantError(t, err, apierror.Internal, apierror.ReasonInternal)
		crash = false
		f.mustGet(t, orders())
	})
}

func TestClose_endsFetches(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		f := start(t)
		f.idp.SetDelay(8 * time.Second)
		waiting := make(chan error, 1)
		go func() { _, err := f.Get(t.Context(), policy.Self(), orders()); waiting <- err }()
		synctest.Wait()
		f.Close()
		wantError(t, <-waiting, apierror.Unavailable, apierror.ReasonShuttingDown)
		_, err := f.Get(t.Context(), policy.Self(), orders())
		wantError(t, err, apierror.Unavailable, apierror.ReasonShuttingDown)
	})
}

func TestDistinctRequestsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		const bound = 640
		f := startWith(t, nil, bound)
		for i := range 5000 {
			_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Scopes: []string{fmt.Sprint("unknown-", i)}})
			wantError(t, err, apierror.FailedPrecondition, apierror.ReasonRequestRefused)
		}
		if got := f.Entries(); got > bound || got < bound/2 {
			t.Errorf("%d entries are held", got)
		}
	})
}

func TestWarmHitAllocatesNothing(t *testing.T) {
	f := start(t)
	scoped := broker.Ask{Client: "orders", Scopes: []string{"read"}}
	for name, ask := range map[string]broker.Ask{"own defaults": orders(), "other scopes": scoped} {
		f.mustGet(t, ask)
		allocs := testing.AllocsPerRun(1000, func() { f.mustGetFast(t, ask) })
		if allocs > 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}

func (f *fleet) mustGetFast(t testing.TB, ask broker.Ask) {
	if _, err := f.Get(context.Background(), policy.Self(), ask); err != nil {
		t.Error(err)
	}
}

func BenchmarkWarmGet(b *testing.B) {
	f := start(b)
	for name, ask := range map[string]broker.Ask{"own": orders(), "scoped": {Client: "orders", Scopes: []string{"read"}}} {
		f.mustGetFast(b, ask)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					f.mustGetFast(b, ask)
				}
			})
		})
	}
}
