package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// madeKeys is two brokers that make the key of the client "orders", and the IdP that reads
// its public part from either of them.
type madeKeys struct {
	idp     *harness.OIDCProvider
	brokers [2]*harness.Broker
}

func startMadeKeys(t *testing.T) *madeKeys {
	t.Helper()
	w := &madeKeys{idp: harness.StartOIDCProvider(t)}
	redis := redistest.Start(t, redistest.Options{AppendOnly: true})
	ring := harness.Run(t, "ring", "new")
	if ring.Code != 0 {
		t.Fatalf("ring new: %v", ring)
	}
	text := fmt.Sprintf("store: {redis: {addresses: [%q]}, sealing_keys: \"file:%s\"}\nclients:\n", redis.Addr(), harness.WriteFile(t, "ring.json", ring.Stdout)) +
		w.idp.YAML("orders", "made", "private_key_jwt", "key: {algorithm: ES256, rotate_every: 1h, publish_before: 1m}")
	public := []string{harness.FreeAddress(t), harness.FreeAddress(t)}
	front := frontOf(t, public)
	for i := range w.brokers {
		b := harness.NewBroker(t, text)
		config, err := os.ReadFile(b.File)
		if err != nil {
			t.Fatal(err)
		}
		listens := fmt.Sprintf("listen: {public_keys: {address: %q, url: %q}, ", public[i], front)
		testkit.WriteFile(t, b.File, strings.Replace(string(config), "listen: {", listens, 1))
		b.Launch(t, "broker")
		w.brokers[i] = b
	}
	for _, b := range w.brokers {
		b.Await(t)
	}
	return w
}

// frontOf is a load balancer in front of the listeners for public keys.
func frontOf(t *testing.T, addresses []string) (address string) {
	t.Helper()
	var turn atomic.Uint32
	front := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: addresses[int(turn.Add(1))%len(addresses)]})
	}})
	t.Cleanup(front.Close)
	return front.URL
}

// run runs a command that must succeed at one of the brokers.
func (w *madeKeys) run(t *testing.T, at int, args ...string) string {
	t.Helper()
	res := w.brokers[at].Run(t, args...)
	if res.Code != 0 {
		t.Fatalf("broker %s: %v", strings.Join(args, " "), res)
	}
	return res.Stdout
}

// list is what "broker key list" tells at one of the brokers.
func (w *madeKeys) list(t *testing.T, at int) *tokenbrokerv1.ListKeysResponse {
	t.Helper()
	var listed tokenbrokerv1.ListKeysResponse
	if err := protojson.Unmarshal([]byte(w.run(t, at, "key", "list", "orders", "--json")), &listed); err != nil {
		t.Fatal(err)
	}
	return &listed
}

// inState returns the ID of the key in a state; empty if there is none.
func inState(listed *tokenbrokerv1.ListKeysResponse, state tokenbrokerv1.SecretState) string {
	for _, key := range listed.GetKeys() {
		if key.GetState() == state {
			return key.GetKid()
		}
	}
	return ""
}

// awaitState waits until both brokers have another key in a state than before.
func (w *madeKeys) awaitState(t *testing.T, state tokenbrokerv1.SecretState, before string) (kid string) {
	t.Helper()
	for at := range w.brokers {
		testkit.Eventually(t, "a new key is "+state.String(), func() bool {
			if res := w.brokers[at].Run(t, "status"); strings.Contains(res.Stdout, "secrets-differ") || strings.Contains(res.Stdout, "key-overdue") {
				t.Fatalf("a step in time is a finding: %s", res)
			}
			kid = inState(w.list(t, at), state)
			return kid != "" && kid != before
		})
	}
	return kid
}

// load calls both brokers until the context ends, and returns how many calls there were and
// the errors of those that failed.
func (w *madeKeys) load(ctx context.Context, t *testing.T) (calls int, failures []error) {
	t.Helper()
	var callers sync.WaitGroup
	var mu sync.Mutex
	for _, b := range w.brokers {
		conn := harness.Must(grpc.NewClient(b.Grpc, grpc.WithTransportCredentials(insecure.NewCredentials())))
		defer func() { _ = conn.Close() }()
		api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
		callers.Go(func() {
			for ctx.Err() == nil {
				_, err := api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
				mu.Lock()
				if calls++; err != nil {
					failures = append(failures, err)
				}
				mu.Unlock()
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	callers.Wait()
	return calls, failures
}

// Keys that the broker makes rotate at an IdP that nobody here wrote, with the commands of
// operators, and no call fails.
func TestMadeKeysWithOIDCProvider(t *testing.T) {
	t.Parallel()
	w := startMadeKeys(t)
	w.idp.SetLifetime(t, 10*time.Second)
	w.idp.Control(t, "register", map[string]any{"id": "made", "jwks_uri": w.list(t, 0).GetUrl(), "seconds": 1})
	const current, pending = tokenbrokerv1.SecretState_SECRET_STATE_CURRENT, tokenbrokerv1.SecretState_SECRET_STATE_PENDING
	used := w.awaitState(t, current, "")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var calls int
	var failures []error
	var loading sync.WaitGroup
	loading.Go(func() { calls, failures = w.load(ctx, t) })
	for i := range 4 {
		made, leaked := i%2, 1-i%2
		before := w.idp.TokenRequests(t)
		if said := w.run(t, made, "key", "rotate", "orders", "--reason", "quarterly"); !strings.Contains(said, "it is published at") {
			t.Errorf("key rotate: %s", said)
		}
		next := w.awaitState(t, pending, "")
		w.published(t, leaked, used, next)
		if kid := inState(w.list(t, made), current); kid != used {
			t.Errorf("rotation %d: the key %s is in use before it was published for publish_before", i, kid)
		}
		w.run(t, leaked, "key", "rotate", "orders", "--compromised", "--yes", "--reason", "laptop stolen")
		if used = w.awaitState(t, current, used); used != next {
			t.Errorf("rotation %d: the key %s is in use, want the one that was published: %s", i, used, next)
		}
		if w.idp.TokenRequests(t) == before {
			t.Error("no token was fetched with the new key")
		}
	}
	stop()
	loading.Wait()
	if len(failures) > 0 {
		t.Errorf("%d of %d calls failed, the first: %v", len(failures), calls, failures[0])
	}
	t.Logf("%d calls, %d token requests", calls, w.idp.TokenRequests(t))
	if said := w.run(t, 0, "key", "list", "orders"); !strings.Contains(said, w.list(t, 1).GetUrl()) || !strings.Contains(said, used) {
		t.Errorf("key list: %s", said)
	}
}

// published checks that "broker key publish" writes the keys, without their private parts,
// and that they are those at the URL that the IdP reads.
func (w *madeKeys) published(t *testing.T, at int, kids ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "jwks.json")
	w.run(t, at, "key", "publish", "orders", "--file", file)
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var served struct {
		Keys []map[string]string `json:"keys"`
	}
	response := harness.Must(harness.Fetch(t, &http.Client{Timeout: harness.Patience}, http.MethodGet, w.list(t, at).GetUrl(), nil))
	defer func() { _ = response.Body.Close() }()
	if err := json.NewDecoder(response.Body).Decode(&served); err != nil {
		t.Fatal(err)
	}
	for _, kid := range kids {
		found := false
		for _, key := range served.Keys {
			found = found || key["kid"] == kid
		}
		if !found || !strings.Contains(string(written), kid) {
			t.Errorf("the key %s is not in the document: %v, or not in the file: %s", kid, served, written)
		}
	}
	if strings.Contains(string(written), `"d":`) {
		t.Error("a private key is in the file")
	}
}
