package broker_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// replicas are brokers that share a store, and the IdP that they ask. Each has
// its own way to the store, which can break.
type replicas struct {
	t      testing.TB
	idp    *devidp.Server
	shared *store.Memory
	all    []*replica
	seal   func(store.Store) store.Store // nil: nothing is sealed
	audit  *audit.Log
	// towards is in place of the IdP; nil: nothing is.
	towards http.RoundTripper
	// ended counts the histories that replicas wrote which have ended.
	ended int64
}

type replica struct {
	*broker.Broker

	link   *link
	source *secret.Source // nil: the secret is managed
	path   string         // of the file with the secret
	stop   func()         // ends it as a shutdown would
	config broker.ClientConfig
}

// startReplicas starts n replicas that run, in a bubble.
func startReplicas(t testing.TB, n int) *replicas {
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
	r := &replicas{t: t, idp: server, shared: store.NewMemory(store.MemoryConfig{})}
	for range n {
		r.add("right")
	}
	return r
}

// add starts one more replica, with a secret of its own in a file.
func (r *replicas) add(password string) *replica {
	r.t.Helper()
	path := writeSecret(r.t, password)
	ref, err := secret.ParseRef("file:" + path)
	if err != nil {
		r.t.Fatal(err)
	}
	source, err := secret.OpenKeyed(ref, sha256Of)
	if err != nil {
		r.t.Fatal(err)
	}
	made := r.start(broker.ClientConfig{Secret: source})
	made.source, made.path = source, path
	return made
}

// start starts a replica with the client "orders", whose secret is as given.
func (r *replicas) start(client broker.ClientConfig) *replica {
	r.t.Helper()
	var err error
	client.Name, client.Audience, client.Scopes = "orders", audience, []string{"write", "read"}
	towards := r.towards
	if towards == nil {
		towards = r.idp.RoundTripper()
	}
	client.IdP, err = idp.New(idp.Config{TokenURL: issuer + devidp.TokenPath, ClientID: "abc", HTTP: discovery.NewHTTPClient(towards)})
	if err != nil {
		r.t.Fatal(err)
	}
	way := &link{}
	way.to.Store(r.shared)
	var through store.Store = way
	if r.seal != nil {
		through = r.seal(way)
	}
	b, err := broker.New(broker.Config{
		Setup:  broker.Setup{Clients: []broker.ClientConfig{client}},
		Store:  through,
		MAC:    sha256Of,
		Audit:  r.audit,
		Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); b.Run(ctx) }()
	made := &replica{Broker: b, link: way, stop: sync.OnceFunc(func() { b.Close(); cancel(); <-done }), config: client}
	r.t.Cleanup(made.stop)
	r.all = append(r.all, made)
	return made
}

// sha256Of stands for the keyed hash that replicas share.
func sha256Of(data []byte) [sha256.Size]byte { return sha256.Sum256(data) }

func (r *replicas) fetches() int { return r.idp.Requests(devidp.TokenPath) }

// everybody asks n times at each replica at once, and must be answered. It
// returns the answers.
func (r *replicas) everybody(n int, ask broker.Ask) []broker.Answer {
	r.t.Helper()
	answers := make([]broker.Answer, n*len(r.all))
	var wg sync.WaitGroup
	for i := range answers {
		wg.Go(func() {
			var err error
			if answers[i], err = r.all[i%len(r.all)].Get(r.t.Context(), policy.Self(), ask); err != nil {
				r.t.Errorf("replica %d: %v", i%len(r.all), err)
			}
		})
	}
	wg.Wait()
	if r.t.Failed() {
		r.t.FailNow()
	}
	return answers
}

// sameToken fails the test unless all answers are one token, which it returns.
func (r *replicas) sameToken(answers []broker.Answer) [32]byte {
	r.t.Helper()
	for _, answer := range answers {
		if answer.Token.SHA256 != answers[0].Token.SHA256 {
			r.t.Fatal("not all got the same token")
		}
	}
	return answers[0].Token.SHA256
}

// link is the way of one replica to the store: a few milliseconds, if all is
// well.
type link struct {
	to    atomic.Pointer[store.Memory]
	state atomic.Int32
	deaf  atomic.Bool // the store's events are lost
	// epoch is the key of the epoch that was raised last, and count that of the count of
	// changes of revocations.
	epoch, count atomic.Pointer[string]
	// purge is the record of the first request to purge.
	purge atomic.Pointer[store.Put]
	calls atomic.Int64
	// histories counts the histories of secrets that were written.
	histories atomic.Int64
	// writesLeft are how many more puts succeed, if it is not 0; the last one fails, and
	// so do all after it.
	writesLeft atomic.Int32
	// paused delays calls until the channel is closed; nil: it does not.
	paused atomic.Pointer[chan struct{}]
}

