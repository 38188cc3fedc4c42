// Package audit writes down who was given which token, who was refused what, and
// what operators did: one JSON object to a line, for machines and for years.
// docs/audit.md is the contract of the lines.
//
// It makes nobody wait. Lines are put into bounded buffers, and one goroutine
// writes them, within 50 ms where the disk keeps up. What happens where it does not is
// configured: either acts that could not be written down are refused, or their
// lines are dropped, and it is told how many. It refuses to be filled by those
// who are refused: of the lines that callers can cause and get nothing for, a few a
// second are written and the rest is counted.
//
// No line holds a token or a secret. A token is named by its SHA-256.
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

// Stdout in place of a path is the standard output.
const Stdout = "stdout"

const (
	// bufferSize bounds what waits to be written, in bytes. Lines about acts that
	// are over, and cannot be refused any more, may take as much again; and all that
	// once more is what is being written.
	bufferSize = 4 << 20
	// shards of the buffer, so that those who write lines rarely meet at one lock.
	shardCount = 8
	// flushDelay lets lines gather to be written together.
	flushDelay = 50 * time.Millisecond
	// retryInterval is how often writing is tried while it fails.
	retryInterval = time.Second
	// SumInterval is how often lines are written that sum up what has no lines of
	// its own.
	SumInterval = time.Minute
	// closeTimeout is how long Close waits for an output that takes nothing.
	closeTimeout = 2 * time.Second
)

// Verifications says which of them are written down.
type Verifications int

// The choices. Denials are written in any case.
const (
	NoVerifications       Verifications = iota
	RejectedVerifications               // those with a bad token
	AllVerifications
)

// Config is what a Log is made of.
type Config struct {
	// File is the path of the file, which is made with mode 0600 if there is none,
	// and appended to; or Stdout.
	File string
	// EveryToken writes a line each time that a token is given. Otherwise there is a
	// line for the first time that a caller is given a token, and one each SumInterval
	// for further times.
	EveryToken bool
	// Verifications that are written down.
	Verifications Verifications
	// Refuse says that what cannot be written down must not be done. Otherwise lines
	// are dropped that cannot be written, and counted.
	Refuse bool
	// From says which address a call came from. Nil: nobody knows.
	From func(ctx context.Context) string
	// Logger is told when writing begins to fail and when it works again. Nil: slog.Default.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: they are counted but not shown.
	Registerer prometheus.Registerer

	buffer int // zero: bufferSize
}

// ErrUnwritten says that an act could not be written down, and must not be done.
var ErrUnwritten = errors.New("the audit cannot be written")

// Log writes lines. All its methods are safe for concurrent use. A nil Log writes
// nothing down, and lets everything be done.
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
	}
	metrics metrics

	wake    chan struct{} // there are lines
	hurry   chan struct{} // there are many
	flushes chan chan error
	closing chan struct{}
	done    chan struct{}
	close   sync.Once

	// The rest is the writer's own.
	out     output
	batch   []byte // taken from the shards
	pending []byte // the part of it that is not written yet
	lines   int    // in batch
}

// shard is a part of what waits to be written.
type shard struct {
	mu  sync.Mutex
	now buffer

	before buffer // the writer's own: what it took last

	_ [64]byte // keeps neighbours out of the same cache line
}

type buffer struct {
	lines []byte
	marks []mark
}

// mark is where a line ends in the buffer, and its number.
type mark struct {
	number uint64
	end    int
}

// Open opens the output and starts to write. It fails where the file cannot be
// opened.
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

// replica tells the lines of processes apart, also those of one host.
func replica() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + "/" + rand.Text()[:8]
}

// Record writes down what happened. It cannot be refused; if there is no room for
// it, it is lost, and that is told.
func (l *Log) Record(e *Event) {
	if l != nil && l.rationed(e) {
		l.keep(e)
	}
}

// keep writes down what is over.
func (l *Log) keep(e *Event) {
	if !l.put(e, 2*l.cfg.buffer) {
		l.lose()
	}
}

// Permit writes down what is about to be done, unless it must not be done because
// it could not be: then the error is ErrUnwritten.
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

// Ready says whether something may be begun whose outcome is to be Recorded: if
// not, the error is ErrUnwritten.
func (l *Log) Ready() error {
	if l != nil && l.cfg.Refuse && (l.failing.Load() || l.buffered() >= l.cfg.buffer) {
		l.metrics.refused.Inc()
		return ErrUnwritten
	}
	return nil
}

// Verifications says which of them to write down.
func (l *Log) Verifications() Verifications {
	if l == nil {
		return NoVerifications
	}
	return l.cfg.Verifications
}

// From is the address that a call came from.
func (l *Log) From(ctx context.Context) string {
	if l == nil {
		return ""
	}
	return l.cfg.From(ctx)
}

// put appends a line to the buffer, which may hold so many bytes.
func (l *Log) put(e *Event, most int) bool {
	most /= shardCount
	s := &l.shards[mathrand.N[uint](shardCount)]
	s.mu.Lock()
	now := time.Now()
	before := len(s.now.lines)
	if before >= most {
		s.mu.Unlock()
		return false
	}
	s.now.lines = appendEvent(append(s.now.lines, l.head...), e, now)
	after := len(s.now.lines)
	s.now.marks = append(s.now.marks, mark{l.order.Add(1), after})
	s.mu.Unlock()
	signal(l.wake)
	if half := most / 2; before < half && after >= half {
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
}

// takeLost is the line about those that were lost; its Count may be 0.
func (l *Log) takeLost() Event {
	l.lost.Lock()
	defer l.lost.Unlock()
	e := Event{Event: Lost, Count: l.lost.count, Since: l.lost.since}
	l.lost.count = 0
	return e
}

// rationed reports whether the line is to be written. All verifications means all.
func (l *Log) rationed(e *Event) bool {
	if !e.refusal() || e.Event == Verification && e.Outcome != Denied && l.cfg.Verifications == AllVerifications {
		return true
	}
	return l.ration.admits(e, time.Now())
}

// Flush writes what was put before it was called. The error says that writing
// fails, or that ctx ended.
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

// Reopen makes the next lines go to a file of the configured path, though the one
// that was open may have got another name. That is noticed within a second in any
// case.
func (l *Log) Reopen() {
	if l != nil {
		l.out.asked.Store(true)
	}
}

// Close sums up, writes what there is and closes the output. Lines that come later
// are lost. It waits 2 s at most for an output that takes nothing.
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
		return fmt.Errorf("%w: its output takes nothing", ErrUnwritten)
	}
	if l.failing.Load() {
		return ErrUnwritten
	}
	return nil
}
