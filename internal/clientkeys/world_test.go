package clientkeys_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/clientkeys"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	issuer = "https://idp.example.com"
	public = "https://keys.example.com"
)

// world is a fleet whose client signs with keys that the broker makes, behind a load
// balancer for their documents, and an IdP that reads them there.
type world struct {
	t      testing.TB
	idp    *devidp.Server
	shared atomic.Pointer[store.Memory]
	made   credential.Made
	// hidden takes the documents off the network.
	hidden atomic.Bool

	mu          sync.Mutex
	all         []*replica
	signed      map[string]bool // kids of assertions
	last        string          // the latest of them
	unpublished []string
	failures    []string
	calls       int
}

type replica struct {
	*broker.Broker

	keys *clientkeys.Keys
	link *link
	stop func()
}

// link is the way of a replica to the store.
type link struct {
	world *world
	dead  atomic.Bool
	// killAt kills the replica at its call of this number that changes the store; before
	// the call, or after it but before its answer. 0: never.
	killAt, changes int64
	after           bool
}

func mac(data []byte) [sha256.Size]byte { return sha256.Sum256(data) }

func newWorld(t testing.TB, made credential.Made, keysFor time.Duration) *world {
	t.Helper()
	w := &world{t: t, made: made, signed: map[string]bool{}}
	w.made.URL = public + clientkeys.Path(mac, "orders")
	w.shared.Store(store.NewMemory(store.MemoryConfig{}))
	var err error
	w.idp, err = devidp.New(devidp.Config{Issuer: issuer, Lifetime: 2 * time.Second, Algorithm: "EdDSA", Clients: []devidp.Client{
		{ID: "abc", Auth: devidp.AuthPrivateKeyJWT, Scopes: []string{"read"}, KeysAt: func() ([]byte, error) { return w.document() }, KeysFor: keysFor},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) live() []*replica {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.all), func(r *replica) bool { return r.link.dead.Load() })
}

// serve is the load balancer in front of the documents.
func (w *world) serve(path string) *httptest.ResponseRecorder {
	live := w.live()
	recorder := httptest.NewRecorder()
	if w.hidden.Load() || len(live) == 0 {
		recorder.WriteHeader(http.StatusBadGateway)
		return recorder
	}
	live[rand.IntN(len(live))].keys.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
	return recorder
}

func (w *world) document() ([]byte, error) {
	got := w.serve(clientkeys.Path(mac, "orders"))
	if got.Code != http.StatusOK {
		return nil, fmt.Errorf("HTTP %d", got.Code)
	}
	return got.Body.Bytes(), nil
}

// RoundTrip is the network: the IdP, and the documents.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == "keys.example.com" {
		return w.serve(r.URL.Path).Result(), nil
	}
	if r.URL.Path == devidp.TokenPath {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		w.see(string(body))
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(strings.NewReader(string(body)))
	}
	return w.idp.RoundTripper().RoundTrip(r)
}

// see checks that the key of an assertion is published by every replica.
func (w *world) see(body string) {
	form, err := url.ParseQuery(body)
	if err != nil {
		w.t.Error(err)
		return
	}
	compact, err := jose.Split(redact.New(form.Get("client_assertion")))
	if err != nil {
		w.t.Error(err)
		return
	}
	header, err := jose.ParseHeader(compact.Header)
	if err != nil {
		w.t.Error(err)
		return
	}
	live := w.live()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.signed[header.KeyID] = true
	w.last = header.KeyID
	if len(w.signed) == 1 {
		return // the first key of all is used as soon as one replica shows it
	}
	for i, r := range live {
		if !slices.Contains(kidsOf(w.t, r.serve()), header.KeyID) {
			w.unpublished = append(w.unpublished, fmt.Sprintf("%s at replica %d", header.KeyID, i))
		}
	}
}

func (r *replica) serve() []byte {
	recorder := httptest.NewRecorder()
	r.keys.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, clientkeys.Path(mac, "orders"), nil))
	return recorder.Body.Bytes()
}

