// Package clientkeys makes, publishes, activates and retires the private keys with which
// clients sign their assertions, without an operator. A key takes the path of every other
// secret of a client: staged, proved, activated, fallback, retired. In addition it is
// published before its first use and unpublished after its last assertion has expired.
package clientkeys

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// interval is the pause between two rounds. A round without a due step does no I/O.
	interval = time.Second
	// leaseTTL is how long other replicas wait for one that died during a step.
	leaseTTL = 40 * time.Second
	// stepTimeout bounds one step. It is shorter than leaseTTL.
	stepTimeout = credential.FetchTimeout + 5*time.Second
	// The pauses after a step that failed.
	firstPause = time.Second
	longPause  = time.Minute
	// stepsAtOnce bounds the steps that a replica makes before it gives others a turn.
	stepsAtOnce = 4
	// togetherAtMost bounds the clients whose keys are advanced at the same time.
	togetherAtMost = 8

	releaseTimeout = time.Second
)

// StepPublish is the name of the step that permits the use of a published key.
const StepPublish = "publish"

// By is the creator of keys in histories.
const By = "broker"

// Config configures Keys.
type Config struct {
	// Sets returns the credentials whose keys the broker makes.
	Sets func() []*credential.Set
	// Store has the leases.
	Store store.Store
	// MAC hides the names of clients in the paths of their documents.
	MAC secret.MAC
	// HTTP returns the HTTP client that reads the document at a URL.
	HTTP func(url string) *http.Client
	// PutBack is how long a replica that has just started waits for others to restore what
	// the store has lost, before it makes the first key of a client.
	PutBack time.Duration
	Logger  *slog.Logger
	// Registerer takes the metrics. Nil: no metrics.
	Registerer prometheus.Registerer
}

// Keys makes and rotates the keys of clients. It is safe for concurrent use.
type Keys struct {
	cfg     Config
	started time.Time
	paths   atomic.Pointer[map[string]*credential.Set] // of the documents

	mu       sync.Mutex
	failures map[string]*failure // by client
}

// failure is the last failure of a step.
type failure struct {
	version string
	err     error
	pause   time.Duration
	until   time.Time
}

// New returns Keys. It sends no request.
func New(cfg Config) *Keys {
	k := &Keys{cfg: cfg, started: time.Now(), failures: map[string]*failure{}}
	k.index(nil)
	if cfg.Registerer != nil {
		cfg.Registerer.MustRegister(collector{k})
	}
	return k
}

// Run advances the keys of all clients until ctx ends.
func (k *Keys) Run(ctx context.Context) {
	for {
		k.index(k.cfg.Sets())
		if !backoff.Sleep(ctx, nil, interval) {
			return
		}
		k.round(ctx)
	}
}

// round makes the due steps of each client.
func (k *Keys) round(ctx context.Context) {
	var running sync.WaitGroup
	places := make(chan struct{}, togetherAtMost)
	for _, set := range k.cfg.Sets() {
		if !k.due(set, time.Now()) {
			continue
		}
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			k.advance(ctx, set)
		})
	}
	running.Wait()
}

// due reports whether this replica knows of a step to make now.
func (k *Keys) due(set *credential.Set, now time.Time) bool {
	u := set.View()
	if !u.Loaded || u.Fault != nil || k.paused(set.Client, now) {
		return false
	}
	if u.History.CurrentID() == "" && now.Before(k.started.Add(k.cfg.PutBack)) {
		return false // the store may have lost the key, and others put it back
	}
	return next(u.History, set.Made, now) != wait
}

// advance makes the due steps of a client's key, if no other replica is making one.
func (k *Keys) advance(ctx context.Context, set *credential.Set) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	key := set.Keys.Making
	claimed, err := k.cfg.Store.Acquire(ctx, store.Claim{Key: key, Owner: rand.Text(), Counter: key + ":fences", TTL: leaseTTL})
	if err != nil || !claimed.Acquired {
		return
	}
	defer k.release(claimed.Lease)
	for range stepsAtOnce {
		// The previous holder may have made the step since the last look.
		h, err := set.Change(ctx, func(h secret.History) (secret.History, error) { return h, nil })
		if err != nil {
			return
		}
		due := next(h, set.Made, time.Now())
		if due == wait {
			return
		}
		k.make(ctx, set, h, due)
		if due == prove || k.paused(set.Client, time.Now()) {
			return
		}
	}
}

func (k *Keys) release(held store.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTimeout)
	defer cancel()
	_, _ = k.cfg.Store.Apply(ctx, store.Change{Release: held, Quiet: true}) // otherwise the lease expires
}

