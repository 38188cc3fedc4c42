// Package audit writes the audit log: tokens that callers received, refusals, and
// actions of operators. Each line is a JSON object; docs/audit.md defines its members.
//
// Callers never wait for the disk. Lines go into bounded buffers, and one goroutine
// writes them within 50 ms if the disk is fast enough. If it is not, the configuration
// decides: the broker refuses acts that it cannot audit, or it drops their lines and
// counts them. Refused calls cannot fill the log: a few of their lines are written each
// second, and the others are counted.
//
// No line contains a token or a secret. Tokens appear as SHA-256.
package audit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Stdout as the path selects the standard output.
const Stdout = "stdout"

const (
	// bufferSize bounds the lines that wait to be written, in bytes. Lines about acts
	// that have happened, which cannot be refused any more, may take the same amount
	// again, and the lines that are being written twice as much.
	bufferSize = 4 << 20
	// shardCount shards of the buffer reduce contention for the locks.
	shardCount = 8
	// flushDelay collects lines, so that one write takes many.
	flushDelay = 50 * time.Millisecond
	// retryInterval is the time between attempts while writes fail.
	retryInterval = time.Second
	// SumInterval is the time between lines that count events without lines of their
	// own.
	SumInterval = time.Minute
	// closeTimeout is how long Close waits for an output that blocks.
	closeTimeout = 2 * time.Second
)

// Verifications selects the verifications that are audited.
type Verifications int

// The choices. Denials are always audited.
const (
	NoVerifications       Verifications = iota
	RejectedVerifications               // only invalid tokens
	AllVerifications
)

// Config configures a Log.
type Config struct {
	// File is the path of the file, or Stdout. The file is created with mode 0600 if it
	// does not exist, and appended to otherwise.
	File string
	// EveryToken writes a line each time a caller receives a token. Otherwise there is
	// one for the first time that a caller receives a certain token, and one per
	// SumInterval that counts further times.
	EveryToken bool
	// Verifications selects the verifications that are audited.
	Verifications Verifications
	// Refuse refuses acts that cannot be audited. Otherwise lines that cannot be written
	// are dropped and counted.
	Refuse bool
	// From returns the address from which a call came. Nil: unknown.
	From func(ctx context.Context) string
	// Logger logs when writes begin to fail and when they succeed again. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer registers the metrics. Nil: they are not exported.
	Registerer prometheus.Registerer

	buffer int // zero: bufferSize
}

// ErrUnwritten is the error for an act that could not be audited and must not happen.
var ErrUnwritten = errors.New("the audit cannot be written")

// Log writes the audit log. Its methods are safe for concurrent use. A nil Log writes
// nothing and permits everything.
type Log struct {
	cfg    Config
	head   []byte // of each line
	shards [shardCount]shard
	order  atomic.Uint64 // numbers the lines
	ration ration
	// failing: the last attempt to write failed.
	failing atomic.Bool
	// lost counts lines that were dropped since the last line that said so.
	lost struct {
		sync.Mutex

		count uint64
		since time.Time
		total uint64    // since the start
		last  time.Time // when a line was last dropped
	}
	metrics metrics

	wake    chan struct{} // a line was added
	hurry   chan struct{} // the buffer is half full
	flushes chan chan error
	closing chan struct{}
	done    chan struct{}
	close   sync.Once

	// Only the writing goroutine uses these fields.
	out     output
	batch   []byte // taken from the shards
	pending []byte // the unwritten part of batch
	lines   int    // in batch
}

// shard is a part of the buffer.
type shard struct {
	mu  sync.Mutex
	now buffer

	before buffer // the lines that the writing goroutine took last; only it uses them

	_ [64]byte // keeps neighbours out of the same cache line
}

type buffer struct {
	lines []byte
	marks []mark
}

// mark is the end of a line in the buffer, with its number.
type mark struct {
	number uint64
	end    int
}

// Open opens the output and starts the writing goroutine. It returns an error if the
// file cannot be opened.
func Open(cfg Config) (*Log, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.From == nil {
		cfg.From = func(context.Context) string { return "" }
	}
	if cfg.buffer == 0 {
		cfg.buffer = bufferSize
	}
	l := &Log{
		cfg: cfg, head: appendHead(nil, replica()), ration: newRation(), metrics: newMetrics(),
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), flushes: make(chan chan error),
		closing: make(chan struct{}), done: make(chan struct{}),
		out: output{path: cfg.File},
	}
	if err := l.out.open(); err != nil {
		return nil, err
	}
	if warning := l.out.warning(); warning != "" {
		cfg.Logger.Warn(warning)
	}
	l.metrics.register(cfg.Registerer, l)
	go l.write()
	return l, nil
}

