package fleet

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Redis has nothing of the history of a secret from the environment until a replica is restarted
// with another value. Then the fleet puts that in force, as one from any other source.
func TestEnvSecretHasNoHistoryInRedis(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", redis.Addr()) + strings.Replace(idp.Managed("orders"), "secret: managed", "secret: env:ORDERS_SECRET", 1)
	launch := func(secret string) *harness.Broker {
		b := harness.NewBroker(t, config)
		b.Launch(t, "broker", "ORDERS_SECRET="+secret)
		b.Await(t)
		return b
	}
	history := func() bool { return strings.Contains(redis.CLI("--scan"), "secrets") }
	idp.Takes("first")
	stays, ends := launch("first"), launch("first")
	for i := range 5 {
		stays.Get(t, "orders", "--audience", harness.Audiences(60)[i])
		ends.Get(t, "orders", "--audience", harness.Audiences(60)[i])
	}
	if got := states(stays.Client(t, "orders")); got != "current" {
		t.Errorf("the client's secret is %q", got)
	}
	if history() {
		t.Errorf("there is a history: %s", redis.CLI("--scan"))
	}
	idp.Takes("first", "second")
	if code := ends.Process.Stop(t, syscall.SIGTERM); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	restarted := launch("second")
	testkit.Eventually(t, "the other value is in force", func() bool {
		restarted.Get(t, "orders")
		stays.Get(t, "orders")
		return states(restarted.Client(t, "orders")) == "current previous" && states(stays.Client(t, "orders")) == "current previous"
	})
	if !history() {
		t.Error("there is no history")
	}
	if idp.Refused("first")+idp.Refused("second") != 0 {
		t.Error("the IdP refused a secret")
	}
}
