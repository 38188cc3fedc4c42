package fleet

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// earlier is the broker of the commit that testdata/earlier-commit names.
const earlier = "broker-earlier"

// needHistory skips the test in a clone that lacks the earlier commit, also in CI, because
// such a clone cannot install it.
func needHistory(t *testing.T) {
	t.Helper()
	commit := strings.TrimSpace(string(harness.Must(os.ReadFile("testdata/earlier-commit"))))
	if err := exec.CommandContext(t.Context(), "git", "cat-file", "-e", commit).Run(); err != nil {
		t.Skipf("the history of this clone lacks %s: git fetch --unshallow", commit)
	}
}

// Three replicas that share Redis are upgraded from an earlier commit one after the other,
// and rolled back. Values that one binary stores serve the other.
func TestRollingUpgradeFailsNoCall(t *testing.T) {
	t.Parallel()
	needHistory(t)
	harness.Need(t, earlier)
	idp, managed, revoked := harness.SimpleIdP(t, time.Hour), harness.SimpleIdP(t, time.Hour), harness.SimpleIdP(t, time.Hour)
	managed.Takes("first")
	redis := redistest.Start(t, redisOptions())
	config := "server: {drain_delay: 2s}\n" + redisConfig(t, "", redis.Addr()) +
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [%q]}, {issuer: %q, audiences: [%q]}]\n", idp.Issuer(), idp.Client.Audiences[0], revoked.Issuer(), revoked.Client.Audiences[0]) +
		harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp, "revoked": revoked}) +
		strings.TrimPrefix(managed.Managed("managed"), "clients:\n")
	u := startUpgrade(t, config)

	u.command(t, earlier, "first\n", "secret", "rotate", "managed")
	badToken := strings.TrimSpace(u.command(t, earlier, "", "get", "revoked"))
	u.command(t, earlier, "", "revocations", "add", "--issuer", revoked.Issuer(), "--client-id", revoked.Client.ID)
	goodToken := strings.TrimSpace(u.command(t, earlier, "", "get", "orders"))
	for _, b := range u.brokers {
		testkit.Eventually(t, "the replica refuses the revoked token", func() bool { return b.Verify(t, badToken).Code == harness.Rejected })
	}

	loads := u.startLoads(t, goodToken, badToken)
	rest(t, time.Second)
	u.markStore(t, config)
	u.replace(t, "broker")
	u.rotate(t, "broker", managed, "first", "second")
	u.replace(t, earlier)
	u.rotate(t, earlier, managed, "second", "third")
	for _, load := range loads {
		load.end(t)
	}
	t.Logf("calls at the token endpoints: %d for orders, %d for managed", idp.Calls(), managed.Calls())
}

// upgrade is a fleet whose binaries are replaced.
type upgrade struct {
	brokers   []*harness.Broker
	addresses []string
}

func startUpgrade(t *testing.T, config string) *upgrade {
	t.Helper()
	u := &upgrade{}
	for range 3 {
		b := harness.NewBroker(t, config)
		b.Launch(t, earlier)
		b.Await(t)
		u.brokers, u.addresses = append(u.brokers, b), append(u.addresses, b.Grpc)
	}
	return u
}

// command runs a binary's command line at the first replica.
func (u *upgrade) command(t *testing.T, binary, input string, args ...string) string {
	t.Helper()
	command := u.brokers[0].Command(input)
	command.Name = binary
	res := command.Run(t, args...)
	if res.Code != 0 {
		t.Fatalf("%s %s: %v", binary, strings.Join(args, " "), res)
	}
	return res.Stdout
}

func (u *upgrade) startLoads(t *testing.T, goodToken, badToken string) []*callLoad {
	t.Helper()
	balancer := startLoadBalancer(t, u.brokers)
	conn := harness.Must(grpc.NewClient(balancer.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())))
	t.Cleanup(func() { _ = conn.Close() })
	plain := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	list := newClient(t, strings.Join(u.addresses, ","), client.WithPlaintext())
	verify := func(token string, want bool) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			resp, err := plain.VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{Token: token})
			if err == nil && resp.GetActive() != want {
				err = fmt.Errorf("active: %v", resp.GetActive())
			}
			return err
		}
	}
	return []*callLoad{
		startCalls("GetToken, Go client", func(ctx context.Context) error { _, err := list.Token(ctx, "orders"); return err }),
		startCalls("GetToken, plain grpc-go", func(ctx context.Context) error {
			_, err := plain.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "managed"})
			return err
		}),
		startCalls("VerifyToken of a good token", verify(goodToken, true)),
		startCalls("VerifyToken of a revoked token", verify(badToken, false)),
	}
}

// markStore does what docs/upgrading.md advises before the first upgrade from a version
// that did not mark the store: it runs one more replica, which gets no traffic, until the
// store is marked. Without it, the first replicas that are upgraded verify no token for 10 s.
func (u *upgrade) markStore(t *testing.T, config string) {
	t.Helper()
	b := harness.StartBroker(t, config)
	testkit.Eventually(t, "the store is marked", func() bool { return b.Metric(t, "tokenbroker_revocations_usable") == 1 })
	b.Process.Stop(t, syscall.SIGTERM)
}

// replace replaces the binary of one replica after the other.
func (u *upgrade) replace(t *testing.T, binary string) {
	t.Helper()
	for _, b := range u.brokers {
		if code := b.Process.Stop(t, syscall.SIGTERM); code != 0 {
			t.Errorf("a replica ended with exit code %d", code)
		}
		b.Launch(t, binary)
		b.Await(t)
		rest(t, time.Second)
	}
}

// rotate brings another secret by a binary's command line. Afterwards the IdP accepts no
// other secret, and each replica gets a token with it.
func (u *upgrade) rotate(t *testing.T, binary string, idp *harness.CountingIdP, secret, next string) {
	t.Helper()
	idp.Takes(secret, next)
	u.command(t, binary, next+"\n", "secret", "rotate", "managed")
	idp.Takes(next)
	u.command(t, binary, "", "purge", "managed")
	for _, b := range u.brokers {
		b.Get(t, "managed")
	}
}
