package edge

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const (
	// floodRate is how many tokens a second a flood brings, where the machine
	// can.
	floodRate = 10_000
	// keysTake is how long the issuer takes to answer with its keys.
	keysTake = 200 * time.Millisecond
	// keysInterval is how far apart fetches are that tokens cause.
	keysInterval = 10 * time.Second
)

// keyServer publishes the keys of an issuer and counts how often it was asked.
type keyServer struct {
	*httptest.Server

	mu    sync.Mutex
	keys  []byte
	delay time.Duration
	asked []time.Time
}

func startKeyServer(t *testing.T, keys ...*josetest.Signer) *keyServer {
	t.Helper()
	k := &keyServer{delay: keysTake}
	k.publish(keys...)
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		k.asked = append(k.asked, time.Now())
		keys, delay := k.keys, k.delay
		k.mu.Unlock()
		select {
		case <-time.After(delay):
			_, _ = w.Write(keys)
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(func() {
		k.CloseClientConnections()
		k.Close()
	})
	return k
}

func (k *keyServer) publish(keys ...*josetest.Signer) {
	var all []josetest.JSON
	for _, key := range keys {
		all = append(all, key.JWK())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.keys = josetest.Set(all...)
}

func (k *keyServer) hang() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.delay = harness.Patience
}

func (k *keyServer) fetches() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.asked)
}

func (k *keyServer) lastAsked() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked[len(k.asked)-1]
}

// flooded is a broker that a gateway asks about good tokens and bad ones, over
// the same connections.
type flooded struct {
	conns []tokenbrokerv1.TokenBrokerServiceClient
	key   *josetest.Signer
	next  atomic.Int64
}

func startFlooded(t *testing.T, keys *keyServer, key *josetest.Signer) *flooded {
	t.Helper()
	b := harness.StartBroker(t, fmt.Sprintf("issuers: [{issuer: %q, jwks_url: %q, audiences: [%q], algorithms: [EdDSA], refresh_interval: 15m}]\n",
		minterIssuer, keys.URL, harness.RS256))
	f := &flooded{key: key}
	for range 2 {
		conn, err := grpc.NewClient(b.Grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		f.conns = append(f.conns, tokenbrokerv1.NewTokenBrokerServiceClient(conn))
	}
	return f
}

// token is a good one, and another one each time.
func (f *flooded) token(key *josetest.Signer) string {
	now := time.Now().Unix()
	return key.Token(key.Header(), josetest.JSON{
		"iss": minterIssuer, "sub": "alice", "aud": harness.RS256, "exp": now + 3600, "iat": now, "client_id": "app", "jti": fmt.Sprint(f.next.Add(1)),
	})
}

// ask is what the broker says of a token, in a word.
func (f *flooded) ask(ctx context.Context, token string) string {
	conn := f.conns[int(f.next.Add(1))%len(f.conns)]
	answer, err := conn.VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{Token: token})
	switch {
	case err != nil:
		return status.Code(err).String()
	case answer.GetActive():
		return "active"
	}
	return strings.ToLower(strings.TrimPrefix(answer.GetRejection().GetReason().String(), "REJECTION_REASON_"))
}