// pause delays calls from now on until resume is called.
func (l *link) pause() {
	until := make(chan struct{})
	l.paused.CompareAndSwap(nil, &until)
}

func (l *link) resume() { close(*l.paused.Swap(nil)) }

// States of a link.
const (
	good    = iota
	refused // fails at once
	hangs   // fails after 250 ms
	away    // is not even tried
	full    // takes no writes
)

func (l *link) pass(ctx context.Context) error {
	l.calls.Add(1)
	if until := l.paused.Load(); until != nil {
		select {
		case <-*until:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	wait := rand.N(4 * time.Millisecond)
	if l.state.Load() == hangs {
		wait = 250 * time.Millisecond
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return ctx.Err()
	}
	switch l.state.Load() {
	case good, full:
		return nil
	case away:
		return store.ErrAway
	default:
		return errors.New("out of reach")
	}
}

func (l *link) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	if err := l.pass(ctx); err != nil {
		return nil, err
	}
	entries, err := l.to.Load().Get(ctx, keys...)
	return entries, errors.Join(err, l.pass(ctx))
}

// write is pass for what a store that takes no writes refuses.
func (l *link) write(ctx context.Context) error {
	if left := l.writesLeft.Load(); l.state.Load() == full || left == 1 || left > 1 && l.writesLeft.Add(-1) == 1 {
		return fmt.Errorf("%w: OOM (%w)", store.ErrNoWrites, store.ErrAway)
	}
	return l.pass(ctx)
}

func (l *link) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	if err := l.write(ctx); err != nil {
		return store.Claimed{}, err
	}
	claimed, err := l.to.Load().Acquire(ctx, claim)
	return claimed, errors.Join(err, l.pass(ctx))
}

func (l *link) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	if err := l.write(ctx); err != nil {
		return false, err
	}
	return l.to.Load().Renew(ctx, lease, ttl)
}

func (l *link) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	if err := l.write(ctx); err != nil {
		return nil, err
	}
	for _, put := range change.Puts {
		if strings.Contains(put.Key, "purge:") {
			l.purge.CompareAndSwap(nil, &put)
		}
		if strings.HasSuffix(put.Key, "secrets") {
			l.histories.Add(1)
		}
	}
	applied, err := l.to.Load().Apply(ctx, change)
	return applied, errors.Join(err, l.pass(ctx))
}

func (l *link) Raise(ctx context.Context, key string, floor, by uint64) (uint64, error) {
	if err := l.write(ctx); err != nil {
		return 0, err
	}
	switch {
	case strings.HasSuffix(key, "epoch"):
		l.epoch.Store(&key)
	case strings.HasSuffix(key, "changes"):
		l.count.Store(&key)
	}
	return l.to.Load().Raise(ctx, key, floor, by)
}

func (l *link) Confirm(ctx context.Context, key string) store.Safety {
	return l.to.Load().Confirm(ctx, key)
}

func (l *link) Close() error { return nil }

func (l *link) Subscribe(ctx context.Context) <-chan string {
	told := make(chan string, store.EventBuffer)
	go func() {
		defer close(told)
		for key := range l.to.Load().Subscribe(ctx) {
			if !l.deaf.Load() && l.state.Load() == good {
				told <- key
			}
		}
	}()
	return told
}

func TestFleet_twoReplicasOneFetch(t *testing.T) {
	for run := range 300 {
		synctest.Test(t, func(t *testing.T) {
			r := startReplicas(t, 2)
			r.idp.SetDelay(time.Duration(run%30) * 10 * time.Millisecond)
			r.sameToken(r.everybody(50, broker.Ask{Client: "orders"}))
			if got := r.fetches(); got != 1 {
				t.Fatalf("run %d: the IdP was asked %d times", run, got)
			}
		})
	}
}

