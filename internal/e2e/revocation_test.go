package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
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
	eventually(t, "the other replica refuses the token", func() bool { return second.verify(t, token).code == rejected })
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
	if res := b.mustVerify(t, "a token while Redis is away", token, undecided); !strings.Contains(res.stderr, "REVOCATIONS_UNKNOWN") {
		t.Errorf("it does not say why: %v", res)
	}
	redis.Restart()
	eventually(t, "the token is good once Redis is back", func() bool { return b.verify(t, token).code == active })
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
