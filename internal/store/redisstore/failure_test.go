package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Of one slot, that of the channel too: what fails, fails them all.
const (
	testKey     = "{tb1:ev}canary-key"
	testLease   = "{tb1:ev}canary-lease"
	testCounter = "{tb1:ev}canary-counter"
	testValue   = "canary-value"
	testOwner   = "canary-owner"
)

func testClaim() store.Claim {
	return store.Claim{Key: testLease, Owner: testOwner, Counter: testCounter, TTL: time.Hour}
}

func testPut(number uint64) store.Put {
	return store.Put{Key: testKey, Number: number, Value: []byte(testValue), TTL: time.Hour}
}

// showsNothing checks a text that an operator or a caller may see.
func showsNothing(t *testing.T, text string) {
	t.Helper()
	if strings.Contains(text, "canary") {
		t.Errorf("it shows what must not be seen: %s", text)
	}
}

func works(t *testing.T, r *redisstore.Store) bool {
	t.Helper()
	_, err := r.Raise(t.Context(), testCounter, 0, 1)
	return err == nil
}

func look(t *testing.T, r *redisstore.Store) error {
	t.Helper()
	_, err := r.Get(t.Context(), testKey)
	return err
}

func TestHangingRedisIsLeftAlone(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Options{Password: testPassword})
	var log testkit.Log
	r := open(t, redisstore.Config{Addresses: []string{server.Addr()}, Password: passwordSource(t, testPassword), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	server.Stop()
	for i := range 5 {
		start := time.Now()
		_, err := r.Get(t.Context(), testKey)
		if took := time.Since(start); err == nil || errors.Is(err, store.ErrAway) || took > 2*time.Second {
			t.Errorf("call %d of a hung Redis: %v after %v", i, err, took)
		}
		showsNothing(t, fmt.Sprint(err))
	}
	trips, start := r.Trips(), time.Now()
	for range 1000 {
		_, err := r.Acquire(t.Context(), testClaim())
		if !errors.Is(err, store.ErrAway) {
			t.Fatalf("while Redis counts as away: %v", err)
		}
		showsNothing(t, err.Error())
	}
	if took := time.Since(start); took > 2*time.Second || r.Trips() != trips || isUp(r) {
		t.Errorf("1000 calls took %v and %d trips; away: %v", took, r.Trips()-trips, !isUp(r))
	}
	server.Cont()
	testkit.Eventually(t, "calls succeed again", func() bool { return works(t, r) })
	if !isUp(r) {
		t.Error("it still counts as away")
	}

	server.Stop()
	var crowd sync.WaitGroup
	start = time.Now()
	for range 200 { // more than there are connections
		crowd.Go(func() {
			for !errors.Is(look(t, r), store.ErrAway) {
			}
		})
	}
	crowd.Wait()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("200 callers took %v to leave it alone", took)
	}
	server.Cont()
	testkit.Eventually(t, "calls succeed again", func() bool { return works(t, r) })
	if text := log.String(); strings.Count(text, "Redis is away") != 4 || strings.Count(text, "Redis is back") != 2 {
		t.Errorf("the log says:\n%s", text)
	}
	showsNothing(t, log.String())
}

func TestCanceledCallsAreNoRedisFailure(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Options{})
	r := open(t, redisstore.Config{Addresses: []string{server.Addr()}})
	full := store.Claim{Key: testLease, Owner: "a", Counter: "{tb1:ev}full", TTL: time.Hour}
	testkit.Eventually(t, "it works", func() bool { _, err := r.Raise(t.Context(), full.Counter, store.MaxNumber, 0); return err == nil })
	for range 10 {
		if _, err := r.Acquire(t.Context(), full); err == nil {
			t.Error("a fence beyond the largest number")
		}
		if _, err := r.Get(t.Context(), ""); err == nil {
			t.Error("a key without a name")
		}
	}
	server.Stop()
	start := time.Now()
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		if _, err := r.Get(ctx, testKey); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an impatient caller: %v", err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(30*time.Millisecond, cancel)
		if _, err := r.Get(ctx, testKey); !errors.Is(err, context.Canceled) {
			t.Errorf("a caller who left: %v", err)
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("twenty calls that ended after 30 ms took %v", took)
	}
	if !isUp(r) {
		t.Error("impatient callers made Redis count as away")
	}
}

