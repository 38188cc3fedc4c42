package broker_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/feed"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/secretsource"
)

// keeper stands for the place where another program keeps the secret.
type keeper struct {
	mu    sync.Mutex
	value string
	err   error
	hangs bool
	reads int
}

func (k *keeper) Read(ctx context.Context) (secretsource.Value, error) {
	k.mu.Lock()
	k.reads++
	value, err, hangs := secretsource.Value{Secret: redact.New(k.value), Version: "version 1"}, k.err, k.hangs
	k.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return secretsource.Value{}, ctx.Err()
	}
	return value, err
}

func (k *keeper) keeps(value string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.value, k.err = value, err
}

func (k *keeper) hang() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.hangs = true
}

func (k *keeper) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.reads
}

// fed are replicas whose client's secret comes from a keeper.
type fed struct {
	*replicas

	feeders []*feeding
}

// feeding reads the source for one replica.
type feeding struct {
	*feed.Feeder

	source *secretsource.Source
	stop   func()
}

func (f *feeding) failingSince() time.Time { return f.FailingSince(f.source) }

// startFed starts a replica for each keeper. The IdP takes "one".
func startFed(t testing.TB, keepers ...*keeper) *fed {
	t.Helper()
	f := &fed{replicas: startReplicas(t, 0)}
	f.takes("one")
	for _, k := range keepers {
		f.add(k)
	}
	return f
}

func (f *fed) add(k *keeper) {
	source := &secretsource.Source{Reader: k, Name: "exec:/bin/keeper", Digest: "d", Every: time.Minute, Timeout: 10 * time.Second}
	r := f.start(broker.ClientConfig{Managed: true, Supplied: source})
	feeder := feed.New(feed.Config{Sets: r.Supplied, Store: r.link, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); feeder.Run(ctx) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	f.t.Cleanup(stop)
	f.feeders = append(f.feeders, &feeding{feeder, source, stop})
}

// One replica reads the source; all of them get the secret, at once at the first start.
func TestSupply_oneReplicaReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{value: "one"}
		f := startFed(t, k, k, k)
		time.Sleep(6 * time.Second)
		f.everybody(3, orders())
		f.expectSecrets("one:current")
		if got := k.count(); got != 1 {
			t.Errorf("%d reads", got)
		}
		f.takes("one", "two")
		k.keeps("two", nil)
		before := f.fetches()
		time.Sleep(70 * time.Second)
		f.expectSecrets("two:current one:previous")
		if got := f.fetches() - before; got > 2 {
			t.Errorf("%d fetches for one proof and one refresh", got)
		}
		time.Sleep(10 * time.Minute)
		if got := k.count(); got < 10 || got > 14 {
			t.Errorf("%d reads in 11 minutes, one a minute was expected", got)
		}
		if got := f.refusals("one") + f.refusals("two"); got != 0 {
			t.Errorf("%d refusals", got)
		}
	})
}

// Operators cannot change a secret that has a source, which would undo the change.
func TestSupply_refusesOperators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{value: "one"}
		f := startFed(t, k)
		f.takes("one", "two", "three")
		time.Sleep(6 * time.Second)
		k.keeps("two", nil)
		time.Sleep(70 * time.Second)
		rotator := rotation.New(f.all[0], nil)
		current := f.all[0].LocalClients(time.Now())[0].Versions[0].ID
		for name, change := range map[string]func() error{
			"rotate": func() error {
				_, err := rotator.Rotate(t.Context(), policy.Self(), rotationTo("three"))
				return err
			},
			"activate": func() error {
				_, err := rotator.Activate(t.Context(), policy.Self(), current, rotation.Change{Client: "orders", Request: "activate"})
				return err
			},
			"roll back": func() error {
				_, err := rotator.Rollback(t.Context(), policy.Self(), rotation.Change{Client: "orders", Request: "back"})
				return err
			},
		} {
			if err := change(); err == nil || !strings.Contains(err.Error(), "exec:/bin/keeper") {
				t.Errorf("%s: %v", name, err)
			}
		}
		f.expectSecrets("two:current one:previous")
	})
}

// A value may return to an older one, current again after it is proved.
func TestSupply_returnsToAnOlderValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{value: "one"}
		f := startFed(t, k, k)
		f.takes("one", "two", "three")
		for _, step := range []struct{ value, want string }{
			{"one", "one:current"},
			{"two", "two:current one:previous"},
			{"one", "one:current two:previous"},
			{"three", "three:current one:previous two:retired"},
			{"two", "two:current three:previous one:retired"},
		} {
			k.keeps(step.value, nil)
			time.Sleep(70 * time.Second)
			f.everybody(2, orders())
			f.expectSecrets(step.want)
		}
	})
}

