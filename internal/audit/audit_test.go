package audit_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unique"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// book is a Log and its file.
type book struct {
	*audit.Log

	path     string
	log      *bytes.Buffer
	registry *prometheus.Registry
}

func open(t *testing.T, cfg audit.Config) *book {
	t.Helper()
	b := &book{path: cfg.File, log: new(bytes.Buffer), registry: prometheus.NewPedanticRegistry()}
	if b.path == "" {
		b.path = filepath.Join(t.TempDir(), "audit.jsonl")
	}
	cfg.File, cfg.Registerer = b.path, b.registry
	cfg.Logger = slog.New(slog.NewTextHandler(b.log, nil))
	var err error
	if b.Log, err = audit.Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

// lines are those in the file once all that was put is written.
func (b *book) lines(t *testing.T) []line {
	t.Helper()
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	return linesIn(t, b.path)
}

func linesIn(t *testing.T, path string) (lines []line) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	for scanner.Scan() {
		var one line
		if err := json.Unmarshal(scanner.Bytes(), &one); err != nil {
			t.Errorf("%v: %s", err, scanner.Bytes())
		}
		lines = append(lines, one)
	}
	return lines
}

func (b *book) metric(t *testing.T, name string) float64 {
	t.Helper()
	families, err := b.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetCounter().GetValue() + family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestFileIsPrivateAndAppended(t *testing.T) {
	b := open(t, audit.Config{})
	for i := range 100 {
		b.Record(&audit.Event{Event: audit.Admin, Outcome: audit.OK, Caller: fmt.Sprint(i)})
	}
	lines := b.lines(t)
	if len(lines) != 100 || lines[0].V != 1 || lines[99].Caller != "99" {
		t.Fatalf("%d lines, the last of %q", len(lines), lines[len(lines)-1].Caller)
	}
	for i, one := range lines {
		if one.Caller != fmt.Sprint(i) || one.Replica != lines[0].Replica || i > 0 && one.Time < lines[i-1].Time {
			t.Errorf("line %d: %+v", i, one)
		}
	}
	if info, err := os.Stat(b.path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, audit.Config{File: b.path})
	again.Record(&audit.Event{Event: audit.Start})
	lines = again.lines(t)
	if len(lines) != 101 || lines[100].Event != "start" || lines[100].Replica == lines[0].Replica {
		t.Errorf("%d lines, the last of replica %s, the first of %s", len(lines), lines[100].Replica, lines[0].Replica)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if got := testutil.ToFloat64(metricOf(t, again, "tokenbroker_audit_lines_total")); got != 1 {
		t.Errorf("%v lines were counted", got)
	}
}

func metricOf(t *testing.T, b *book, name string) prometheus.Collector {
	t.Helper()
	value := b.metric(t, name)
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name}, func() float64 { return value })
}

func TestLinesAreFlushedSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, audit.Config{})
		b.Record(&audit.Event{Event: audit.Start})
		time.Sleep(audit.FlushDelay)
		synctest.Wait()
		if lines := linesIn(t, b.path); len(lines) != 1 {
			t.Errorf("%d lines after %v", len(lines), audit.FlushDelay)
		}
	})
}

func TestRenamedFileIsReplaced(t *testing.T) {
	for name, tell := range map[string]func(b *book){
		"by itself": func(*book) { time.Sleep(audit.FollowInterval) },
		"told so":   func(b *book) { b.Reopen() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := open(t, audit.Config{})
				b.Record(&audit.Event{Event: audit.Start})
				b.lines(t)
				if err := os.Rename(b.path, b.path+".1"); err != nil {
					t.Fatal(err)
				}
				tell(b)
				b.Record(&audit.Event{Event: audit.Stop})
				if lines := b.lines(t); len(lines) != 1 || lines[0].Event != "stop" {
					t.Errorf("the new file has %+v", lines)
				}
				if lines := linesIn(t, b.path+".1"); len(lines) != 1 || lines[0].Event != "start" {
					t.Errorf("the old file has %+v", lines)
				}
			})
		})
	}
}

func TestMissingDirectoryIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "log")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		b := open(t, audit.Config{File: filepath.Join(dir, "audit.jsonl"), Refuse: true})
		if err := os.Rename(dir, dir+".moved"); err != nil {
			t.Fatal(err)
		}
		b.Reopen()
		b.Record(&audit.Event{Event: audit.Start})
		if err := b.Flush(t.Context()); !errors.Is(err, audit.ErrUnwritten) {
			t.Errorf("Flush: %v", err)
		}
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(audit.RetryInterval)
		synctest.Wait()
		if lines := linesIn(t, b.path); len(lines) != 1 || b.Ready() != nil {
			t.Errorf("%d lines, ready: %v", len(lines), b.Ready())
		}
	})
}

func TestPartialLastLineIsEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	testkit.WriteFile(t, path, "{\"v\":1}\n{\"v\":1,\"time")
	b := open(t, audit.Config{File: path})
	b.Record(&audit.Event{Event: audit.Start})
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if lines := bytes.Split(content, []byte("\n")); err != nil || len(lines) != 4 || !bytes.Contains(lines[2], []byte(`"event":"start"`)) {
		t.Errorf("%v: %s", err, content)
	}
}

func TestOpenRefusesBadPaths(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none", "audit.jsonl")} {
		if l, err := audit.Open(audit.Config{File: path}); err == nil {
			_ = l.Close()
			t.Errorf("%s was opened", path)
		}
	}
}

func TestReadableFileIsWarnedOf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if b := open(t, audit.Config{File: path}); !bytes.Contains(b.log.Bytes(), []byte("open to others")) {
		t.Errorf("log: %s", b.log)
	}
}

// /dev/full is a disk that is full.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, refuse := range []bool{true, false} {
			b := open(t, audit.Config{File: "/dev/full", Refuse: refuse})
			token := &audit.Event{Event: audit.Token, Outcome: audit.OK}
			if err := errors.Join(b.Permit(token), b.Ready()); err != nil {
				t.Errorf("refuse %v, before the disk is known to be full: %v", refuse, err)
			}
			if err := b.Flush(t.Context()); !errors.Is(err, audit.ErrUnwritten) {
				t.Errorf("Flush: %v", err)
			}
			if got := errors.Is(b.Permit(token), audit.ErrUnwritten); got != refuse {
				t.Errorf("refuse %v, but a token is refused: %v", refuse, got)
			}
			if got := errors.Is(b.Ready(), audit.ErrUnwritten); got != refuse {
				t.Errorf("refuse %v, but an act is refused: %v", refuse, got)
			}
			b.Record(&audit.Event{Event: audit.Token, Outcome: audit.Denied})
			if b.metric(t, "tokenbroker_audit_failing") != 1 || !bytes.Contains(b.log.Bytes(), []byte("no space left on device")) {
				t.Errorf("log: %s", b.log)
			}
			if err := b.Close(); !errors.Is(err, audit.ErrUnwritten) {
				t.Errorf("Close: %v", err)
			}
			if n := bytes.Count(b.log.Bytes(), []byte("\n")); n != 1 {
				t.Errorf("%d log lines about one failure: %s", n, b.log)
			}
		}
	})
}

func TestBufferIsBounded(t *testing.T) {
	const buffer = 64 << 10
	for _, refuse := range []bool{true, false} {
		t.Run(fmt.Sprint("refuse ", refuse), func(t *testing.T) {
			b := open(t, audit.Config{File: "/dev/full", Refuse: refuse}.WithBuffer(buffer))
			if err := b.Flush(t.Context()); err != nil {
				t.Fatal(err) // nothing was to be written yet
			}
			e := everything()
			var permitted, refused int
			for range 2000 {
				if b.Permit(e) == nil {
					permitted++
				} else {
					refused++
				}
				b.Record(e)
			}
			size := len(audit.Line("a", e, time.Now()))
			lost := b.metric(t, "tokenbroker_audit_lost_total")
			if refuse && refused == 0 || !refuse && refused > 0 || lost == 0 {
				t.Errorf("%d permitted, %d refused, %v lost", permitted, refused, lost)
			}
			if kept := (4000 - refused - int(lost)) * size; kept > 4*buffer+16*size {
				t.Errorf("%d bytes were kept of at most %d", kept, 4*buffer)
			}
			if got := b.metric(t, "tokenbroker_audit_refused_total"); got != float64(refused) {
				t.Errorf("%v refusals were counted, %d made", got, refused)
			}
		})
	}
}

func TestRefusalsAreLimitedAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, audit.Config{})
		begin := time.Now()
		const flood = 1000
		for range flood {
			b.Record(&audit.Event{Event: audit.Call, Outcome: audit.Unidentified, Peer: "10.0.0.1:1", Action: "/x/Y"})
			b.Record(&audit.Event{Event: audit.Token, Outcome: audit.Denied, Caller: "mallory"})
		}
		b.Record(&audit.Event{Event: audit.Token, Outcome: audit.Denied, Caller: "alice"})
		count := func(lines []line, caller string) (n int, more uint64) {
			for _, one := range lines {
				if one.Caller == caller && one.Count == 0 {
					n++
				} else if one.Caller == caller {
					more += one.Count
					if since, err := time.Parse(time.RFC3339, one.Since); err != nil || since.Sub(begin).Abs() > time.Second {
						t.Errorf("since %s: %v", one.Since, err)
					}
				}
			}
			return n, more
		}
		for caller, want := range map[string]int{"": audit.RefusalsPerSecond, "mallory": audit.RefusalsPerSecond, "alice": 1} {
			if n, _ := count(b.lines(t), caller); n != want {
				t.Errorf("%q has %d lines, want %d", caller, n, want)
			}
		}
		time.Sleep(audit.SumInterval)
		synctest.Wait()
		lines := b.lines(t)
		for _, caller := range []string{"", "mallory"} {
			if n, more := count(lines, caller); n+int(more) != flood {
				t.Errorf("%q: %d lines and %d more make no %d", caller, n, more, flood)
			}
		}
		time.Sleep(2 * audit.SumInterval)
		if again := b.lines(t); len(again) != len(lines) {
			t.Errorf("%d lines about nothing", len(again)-len(lines))
		}
	})
}

func TestAllVerificationsAreWritten(t *testing.T) {
	for which, want := range map[audit.Verifications]int{audit.RejectedVerifications: audit.RefusalsPerSecond, audit.AllVerifications: 100} {
		synctest.Test(t, func(t *testing.T) {
			b := open(t, audit.Config{Verifications: which})
			for range 100 {
				b.Record(&audit.Event{Event: audit.Verification, Outcome: audit.Rejected, Caller: "gateway"})
			}
			if lines := b.lines(t); len(lines) != want {
				t.Errorf("%d lines, want %d", len(lines), want)
			}
		})
	}
}

func handle(name string) unique.Handle[string] { return unique.Make(name) }

func TestTokenIsWrittenOncePerCallerThenSummed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, audit.Config{From: func(context.Context) string { return "10.0.0.1:1" }})
		given := b.Given(audit.Event{Client: "orders", TokenSHA256: [32]byte{1}})
		const callers, times = 20, 500
		var all sync.WaitGroup
		for i := range callers {
			for range times {
				all.Go(func() {
					if err := given.To(t.Context(), handle(fmt.Sprint("caller-", i)), "memory", false); err != nil {
						t.Error(err)
					}
				})
			}
		}
		all.Wait()
		lines := b.lines(t)
		if len(lines) != callers {
			t.Fatalf("%d lines of %d callers", len(lines), callers)
		}
		for _, one := range lines {
			if one.Event != "token" || one.Outcome != "ok" || one.Client != "orders" || one.Origin != "memory" || one.Peer == "" || one.Count != 0 {
				t.Errorf("line %+v", one)
			}
		}
		time.Sleep(time.Second)
		given.Sum()
		given.Sum()
		lines = b.lines(t)[callers:]
		for _, one := range lines {
			if one.Count != times-1 || one.Client != "orders" || one.Outcome != "ok" || one.Since >= one.Time {
				t.Errorf("line %+v", one)
			}
		}
		if len(lines) != callers {
			t.Errorf("%d sums of %d callers", len(lines), callers)
		}
	})
}