// wire stands between a client and a server, as a network that fails.
type wire struct {
	listener net.Listener
	upstream string
	swallow  atomic.Bool // the next answer, and end the connection
	mu       sync.Mutex
	conns    []*wireConn
}

type wireConn struct {
	net.Conn
	frozen atomic.Bool // nothing passes any more
}

func newWire(t *testing.T, upstream string) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: listener, upstream: upstream}
	t.Cleanup(func() {
		_ = listener.Close()
		w.each(func(c *wireConn) { _ = c.Close() })
	})
	go w.accept()
	return w
}

func (w *wire) each(do func(c *wireConn)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, conn := range w.conns {
		do(conn)
	}
}

func (w *wire) accept() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", w.upstream)
		if err != nil {
			_ = client.Close()
			continue
		}
		conn := &wireConn{Conn: client}
		w.mu.Lock()
		w.conns = append(w.conns, conn)
		w.mu.Unlock()
		go w.pass(conn, server, client, func() bool { return false })
		go w.pass(conn, client, server, func() bool { return w.swallow.CompareAndSwap(true, false) })
	}
}

func (w *wire) pass(conn *wireConn, to io.WriteCloser, from io.ReadCloser, swallow func() bool) {
	defer func() { _ = errors.Join(to.Close(), from.Close()) }()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil || swallow() {
			return
		}
		if conn.frozen.Load() {
			continue
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

func TestRedisCallMayBeRepeated(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	wire := newWire(t, server.Addr())
	r := openPatient(t, redisstore.Config{Addresses: []string{wire.listener.Addr().String()}})
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	lose := func(call func() error) {
		t.Helper()
		time.Sleep(50 * time.Millisecond) // no answer to a new connection is under way
		wire.swallow.Store(true)
		if err := call(); err == nil || errors.Is(err, store.ErrAway) {
			t.Fatalf("a call whose answer is lost: %v", err)
		}
	}

	first, _, err := claimLease(t.Context(), r, testClaim()) // Redis now knows the scripts
	if err != nil {
		t.Fatal(err)
	}
	_, renewed := r.Renew(t.Context(), first, time.Hour)
	if _, err := r.Apply(t.Context(), store.Change{Release: first}); err != nil || renewed != nil {
		t.Fatal(err, renewed)
	}
	lose(func() error { _, err := r.Acquire(t.Context(), testClaim()); return err })
	count := server.CLI("get", "tb1:"+testCounter)
	lease, acquired, err := claimLease(t.Context(), r, testClaim())
	if err != nil || !acquired || fmt.Sprint(lease.Fence) != count || lease.Fence != first.Fence+1 {
		t.Fatalf("claimed again: %+v, %v, %v; the fence drawn before was %s", lease, acquired, err, count)
	}
	lose(func() error { _, err := r.Renew(t.Context(), lease, time.Hour); return err })
	if held, err := r.Renew(t.Context(), lease, time.Hour); err != nil || !held {
		t.Errorf("renewed again: %v, %v", held, err)
	}
	change := store.Change{Puts: []store.Put{testPut(lease.Fence)}, Release: lease}
	lose(func() error { _, err := r.Apply(t.Context(), change); return err })
	if _, err := r.Apply(t.Context(), change); err != nil {
		t.Errorf("applied again: %v", err)
	}
	if entries, err := r.Get(t.Context(), testKey); err != nil || entries[0].Number != lease.Fence || string(entries[0].Value) != testValue {
		t.Errorf("holds %+v, %v", entries, err)
	}
	if next, acquired, err := claimLease(t.Context(), r, store.Claim{Key: testLease, Owner: "next", Counter: testCounter, TTL: time.Hour}); err != nil || !acquired || next.Fence <= lease.Fence {
		t.Errorf("after the release: %+v, %v, %v", next, acquired, err)
	}
}

// The connection of a subscription may die without a word.
func TestRedisSubscriptionReconnects(t *testing.T) {
	t.Parallel()
	server := redistest.Start(t, redistest.Options{})
	wire := newWire(t, server.Addr())
	var log testkit.Log
	r := openPatient(t, redisstore.Config{Addresses: []string{wire.listener.Addr().String()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	direct := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	first, second := r.Subscribe(t.Context()), r.Subscribe(t.Context())
	flow := func(after string) {
		t.Helper()
		testkit.Eventually(t, "events flow "+after, func() bool {
			return works(t, direct) && hasEvent(t, first) && hasEvent(t, second)
		})
		if clients := server.CLI("client", "list", "type", "pubsub"); strings.Count(clients, "addr=") > 2 { // with laddr
			t.Errorf("subscribers do not share a connection %s:\n%s", after, clients)
		}
	}
	flow("at first")
	server.CLI("client", "kill", "type", "pubsub")
	flow("after their connection was killed")
	server.CLI("publish", "tb1:ev", "garbage")
	server.CLI("publish", "tb1:ev", "tb1:")
	wire.each(func(c *wireConn) { c.frozen.Store(true) })
	flow("after their connection died silently")
	server.RestartEmpty()
	flow("after a restart")
	showsNothing(t, log.String())
}

func hasEvent(t *testing.T, events <-chan string) bool {
	t.Helper()
	select {
	case key := <-events:
		if key != testCounter {
			t.Errorf("told of %q, which nobody changed", key)
		}
		return true
	case <-time.After(200 * time.Millisecond):
		return false
	}
}

func TestRedisScriptsSurviveAFlush(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	for number := range uint64(3) {
		server.CLI("script", "flush")
		lease, acquired, err := claimLease(t.Context(), r, testClaim())
		if err != nil || !acquired {
			t.Fatalf("acquire: %v, %v", acquired, err)
		}
		server.CLI("script", "flush")
		if held, err := r.Renew(t.Context(), lease, time.Hour); err != nil || !held {
			t.Errorf("renew: %v, %v", held, err)
		}
		server.CLI("script", "flush")
		if applied, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{testPut(number + 1)}, Release: lease}); err != nil || !applied[0] {
			t.Errorf("apply: %v, %v", applied, err)
		}
		server.CLI("script", "flush")
		if entries, err := r.Get(t.Context(), testKey); err != nil || entries[0].Number != number+1 {
			t.Errorf("get: %+v, %v", entries, err)
		}
		server.CLI("script", "flush")
		if !works(t, r) {
			t.Error("raise failed")
		}
	}
}

// What a miss of GetToken costs: three trips, each one command.
func TestRedisCallIsOneTrip(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	miss := func() {
		t.Helper()
		claim := testClaim()
		claim.Read = []string{testKey, testCounter, "{tb1:ev}1", "{tb1:ev}2", "{tb1:ev}3"}
		if _, err := r.Get(t.Context(), claim.Read...); err != nil {
			t.Fatal(err)
		}
		lease, acquired, err := claimLease(t.Context(), r, claim)
		if err != nil || !acquired {
			t.Fatal(acquired, err)
		}
		if _, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{testPut(lease.Fence)}, Release: lease}); err != nil {
			t.Fatal(err)
		}
	}
	miss()
	server.CLI("config", "resetstat")
	before := r.Trips()
	miss()
	if trips := r.Trips() - before; trips != 3 {
		t.Errorf("%d trips", trips)
	}
	if stats := server.CLI("info", "commandstats"); !strings.Contains(stats, "cmdstat_evalsha:calls=3,") || strings.Contains(stats, "cmdstat_eval:") {
		t.Errorf("the commands were:\n%s", stats)
	}
}

func TestFlushedRedisGetsItsCountersBack(t *testing.T) {
	server := redistest.Start(t, redistest.Options{AppendOnly: true})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	claim := testClaim()
	claim.Floor = 40
	lease, _, err := claimLease(t.Context(), r, claim)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Raise(t.Context(), "{tb1:ev}epoch", 7, 0); err != nil {
		t.Fatal(err)
	}
	server.RestartEmpty()
	testkit.Eventually(t, "it works", func() bool { _, err := r.Get(t.Context(), testKey); return err == nil })
	if entries, err := r.Get(t.Context(), "{tb1:ev}epoch"); err != nil || entries[0].Number != 0 {
		t.Fatalf("it lost nothing: %+v, %v", entries, err)
	}
	claim.Floor = lease.Fence
	again, acquired, err := claimLease(t.Context(), r, claim)
	if err != nil || !acquired || again.Fence != lease.Fence+1 {
		t.Errorf("the fence after %d is %d: %v, %v", lease.Fence, again.Fence, acquired, err)
	}
	if count, err := r.Raise(t.Context(), "{tb1:ev}epoch", 7, 0); err != nil || count != 7 {
		t.Errorf("the epoch was put back to %d: %v", count, err)
	}
	server.Restart()
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	if entries, err := r.Get(t.Context(), "{tb1:ev}epoch"); err != nil || entries[0].Number != 7 {
		t.Errorf("a restart with an append-only file lost the epoch: %+v, %v", entries, err)
	}
}

func TestRedisPasswordRotatesWhileRunning(t *testing.T) {
	server := redistest.Start(t, redistest.Options{Password: testPassword})
	file := filepath.Join(t.TempDir(), "password")
	write := func(password string) {
		t.Helper()
		testkit.WriteFile(t, file, password)
	}
	write(testPassword)
	password := openSecret(t, file)
	var log testkit.Log
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}, Password: password, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	testkit.Eventually(t, "it works", func() bool { return works(t, r) })
	events := r.Subscribe(t.Context())

	server.CLI("acl", "setuser", "default", "resetpass", ">canary-new-password")
	server.CLI("client", "kill", "user", "default")
	testkit.Eventually(t, "the old password is refused", func() bool {
		_, err := r.Get(t.Context(), testKey)
		showsNothing(t, fmt.Sprint(err))
		return err != nil && strings.Contains(err.Error(), "WRONGPASS")
	})
	write("canary-new-password")
	for range 2 {
		if _, err := password.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "the new password is used", func() bool { return works(t, r) && hasEvent(t, events) })
	showsNothing(t, log.String())
}