// replica returns a name for this process that is unique among all processes.
func replica() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "/" + rand.Text()[:8]
}

// Record audits an act that has happened. If the buffer is full the line is dropped and
// counted.
func (l *Log) Record(e *Event) {
	if l != nil && l.rationed(e) {
		l.keep(e)
	}
}

func (l *Log) keep(e *Event) {
	if !l.put(e, 2*l.cfg.buffer) {
		l.lose()
	}
}

// Permit audits an act that is about to happen. It returns ErrUnwritten if the act must
// not happen because it could not be audited.
func (l *Log) Permit(e *Event) error {
	switch {
	case l == nil:
		return nil
	case l.cfg.Refuse && (l.failing.Load() || !l.put(e, l.cfg.buffer)):
		l.metrics.refused.Inc()
		return ErrUnwritten
	case !l.cfg.Refuse && !l.put(e, l.cfg.buffer):
		l.lose()
	}
	return nil
}

// Ready returns ErrUnwritten if an act whose outcome has to be recorded must not begin.
func (l *Log) Ready() error {
	if l != nil && l.cfg.Refuse && (l.failing.Load() || l.buffered() >= l.cfg.buffer) {
		l.metrics.refused.Inc()
		return ErrUnwritten
	}
	return nil
}

// Verifications returns the verifications that are audited.
func (l *Log) Verifications() Verifications {
	if l == nil {
		return NoVerifications
	}
	return l.cfg.Verifications
}

// From returns the address from which a call came.
func (l *Log) From(ctx context.Context) string {
	if l == nil {
		return ""
	}
	return l.cfg.From(ctx)
}

// put appends a line to the buffer, unless that contains limit bytes or more.
func (l *Log) put(e *Event, limit int) bool {
	limit /= shardCount
	s := &l.shards[mathrand.N[uint](shardCount)]
	s.mu.Lock()
	now := time.Now()
	before := len(s.now.lines)
	if before >= limit {
		s.mu.Unlock()
		return false
	}
	s.now.lines = appendEvent(append(s.now.lines, l.head...), e, now)
	after := len(s.now.lines)
	s.now.marks = append(s.now.marks, mark{l.order.Add(1), after})
	s.mu.Unlock()
	signal(l.wake)
	if half := limit / 2; before < half && after >= half {
		signal(l.hurry)
	}
	return true
}

func signal(to chan struct{}) {
	select {
	case to <- struct{}{}:
	default:
	}
}

func (l *Log) buffered() (bytes int) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		bytes += len(s.now.lines)
		s.mu.Unlock()
	}
	return bytes
}

func (l *Log) lose() {
	l.metrics.lost.Inc()
	l.lost.Lock()
	defer l.lost.Unlock()
	if l.lost.count == 0 {
		l.lost.since = time.Now()
	}
	l.lost.count++
	l.lost.total++
	l.lost.last = time.Now()
}

// takeLost returns the line about dropped lines; its Count may be 0.
func (l *Log) takeLost() Event {
	l.lost.Lock()
	defer l.lost.Unlock()
	e := Event{Event: Lost, Count: l.lost.count, Since: l.lost.since}
	l.lost.count = 0
	return e
}

// rationed reports whether to write the line: lines about refusals are limited, except
// verifications if all of them are audited.
func (l *Log) rationed(e *Event) bool {
	if !e.refusal() || e.Event == Verification && e.Outcome != Denied && l.cfg.Verifications == AllVerifications {
		return true
	}
	return l.ration.admits(e, time.Now())
}

// Flush writes the lines that were added before the call. It returns an error if writes
// fail or if ctx ends.
func (l *Log) Flush(ctx context.Context) error {
	if l == nil {
		return nil
	}
	written := make(chan error, 1)
	select {
	case l.flushes <- written:
	case <-l.done:
		return ErrUnwritten
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Reopen opens the configured path again, because the open file may have been renamed.
// The Log notices that itself within a second.
func (l *Log) Reopen() {
	if l != nil {
		l.out.checkRequested.Store(true)
	}
}

// Close writes all lines, including the counts, and closes the output. Later lines are
// lost. Close waits at most 2 s for an output that blocks.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	l.close.Do(func() { close(l.closing) })
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
		return fmt.Errorf("%w: the output blocks", ErrUnwritten)
	}
	if l.failing.Load() {
		return ErrUnwritten
	}
	return nil
}
