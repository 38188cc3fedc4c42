package fleet

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// target is all replicas of the fleet.
func targetOf(f *Fleet) string {
	addresses := make([]string, len(f.Replicas))
	for i, r := range f.Replicas {
		addresses[i] = r.Grpc
	}
	return strings.Join(addresses, ",")
}

// users request tokens from a source all the time, as a service does
// for each request that it makes.
type users struct {
	source *client.Source
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	calls  int
	wrong  []error
	tokens map[string]time.Time // when each was first seen
}

func startUsers(t *testing.T, source *client.Source, n int) *users {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	u := &users{source: source, cancel: cancel, tokens: map[string]time.Time{}}
	for range n {
		u.wg.Go(func() {
			for wait(ctx, time.Millisecond) {
				token, err := source.Token(t.Context())
				if err == nil && !token.ExpiresAt().After(time.Now()) {
					err = fmt.Errorf("a token that expired %v ago", time.Since(token.ExpiresAt()))
				}
				u.note(token, err)
			}
		})
	}
	t.Cleanup(u.end)
	return u
}

func (u *users) note(token *client.Token, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls++
	if err != nil {
		u.wrong = append(u.wrong, err)
		return
	}
	if _, seen := u.tokens[token.AccessToken()]; !seen {
		u.tokens[token.AccessToken()] = time.Now()
	}
}

func (u *users) end() {
	u.cancel()
	u.wg.Wait()
}

// awaitAnother waits until the source has another token than before.
func awaitAnother(t *testing.T, source *client.Source, before *client.Token) {
	t.Helper()
	testkit.Eventually(t, "another token", func() bool {
		token, err := source.Token(t.Context())
		return err == nil && token.AccessToken() != before.AccessToken()
	})
}