func kidsOf(t testing.TB, document []byte) (kids []string) {
	t.Helper()
	var set struct {
		Keys []struct {
			Kid string `json:"kid"`
			D   string `json:"d"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(document, &set); err != nil {
		return nil // the same 404 as for every other path
	}
	for _, key := range set.Keys {
		if key.D != "" {
			t.Error("a private key is published")
		}
		kids = append(kids, key.Kid)
	}
	return kids
}

// start starts a replica.
func (w *world) start() *replica {
	w.t.Helper()
	client, err := idp.New(idp.Config{TokenURL: issuer + devidp.TokenPath, ClientID: "abc", Auth: idp.PrivateKeyJWT, HTTP: discovery.NewHTTPClient(w)})
	if err != nil {
		w.t.Fatal(err)
	}
	r := &replica{link: &link{world: w}}
	r.Broker, err = broker.New(broker.Config{
		Setup: broker.Setup{Clients: []broker.ClientConfig{{
			Name: "orders", IdP: client, Managed: true, Made: w.made, CheckSecret: client.CheckSecret, Scopes: []string{"read"},
		}}},
		Store: r.link, MAC: mac, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	r.keys = clientkeys.New(clientkeys.Config{
		Sets: r.MadeKeys, Store: r.link, MAC: mac, HTTP: func(string) *http.Client { return discovery.NewHTTPClient(w) },
		PutBack: 10 * time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { r.Run(ctx) })
	running.Go(func() { r.keys.Run(ctx) })
	r.stop = sync.OnceFunc(func() { r.link.dead.Store(true); cancel(); r.Close(); running.Wait() })
	w.t.Cleanup(r.stop)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, r)
	return r
}

// load calls all live replicas until the context ends. No call may fail.
func (w *world) load(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	for ctx.Err() == nil {
		for i, r := range w.live() {
			running.Go(func() {
				_, err := r.Get(context.Background(), policy.Self(), broker.Ask{Client: "orders"})
				w.mu.Lock()
				defer w.mu.Unlock()
				if w.calls++; err != nil && !r.link.dead.Load() {
					w.failures = append(w.failures, fmt.Sprintf("replica %d: %v", i, err))
				}
			})
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// ready waits until a token can be obtained.
func (w *world) ready() {
	w.t.Helper()
	for range 600 {
		for _, r := range w.live() {
			if _, err := r.Get(w.t.Context(), policy.Self(), broker.Ask{Client: "orders"}); err == nil {
				synctest.Wait() // the key becomes current
				return
			}
		}
		time.Sleep(time.Second)
	}
	w.t.Fatal("no key is in use after ten minutes")
}

// check reports failed calls and assertions with unpublished keys.
func (w *world) check() {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.failures); n > 0 {
		w.t.Errorf("%d of %d calls failed, the first: %s", n, w.calls, w.failures[0])
	}
	if n := len(w.unpublished); n > 0 {
		w.t.Errorf("%d assertions with an unpublished key, the first: %s", n, w.unpublished[0])
	}
}

// history is the one that a replica knows.
func (r *replica) history() secret.History { return r.Secrets("orders").View().History }

// late is the delay of the key that a replica reports.
func (w *world) late(r *replica) *fleet.Key {
	return r.keys.Delays(time.Now())["orders"]
}

// states is a history in short, newest first.
func (r *replica) states() string {
	var all []string
	for _, record := range r.history().Versions {
		if record.State != secret.Retired {
			all = append(all, record.State.String())
		}
	}
	return strings.Join(all, " ")
}

var errKilled = errors.New("the replica was killed")

func (l *link) store() (store.Store, error) {
	if l.dead.Load() {
		return nil, errKilled
	}
	return l.world.shared.Load(), nil
}

// changing is store for a call that changes the store. lost is called with its error.
func (l *link) changing() (s store.Store, lost func(error) error, err error) {
	at := atomic.LoadInt64(&l.killAt)
	dies := at > 0 && atomic.AddInt64(&l.changes, 1) == at
	if dies && !l.after {
		l.dead.Store(true)
	}
	s, err = l.store()
	return s, func(err error) error {
		if dies {
			l.dead.Store(true)
			return errKilled
		}
		return err
	}, err
}

func (l *link) Get(ctx context.Context, keys ...string) ([]store.Entry, error) {
	s, err := l.store()
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, keys...)
}

func (l *link) Acquire(ctx context.Context, claim store.Claim) (store.Claimed, error) {
	s, lost, err := l.changing()
	if err != nil {
		return store.Claimed{}, err
	}
	claimed, err := s.Acquire(ctx, claim)
	return claimed, lost(err)
}

func (l *link) Renew(ctx context.Context, lease store.Lease, ttl time.Duration) (bool, error) {
	s, err := l.store()
	if err != nil {
		return false, err
	}
	return s.Renew(ctx, lease, ttl)
}

func (l *link) Apply(ctx context.Context, change store.Change) ([]bool, error) {
	s, lost, err := l.changing()
	if err != nil {
		return nil, err
	}
	applied, err := s.Apply(ctx, change)
	return applied, lost(err)
}

func (l *link) Raise(ctx context.Context, counter string, floor, by uint64) (uint64, error) {
	s, lost, err := l.changing()
	if err != nil {
		return 0, err
	}
	count, err := s.Raise(ctx, counter, floor, by)
	return count, lost(err)
}

// Subscribe follows a store that replaces another one, as a client of Redis connects again.
func (l *link) Subscribe(ctx context.Context) <-chan string {
	events := make(chan string)
	go func() {
		defer close(events)
		for ctx.Err() == nil {
			l.follow(ctx, l.world.shared.Load(), events)
		}
	}()
	return events
}

// follow passes events on until the store is replaced.
func (l *link) follow(ctx context.Context, s *store.Memory, events chan<- string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	from := s.Subscribe(ctx)
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for l.world.shared.Load() == s {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		case key, open := <-from:
			if !open {
				return
			}
			select {
			case events <- key:
			case <-ctx.Done():
				return
			}
		}
	}
}

func (l *link) Confirm(ctx context.Context, key string) store.Safety {
	return l.world.shared.Load().Confirm(ctx, key)
}