// during has the gateway ask about good tokens, some that it asked about before
// and some that it did not, until done is closed. All must be answered; it
// returns how long that took.
func (f *flooded) during(t *testing.T, done <-chan struct{}) delays {
	t.Helper()
	var mu sync.Mutex
	var all delays
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			pace := time.NewTicker(10 * time.Millisecond)
			defer pace.Stop()
			warm := f.token(f.key)
			for n := 0; ; n++ {
				select {
				case <-pace.C:
				case <-done:
					return
				}
				token := warm
				if n%2 == 1 {
					token = f.token(f.key)
				}
				begun := time.Now()
				got := f.ask(t.Context(), token)
				took := time.Since(begun)
				if got != "active" {
					t.Errorf("a good token: %s after %v", got, took)
				}
				mu.Lock()
				all = append(all, took)
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	return all
}

type delays []time.Duration

func (l delays) String() string {
	slices.Sort(l)
	if len(l) == 0 {
		return "none"
	}
	at := func(percent int) time.Duration { return l[(len(l)-1)*percent/100].Round(10 * time.Microsecond) }
	return fmt.Sprintf("%d good tokens: p50 %v, p90 %v, p99 %v, longest %v", len(l), at(50), at(90), at(99), at(100))
}

// flood presents floodRate tokens a second, each once, or as many as the machine
// can, and good ones beside them. It returns how many of the bad ones were
// answered how: rejected for what they are, or not decided because too many wait.
func (f *flooded) flood(t *testing.T, name string, lasts time.Duration, bad func(n int) string) map[string]int {
	t.Helper()
	const atOnce = 3000 // more than the connections take
	done, heard := make(chan struct{}), make(chan delays)
	go func() { heard <- f.during(t, done) }()
	said := map[string]int{}
	var mu sync.Mutex
	var senders sync.WaitGroup
	var sent atomic.Int64
	begun := time.Now()
	for range atOnce {
		senders.Go(func() {
			for {
				n := int(sent.Add(1))
				due := begun.Add(time.Duration(n) * time.Second / floodRate)
				if due.Sub(begun) > lasts || time.Since(begun) > lasts {
					return
				}
				time.Sleep(time.Until(due))
				got := f.ask(t.Context(), bad(n))
				mu.Lock()
				said[got]++
				mu.Unlock()
			}
		})
	}
	senders.Wait()
	took := time.Since(begun)
	close(done)
	good, total := <-heard, 0
	for got, n := range said {
		if total += n; got != "unknown_key" && got != "bad_signature" && got != "Unavailable" {
			t.Errorf("%s: %d times %s", name, n, got)
		}
	}
	t.Logf("%s: %d tokens, %.0f a second: %v; beside them %v", name, total, float64(total)/took.Seconds(), said, good)
	if len(good) == 0 || total == 0 {
		t.Error("the test tests nothing")
	}
	return said
}

// D5 D6 D24: over real connections, with a real server of keys. Whoever invents
// tokens costs the issuer next to nothing, and keeps no good token waiting.
func TestGoodTokensAreServedDuringFloods(t *testing.T) {
	lasts := 3 * time.Second
	if harness.IsLong() {
		lasts = 10 * time.Second
	}
	old, fresh := josetest.New(t, "EdDSA", "old"), josetest.New(t, "EdDSA", "fresh")
	keys := startKeyServer(t, old)
	f := startFlooded(t, keys, old)
	testkit.Eventually(t, "a good token is active", func() bool { return f.ask(t.Context(), f.token(old)) == "active" })
	first := keys.fetches()

	undisturbed := make(chan struct{})
	time.AfterFunc(lasts, func() { close(undisturbed) })
	t.Logf("undisturbed: %v", f.during(t, undisturbed))

	said := f.flood(t, "bad signatures", lasts, f.badlySigned())
	if len(said) != 1 || said["bad_signature"] == 0 {
		t.Errorf("bad signatures: %v", said)
	}
	if n := keys.fetches() - first; n != 0 {
		t.Errorf("bad signatures caused %d fetches", n)
	}

	// The flood begins shortly before tokens may cause a fetch again.
	time.Sleep(time.Until(keys.lastAsked().Add(keysInterval - lasts/2)))
	rotated := make(chan time.Duration)
	time.AfterFunc(lasts/4, func() {
		keys.publish(old, fresh)
		rotated <- f.pickedUp(t, fresh)
	})
	f.flood(t, "unknown keys", lasts, stranger)
	fetches := keys.fetches() - first
	if fetches < 1 || fetches > 2 {
		t.Errorf("unknown keys caused %d fetches", fetches)
	}
	lag := <-rotated
	t.Logf("%d fetches; the rotation was picked up after %v", fetches, lag.Round(time.Millisecond))
	if slack := 5 * time.Second; lag > keysInterval+keysTake+slack {
		t.Errorf("the rotation was picked up after %v", lag)
	}

	if !harness.IsLong() {
		return
	}
	time.Sleep(time.Until(keys.lastAsked().Add(keysInterval)))
	keys.hang()
	before := keys.fetches()
	said = f.flood(t, "unknown keys while the issuer hangs", lasts, stranger)
	// One fetch fails after 5 s and is tried again soon.
	if n := keys.fetches() - before; said["Unavailable"] == 0 || n < 1 || n > 4 {
		t.Errorf("%v, and %d fetches", said, n)
	}
}

// badlySigned makes tokens with the signature of another, which cost as much to
// verify as good ones.
func (f *flooded) badlySigned() func(n int) string {
	header, _, _ := strings.Cut(f.token(f.key), ".")
	_, signature := cutSignature(f.token(f.key))
	return func(n int) string {
		return header + "." + josetest.Base64(fmt.Appendf(nil, `{"iss":%q,"jti":"%d"}`, minterIssuer, n)) + "." + signature
	}
}

// stranger is a token with a kid of an attacker's own. Nobody looks at its
// signature.
func stranger(n int) string {
	return josetest.Base64(fmt.Appendf(nil, `{"alg":"EdDSA","kid":"stranger-%d"}`, n)) + "." + josetest.Base64([]byte(`{"iss":"`+minterIssuer+`"}`)) + ".AAAA"
}

// pickedUp waits until tokens of a key that was just published are good.
func (f *flooded) pickedUp(t *testing.T, key *josetest.Signer) time.Duration {
	t.Helper()
	begun, token := time.Now(), f.token(key)
	for {
		switch got := f.ask(t.Context(), token); got {
		case "active":
			return time.Since(begun)
		case "unknown_key", "Unavailable":
			time.Sleep(20 * time.Millisecond)
		default:
			t.Errorf("a token of the new key: %s", got)
			return 0
		}
	}
}