// Whatever comes when: the first lines and the sums together are the times that
// the token was given.
func TestSumsAreCompleteUnderConcurrency(t *testing.T) {
	b := open(t, audit.Config{})
	const rounds, callers, times = 50, 4, 100
	for round := range rounds {
		given := b.Given(audit.Event{TokenSHA256: [32]byte{1}})
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for range times {
					_ = given.To(t.Context(), handle(fmt.Sprint("caller-", round)), "memory", false)
				}
			})
		}
		all.Go(func() { given.Sum(); given.Close() })
		all.Wait()
		if err := b.Flush(t.Context()); err != nil { // or there are more lines than the buffer holds
			t.Fatal(err)
		}
	}
	total := map[string]uint64{}
	for _, one := range b.lines(t) {
		total[one.Caller] += max(one.Count, 1)
	}
	for round := range rounds {
		if got := total[fmt.Sprint("caller-", round)]; got != callers*times {
			t.Errorf("round %d: %d of %d times", round, got, callers*times)
		}
	}
}

func TestEachUseIsWrittenIfConfigured(t *testing.T) {
	b := open(t, audit.Config{EveryToken: true})
	given := b.Given(audit.Event{Client: "orders"})
	for range 10 {
		_ = given.To(t.Context(), handle("checkout"), "memory", false)
	}
	given.Close()
	if lines := b.lines(t); len(lines) != 10 || lines[9].Caller != "checkout" || lines[9].Count != 0 {
		t.Errorf("%d lines", len(lines))
	}
}

func TestTokenIsRefusedUntilItIsWritten(t *testing.T) {
	b := open(t, audit.Config{File: "/dev/full", Refuse: true})
	first, late := b.Given(audit.Event{TokenSHA256: [32]byte{1}}), b.Given(audit.Event{TokenSHA256: [32]byte{2}})
	give := func(given *audit.Given) error { return given.To(t.Context(), handle("checkout"), "memory", false) }
	if err := give(first); err != nil {
		t.Fatal(err)
	}
	_ = b.Flush(t.Context())
	if err := give(late); !errors.Is(err, audit.ErrUnwritten) {
		t.Errorf("a token given for the first time: %v", err)
	}
	if err := give(late); !errors.Is(err, audit.ErrUnwritten) {
		t.Errorf("and again: %v", err)
	}
	// Its further times are counted, and the count is not lost.
	if err := give(first); err != nil {
		t.Errorf("a token that the caller has: %v", err)
	}
}

func TestStandardOutput(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	before := os.Stdout
	os.Stdout = write
	l, err := audit.Open(audit.Config{File: audit.Stdout})
	os.Stdout = before
	if err != nil {
		t.Fatal(err)
	}
	_ = write.Close()
	l.Record(&audit.Event{Event: audit.Start})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(read); err != nil || !bytes.Contains(got, []byte(`"event":"start"}`+"\n")) {
		t.Errorf("%v: %s", err, got)
	}
}

// Nobody reads: the pipe is full, and writing blocks for ever.
func TestBlockedOutputBlocksNoCaller(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(write.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	before := os.Stdout
	os.Stdout = write
	l, err := audit.Open(audit.Config{File: audit.Stdout, Refuse: true}.WithBuffer(64 << 10))
	os.Stdout = before
	if err != nil {
		t.Fatal(err)
	}
	refused := false
	for range 10_000 {
		refused = refused || l.Permit(everything()) != nil
	}
	if !refused {
		t.Error("nothing was refused although nothing can be written")
	}
	if err := l.Close(); !errors.Is(err, audit.ErrUnwritten) {
		t.Errorf("Close: %v", err)
	}
	_, _ = read.Close(), write.Close() // the writer ends with a broken pipe, the process does not
}

func TestNoLogWritesNothing(t *testing.T) {
	var l *audit.Log
	l.Record(&audit.Event{Event: audit.Start})
	l.Reopen()
	if err := errors.Join(l.Permit(&audit.Event{}), l.Ready(), l.Flush(t.Context()), l.Close()); err != nil {
		t.Error(err)
	}
}

func BenchmarkGivenAgain(b *testing.B) {
	for name, every := range map[string]bool{"first": false, "every": true} {
		b.Run(name, func(b *testing.B) {
			l, err := audit.Open(audit.Config{File: "/dev/null", EveryToken: every})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			given := l.Given(audit.Event{Client: "orders-api", Audiences: []string{"https://orders.example.com"}, Scopes: []string{"read", "write"}, GrantedScopes: []string{"read", "write"}, TokenSHA256: [32]byte{1}, ExpiresAt: time.Now()})
			caller, ctx := handle("checkout"), b.Context()
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					_ = given.To(ctx, caller, "memory", false)
				}
			})
		})
	}
}
