package scale_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

const (
	issuer   = "https://idp.example.com"
	audience = "https://orders.example.com"

	// clients is the number of clients; each has one token.
	clients = 10
	// tokenLife is short, as at IdPs that issue tokens for five minutes.
	tokenLife = 5 * time.Minute
	// idpDelay is the time of the IdP for a token.
	idpDelay = 200 * time.Millisecond
	// startSpread is the time in which the replicas of a fleet start, one by one.
	startSpread = 10 * time.Second
)

func clientName(i int) string { return fmt.Sprintf("client-%d", i) }

// replicas are brokers that share a store, and their IdP.
type replicas struct {
	t      testing.TB
	server *server
	idp    *devidp.Server
	rings  *sealed.RingFile
	all    []*replica

	ctx     context.Context // the lifetime of the replicas
	running sync.WaitGroup
	keys    atomic.Int64 // requests for the IdP's keys
}

// replica is what app.App assembles for a broker with Redis, without its listeners.
type replica struct {
	*broker.Broker

	self      fleet.Replica
	rings     *sealed.RingFile
	publisher *fleet.Publisher
	others    func(context.Context) fleet.View
}

// newReplicas returns a fleet without replicas, in a synctest bubble.
func newReplicas(t testing.TB) *replicas {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &replicas{t: t, ctx: ctx, server: newServer(ctx), rings: newRing(t)}
	cfg := devidp.Config{Issuer: issuer, Lifetime: tokenLife, Algorithm: "EdDSA"}
	for i := range clients {
		cfg.Clients = append(cfg.Clients, devidp.Client{ID: clientName(i), Secrets: []redact.String{secretOf(0)}, Scopes: []string{"read"}, Audiences: []string{audience}})
	}
	var err error
	if r.idp, err = devidp.New(cfg); err != nil {
		t.Fatal(err)
	}
	r.idp.SetDelay(idpDelay)
	t.Cleanup(func() {
		for _, one := range r.all {
			one.Close()
		}
		stop()
		r.running.Wait()
	})
	return r
}

func newRing(t testing.TB) *sealed.RingFile {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ring.json")
	if err := sealed.WriteRing(path, sealed.GenerateRing()); err != nil {
		t.Fatal(err)
	}
	rings, err := sealed.OpenRing(path)
	if err != nil {
		t.Fatal(err)
	}
	return rings
}

func secretOf(version int) redact.String { return redact.New(fmt.Sprintf("secret-%d", version)) }

// start starts n replicas within a time.
func (r *replicas) start(n int, within time.Duration) {
	r.t.Helper()
	for i := range n {
		one := r.newReplica(fmt.Sprintf("replica-%d", len(r.all)))
		r.all = append(r.all, one.replica)
		r.running.Go(func() {
			if pause(r.ctx, within*time.Duration(i)/time.Duration(n)) == nil {
				one.run(r.ctx)
			}
		})
	}
	time.Sleep(within)
}

// parts are a replica and its work in the background.
type parts struct {
	*replica

	verifier *verify.Verifier
	watcher  *fleet.Watcher
}

func (p parts) run(ctx context.Context) {
	p.self.Started = time.Now()
	var running sync.WaitGroup
	running.Go(func() { p.Broker.Run(ctx) })
	running.Go(func() { p.verifier.Run(ctx) })
	running.Go(func() { p.watcher.Run(ctx) })
	p.publisher.Run(ctx)
	running.Wait()
}

