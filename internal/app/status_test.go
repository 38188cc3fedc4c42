package app_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// fleetStatus returns the status that a replica reports.
func fleetStatus(t *testing.T, r *reloadable) *tokenbrokerv1.GetStatusResponse {
	t.Helper()
	conn, err := grpc.NewClient(r.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	status, err := tokenbrokerv1.NewAdminServiceClient(conn).GetStatus(t.Context(), &tokenbrokerv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// expectFindings waits until the replica reports exactly these findings.
func expectFindings(t *testing.T, r *reloadable, want ...string) {
	t.Helper()
	testkit.Succeeds(t, fmt.Sprintf("the findings %v", want), func() error {
		status := fleetStatus(t, r)
		var got []string
		for _, one := range status.GetFindings() {
			got = append(got, one.GetId())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			return fmt.Errorf("the findings are %v", status.GetFindings())
		}
		return nil
	})
}

// A key that is only published is a change that other replicas may not have read yet, and
// says what it waits for.
func TestStatusOfAKeyThatIsNotShown(t *testing.T) {
	t.Parallel()
	ring := filepath.Join(t.TempDir(), "ring")
	testkit.WriteFile(t, ring, string(sealed.GenerateRing().Reveal()))
	begun := time.Now()
	r := startReloadable(t, devIDP(t), everybody+
		fmt.Sprintf("clients: {orders: {issuer: %q, client_id: abc, auth: private_key_jwt, key: {rotate_every: 1h, publish_before: 1m, url: %q}}}\n", idpIssuer, idpIssuer+"/no-such-document")+
		fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(t.TempDir(), "db"), "file:"+ring))
	var one fleet.Client
	testkit.Eventually(t, "a key waits for its publication", func() bool {
		one = r.Status().Clients[0]
		return one.Key != nil
	})
	if one.Key.Obstacle != fleet.KeyNotShown || one.Key.PublishBefore != time.Minute || one.Key.Due.Before(begun.Add(-time.Second)) || !one.Pending.IsZero() {
		t.Errorf("%+v of %+v", one.Key, one)
	}
	if one.Generation == 0 || one.Changed.Before(begun) {
		t.Errorf("generation %d, changed %v, want a time after %v", one.Generation, one.Changed, begun)
	}
	expectFindings(t, r, fleet.SecretMissing)
	if got := fleetStatus(t, r).GetFindings()[0].GetMessage(); !strings.Contains(got, "the document at its URL does not contain the next one") {
		t.Error(got)
	}
}

func TestStatusOfAFleet(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t, redistest.Options{})
	ring := filepath.Join(t.TempDir(), "ring")
	if err := os.WriteFile(ring, sealed.GenerateRing().Reveal(), 0o600); err != nil {
		t.Fatal(err)
	}
	idp := devIDP(t)
	text := everybody + fmt.Sprintf("clients: {orders: {issuer: %q, client_id: abc, secret: file:SECRET, scopes: [read], audience: \"https://orders.example.com\"}}\n", idpIssuer) +
		fmt.Sprintf("issuers: [{issuer: %q, audiences: [\"https://orders.example.com\"]}]\n", idpIssuer) +
		fmt.Sprintf("store: {redis: {addresses: [%q]}, sealing_keys: %q}\n", redis.Addr(), "file:"+ring)
	first, second := startReloadable(t, idp, text), startReloadable(t, idp, text)
	if _, err := first.client.Token(t.Context(), "orders"); err != nil {
		t.Fatal(err)
	}
	testkit.Succeeds(t, "both replicas are seen", func() error {
		for _, r := range []*reloadable{first, second} {
			if replicas := fleetStatus(t, r).GetReplicas(); len(replicas) != 2 || replicas[1].GetUnreadable() {
				return fmt.Errorf("%v", replicas)
			}
		}
		return nil
	})
	expectFindings(t, first)
	expectFindings(t, second)
	status := fleetStatus(t, first)
	client := status.GetClients()[0]
	if client.GetName() != "orders" || client.GetState() != tokenbrokerv1.ClientState_CLIENT_STATE_OK || client.GetLastSuccessAt() == nil || client.GetSecretCurrentSince() == nil {
		t.Errorf("client: %v", client)
	}
	if store := status.GetStore(); store.GetKind() != "redis" || len(store.GetServers()) != 1 || !store.GetServers()[0].GetReads() || !store.GetServers()[0].GetWrites() {
		t.Errorf("store: %v", store)
	}
	testkit.Succeeds(t, "the persistence and eviction of Redis are known", func() error {
		if store := fleetStatus(t, first).GetStore(); store.GetDurable() != "no" || store.GetEvicts() != "no" {
			return fmt.Errorf("%v", store)
		}
		return nil
	})
	testkit.Succeeds(t, "the keys of the issuer are loaded", func() error {
		if issuers := fleetStatus(t, first).GetIssuers(); len(issuers) != 1 || issuers[0].GetKeys() == 0 {
			return fmt.Errorf("%v", issuers)
		}
		return nil
	})
	if replica := status.GetReplicas()[0]; replica.GetSealingKey() == "" || replica.GetConfigAppliedAt() == nil {
		t.Errorf("replica: %v", replica)
	}

	first.apply(strings.Replace(text, "clients:", "clinets:", 1), refused)
	expectFindings(t, first, fleet.ConfigRefused)
	first.apply(text, applied)
	expectFindings(t, first)

	redis.CLI("config", "set", "maxmemory", "1")
	expectFindings(t, first, fleet.StoreFull)
	if status := fleetStatus(t, first); status.GetStore().GetServers()[0].GetError() != "it is out of memory" {
		t.Errorf("store: %v", status.GetStore())
	}
	redis.CLI("config", "set", "maxmemory", "0")
	expectFindings(t, first)
	redis.CLI("replicaof", "127.0.0.1", "1")
	expectFindings(t, first, fleet.StoreReadOnly)
	redis.CLI("replicaof", "no", "one")
	expectFindings(t, first)

	redis.Kill()
	expectFindings(t, first, fleet.StoreAway)
	if status := fleetStatus(t, first); !status.GetIncomplete() || len(status.GetReplicas()) != 1 {
		t.Errorf("without the store: incomplete %v, %d replicas", status.GetIncomplete(), len(status.GetReplicas()))
	}
}

// sealedBy is a configuration of a replica that uses Redis with a ring.
func sealedBy(t *testing.T, redis *redistest.Server, ring *sealed.Ring) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ring")
	if err := sealed.WriteRing(path, ring); err != nil {
		t.Fatal(err)
	}
	return everybody + fmt.Sprintf("clients: {orders: {issuer: %q, client_id: abc, secret: file:SECRET}}\n", idpIssuer) +
		fmt.Sprintf("store: {redis: {addresses: [%q]}, sealing_keys: %q}\n", redis.Addr(), "file:"+path)
}