// A failure of the source changes nothing, and ends by itself.
func TestSupply_failureChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := &keeper{value: "one"}
		f := startFed(t, broken)
		time.Sleep(6 * time.Second)
		f.everybody(1, orders())
		f.expectSecrets("one:current")
		broken.keeps("", errors.New("exit code 7"))
		time.Sleep(time.Hour)
		f.expectSecrets("one:current")
		f.everybody(1, orders())
		if failed := time.Since(f.feeders[0].failingSince()); failed < 58*time.Minute || failed > time.Hour {
			t.Errorf("failing for %v", failed)
		}
		if got := broken.count(); got > 70 {
			t.Errorf("%d reads in an hour", got)
		}
		broken.keeps("one", nil)
		time.Sleep(70 * time.Second)
		if since := f.feeders[0].failingSince(); !since.IsZero() {
			t.Errorf("still failing since %v", since)
		}
	})
}

// If the source fails on the replica that reads it, another one takes over.
func TestSupply_anotherReplicaTakesOver(t *testing.T) {
	for name, breaks := range map[string]func(f *fed, k *keeper){
		"fails":      func(_ *fed, k *keeper) { k.keeps("", errors.New("exit code 7")) },
		"hangs":      func(_ *fed, k *keeper) { k.hang() },
		"shuts down": func(f *fed, _ *keeper) { f.feeders[0].stop() },
		"loses the store": func(f *fed, _ *keeper) {
			f.all[0].link.state.Store(refused)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, second := &keeper{value: "one"}, &keeper{value: "one"}
				f := startFed(t, first)
				time.Sleep(6 * time.Second)
				f.everybody(1, orders())
				f.add(second)
				time.Sleep(30 * time.Second)
				if got := second.count(); got != 0 {
					t.Errorf("the second replica read %d times", got)
				}
				breaks(f, first)
				second.keeps("two", nil)
				f.takes("one", "two")
				time.Sleep(3 * time.Minute)
				if got := secretsOf(t, f.all[1]); got != "two:current one:previous" {
					t.Errorf("the second replica has %q", got)
				}
			})
		})
	}
}

// A value that the IdP does not accept yet stays staged, is used as soon as the IdP requires
// it, and makes way for another value.
func TestSupply_refusedValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{value: "one"}
		f := startFed(t, k, k)
		time.Sleep(6 * time.Second)
		f.everybody(1, orders())
		k.keeps("two", nil)
		time.Sleep(5 * time.Minute)
		f.everybody(1, orders())
		f.expectSecrets("two:pending one:current")
		f.takes("two")
		expire()
		f.everybody(1, orders())
		time.Sleep(time.Second)
		f.expectSecrets("two:current one:previous")

		k.keeps("wrong", nil)
		time.Sleep(70 * time.Second)
		f.expectSecrets("wrong:pending two:current one:previous")
		f.takes("two", "three")
		k.keeps("three", nil)
		time.Sleep(70 * time.Second)
		f.expectSecrets("three:current wrong:retired two:previous one:retired")
	})
}

// While the IdP cannot be reached, a staged value is neither proved nor refused: the IdP may
// already accept only that one, so a newer value waits for it.
func TestSupply_unprovedValueIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{value: "one"}
		f := startFed(t, k)
		time.Sleep(6 * time.Second)
		f.everybody(1, orders())
		f.takes("two")
		f.idp.SetDown(true)
		k.keeps("two", nil)
		time.Sleep(70 * time.Second)
		k.keeps("wrong", nil)
		time.Sleep(5 * time.Minute)
		f.expectSecrets("two:pending one:current")
		f.idp.SetDown(false)
		time.Sleep(2 * time.Minute)
		f.everybody(1, orders())
		time.Sleep(2 * time.Minute)
		f.expectSecrets("wrong:pending two:current one:previous")
	})
}

// Operators change such a secret at its source.
func TestSupply_operatorsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := startFed(t, &keeper{value: "one"})
		time.Sleep(6 * time.Second)
		rotator := rotation.New(f.all[0], newRingFile(t).file)
		calls := map[string]func() error{
			"rotate": func() error {
				_, err := rotator.Rotate(t.Context(), policy.Self(), rotationTo("two"))
				return err
			},
			"activate": func() error {
				_, err := rotator.Activate(t.Context(), policy.Self(), "", change("a"))
				return err
			},
			"rollback": func() error { _, err := rotator.Rollback(t.Context(), policy.Self(), change("b")); return err },
			"import": func() error {
				_, err := rotator.Import(t.Context(), policy.Self(), []byte("x"), true, change("c"))
				return err
			},
		}
		for name, call := range calls {
			err, ok := errors.AsType[*apierror.Error](call())
			if !ok || err.Reason != apierror.ReasonSecretNotManaged || !strings.Contains(err.Message, "has its secret in exec:/bin/keeper: change it there; the broker reads it every 1m0s") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// Without a value, callers get an error that names the source.
func TestSupply_neverRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &keeper{err: errors.New("exit code 7")}
		f := startFed(t, k)
		time.Sleep(6 * time.Second)
		_, err := f.all[0].Get(t.Context(), policy.Self(), orders())
		if err == nil || !strings.Contains(err.Error(), "its secret was not read from exec:/bin/keeper yet") {
			t.Errorf("error %v", err)
		}
		k.keeps("one", nil)
		time.Sleep(time.Minute)
		f.everybody(1, orders())
		f.expectSecrets("one:current")
	})
}
