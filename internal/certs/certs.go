// Package certs keeps what a listener proves itself by over TLS, and by whom the
// certificates of its callers must be issued: read from files or from a SPIFFE
// Workload API, checked as a whole, and replaced while connections go on when they
// change.
//
// It refuses what would not work: a certificate that expired or begins later, a key
// of another one, files of the wrong kind. Those are errors at the start, and are
// never put in force afterwards.
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

// PollInterval is how often the files are looked at. A change counts when the same
// was read twice, because a file may be seen half written.
const PollInterval = time.Second

// Config names files in PEM form.
type Config struct {
	// Cert holds the certificate, and after it the intermediate ones. Required.
	Cert string
	// Key holds its private key. Required.
	Key string
	// ClientCA holds the authorities that issue the certificates of callers. Empty:
	// callers are not asked for any.
	ClientCA string
	// MinVersion is the lowest version of TLS that is spoken. Zero: 1.3.
	MinVersion uint16
}

// Source is the material in the files or of the Workload API, as it was when it was
// last found good. Its methods are safe for concurrent use; all but Reload and Poll do
// no I/O.
type Source struct {
	config     Config
	minVersion uint16
	workload   *workload // nil: the material is in files
	inForce    atomic.Pointer[material]

	applied, refusals atomic.Uint64
	refused           atomic.Bool

	mu       sync.Mutex
	looked   look              // at the files, before they were read last
	seen     [sha256.Size]byte // of what was read last
	settling bool              // what was read last is not in force: read again
}

// Open reads the files. The error has a line for each thing that is wrong: FILE:
// sentence.
func Open(cfg Config) (*Source, error) {
	if cfg.MinVersion == 0 {
		cfg.MinVersion = tls.VersionTLS13
	}
	s := &Source{config: cfg, minVersion: cfg.MinVersion, looked: lookAt(cfg)}
	read, err := readFiles(cfg)
	defer read.wipe()
	if err != nil {
		return nil, err
	}
	made, err := read.check(cfg, nil, time.Now())
	if err != nil {
		return nil, err
	}
	s.seen = read.digest()
	s.inForce.Store(made)
	return s, nil
}

// TLS is the configuration of a server that goes by what is in force when a
// connection is made.
func (s *Source) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: s.minVersion,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.inForce.Load().tls, nil
		},
	}
}

// Authorities returns those by whom the certificates of callers must be issued
// now; nil: callers present none.
func (s *Source) Authorities() *Authorities { return s.inForce.Load().authorities }

// Status is what there is to tell of a Source.
type Status struct {
	// Name is the first name in the certificate.
	Name string
	// Expires is when the first of the certificates ends that the listener presents.
	Expires time.Time
	// Authorities are the certificates of those who issue the certificates of callers.
	Authorities []Authority
	// Applied counts the changes that came in force, Refused those that did not.
	Applied, Refused uint64
	// Failing: what is in the files is not what is in force, and cannot be; or the
	// Workload API is away.
	Failing bool
	// Warnings are about what is in force, and works.
	Warnings []string
}

// Authority is who issues certificates.
type Authority struct {
	Name    string
	Expires time.Time
}

// Status tells of what is in force.
func (s *Source) Status() Status {
	m := s.inForce.Load()
	told := Status{
		Name: m.name, Expires: m.expires, Warnings: m.warnings,
		Applied: s.applied.Load(), Refused: s.refusals.Load(), Failing: s.refused.Load(),
	}
	told.Authorities = m.authorities.list()
	return told
}

// Reload reads the files at once, for whoever has just replaced them. It reports
// whether other material is now in force. On an error the old one stays, and Poll
// goes on trying. A Workload API sends changes by itself, so there Reload does nothing.
func (s *Source) Reload() (changed bool, err error) {
	if s.workload != nil {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.looked, s.settling = lookAt(s.config), true
	for range 2 { // the second time it is settled
		if changed, err = s.read(time.Now()); changed || err != nil {
			break
		}
	}
	s.note(changed, err)
	return changed, err
}

// Poll looks at the files every PollInterval, or watches the Workload API, until ctx
// ends, and tells what came of it: err is nil where other material came in force. The
// same error is told once.
func (s *Source) Poll(ctx context.Context, tell func(err error)) {
	if s.workload != nil {
		s.watch(ctx, tell)
		return
	}
	ticker := time.NewTicker(PollInterval)
	defer ticker.Stop()
	var before, told string
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		changed, err := s.poll()
		switch text := textOf(err); {
		case changed:
			s.note(true, nil)
			tell(nil)
			before, told = "", ""
		case err == nil && s.refused.Load() && s.settled():
			s.refused.Store(false) // the files hold again what is in force
			before, told = "", ""
		case err == nil:
		case text == before && text != told: // it was no matter of a moment
			s.note(false, err)
			tell(err)
			told = text
		default:
			before = text
		}
	}
}

func textOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (s *Source) note(changed bool, err error) {
	switch {
	case err != nil:
		s.refusals.Add(1)
		s.refused.Store(true)
	case changed:
		s.applied.Add(1)
		s.refused.Store(false)
	}
}

func (s *Source) settled() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.settling
}

func (s *Source) poll() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	looked := lookAt(s.config)
	if !s.settling && looked.same(s.looked) {
		return false, nil
	}
	s.looked, s.settling = looked, true
	return s.read(time.Now())
}

// read puts what is in the files in force, if it is good and was read twice. What
// is not good may become so by itself, when its time begins, so it is read again
// each time.
func (s *Source) read(now time.Time) (changed bool, err error) {
	read, err := readFiles(s.config)
	defer read.wipe()
	if err != nil {
		return false, err
	}
	before, digest := s.inForce.Load(), read.digest()
	if digest == before.digest {
		s.seen, s.settling = digest, false
		return false, nil
	}
	if digest != s.seen {
		s.seen = digest
		return false, nil
	}
	made, err := read.check(s.config, before, now)
	if err != nil {
		return false, err
	}
	s.inForce.Store(made)
	s.settling = false
	return true, nil
}

// problem is what is wrong with a file, with what to do about it.
func problem(file, format string, args ...any) error {
	return fmt.Errorf("%s: %w", file, fmt.Errorf(format, args...))
}

var errTooLarge = errors.New("it is larger than 1 MiB: this is not the file that is meant")