func TestFleet_twentyReplicasOneFetch(t *testing.T) {
	for _, delay := range []time.Duration{300 * time.Millisecond, 5 * time.Second} { // shorter and longer than the lease
		synctest.Test(t, func(t *testing.T) {
			r := startReplicas(t, 20)
			r.idp.SetDelay(delay)
			begun := time.Now()
			answers := r.everybody(100, broker.Ask{Client: "orders"})
			if took := time.Since(begun); took > delay+100*time.Millisecond {
				t.Errorf("the last caller waited %v for an IdP that takes %v", took, delay)
			}
			r.sameToken(answers)
			if got := r.fetches(); got != 1 {
				t.Errorf("the IdP was asked %d times", got)
			}
			sources := map[broker.Origin]int{}
			for _, answer := range answers {
				sources[answer.Origin]++
			}
			if sources[broker.OriginFetched] != 100 || sources[broker.OriginShared] != 1900 {
				t.Errorf("sources: %v", sources)
			}
		})
	}
}

func TestFleet_newReplicaReadsTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		first := r.everybody(1, broker.Ask{Client: "orders"})[0]
		time.Sleep(20 * time.Second)
		r.all = nil
		r.add("right")
		answer := r.everybody(1, broker.Ask{Client: "orders"})[0]
		if answer.Origin != broker.OriginShared || answer.Token.SHA256 != first.Token.SHA256 || r.fetches() != 1 {
			t.Errorf("%+v after %d fetches", answer, r.fetches())
		}
		if drift := answer.Token.ExpiresAt.Sub(first.Token.ExpiresAt).Abs(); drift > 20*time.Millisecond {
			t.Errorf("the end of the token moved by %v on its way", drift)
		}
		if answer.Token.RefreshAt.Sub(first.Token.RefreshAt).Abs() > 20*time.Millisecond {
			t.Error("replicas do not agree when the token is due")
		}
	})
}

func TestLease_holderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 3)
		r.idp.SetDelay(5 * time.Second)
		holder := r.all[0]
		go func() { _, _ = holder.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}) }()
		time.Sleep(time.Second)
		holder.link.state.Store(away) // what it writes never arrives
		r.all = r.all[1:]
		begun := time.Now()
		r.everybody(10, broker.Ask{Client: "orders"})
		if took := time.Since(begun); took > 3*time.Second+5*time.Second+500*time.Millisecond {
			t.Errorf("the callers waited %v", took)
		}
		if got := r.fetches(); got != 2 {
			t.Errorf("the IdP was asked %d times, want once by the dead and once by the living", got)
		}
	})
}

func TestLease_holderShutsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.idp.SetDelay(2 * time.Second)
		leaver := r.all[0]
		go func() { _, _ = leaver.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}) }()
		time.Sleep(time.Second)
		r.all = r.all[1:]
		time.AfterFunc(100*time.Millisecond, leaver.stop)
		begun := time.Now()
		r.everybody(10, broker.Ask{Client: "orders"})
		if took := time.Since(begun); took > 2*time.Second+500*time.Millisecond {
			t.Errorf("the callers waited %v although the lease was given up", took)
		}
	})
}

func TestFailingStoreCostsOneFetchPerReplica(t *testing.T) {
	for name, state := range map[string]int32{"refused": refused, "hangs": hangs, "away": away} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startReplicas(t, 20)
				r.idp.SetDelay(300 * time.Millisecond)
				for _, replica := range r.all {
					replica.link.state.Store(state)
				}
				begun := time.Now()
				r.everybody(20, broker.Ask{Client: "orders"})
				if took := time.Since(begun); took > 3*time.Second {
					t.Errorf("the callers waited %v", took)
				}
				if got := r.fetches(); got > 20 {
					t.Errorf("20 replicas asked the IdP %d times", got)
				}

				// Recovery needs nobody: from the next lifetime on it is one again.
				for _, replica := range r.all {
					replica.link.state.Store(good)
				}
				before := r.fetches()
				for range 85 {
					time.Sleep(time.Second)
					r.everybody(1, broker.Ask{Client: "orders"})
				}
				if got := r.fetches() - before; got != 1 {
					t.Errorf("after the store came back a refresh cost %d fetches", got)
				}
			})
		})
	}
}

func TestHitsNeedNoStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.everybody(1, broker.Ask{Client: "orders"})
		for _, replica := range r.all {
			replica.link.state.Store(hangs)
		}
		time.Sleep(time.Second) // let what is under way end
		calls := r.all[0].link.calls.Load()
		begun := time.Now()
		for range 1000 {
			if answer := r.everybody(1, broker.Ask{Client: "orders"})[0]; answer.Degraded || answer.Origin != broker.OriginMemory {
				t.Fatalf("%+v", answer)
			}
		}
		if took := time.Since(begun); took != 0 {
			t.Errorf("hits waited %v", took)
		}
		if got := r.all[0].link.calls.Load(); got != calls {
			t.Errorf("hits called the store %d times", got-calls)
		}
	})
}