// make makes one step, and remembers its failure.
func (k *Keys) make(ctx context.Context, set *credential.Set, h secret.History, due step) {
	pending, _ := h.In(secret.Pending)
	var err error
	switch due {
	case wait:
	case stage:
		err = k.stage(ctx, set)
	case discard:
		err = k.change(ctx, set, due, func(h secret.History, now time.Time) (secret.History, error) { return h.Retire(pending.ID, now) })
	case show:
		err = k.show(ctx, set, pending, false)
	case release:
		err = k.show(ctx, set, pending, true)
	case prove:
		set.ProveStaged(ctx)
		k.pause(set.Client, pending.ID, nil) // it remembers its own failures
		return
	case retire:
		previous, _ := h.In(secret.Previous)
		err = k.change(ctx, set, due, func(h secret.History, now time.Time) (secret.History, error) { return h.Retire(previous.ID, now) })
	}
	k.pause(set.Client, pending.ID, err)
}

// change applies a change to the history if the step is still due.
func (k *Keys) change(ctx context.Context, set *credential.Set, due step, change func(h secret.History, now time.Time) (secret.History, error)) error {
	_, err := set.Change(ctx, func(h secret.History) (secret.History, error) {
		now := storedNow()
		if next(h, set.Made, now) != due {
			return h, nil
		}
		return change(h, now)
	})
	return err
}

// storedNow is the present as a history stores it.
func storedNow() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }

// Made is a key that was made.
type Made struct {
	secret.Version

	Public string // a JWK
}

// Make makes a key for a client. It changes nothing.
func Make(set *credential.Set) (Made, error) {
	value, err := jose.MakeSigningKey(set.Made.Algorithm)
	if err != nil {
		return Made{}, err
	}
	private, err := jose.ParseSigningKey(value)
	if err != nil {
		return Made{}, err
	}
	public, err := private.PublicJWK()
	return Made{set.NewVersion(value), public}, err
}

// stage makes a key and stages it. It is then published.
func (k *Keys) stage(ctx context.Context, set *credential.Set) error {
	made, err := Make(set)
	if err != nil {
		return err
	}
	staged := false
	err = k.change(ctx, set, stage, func(h secret.History, now time.Time) (secret.History, error) {
		staged = true
		return h.StageKey(made.Version, made.Public, By, now)
	})
	if err == nil && staged {
		set.RecordStep(ctx, credential.StepStage, audit.Event{SecretVersion: made.ID}, nil)
	}
	return err
}

// show checks that the document at the URL contains a staged key, and stores that. usable
// permits the use of the key.
func (k *Keys) show(ctx context.Context, set *credential.Set, pending secret.Record, usable bool) error {
	if err := k.Shown(ctx, set, pending); err != nil {
		return err
	}
	due := show
	if usable {
		due = release
	}
	err := k.change(ctx, set, due, func(h secret.History, now time.Time) (secret.History, error) {
		to := pending.Publication
		if to.Usable = usable; to.ShownAt.IsZero() {
			to.ShownAt = now
		}
		return h.Publish(pending.ID, to)
	})
	if err == nil && usable {
		set.RecordStep(ctx, StepPublish, audit.Event{SecretVersion: pending.ID}, nil)
	}
	return err
}

// errNotShown says that a document was read and lacks the key.
var errNotShown = errors.New("does not contain the key")

// Shown returns nil if the document at the client's URL contains a key. Otherwise the error
// is a sentence.
func (k *Keys) Shown(ctx context.Context, set *credential.Set, key secret.Record) error {
	url := set.Made.URL
	body, _, err := discovery.GetWithToken(ctx, k.cfg.HTTP(url), url, redact.String{}, jose.MaxSetSize)
	if err != nil {
		return err
	}
	want, err := jose.ParseSet(fmt.Appendf(nil, `{"keys":[%s]}`, key.Publication.Key))
	if err != nil {
		return err
	}
	shown, err := jose.ParseSet(body)
	if err != nil {
		return fmt.Errorf("%s: %w", discovery.Printable(url), err)
	}
	for one := range want.Keys.All() {
		if found := shown.Keys.Find(one.ID(), set.Made.Algorithm); found != nil && found.Thumbprint() == one.Thumbprint() && found.Permits(set.Made.Algorithm) {
			return nil
		}
	}
	return fmt.Errorf("%s %w %s", discovery.Printable(url), errNotShown, keyIDOf(key.Publication))
}

func (k *Keys) paused(client string, now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.failures[client]
	return f != nil && now.Before(f.until)
}

// pause remembers a failure; nil ends it. The first failure with a version is logged.
func (k *Keys) pause(client, version string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.failures[client]
	if err == nil {
		delete(k.failures, client)
		return
	}
	now := &failure{version: version, err: err, pause: firstPause}
	if before != nil && before.version == version {
		now.pause = min(2*before.pause, longPause)
	} else {
		k.cfg.Logger.Warn("a client's key cannot be advanced; the one in use stays", "client", client, "secret_version", version, "error", err)
	}
	now.until = time.Now().Add(now.pause)
	k.failures[client] = now
}

// problem returns the last failure of this replica to advance a client's key, or nil.
func (k *Keys) problem(client string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.failures[client]; f != nil {
		return f.err
	}
	return nil
}
