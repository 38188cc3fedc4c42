// Package certs provides the TLS certificate of a listener and the authorities for
// client certificates. They come from files or from a SPIFFE Workload API and are
// reloaded while the listener runs, without closing connections.
//
// New material is checked as a whole before it is used. An expired or future
// certificate, a key that belongs to another certificate or a file of the wrong kind
// is an error at the start. Later the current material stays in use.
package certs

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// PollInterval is the time between two checks of the files. New content is used after
// two equal reads, because a single read may see a half-written file.
const PollInterval = time.Second

// Config names files in PEM.
type Config struct {
	// Cert contains the certificate and then its intermediates. Required.
	Cert string
	// Key contains the private key of the certificate. Required.
	Key string
	// ClientCA contains the authorities for client certificates. If it is empty, the
	// listener does not request client certificates.
	ClientCA string
	// MinVersion is the lowest accepted version of TLS. It defaults to 1.3.
	MinVersion uint16
}

// Source holds the current material. It is safe for concurrent use. Only Reload and
// Poll do I/O.
type Source struct {
	config     Config
	minVersion uint16
	workload   *workload // nil if the material comes from files
	current    atomic.Pointer[material]

	applied, refused atomic.Uint64 // changes
	failing          atomic.Bool

	mu       sync.Mutex
	stat     fileStat          // before the last read
	lastRead [sha256.Size]byte // digest
	pending  bool              // the last read is not the current material
}

// Open reads the files. The error has one line for each problem, "FILE: sentence".
func Open(cfg Config) (*Source, error) {
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS13
	}
	s := &Source{config: cfg, minVersion: cfg.MinVersion, stat: statFiles(cfg)}
	read, err := readFiles(cfg)
	defer read.wipe()
	if err != nil {
		return nil, err
	}
	m, err := read.check(cfg, nil, time.Now())
	if err != nil {
		return nil, err
	}
	s.lastRead = read.digest()
	s.current.Store(m)
	return s, nil
}

// TLS returns a server configuration that uses the current material for each new
// connection.
func (s *Source) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: s.minVersion,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.current.Load().tls, nil
		},
	}
}

// Authorities returns the current authorities for client certificates, or nil if the
// listener requests none.
func (s *Source) Authorities() *Authorities { return s.current.Load().authorities }

// Status describes the current material of a Source and its changes.
type Status struct {
	// Name is the first name in the certificate.
	Name string
	// Expires is the first expiry among the certificate and its intermediates.
	Expires time.Time
	// Begins is when the validity of the certificate begins.
	Begins time.Time
	// Authorities for client certificates.
	Authorities []Authority
	// Applied and Refused count changes of the material.
	Applied, Refused uint64
	// Failing reports whether the content of the files cannot be used, or the Workload
	// API is unavailable. The material before stays current.
	Failing bool
	// Warnings describe defects that do not prevent the use of the material.
	Warnings []string
}

// Authority describes a certificate authority.
type Authority struct {
	Name    string
	Begins  time.Time
	Expires time.Time
}

// Status returns the current status.
func (s *Source) Status() Status {
	m := s.current.Load()
	return Status{
		Name: m.name, Begins: m.begins, Expires: m.expires, Warnings: m.warnings, Authorities: m.authorities.list(),
		Applied: s.applied.Load(), Refused: s.refused.Load(), Failing: s.failing.Load(),
	}
}

// Reload reads the files immediately and reports whether the material changed. After
// an error the current material stays, and Poll keeps trying. With a Workload API,
// which pushes its changes, Reload does nothing.
func (s *Source) Reload() (changed bool, err error) {
	if s.workload != nil {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stat, s.pending = statFiles(s.config), true
	for range 2 { // new content must be read twice
		if changed, err = s.read(time.Now()); changed || err != nil {
			break
		}
	}
	s.record(changed, err)
	return changed, err
}

// Poll checks the files every PollInterval, or watches the Workload API, until ctx
// ends. It calls notify with nil after each change, and with an error that occurred
// twice in a row, but only once with the same error.
func (s *Source) Poll(ctx context.Context, notify func(err error)) {
	if s.workload != nil {
		s.watch(ctx, notify)
		return
	}
	ticker := time.NewTicker(PollInterval)
	defer ticker.Stop()
	var last, notified string
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		changed, err := s.poll()
		switch text := textOf(err); {
		case changed:
			s.record(true, nil)
			notify(nil)
			last, notified = "", ""
		case err == nil && s.failing.Load() && s.upToDate():
			s.failing.Store(false) // the files contain the current material again
			last, notified = "", ""
		case err == nil:
		case text == last && text != notified: // twice, so it is not a half-written file
			s.record(false, err)
			notify(err)
			notified = text
		default:
			last = text
		}
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s *Source) record(changed bool, err error) {
	switch {
	case err != nil:
		s.refused.Add(1)
		s.failing.Store(true)
	case changed:
		s.applied.Add(1)
		s.failing.Store(false)
	}
}

func (s *Source) upToDate() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.pending
}

func (s *Source) poll() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stat := statFiles(s.config)
	if !s.pending && stat.equal(s.stat) {
		return false, nil
	}
	s.stat, s.pending = stat, true
	return s.read(time.Now())
}

// read replaces the current material by the content of the files if that is valid and
// was read twice. Invalid content stays pending and is checked again by the next poll,
// because a certificate may become valid with time.
func (s *Source) read(now time.Time) (changed bool, err error) {
	read, err := readFiles(s.config)
	defer read.wipe()
	if err != nil {
		return false, err
	}
	current, digest := s.current.Load(), read.digest()
	if digest == current.digest {
		s.lastRead, s.pending = digest, false
		return false, nil
	}
	if digest != s.lastRead {
		s.lastRead = digest
		return false, nil
	}
	m, err := read.check(s.config, current, now)
	if err != nil {
		return false, err
	}
	s.current.Store(m)
	s.pending = false
	return true, nil
}

// problem returns an error about a file.
func problem(file, format string, args ...any) error {
	return fmt.Errorf("%s: %w", file, fmt.Errorf(format, args...))
}

var errTooLarge = errors.New("it is larger than 1 MiB: check the path")