// A refresh that cannot ask the store waits, because the store may come back;
// but not for so long that the token would end.
func TestRefreshWithoutTheStoreIsDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		first := r.everybody(1, broker.Ask{Client: "orders"})[0].Token
		r.all[0].link.state.Store(away)
		calls := r.all[0].link.calls.Load()
		middle := first.RefreshAt.Add(first.UsableUntil.Sub(first.RefreshAt) / 2)
		for time.Now().Before(first.UsableUntil) {
			r.everybody(1, broker.Ask{Client: "orders"})
			if time.Now().Before(middle) && r.fetches() > 1 {
				t.Fatalf("the IdP was asked %v after the token was due", time.Since(first.RefreshAt))
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := r.fetches(); got != 2 {
			t.Errorf("the IdP was asked %d times", got)
		}
		if got := r.all[0].link.calls.Load() - calls; got > 180 { // in 100 s: one a second, and the other polls
			t.Errorf("the store, which is away, was called %d times", got)
		}
	})
}

func TestFailureIsSharedByTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 20)
		r.idp.SetDown(true)
		for begun := time.Now(); time.Since(begun) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
			for i, replica := range r.all {
				_, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
				if told := wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable); told.RetryAfter <= 0 {
					t.Fatalf("replica %d does not say when to ask again", i)
				}
			}
		}
		if got := r.fetches(); got > 10 {
			t.Errorf("in 10 s the IdP, which is down, was asked %d times", got)
		}
		r.idp.SetDown(false)
		time.Sleep(45 * time.Second)
		r.everybody(1, broker.Ask{Client: "orders"})
	})
}

// Of a client that is known to be good, a question that fails is the trouble of
// all who ask it, and of no other question.
func TestRequestFailureIsSharedByTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 20)
		r.everybody(1, broker.Ask{Client: "orders"})
		r.idp.SetDown(true)
		before := r.fetches()
		for begun := time.Now(); time.Since(begun) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
			for _, replica := range r.all {
				_, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)})
				wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable)
			}
		}
		if got := r.fetches() - before; got > 10 {
			t.Errorf("in 10 s the IdP, which is down, was asked %d times", got)
		}
		r.idp.SetDown(false)
		r.everybody(1, broker.Ask{Client: "orders", Audience: audienceNo(2)})
	})
}

func TestThrottling_fleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 20)
		r.idp.FailNext(1, http.StatusTooManyRequests, "", http.Header{"Retry-After": {"40"}})
		_, err := r.all[0].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
		begun := time.Now()
		for time.Since(begun) < 39*time.Second {
			for i, replica := range r.all {
				_, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i)})
				told := wantError(t, err, apierror.ResourceExhausted, apierror.ReasonIdPThrottled)
				if left := 40*time.Second - time.Since(begun); told.RetryAfter > left+time.Second || told.RetryAfter < left-time.Second {
					t.Fatalf("replica %d says to ask again in %v, want about %v", i, told.RetryAfter, left)
				}
			}
			time.Sleep(time.Second)
		}
		if got := r.fetches(); got != 1 {
			t.Errorf("the IdP was asked %d times although it throttles", got)
		}
		// Not a moment too early either, whoever learned of it from whom.
		for r.fetches() == 1 {
			for i, replica := range r.all {
				go func() {
					_, _ = replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i)})
				}()
			}
			time.Sleep(200 * time.Microsecond)
		}
		asked := r.idp.TokenRequests()
		if apart := asked[1].At.Sub(asked[0].At); apart < 40*time.Second || apart > 41*time.Second {
			t.Errorf("the IdP was asked again after %v", apart)
		}
	})
}

func TestDeadSecret_manyAudiencesInAFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 0)
		for range 5 {
			r.add("wrong")
		}
		r.idp.SetDelay(300 * time.Millisecond)
		var wg sync.WaitGroup
		for i := range 250 {
			wg.Go(func() {
				_, err := r.all[i%5].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i / 5)})
				wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
			})
		}
		wg.Wait()
		if got := r.fetches(); got != 1 {
			t.Errorf("the IdP saw %d attempts", got)
		}
	})
}