func held(t *testing.T, source *client.Source) *client.Token {
	t.Helper()
	token, err := source.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func newClient(t *testing.T, target string, opts ...client.Option) *client.Client {
	t.Helper()
	c, err := client.New(target, append([]client.Option{client.WithPlaintext()}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Replicas are killed, rolled one after the other, and all gone for a while: a
// service that holds a token does not notice. Its tokens live so short that they
// are replaced in the middle of it, by whoever is left.
func TestBrokerFailuresFailNoService(t *testing.T) {
	t.Parallel()
	const life = 20 * time.Second
	idp := harness.SimpleIdP(t, life)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", server.Addr())+"server: {drain_delay: 1s}\n"+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	watching := startUsers(t, newClient(t, targetOf(f)).TokenSource("orders"), 10)
	polling := startUsers(t, newClient(t, targetOf(f), client.WithMaxWatches(0), client.WithPollInterval(2*time.Second)).TokenSource("orders"), 10)
	held(t, watching.source)
	held(t, polling.source)

	for i, r := range f.Replicas { // killed, and started again
		r.Process.Stop(t, os.Kill)
		rest(t, time.Second)
		r.Launch(t, "broker")
		r.Await(t)
		t.Logf("replica %d was killed and is back", i)
	}
	for i, r := range f.Replicas { // rolled
		if code := r.Process.Stop(t, harness.Terminate); code != 0 {
			t.Errorf("replica %d ended with exit code %d", i, code)
		}
		r.Launch(t, "broker")
		r.Await(t)
	}
	// All gone at once, for a quarter of a token's life and as long as a slow machine
	// takes to start them: from when there is a new token, which lasts for that.
	services := []*client.Source{watching.source, polling.source}
	for _, source := range services {
		testkit.Eventually(t, "a new token", func() bool { return time.Until(held(t, source).ExpiresAt()) > life*3/4 })
	}
	last := []*client.Token{held(t, watching.source), held(t, polling.source)}
	for _, r := range f.Replicas {
		r.Process.Stop(t, os.Kill)
	}
	rest(t, life/4)
	for _, r := range f.Replicas {
		r.Launch(t, "broker")
	}
	for _, r := range f.Replicas {
		r.Await(t)
	}
	for i, source := range services {
		awaitAnother(t, source, last[i])
	}
	for what, u := range map[string]*users{"watching": watching, "polling": polling} {
		u.end()
		if len(u.wrong) > 0 || u.calls < 1000 {
			t.Errorf("%s: %d of %d calls failed, the first with %v", what, len(u.wrong), u.calls, u.wrong[:min(1, len(u.wrong))])
		}
		if len(u.tokens) < 2 {
			t.Errorf("%s: only %d tokens were seen", what, len(u.tokens))
		}
		t.Logf("%s: %d calls, %d failed, %d tokens", what, u.calls, len(u.wrong), len(u.tokens))
	}
}

// What happened to the replicas does not keep a source from being told of a
// rotation or a purge, within a second, by another.
func TestRotationsAndPurgesReachServices(t *testing.T) {
	t.Parallel()
	bound := 10 * time.Second // without watches it would be a minute
	if harness.IsLong() {     // on a machine that has nothing else to do
		bound = time.Second
	}
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", server.Addr())+idp.Managed("orders"))
	idp.Takes("first", "second", "third")
	f.Replicas[0].Rotate(t, "first")
	sources := make([]*client.Source, 20)
	for i := range sources {
		sources[i] = newClient(t, targetOf(f)).TokenSource("orders")
		held(t, sources[i])
	}
	reaches := func(what string, change func()) {
		t.Helper()
		before := held(t, sources[0])
		change()
		changed := time.Now()
		var slowest time.Duration
		for _, source := range sources {
			awaitAnother(t, source, before)
			slowest = max(slowest, time.Since(changed))
		}
		t.Logf("%s: reached %d services within %v", what, len(sources), slowest.Round(time.Millisecond))
		if slowest > bound {
			t.Errorf("%s: took %v", what, slowest)
		}
	}
	reaches("a purge", func() { f.Replicas[0].Purge(t, "orders") })
	reaches("a rotation", func() { f.Replicas[1].Rotate(t, "second") })
	reaches("a rotation of a secret that leaked", func() { f.Replicas[2].Rotate(t, "third", "--compromised", "--yes") })
	f.Replicas[2].Process.Stop(t, os.Kill)
	rest(t, 3*time.Second) // for the callers that were connected to it
	reaches("a purge with one killed", func() { f.Replicas[0].Purge(t, "orders") })
	f.Replicas[0].Process.Stop(t, harness.Terminate)
	rest(t, 3*time.Second)
	reaches("a purge with another drained", func() { f.Replicas[1].Purge(t, "orders") })
	if got := idp.Calls(); got != 7 { // with the one that proved a secret and was purged right after
		t.Errorf("7 tokens cost %d calls", got)
	}
}

// A hundred services hold one token, and the API that they call refuses it.
func TestRejectionsOfManyServicesAreOne(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	const services, callers = 100, 10
	sources := make([]*client.Source, services)
	old := map[string]bool{}
	for i := range sources {
		sources[i] = newClient(t, targetOf(f)).TokenSource("orders")
		old[held(t, sources[i]).AccessToken()] = true
	}
	if len(old) != 1 || idp.Calls() != 1 {
		t.Fatalf("%d services hold %d tokens, which cost %d calls", services, len(old), idp.Calls())
	}
	idp.SetDelay(300 * time.Millisecond)
	refused := held(t, sources[0])
	replacements := make([]*client.Token, services*callers)
	var wg sync.WaitGroup
	for i := range replacements {
		wg.Go(func() {
			var err error
			if replacements[i], err = sources[i%services].Rejected(t.Context(), refused); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	fresh := map[string]bool{}
	for _, token := range replacements {
		fresh[token.AccessToken()] = true
	}
	if len(fresh) != 1 || fresh[refused.AccessToken()] {
		t.Errorf("%d callers were given %d tokens, the refused one: %v", len(replacements), len(fresh), fresh[refused.AccessToken()])
	}
	if got := idp.Calls() - 1; got != 1 {
		t.Errorf("%d replacements at the IdP", got)
	}
}
