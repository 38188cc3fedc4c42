package e2e_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// An operator revokes at one replica; every replica refuses, also one that
// starts later, and after all of them were killed.
func TestARevocationHoldsInTheFleetAndOutlivesIt(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.client.Audiences[0])
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + issuers + clientsConfig(t, map[string]*countingIdP{"orders": idp})
	first, second := startBroker(t, config), startBroker(t, config)
	token := first.get(t, "orders").AccessToken
	for _, b := range []*broker{first, second} {
		b.mustVerify(t, "a good token", token, active)
	}

	revoke := first.run(t, "revocations", "add", "--issuer", idp.Issuer(), "--client-id", "abc", "--reason", "a test")
	if revoke.code != 0 {
		t.Fatalf("revocations add: %v", revoke)
	}
	first.mustVerify(t, "a revoked token, where it was revoked", token, rejected)
	testkit.Eventually(t, "the other replica refuses the token", func() bool { return second.verify(t, token).code == rejected })
	if list := second.run(t, "revocations", "list"); list.code != 0 || !strings.Contains(list.stdout, `client "abc"`) || !strings.Contains(list.stdout, "a test") {
		t.Errorf("revocations list: %v", list)
	}

	first.process.stop(t, os.Kill)
	second.process.stop(t, os.Kill)
	third := startBroker(t, config)
	third.mustVerify(t, "a revoked token, after a restart", token, rejected)
	if res := third.run(t, "revocations", "delete", strings.TrimSpace(revoke.stdout)); res.code != 0 {
		t.Fatalf("revocations delete: %v", res)
	}
	third.mustVerify(t, "a token whose revocation was deleted", token, active)
}

// A broker that cannot know what is revoked does not say that a token is good.
func TestABrokerThatNeverSawTheRevocationsDoesNotDecide(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.client.Audiences[0])
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + issuers + clientsConfig(t, map[string]*countingIdP{"orders": idp})
	redis.Kill()
	b := startBroker(t, config)
	token := b.get(t, "orders").AccessToken
	if res := b.mustVerify(t, "a token while Redis is away", token, undecided); !strings.Contains(res.stderr, revocationsUnknown) {
		t.Errorf("it does not say why: %v", res)
	}
	redis.Restart()
	testkit.Eventually(t, "the token is good once Redis is back", func() bool { return b.verify(t, token).code == active })
}

// Redis without persistence and one replica restart together: the replica never says that
// a revoked token is good.
func TestARevocationHoldsWhileRedisAndAReplicaRestart(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	issuers := fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.client.Audiences[0])
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + issuers + clientsConfig(t, map[string]*countingIdP{"orders": idp})
	first, second := startBroker(t, config), startBroker(t, config)
	token := first.get(t, "orders").AccessToken
	first.mustVerify(t, "a good token", token, active)
	if res := first.run(t, "revocations", "add", "--issuer", idp.Issuer(), "--client-id", "abc"); res.code != 0 {
		t.Fatalf("revocations add: %v", res)
	}
	second.process.stop(t, os.Kill)
	redis.Kill()
	redis.Restart()
	third := startBroker(t, config)
	testkit.Eventually(t, "the replica that restarted refuses the token", func() bool {
		res := third.verify(t, token)
		if res.code == active {
			t.Fatalf("a revoked token is called good: %v", res)
		}
		return res.code == rejected
	})
	if !third.logged("the store is new or has lost its data") {
		t.Error("Redis has not lost its data: the test does not test what it should")
	}
	first.mustVerify(t, "the token, at the replica that ran on", token, rejected)
}

// A replica with another ring would never learn of what the others revoke: it does not
// start. One whose ring has other sealing keys, but the same names key, does.
func TestAReplicaWithAnotherRingDoesNotStart(t *testing.T) {
	t.Parallel()
	clients := clientsConfig(t, map[string]*countingIdP{"orders": simpleIdP(t, time.Hour)})
	redis := redistest.Start(t, redisOptions())
	stores := map[string]string{
		"redis": redisConfig(t, "", redis.Addr()),
		"bolt":  fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", t.TempDir()+"/broker.db", "file:"+makeRing(t)),
	}
	for name, section := range stores {
		b := startBroker(t, section+clients)
		testkit.Eventually(t, "the store is marked: "+name, func() bool { return b.metric(t, "tokenbroker_revocations_usable") == 1 })
		b.process.stop(t, os.Interrupt)
		ring := regexp.MustCompile(`sealing_keys: "file:([^"]*)"`).FindStringSubmatch(section)[1]
		other := strings.Replace(section, ring, makeRing(t), 1) + clients
		startRefused(t, "another ring, "+name, other, "store.sealing_keys", "another ring of sealing keys", "give it the ring of the others")
		if res := run(t, "check-config", writeFile(t, "other.yaml", other), "--live"); res.code == 0 || !strings.Contains(res.stdout+res.stderr, "another ring of sealing keys") {
			t.Errorf("check-config --live: %v", res)
		}
		if res := run(t, "ring", "add", ring); res.code != 0 {
			t.Fatalf("ring add: %v", res)
		}
		startBroker(t, section+clients)
	}
}

// One node that is killed right after it said that a token is revoked.
func TestARevocationOnBoltSurvivesAKill(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, time.Hour)
	config := fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", t.TempDir()+"/broker.db", "file:"+makeRing(t)) +
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.client.Audiences[0]) +
		clientsConfig(t, map[string]*countingIdP{"orders": idp})
	b := startBroker(t, config)
	token := b.get(t, "orders").AccessToken
	if res := b.run(t, "revocations", "add", "--issuer", idp.Issuer(), "--client-id", "abc"); res.code != 0 {
		t.Fatalf("revocations add: %v", res)
	}
	b.process.stop(t, os.Kill)
	startBroker(t, config).mustVerify(t, "a revoked token, after a kill", token, rejected)
}