func TestStatusShowsReplicasWithDifferentRings(t *testing.T) {
	t.Parallel()
	redis, idp := redistest.Start(t, redistest.Options{}), devIDP(t)
	ring := sealed.GenerateRing()
	added, id := ring.Add()
	promoted, err := added.Promote(id)
	if err != nil {
		t.Fatal(err)
	}
	first, second := startReloadable(t, idp, sealedBy(t, redis, ring)), startReloadable(t, idp, sealedBy(t, redis, promoted))
	expectFindings(t, first, fleet.RingDiffers)
	expectFindings(t, second, fleet.RingDiffers)
}

// A replica that starts while Redis is away cannot see that its ring is another one.
func TestStatusShowsAStoreWithAnotherRing(t *testing.T) {
	t.Parallel()
	redis, idp := redistest.Start(t, redistest.Options{AppendOnly: true}), devIDP(t)
	first := startReloadable(t, idp, sealedBy(t, redis, sealed.GenerateRing()))
	testkit.Eventually(t, "the store has a marker", func() bool { return strings.Contains(redis.CLI("--scan"), "marker") })
	redis.Kill()
	second := startReloadable(t, idp, sealedBy(t, redis, sealed.GenerateRing()))
	expectFindings(t, second, fleet.StoreAway)
	redis.Restart()
	expectFindings(t, second, fleet.RingDiffers)
	expectFindings(t, first)
}

func TestStatusShowsARefusedSecret(t *testing.T) {
	t.Parallel()
	r := startReloadable(t, devIDP(t), everybody+fmt.Sprintf("clients: {orders: {issuer: %q, client_id: opaque, secret: file:SECRET, scopes: [read], audience: \"https://orders.example.com\"}}\n", idpIssuer))
	expectFindings(t, r)
	if _, err := r.client.Token(t.Context(), "orders"); err == nil {
		t.Fatal("the IdP accepts the wrong secret")
	}
	expectFindings(t, r, fleet.SecretInvalid)
	status := fleetStatus(t, r)
	if text := fmt.Sprint(status); strings.Contains(text, "everybody") || strings.Contains(text, "right") {
		t.Errorf("the status names a caller or a secret: %s", text)
	}
}