// What keeps a script from reading is not absence: a lease would be granted
// to everybody.
func TestRedisMissingRightIsNotAbsence(t *testing.T) {
	server := redistest.Start(t, redistest.Options{ACL: []string{aclLine(), strings.Replace(aclLine("-get"), "tokenbroker", "blind", 1)}})
	config := userOf(t, server.Addr())
	sees := openPatient(t, config)
	config.Username = "blind"
	blind := openPatient(t, config)
	lease, acquired, err := claimLease(t.Context(), sees, testClaim())
	if err != nil || !acquired {
		t.Fatal(acquired, err)
	}
	claim := testClaim()
	claim.Owner = "blind"
	if _, acquired, err := claimLease(t.Context(), blind, claim); err == nil || acquired {
		t.Errorf("who may not read acquired: %v, %v", acquired, err)
	}
	if _, err := blind.Raise(t.Context(), testCounter, 0, 1); err == nil {
		t.Error("who may not read raised a counter")
	}
	if _, err := blind.Get(t.Context(), testKey); err == nil {
		t.Error("who may not read reads nothing without an error")
	}
	if held, err := sees.Renew(t.Context(), lease, time.Hour); err != nil || !held {
		t.Errorf("the lease was lost: %v, %v", held, err)
	}
}

// Redis repeats what it was sent in some of its errors.
func TestRedisErrorsShowNoSecret(t *testing.T) {
	server := redistest.Start(t, redistest.Options{Config: []string{`rename-command EVALSHA ""`}})
	var log testkit.Log
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	for range 6 {
		_, acquire := r.Acquire(t.Context(), testClaim())
		_, apply := r.Apply(t.Context(), store.Change{Puts: []store.Put{testPut(1)}})
		_, get := r.Get(t.Context(), testKey)
		for _, err := range []error{acquire, apply, get} {
			if err == nil || !strings.Contains(err.Error(), "unknown command") {
				t.Errorf("without EVALSHA: %v", err)
			}
			showsNothing(t, fmt.Sprint(err))
		}
	}
	if !strings.Contains(log.String(), "Redis is away") {
		t.Errorf("the log says: %s", log.String())
	}
	showsNothing(t, log.String())
}