func (r *replicas) newReplica(name string) parts {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	http := discovery.NewHTTPClient(countingKeys{r.idp.RoundTripper(), &r.keys})
	verifier, err := verify.New(verify.Config{HTTP: http, Issuers: []verify.IssuerConfig{{
		Issuer: issuer, Keys: jwks.Config{URL: issuer + devidp.JWKSPath}, Audiences: []string{audience}, Algorithms: []string{"EdDSA"},
	}}}, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	setup := broker.Setup{Verifier: verifier}
	for i := range clients {
		of, err := idp.New(idp.Config{TokenURL: issuer + devidp.TokenPath, ClientID: clientName(i), HTTP: http})
		if err != nil {
			r.t.Fatal(err)
		}
		setup.Clients = append(setup.Clients, broker.ClientConfig{Name: clientName(i), IdP: of, Managed: true, Audience: audience, Scopes: []string{"read"}})
	}
	stored := sealed.New(link{r.server}, r.rings)
	mac := func(data []byte) [32]byte { return r.rings.Current().MAC(data) }
	b, err := broker.New(broker.Config{Setup: setup, Store: stored, MAC: mac, Marker: stored, PutBack: revocation.DefaultPutBack, Logger: log})
	if err != nil {
		r.t.Fatal(err)
	}
	made := &replica{Broker: b, self: fleet.Replica{ID: fleet.Name(name), Host: fleet.Name(name), Version: "devel"}, rings: r.rings}
	made.publisher = fleet.NewPublisher(fleet.PublisherConfig{Store: stored, MAC: mac, Record: made.record, Logger: log})
	made.others = fleet.Cached(func(ctx context.Context) fleet.View { return made.publisher.Read(ctx, made.self.ID) })
	watcher := fleet.NewWatcher(fleet.WatcherConfig{Summary: made.summarize, Self: made.self.ID, Logger: log, Registerer: prometheus.NewRegistry()})
	return parts{replica: made, verifier: verifier, watcher: watcher}
}

// countingKeys counts the requests for keys.
type countingKeys struct {
	http.RoundTripper

	count *atomic.Int64
}

func (c countingKeys) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Path == devidp.JWKSPath {
		c.count.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

func (r *replica) summarize(ctx context.Context) fleet.Summary {
	view, record := r.others(ctx), r.record()
	return fleet.Summarize(view, &record, time.Now())
}

// record has the members of a healthy replica's record, as package app fills them.
func (r *replica) record() fleet.Record {
	now, started, revocations := time.Now(), r.self.Started, r.Revocations().Set
	record := fleet.Record{
		Replica:     r.self,
		Config:      fleet.Config{Applied: started},
		Ring:        &fleet.Ring{Primary: fleet.Name(r.rings.Current().Primary()), IDs: []fleet.Name{fleet.Name(r.rings.Current().Primary())}, Applied: started},
		Revocations: fleet.Revocations{Count: revocations.Count(), Usable: revocations.Ready(), Loaded: revocations.Current()},
		Store:       fleet.Store{Kind: fleet.Redis, Servers: []fleet.Server{{Name: "redis.example.com:6379", Reads: true, Writes: true, Written: started}}, KeepsSecrets: true},
		Issuers:     []fleet.Issuer{{Name: issuer, Keys: 1, Loaded: now, MaxStale: time.Hour}},
		Audit:       fleet.Audit{On: true},
	}
	for _, c := range r.LocalClients(now) {
		one := fleet.Client{Name: fleet.Name(c.Name), State: fleet.ClientOK, Success: c.LastSuccess, Generation: c.Generation}
		for _, version := range c.Versions {
			one.Changed = version.Since
			one.SecretSince = version.Since
		}
		record.Clients = append(record.Clients, one)
	}
	return record
}

// rotate gives a client a version of its secret, by a call to the first replica. It
// returns the ID of the version.
func (r *replicas) rotate(client string, version int) (id string) {
	r.t.Helper()
	r.idp.SetSecrets(client, secretOf(version-1), secretOf(version))
	made, err := rotation.New(r.all[0], nil).Rotate(r.ctx, policy.Self(), rotation.NewSecret{
		Change: rotation.Change{Client: client, Request: fmt.Sprintf("%s-%d", client, version)}, Secret: secretOf(version),
	})
	if err != nil {
		r.t.Fatalf("rotating the secret of %s: %v", client, err)
	}
	return made.Version.ID
}

// get requests the token of a client, which must succeed.
func (r *replicas) get(from *replica, client string) [32]byte {
	answer, err := from.Get(r.ctx, policy.Self(), broker.Ask{Client: client})
	if err != nil {
		if r.ctx.Err() == nil {
			r.t.Errorf("%s: %v", client, err)
		}
		return [32]byte{}
	}
	return answer.Token.SHA256
}

// demand requests all tokens from all replicas, each every interval, until it is stopped.
// It notes each token.
type demand struct {
	before map[[32]byte]bool // held when it began
	mu     sync.Mutex
	seen   map[[32]byte]bool
	stop   func()
}

func (r *replicas) demand(interval time.Duration) *demand {
	ctx, cancel := context.WithCancel(r.ctx)
	var running sync.WaitGroup
	d := &demand{before: map[[32]byte]bool{}, seen: map[[32]byte]bool{}, stop: func() { cancel(); running.Wait() }}
	for i := range clients {
		d.before[r.get(r.all[0], clientName(i))] = true
	}
	for _, one := range r.all {
		running.Go(func() {
			for pause(ctx, rand.N(2*interval)) == nil {
				for i := range clients {
					d.note(r.get(one, clientName(i)))
				}
			}
		})
	}
	return d
}

func (d *demand) note(sum [32]byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen[sum] = true
}

// fresh counts the tokens that were obtained since it began.
func (d *demand) fresh() (n int) {
	for sum := range d.seen {
		if !d.before[sum] {
			n++
		}
	}
	return n
}