// While nobody knows whether the secret is good, an IdP that is down costs the
// fleet one attempt, and not one for each question in turn.
func TestProbe_failureIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 5)
		r.idp.SetDelay(300 * time.Millisecond)
		r.idp.SetDown(true)
		begun := time.Now()
		var wg sync.WaitGroup
		for i := range 250 {
			wg.Go(func() {
				_, err := r.all[i%5].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i / 5)})
				wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable)
			})
		}
		wg.Wait()
		if took := time.Since(begun); took > 3*time.Second || r.fetches() > 2 { // a fetch tries twice
			t.Errorf("after %v the IdP had seen %d requests", took, r.fetches())
		}
	})
}

// A secret that dies after it served for long costs the IdP few attempts as well,
// however many questions and replicas there are: those that come together before
// the first refusal, and at most 32.
func TestDeadSecret_fewAttempts(t *testing.T) {
	for delay, most := range map[time.Duration]int{0: 8, 100 * time.Millisecond: 16, 3 * time.Second: 32} {
		synctest.Test(t, func(t *testing.T) {
			r := startReplicas(t, 5)
			for i := range 50 {
				r.everybody(1, broker.Ask{Client: "orders", Audience: audienceNo(i)})
			}
			r.idp.SetSecrets("abc", redact.New("another"))
			r.idp.SetDelay(delay)
			time.Sleep(100 * time.Second) // all have ended
			before := r.fetches()
			var wg sync.WaitGroup
			for i := range 250 {
				wg.Go(func() {
					_, err := r.all[i%5].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i / 5)})
					wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
				})
			}
			wg.Wait()
			if got := r.fetches() - before; got > most {
				t.Errorf("an IdP that takes %v saw %d attempts, want at most %d", delay, got, most)
			}
			// The refusal took the proof away: the next attempt goes alone.
			time.Sleep(31 * time.Second)
			before = r.fetches()
			for i := range 250 {
				wg.Go(func() {
					_, err := r.all[i%5].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i / 5)})
					wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
				})
			}
			wg.Wait()
			if got := r.fetches() - before; got != 1 {
				t.Errorf("an IdP that takes %v saw %d further attempts, want 1", delay, got)
			}
		})
	}
}

// With a secret that served before, a burst after a quiet time takes as long as the
// IdP does, on whichever replicas it comes.
func TestBurstTakesOneFetchTime(t *testing.T) {
	for name, prepare := range map[string]func(r *replicas){
		"in the same replicas": func(*replicas) {},
		"in new replicas": func(r *replicas) {
			for _, old := range r.all {
				old.stop()
			}
			r.all = nil
			for range 3 {
				r.add("right")
			}
		},
		"without the store": func(r *replicas) {
			for _, replica := range r.all {
				replica.link.state.Store(away)
			}
		},
		"after a new secret was refused": func(r *replicas) {
			r.all[0].writes(r.t, "not known yet")
			time.Sleep(30 * time.Second)
			if _, refused := r.idp.Attempts("abc", redact.New("not known yet")); refused == 0 {
				r.t.Error("the new secret was not tried")
			}
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := startReplicas(t, 3)
			for range 3 {
				r.everybody(1, broker.Ask{Client: "orders"})
			}
			time.Sleep(time.Hour)
			prepare(r)
			r.idp.SetDelay(3 * time.Second)
			before, begun := r.fetches(), time.Now()
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					if _, err := r.all[i%3].Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(i)}); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			wg.Wait()
			if took, fetches := time.Since(begun), r.fetches()-before; took > 4*time.Second || fetches != 20 {
				t.Errorf("%s: 20 questions to an IdP that takes 3 s took %v and %d fetches", name, took, fetches)
			}
		})
	}
}

// A replica whose configuration has another secret is not stopped by the
// refusal of the old one, and its success ends the trouble for nobody else.
func TestDeadSecret_otherSecretsContinue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 0)
		old, fresh := r.add("wrong"), r.add("right")
		_, err := old.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		if _, err := fresh.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err != nil {
			t.Fatal(err)
		}
		// The token is there now: whoever may not fetch may still use it.
		time.Sleep(31 * time.Second)
		answer, err := old.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		if err != nil || answer.Origin == broker.OriginFetched {
			t.Errorf("%+v, %v", answer, err)
		}
	})
}

func TestPurge_reachesAllReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 5)
		before := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"}))
		if err := r.all[3].Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		after := r.sameToken(r.everybody(10, broker.Ask{Client: "orders"}))
		if after == before || r.fetches() != 2 {
			t.Errorf("the same token after the purge: %v, fetches: %d", after == before, r.fetches())
		}
	})
}