// What others wrote counts as lost, for the scripts as for Get.
func TestRedisReadsGarbageAsLost(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	r := openPatient(t, redisstore.Config{Addresses: []string{server.Addr()}})
	for text, number := range map[string]uint64{
		"5:a": 5, "5:": 5, "5": 5, "9007199254740990:a": store.MaxNumber - 1, "1:2:3": 1,
		"": 0, ":": 0, ":a": 0, "0": 0, "0:a": 0, "05:a": 0, "-5:a": 0, "+5:a": 0, " 5:a": 0, "5 :a": 0, "5a": 0, "5\n": 0,
		"0x10:a": 0, "1e3:a": 0, "1.5:a": 0, "inf:a": 0, "nan": 0, "9007199254740992:a": 0, "9007199254740993": 0,
		"99999999999999999999:a": 0, "\x00": 0, "5\x00": 0, "x": 0,
	} {
		var lua strings.Builder // redis-cli takes no NUL
		for _, b := range []byte(text) {
			fmt.Fprintf(&lua, `\%03d`, b)
		}
		for _, key := range []string{testKey, testCounter} {
			server.CLI("eval", "redis.call('SET', KEYS[1], '"+lua.String()+"')", "1", "tb1:"+key)
		}
		server.CLI("eval", "redis.call('SET', KEYS[1], 'L"+lua.String()+"', 'PX', 2 * 86400000)", "1", "tb1:"+testLease)
		holds(t, r, fmt.Sprintf("%q", text), number, number > 0 && strings.Contains(text, ":"))
	}
	for _, key := range []string{testKey, testCounter, testLease} {
		server.CLI("del", "tb1:"+key)
		server.CLI("rpush", "tb1:"+key, "5:a")
	}
	holds(t, r, "a list", 0, false)
}

