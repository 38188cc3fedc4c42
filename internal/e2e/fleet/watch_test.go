package fleet

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// watcher is a stream of tokens from one replica.
type watcher struct {
	ended chan struct{}
	err   error // why; set before ended is closed

	mu   sync.Mutex
	seen []string // tokens, in their order
}

// watch watches the client's own token, until the test ends or the stream does.
func watch(t *testing.T, r *Replica, name string) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := tokenbrokerv1.NewTokenBrokerServiceClient(r.API(t)).WatchToken(ctx, &tokenbrokerv1.WatchTokenRequest{ClientName: name})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	w := &watcher{ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for {
			message, err := stream.Recv()
			if err != nil {
				w.err = err
				return
			}
			w.mu.Lock()
			w.seen = append(w.seen, message.GetToken().GetAccessToken())
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); <-w.ended })
	return w
}

func (w *watcher) tokens() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.seen)
}

// at waits until the n-th token of every watcher is there, and returns it if it
// is one and the same.
func at(t *testing.T, watchers []*watcher, n int, what string) string {
	t.Helper()
	tokens := map[string]int{}
	for i, w := range watchers {
		testkit.Eventually(t, what, func() bool {
			select {
			case <-w.ended:
				t.Fatalf("%s: watch %d ended: %v", what, i, w.err)
			default:
			}
			return len(w.tokens()) > n
		})
		tokens[w.tokens()[n]]++
	}
	if len(tokens) != 1 {
		t.Fatalf("%s: %d watchers got %d different tokens", what, len(watchers), len(tokens))
	}
	return watchers[0].tokens()[n]
}

func TestWatchesOfAllReplicasAgree(t *testing.T) {
	t.Parallel()
	const life = 12 * time.Second // refreshed after 8.4 to 9.6 s
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	var watchers []*watcher
	for range 2 {
		for _, r := range f.Replicas {
			watchers = append(watchers, watch(t, r, "orders"))
		}
	}
	first := at(t, watchers, 0, "the first token")

	f.Replicas[0].Purge(t, "orders")
	purged := time.Now()
	second := at(t, watchers, 1, "after a purge at one replica")
	t.Logf("a purge reached all watchers after %v", time.Since(purged).Round(time.Millisecond))

	idp.SetLifetime(life)
	held := f.Replicas[1].Ask(t, "orders")
	rejecting := f.Replicas[1].Ask(t, "orders", client.WithRejected(held.Token))
	rejected := time.Now()
	if err := rejecting.Wrong(); err != nil {
		t.Fatalf("rejecting the token: %v", err)
	}
	third := at(t, watchers, 2, "after a rejection at another")
	t.Logf("a rejection reached all watchers after %v", time.Since(rejected).Round(time.Millisecond))
	if third != rejecting.Token.AccessToken() {
		t.Error("the watchers did not see the token that replaced the rejected one")
	}

	idp.SetLifetime(time.Hour)
	fourth := at(t, watchers, 3, "after a refresh")
	if took := time.Since(rejected); took < life/2 {
		t.Errorf("a refresh came after %v", took)
	}
	if all := []string{first, second, third, fourth}; len(slices.Compact(slices.Sorted(slices.Values(all)))) != 4 {
		t.Error("a token was seen twice")
	}
	if got := idp.Calls(); got != 4 {
		t.Errorf("4 tokens cost %d calls", got)
	}

	// The watches of a replica that ends do, and tell their callers to go
	// elsewhere; the others go on.
	var others, its []*watcher
	for i, w := range watchers {
		if i%len(f.Replicas) == 2 {
			its = append(its, w)
		} else {
			others = append(others, w)
		}
	}
	if code := f.Replicas[2].Process.Stop(t, harness.Terminate); code != 0 {
		t.Errorf("the replica ended with exit code %d", code)
	}
	for _, w := range its {
		<-w.ended
		if status.Code(w.err) != codes.Unavailable || len(w.tokens()) != 4 {
			t.Errorf("a watch of the replica that ended: %v after %d tokens", w.err, len(w.tokens()))
		}
	}
	f.Replicas[0].Purge(t, "orders")
	at(t, others, 4, "after another purge")
}