func TestPurge_lostMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 5)
		for _, replica := range r.all {
			replica.link.deaf.Store(true)
		}
		before := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"}))
		if err := r.all[3].Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5*time.Second + 100*time.Millisecond)
		if after := r.sameToken(r.everybody(10, broker.Ask{Client: "orders"})); after == before {
			t.Error("a purged token was handed out")
		}
	})
}

func TestPurge_duringAFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.idp.SetDelay(time.Second)
		time.AfterFunc(500*time.Millisecond, func() {
			if err := r.all[1].Purge(context.Background(), policy.Self(), purgeOf("orders")); err != nil {
				t.Error(err)
			}
		})
		r.sameToken(r.everybody(10, broker.Ask{Client: "orders"}))
		if got := r.fetches(); got != 2 {
			t.Errorf("%d fetches: the first began before the purge, and its token must not be used", got)
		}
	})
}

func TestPurge_unconfirmedFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		r.all[0].link.state.Store(refused)
		told := wantError(t, r.all[0].Purge(t.Context(), policy.Self(), purgeOf("orders")), apierror.Unavailable, apierror.ReasonStoreUnavailable)
		if told.RetryAfter <= 0 {
			t.Error("it does not say when to ask again")
		}
		wantError(t, r.all[0].Purge(t.Context(), policy.Self(), purgeOf("unknown")), apierror.PermissionDenied, apierror.ReasonNotEntitled)
	})
}

// A store that takes no writes is read all the same, costs each replica one call of
// the IdP for a token that is not held, and no time; and it refuses what operators
// want with the reason.
func TestReadOnlyStoreIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 3)
		held := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"}))
		for _, replica := range r.all {
			replica.link.state.Store(full)
		}
		begun := time.Now()
		r.everybody(20, broker.Ask{Client: "orders", Audience: audienceNo(1)})
		if took := time.Since(begun); took > 100*time.Millisecond {
			t.Errorf("cold callers waited %v", took)
		}
		if got := r.fetches(); got != 1+3 {
			t.Errorf("the IdP was asked %d times for a token that three replicas want", got-1)
		}
		newcomer := r.add("right")
		newcomer.link.state.Store(full)
		if got := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"})); got != held {
			t.Error("a newcomer does not use the token that the store has")
		}
		purge := wantError(t, r.all[0].Purge(t.Context(), policy.Self(), purgeOf("orders")), apierror.Unavailable, apierror.ReasonStoreUnavailable)
		if !strings.Contains(purge.Message, "takes no writes: OOM") {
			t.Errorf("it does not say why: %s", purge.Message)
		}
		for _, replica := range r.all {
			replica.link.state.Store(good)
		}
		time.Sleep(time.Second)
		r.sameToken(r.everybody(20, broker.Ask{Client: "orders", Audience: audienceNo(2)}))
	})
}

// A store that lost everything does not bring purged tokens back to life.
func TestLostEpochIsRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		r.everybody(1, broker.Ask{Client: "orders"})
		for range 3 {
			if err := r.all[0].Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
				t.Fatal(err)
			}
		}
		r.everybody(1, broker.Ask{Client: "orders"})
		empty := store.NewMemory(store.MemoryConfig{})
		for _, replica := range r.all {
			replica.link.to.Store(empty)
		}
		fetches := r.fetches()
		time.Sleep(6 * time.Second)
		r.everybody(1, broker.Ask{Client: "orders"}) // from memory
		// A newcomer knows the epoch from the store alone, to which the others have
		// returned it.
		r.shared = empty
		r.add("right")
		answers := r.everybody(1, broker.Ask{Client: "orders"})
		if epoch, want := answers[2].Token.Epoch, answers[0].Token.Epoch; epoch != want {
			t.Errorf("the newcomer's token is of epoch %d, want %d", epoch, want)
		}
		if got := r.fetches() - fetches; got > 1 {
			t.Errorf("the loss cost %d fetches", got)
		}
	})
}

// Nor does it make the fleet take what is new for old.
func TestLostFencesAreRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		for i := range 5 {
			r.everybody(1, broker.Ask{Client: "orders", Audience: audienceNo(i)})
		}
		r.everybody(1, broker.Ask{Client: "orders"})
		empty := store.NewMemory(store.MemoryConfig{})
		for _, replica := range r.all {
			replica.link.to.Store(empty)
		}
		before := r.fetches()
		for range 85 {
			time.Sleep(time.Second)
			r.everybody(1, broker.Ask{Client: "orders"})
		}
		if got := r.fetches() - before; got != 1 {
			t.Errorf("a refresh cost %d fetches", got)
		}
	})
}

