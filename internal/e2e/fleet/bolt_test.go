package fleet

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// acknowledged is what callers were told.
type acknowledged struct {
	mu     sync.Mutex
	tokens map[string]string // the last, by audience
	purged map[string]bool   // tokens that must not be served any more

	replaced atomic.Int64 // number of tokens that were replaced
}

// A broker of one node is killed again and again under load. After each start
// everything that it acknowledged is there.
func TestKilledBrokerOnBoltLosesNothing(t *testing.T) {
	t.Parallel()
	const perRound = 8 // audiences that are new
	rounds := 5
	if harness.IsLong() {
		rounds = 30
	}
	kept := harness.StartIdP(t, time.Hour, devidp.Client{
		ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: harness.Audiences(rounds * perRound),
	})
	purged := harness.SimpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "broker.db"), "file:"+makeRing(t))
	r := &Replica{Broker: harness.NewBroker(t, config+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"kept": kept, "purged": purged}))}
	told := &acknowledged{tokens: map[string]string{}, purged: map[string]bool{}}
	for round := range rounds {
		r.Launch(t, "broker")
		r.Await(t)
		r.Connect(t)
		told.check(t, r, kept)

		var callers sync.WaitGroup
		for _, audience := range kept.Client.Audiences[round*perRound:][:perRound] {
			callers.Go(func() { told.ask(t, r, audience) })
		}
		told.purge(t, r)
		testkit.Eventually(t, "a token is replaced in each round", func() bool { return told.replaced.Load() > int64(round) })
		rest(t, rand.N(50*time.Millisecond))
		r.Process.Stop(t, os.Kill)
		callers.Wait()
	}
	r.Launch(t, "broker")
	r.Await(t)
	r.Connect(t)
	told.check(t, r, kept)
	t.Logf("killed %d times: %d tokens and %d purges were there", rounds, len(told.tokens), len(told.purged))
	if len(told.tokens) < rounds || len(told.purged) != rounds {
		t.Error("these are too few to say anything")
	}
}

// check asks for all that was acknowledged.
func (a *acknowledged) check(t *testing.T, r *Replica, idp *harness.CountingIdP) {
	t.Helper()
	calls := idp.Calls()
	for audience, token := range a.tokens {
		got := r.Ask(t, "kept", client.WithAudience(audience))
		if err := got.Wrong(); err != nil {
			t.Fatalf("after a start: %v", err)
		}
		if got.Token.AccessToken() != token || got.Token.Origin() != "shared" {
			t.Errorf("after a start: same token: %v, origin %s", got.Token.AccessToken() == token, got.Token.Origin())
		}
	}
	if got := idp.Calls() - calls; got != 0 {
		t.Errorf("what was acknowledged cost %d calls after a start", got)
	}
	got := r.Ask(t, "purged")
	if err := got.Wrong(); err != nil {
		t.Fatalf("after a start: %v", err)
	}
	if a.purged[got.Token.AccessToken()] {
		t.Error("a token was served after its purge was acknowledged")
	}
}

// ask gets a token and has it replaced. What comes of a call that the end of
// the process cuts off is unknown.
func (a *acknowledged) ask(t *testing.T, r *Replica, audience string) {
	option := client.WithAudience(audience)
	first := r.Ask(t, "kept", option)
	if first.Err != nil {
		return
	}
	a.set(audience, first.Token)
	if second := r.Ask(t, "kept", option, client.WithRejected(first.Token)); second.Err == nil {
		a.set(audience, second.Token)
		a.replaced.Add(1)
	} else {
		a.set(audience, nil)
	}
}

func (a *acknowledged) set(audience string, token *client.Token) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if token == nil {
		delete(a.tokens, audience)
		return
	}
	a.tokens[audience] = token.AccessToken()
}

func (a *acknowledged) purge(t *testing.T, r *Replica) {
	t.Helper()
	got := r.Ask(t, "purged")
	if err := got.Wrong(); err != nil {
		t.Fatalf("before a purge: %v", err)
	}
	r.Purge(t, "purged")
	a.purged[got.Token.AccessToken()] = true
}