func holds(t *testing.T, r *redisstore.Store, what string, number uint64, leased bool) {
	t.Helper()
	entries, err := r.Get(t.Context(), testKey)
	if err != nil || entries[0].Number != number {
		t.Errorf("%s reads as %+v, %v", what, entries, err)
	}
	if number > 0 {
		if applied, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{testPut(number)}}); err != nil || applied[0] {
			t.Errorf("%s was overwritten by its own number: %v", what, err)
		}
	}
	if applied, err := r.Apply(t.Context(), store.Change{Puts: []store.Put{testPut(number + 1)}}); err != nil || !applied[0] {
		t.Errorf("%s was not overwritten: %v", what, err)
	}
	lease, acquired, err := claimLease(t.Context(), r, testClaim())
	if err != nil || acquired == leased || acquired && lease.Fence != number+1 {
		t.Errorf("%s as a lease and a counter: %+v, %v, %v", what, lease, acquired, err)
	}
	if count, err := r.Raise(t.Context(), testCounter, 0, 1); err != nil || count != max(number, lease.Fence)+1 {
		t.Errorf("%s as a counter was raised to %d: %v", what, count, err)
	}
}

func TestRedisLeavesNothingBehind(t *testing.T) {
	server := redistest.Start(t, redistest.Options{})
	leaks := goleak.IgnoreCurrent()
	r, err := redisstore.New(redisstore.Config{Addresses: []string{server.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended, open := r.Subscribe(ctx), r.Subscribe(t.Context())
	testkit.Eventually(t, "events flow", func() bool { return works(t, r) && hasEvent(t, open) })
	cancel()
	for range ended {
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "no goroutine is left", func() bool { return goleak.Find(leaks) == nil })
}

// isUp reports whether all servers count as up for reads and writes.
func isUp(r *redisstore.Store) bool {
	return !slices.ContainsFunc(r.Health(), func(h store.Health) bool { return !h.Reads || !h.Writes })
}