// Replicas that knew different fences when the store lost everything share the next
// refresh: also if the one that knew the least refreshes first, with a fence that
// another one's token has or exceeds.
func TestLostFences_differentReplicas(t *testing.T) {
	for _, fences := range []int{1, 6} {
		t.Run(fmt.Sprint(fences), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := startReplicas(t, 3)
				ask := broker.Ask{Client: "orders"}
				get := func(replica *replica, ask broker.Ask) {
					if _, err := replica.Get(t.Context(), policy.Self(), ask); err != nil {
						t.Fatal(err)
					}
				}
				for _, replica := range r.all[1:] { // no fence
					replica.link.state.Store(refused)
					get(replica, ask)
				}
				time.Sleep(20 * time.Second)
				for i := range fences - 1 {
					get(r.all[0], broker.Ask{Client: "orders", Audience: audienceNo(i)})
				}
				get(r.all[0], ask)
				empty := store.NewMemory(store.MemoryConfig{})
				for _, replica := range r.all {
					replica.link.to.Store(empty)
					replica.link.state.Store(good)
				}
				before := r.fetches()
				for range 80 {
					time.Sleep(time.Second)
					r.everybody(1, ask)
				}
				if got := r.fetches() - before; got != 1 {
					t.Errorf("a refresh cost %d fetches", got)
				}
			})
		})
	}
}

func TestRejectedToken_fleetReplacesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 5)
		bad := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"}))
		r.idp.SetDelay(300 * time.Millisecond)
		answers := r.everybody(20, broker.Ask{Client: "orders", Rejected: &bad})
		if r.sameToken(answers) == bad || r.fetches() != 2 {
			t.Errorf("the rejected token was given out: %v; fetches: %d", r.sameToken(answers) == bad, r.fetches())
		}
	})
}

func TestRejectedToken_fleetFetchesSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 5)
		r.idp.SetLifetime(time.Hour)
		r.everybody(1, broker.Ask{Client: "orders"})
		begun := time.Now()
		for time.Since(begun) < 5*time.Minute {
			for _, replica := range r.all {
				answer, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
				if err != nil || answer.Degraded {
					t.Fatalf("an innocent caller got %+v, %v", answer, err)
				}
				rejected := answer.Token.SHA256
				if _, err := replica.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Rejected: &rejected}); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(500 * time.Millisecond)
		}
		if got := r.fetches() - 1; got < 9 || got > 11 {
			t.Errorf("in 5 minutes %d fetches were forced, want one in 30 s", got)
		}
	})
}

// A replica that never forced a fetch itself still knows that one was forced.
func TestForcedFetch_delaysLaterReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		r.idp.SetLifetime(time.Hour)
		bad := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"}))
		bad = r.sameToken(r.everybody(1, broker.Ask{Client: "orders", Rejected: &bad}))
		for range 4 {
			time.Sleep(5 * time.Second)
			newcomer := r.add("right")
			answer, err := newcomer.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Rejected: &bad})
			if err != nil || !answer.Degraded || answer.Token.SHA256 != bad {
				t.Errorf("%+v, %v", answer, err)
			}
		}
		if got := r.fetches(); got != 2 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}

// Nor does it wait for much longer than the guard that held it back.
func TestForcedFetch_delayedIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		r.idp.SetLifetime(time.Hour)
		bad := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"}))
		bad = r.sameToken(r.everybody(1, broker.Ask{Client: "orders", Rejected: &bad}))
		time.Sleep(10 * time.Second)
		newcomer := r.add("right")
		for range 27 {
			if answer, err := newcomer.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Rejected: &bad}); err != nil {
				t.Fatal(err)
			} else if answer.Token.SHA256 != bad {
				return
			}
			time.Sleep(time.Second)
		}
		t.Error("after 37 s the rejected token is still handed out")
	})
}

