package fleet

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// An operator revokes at one replica; every replica refuses, also one that
// starts later, and after all of them were killed.
func TestRevocationOutlivesTheFleet(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.Client.Audiences[0])
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + issuers + harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp})
	first, second := harness.StartBroker(t, config), harness.StartBroker(t, config)
	token := first.Get(t, "orders").AccessToken
	for _, b := range []*harness.Broker{first, second} {
		b.MustVerify(t, "a good token", token, harness.Active)
	}

	revoke := first.Run(t, "revocations", "add", "--issuer", idp.Issuer(), "--client-id", "abc", "--reason", "a test")
	if revoke.Code != 0 {
		t.Fatalf("revocations add: %v", revoke)
	}
	first.MustVerify(t, "a revoked token, where it was revoked", token, harness.Rejected)
	testkit.Eventually(t, "the other replica refuses the token", func() bool { return second.Verify(t, token).Code == harness.Rejected })
	if list := second.Run(t, "revocations", "list"); list.Code != 0 || !strings.Contains(list.Stdout, `client "abc"`) || !strings.Contains(list.Stdout, "a test") {
		t.Errorf("revocations list: %v", list)
	}

	first.Process.Stop(t, os.Kill)
	second.Process.Stop(t, os.Kill)
	third := harness.StartBroker(t, config)
	third.MustVerify(t, "a revoked token, after a restart", token, harness.Rejected)
	if res := third.Run(t, "revocations", "delete", strings.TrimSpace(revoke.Stdout)); res.Code != 0 {
		t.Fatalf("revocations delete: %v", res)
	}
	third.MustVerify(t, "a token whose revocation was deleted", token, harness.Active)
}

// A broker that cannot know what is revoked does not say that a token is good.
func TestBrokerWithoutRevocationsDoesNotDecide(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.Client.Audiences[0])
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + issuers + harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp})
	redis.Kill()
	b := harness.StartBroker(t, config)
	token := b.Get(t, "orders").AccessToken
	if res := b.MustVerify(t, "a token while Redis is away", token, harness.Undecided); !strings.Contains(res.Stderr, harness.RevocationsUnknown) {
		t.Errorf("it does not say why: %v", res)
	}
	redis.Restart()
	testkit.Eventually(t, "the token is good once Redis is back", func() bool { return b.Verify(t, token).Code == harness.Active })
}

// Redis without persistence and one replica restart together: the replica never says that
// a revoked token is good.
func TestRevocationSurvivesRestarts(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.Client.Audiences[0])
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + issuers + harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp})
	first, second := harness.StartBroker(t, config), harness.StartBroker(t, config)
	token := first.Get(t, "orders").AccessToken
	first.MustVerify(t, "a good token", token, harness.Active)
	if res := first.Run(t, "revocations", "add", "--issuer", idp.Issuer(), "--client-id", "abc"); res.Code != 0 {
		t.Fatalf("revocations add: %v", res)
	}
	second.Process.Stop(t, os.Kill)
	redis.Kill()
	redis.Restart()
	third := harness.StartBroker(t, config)
	testkit.Eventually(t, "the replica that restarted refuses the token", func() bool {
		res := third.Verify(t, token)
		if res.Code == harness.Active {
			t.Fatalf("a revoked token is called good: %v", res)
		}
		return res.Code == harness.Rejected
	})
	if !third.Logged("the store is new or has lost its data") {
		t.Error("Redis has not lost its data: the test does not test what it should")
	}
	first.MustVerify(t, "the token, at the replica that ran on", token, harness.Rejected)
}

// A replica with another ring would never learn of what the others revoke: it does not
// start. One whose ring has other sealing keys, but the same names key, does.
func TestReplicaWithAnotherRingDoesNotStart(t *testing.T) {
	t.Parallel()
	clients := harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": harness.SimpleIdP(t, time.Hour)})
	redis := redistest.Start(t, redisOptions())
	stores := map[string]string{
		"redis": redisConfig(t, "", redis.Addr()),
		"bolt":  fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", t.TempDir()+"/broker.db", "file:"+makeRing(t)),
	}
	for name, section := range stores {
		b := harness.StartBroker(t, section+clients)
		testkit.Eventually(t, "the store is marked: "+name, func() bool { return b.Metric(t, "tokenbroker_revocations_usable") == 1 })
		b.Process.Stop(t, os.Interrupt)
		ring := regexp.MustCompile(`sealing_keys: "file:([^"]*)"`).FindStringSubmatch(section)[1]
		other := strings.Replace(section, ring, makeRing(t), 1) + clients
		startRefused(t, "another ring, "+name, other, "store.sealing_keys", "another ring of sealing keys", "give it the ring of the others")
		if res := harness.Run(t, "check-config", harness.WriteFile(t, "other.yaml", other), "--live"); res.Code == 0 || !strings.Contains(res.Stdout+res.Stderr, "another ring of sealing keys") {
			t.Errorf("check-config --live: %v", res)
		}
		if res := harness.Run(t, "ring", "add", ring); res.Code != 0 {
			t.Fatalf("ring add: %v", res)
		}
		harness.StartBroker(t, section+clients)
	}
}

// One node that is killed right after it said that a token is revoked.
func TestRevocationOnBoltSurvivesAKill(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", t.TempDir()+"/broker.db", "file:"+makeRing(t)) +
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.Client.Audiences[0]) +
		harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp})
	b := harness.StartBroker(t, config)
	token := b.Get(t, "orders").AccessToken
	if res := b.Run(t, "revocations", "add", "--issuer", idp.Issuer(), "--client-id", "abc"); res.Code != 0 {
		t.Fatalf("revocations add: %v", res)
	}
	b.Process.Stop(t, os.Kill)
	harness.StartBroker(t, config).MustVerify(t, "a revoked token, after a kill", token, harness.Rejected)
}
