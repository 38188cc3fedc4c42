package e2e_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Redis has nothing of the history of a secret from the environment until a replica is restarted
// with another value. Then the fleet puts that in force, as one from any other source.
func TestEnvSecretHasNoHistoryInRedisUntilItChanges(t *testing.T) {
	t.Parallel()
	idp := simpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + strings.Replace(idp.managed("orders"), "secret: managed", "secret: env:ORDERS_SECRET", 1)
	launch := func(secret string) *broker {
		b := newBroker(t, config)
		b.launch(t, "broker", "ORDERS_SECRET="+secret)
		b.await(t)
		return b
	}
	history := func() bool { return strings.Contains(redis.CLI("--scan"), "secrets") }
	idp.takes("first")
	stays, ends := launch("first"), launch("first")
	for i := range 5 {
		stays.get(t, "orders", "--audience", audiences(60)[i])
		ends.get(t, "orders", "--audience", audiences(60)[i])
	}
	if got := states(stays.client(t, "orders")); got != "current" {
		t.Errorf("the client's secret is %q", got)
	}
	if history() {
		t.Errorf("there is a history: %s", redis.CLI("--scan"))
	}
	idp.takes("first", "second")
	if code := ends.process.stop(t, syscall.SIGTERM); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	restarted := launch("second")
	testkit.Eventually(t, "the other value is in force", func() bool {
		restarted.get(t, "orders")
		stays.get(t, "orders")
		return states(restarted.client(t, "orders")) == "current previous" && states(stays.client(t, "orders")) == "current previous"
	})
	if !history() {
		t.Error("there is no history")
	}
	if idp.refused("first")+idp.refused("second") != 0 {
		t.Error("the IdP refused a secret")
	}
}