// A fleet that holds a token does not press an IdP that is down for another.
func TestFleet_backsOffWhileTheIdPIsDown(t *testing.T) {
	for _, life := range []time.Duration{20 * time.Second, time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			r := startReplicas(t, 20)
			r.idp.SetLifetime(life)
			due := r.everybody(1, broker.Ask{Client: "orders"})[0].Token.RefreshAt
			time.Sleep(time.Until(due))
			r.idp.FailNext(1000, http.StatusServiceUnavailable, "", nil)
			before, lasts := r.fetches(), min(10*time.Second, life/10)
			for begun := time.Now(); time.Since(begun) < lasts; time.Sleep(20 * time.Millisecond) {
				r.everybody(1, broker.Ask{Client: "orders"})
			}
			if got := r.fetches() - before; got > 10 {
				t.Errorf("in %v an IdP that is down was asked %d times for a token of %v", lasts, got, life)
			}
		})
	}
}

// Tokens of 20 s under load for 100 s, then of 6 s for 30 s: nobody fails, nobody
// gets a token below its margin, and the fleet fetches once for each lifetime.
func TestFleet_oneFetchPerLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 10)
		r.idp.SetDelay(300 * time.Millisecond)
		r.idp.SetLifetime(20 * time.Second)
		drive := func(length, lifetime time.Duration) {
			for begun := time.Now(); time.Since(begun) < length; time.Sleep(20 * time.Millisecond) {
				for _, answer := range r.everybody(1, broker.Ask{Client: "orders"}) {
					if left := time.Until(answer.Token.ExpiresAt); left < lifetime/10 {
						t.Fatalf("a token of %v with %v left was handed out", lifetime, left)
					}
				}
			}
		}
		drive(100*time.Second, 20*time.Second)
		// A lifetime of 20 s is refreshed after 15 s, give or take 1 s.
		if got := r.fetches(); got < 6 || got > 8 {
			t.Errorf("%d fetches in 100 s, want about 6.7", got)
		}
		r.idp.SetLifetime(6 * time.Second)
		time.Sleep(20 * time.Second)
		before := r.fetches()
		drive(30*time.Second, 6*time.Second)
		if got := r.fetches() - before; got < 6 || got > 8 {
			t.Errorf("%d fetches in 30 s, want about 6.7", got)
		}
	})
}

func TestOlderTokenReplacesNoNewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 2)
		slow, fast := r.all[0], r.all[1]
		old := r.sameToken(r.everybody(1, broker.Ask{Client: "orders"}))
		// slow begins a fetch and loses its lease and its way to the store.
		r.idp.SetDelay(6 * time.Second)
		late := make(chan broker.Answer, 1)
		go func() {
			answer, _ := slow.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Rejected: &old})
			late <- answer
		}()
		time.Sleep(time.Second)
		slow.link.state.Store(refused)
		time.Sleep(4 * time.Second) // the lease is over
		r.idp.SetDelay(0)
		if err := fast.Purge(t.Context(), policy.Self(), purgeOf("orders")); err != nil {
			t.Fatal(err)
		}
		newer, err := fast.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		slow.link.state.Store(good)
		<-late
		time.Sleep(10 * time.Second)
		answer, err := fast.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		if err != nil || answer.Token.SHA256 != newer.Token.SHA256 {
			t.Errorf("the late token displaced the newer one (%v)", err)
		}
		if answer, err := slow.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err != nil || answer.Token.Epoch != newer.Token.Epoch {
			t.Errorf("the replica that was cut off hands out %+v, %v", answer.Token, err)
		}
	})
}

func TestReplicasOfDifferentConfigurationShareNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := startReplicas(t, 1)
		r.everybody(1, broker.Ask{Client: "orders"})
		ref, err := secret.ParseRef("file:" + writeSecret(t, "right"))
		if err != nil {
			t.Fatal(err)
		}
		source, err := secret.OpenKeyed(ref, sha256Of)
		if err != nil {
			t.Fatal(err)
		}
		other, err := idp.New(idp.Config{
			TokenURL: issuer + devidp.TokenPath, ClientID: "abc", Auth: idp.SecretPost,
			HTTP: discovery.NewHTTPClient(r.idp.RoundTripper()),
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := broker.New(broker.Config{
			Setup: broker.Setup{Clients: []broker.ClientConfig{{Name: "orders", IdP: other, Secret: source, Audience: audience, Scopes: []string{"write", "read"}}}},
			Store: r.shared, MAC: sha256Of, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		answer, err := b.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders"})
		if err != nil || answer.Origin != broker.OriginFetched {
			t.Errorf("%+v, %v", answer, err)
		}
	})
}

func writeSecret(t testing.TB, value string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	testkit.WriteFile(t, path, value)
	return path
}
