package certs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const (
	// FirstSVID is the default of SPIFFE.Wait.
	FirstSVID = 30 * time.Second
	// workloadRetry is the time between two attempts to reach the Workload API.
	workloadRetry = time.Second
)

// SPIFFE configures a SPIFFE Workload API, which provides the listener's certificate
// and the authorities of trust domains.
type SPIFFE struct {
	// Socket is unix:// and the absolute path of the agent's socket. Required.
	Socket string
	// TrustDomains lists the trust domains whose workloads may connect. It defaults to
	// the trust domain of the listener's own certificate.
	TrustDomains []string
	// MinVersion is the lowest accepted version of TLS. It defaults to 1.3.
	MinVersion uint16
	// Wait bounds the wait for the first certificate. It defaults to FirstSVID.
	Wait time.Duration
}

// CheckSocket returns an error unless socket is the address of a Unix socket. Other
// addresses are refused, because the connection carries the private key unencrypted.
func CheckSocket(socket string) error {
	if !strings.HasPrefix(socket, "unix:///") || workloadapi.ValidateAddress(socket) != nil {
		return errors.New("expected unix:// and an absolute path, such as unix:///run/spire/agent.sock")
	}
	return nil
}

// CheckTrustDomain returns an error unless name is a valid SPIFFE trust domain.
func CheckTrustDomain(name string) error {
	if domain, err := spiffeid.TrustDomainFromString(name); err != nil || domain.Name() != name {
		return errors.New("expected the name of a trust domain in lower case, such as example.org")
	}
	return nil
}

// workload is the client of a Workload API.
type workload struct {
	SPIFFE

	domains []spiffeid.TrustDomain
}

// OpenSPIFFE fetches the first certificate and the authorities. It returns an error
// that names the socket if it gets none within Wait.
func OpenSPIFFE(ctx context.Context, cfg SPIFFE) (*Source, error) {
	cfg.MinVersion, cfg.Wait = cmp.Or(cfg.MinVersion, tls.VersionTLS13), cmp.Or(cfg.Wait, FirstSVID)
	if err := CheckSocket(cfg.Socket); err != nil {
		return nil, problem(cfg.Socket, "%w", err)
	}
	w := &workload{SPIFFE: cfg}
	for _, name := range cfg.TrustDomains {
		if err := CheckTrustDomain(name); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		w.domains = append(w.domains, spiffeid.RequireTrustDomainFromString(name))
	}
	m, err := w.fetchFirst(ctx)
	if err != nil {
		return nil, err
	}
	s := &Source{minVersion: cfg.MinVersion, workload: w}
	s.current.Store(m)
	return s, nil
}

// fetchFirst retries until it gets valid material, or until Wait has passed.
func (w *workload) fetchFirst(ctx context.Context) (*material, error) {
	limited, cancel := context.WithTimeout(ctx, w.Wait)
	defer cancel()
	var lastErr error
	for {
		m, err := w.fetch(limited)
		if err == nil {
			return m, nil
		}
		if lastErr == nil || limited.Err() == nil {
			lastErr = err // but not that the time has passed
		}
		select {
		case <-limited.Done():
			if ctx.Err() != nil {
				return nil, problem(w.Socket, "%w", ctx.Err())
			}
			return nil, fmt.Errorf("no certificate (X509-SVID) within %v: %w: start the SPIFFE agent there, let the broker's user connect to its socket, and register the broker with it",
				w.Wait, lastErr)
		case <-time.After(workloadRetry):
		}
	}
}

// fetch makes one attempt. A new client has no backoff from previous attempts.
func (w *workload) fetch(ctx context.Context) (*material, error) {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(w.Socket))
	if err != nil {
		return nil, problem(w.Socket, "%w", err)
	}
	defer func() { _ = client.Close() }()
	received, err := client.FetchX509Context(ctx)
	if err != nil {
		return nil, problem(w.Socket, "%w", err)
	}
	return w.check(received, nil, time.Now())
}

// watch applies the updates of the Workload API until ctx ends, and reopens broken
// streams. It notifies only of a second failure in a row, because agents restart.
func (s *Source) watch(ctx context.Context, notify func(err error)) {
	failures, notified := 0, ""
	apply := func(received *workloadapi.X509Context) error {
		current := s.current.Load()
		m, err := s.workload.check(received, current, time.Now())
		if err != nil {
			return &badUpdateError{err}
		}
		failures, notified = 0, ""
		if m.digest == current.digest {
			s.failing.Store(false)
			return nil
		}
		s.current.Store(m)
		s.record(true, nil)
		notify(nil)
		return nil
	}
	for {
		err := s.workload.session(ctx, apply)
		if ctx.Err() != nil {
			return
		}
		if failures++; failures > 1 && notified != err.Error() {
			s.recordFailure(err)
			notify(err)
			notified = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(workloadRetry):
		}
	}
}

// recordFailure counts only an invalid update as a refused change.
func (s *Source) recordFailure(err error) {
	if _, ok := errors.AsType[*badUpdateError](err); ok {
		s.refused.Add(1)
	}
	s.failing.Store(true)
}

// badUpdateError wraps the error of an invalid update.
type badUpdateError struct{ error }

func (e *badUpdateError) Unwrap() error { return e.error }

// session applies updates until the stream breaks, apply fails or ctx ends. It returns
// the reason.
func (w *workload) session(ctx context.Context, apply func(*workloadapi.X509Context) error) error {
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(w.Socket))
	if err != nil {
		return problem(w.Socket, "%w", err)
	}
	defer func() { _ = client.Close() }()
	watching, end := context.WithCancelCause(ctx)
	defer end(nil)
	err = client.WatchX509Context(watching, &watcher{socket: w.Socket, apply: apply, end: end})
	return cmp.Or(context.Cause(watching), err)
}

// watcher ends a session at its first error. Only the first call of end counts.
type watcher struct {
	socket string
	apply  func(*workloadapi.X509Context) error
	end    context.CancelCauseFunc
}

// OnX509ContextUpdate implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextUpdate(received *workloadapi.X509Context) {
	if err := w.apply(received); err != nil {
		w.end(err)
	}
}

// OnX509ContextWatchError implements workloadapi.X509ContextWatcher.
func (w *watcher) OnX509ContextWatchError(err error) {
	w.end(problem(w.socket, "the SPIFFE agent sends no certificate: %w", err))
}

// check returns the material in an update. current may be nil.
func (w *workload) check(received *workloadapi.X509Context, current *material, now time.Time) (*material, error) {
	svid := received.DefaultSVID()
	if err := checkChain(w.Socket, svid.Certificates, now); err != nil {
		return nil, err
	}
	domains := w.domains
	if len(domains) == 0 {
		domains = []spiffeid.TrustDomain{svid.ID.TrustDomain()}
	}
	authorities, warnings := authoritiesOf(domains, received, now)
	pair := tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, certificate := range svid.Certificates {
		pair.Certificate = append(pair.Certificate, certificate.Raw)
	}
	sum := sha256.New()
	_, _ = sum.Write(authorities.digest[:])
	for _, der := range pair.Certificate {
		_, _ = sum.Write(der)
	}
	m := newMaterial(pair, svid.Certificates, authorities.orCurrent(current), w.MinVersion)
	m.digest = [sha256.Size]byte(sum.Sum(nil))
	for _, warning := range warnings {
		m.warnings = append(m.warnings, w.Socket+": "+warning)
	}
	return m, nil
}

// authoritiesOf returns the authorities of the trust domains. A trust domain without
// authorities is no longer trusted, because the federation may have been revoked.
func authoritiesOf(domains []spiffeid.TrustDomain, received *workloadapi.X509Context, now time.Time) (all *Authorities, warnings []string) {
	all = &Authorities{pool: x509.NewCertPool(), domains: map[spiffeid.TrustDomain][]*x509.Certificate{}}
	sum := sha256.New()
	for _, domain := range domains {
		var valid []*x509.Certificate
		if bundle, ok := received.Bundles.Get(domain); ok {
			valid = slices.DeleteFunc(slices.Clone(bundle.X509Authorities()), func(certificate *x509.Certificate) bool {
				return !certificate.IsCA || now.After(certificate.NotAfter)
			})
		}
		if len(valid) == 0 {
			warnings = append(warnings, fmt.Sprintf("the agent has no valid authority of the trust domain %q: its workloads are refused; a trust domain other than the agent's must be federated, and the broker's registration entry must name it", domain.Name()))
		}
		slices.SortFunc(valid, func(a, b *x509.Certificate) int { return slices.Compare(a.Raw, b.Raw) })
		_, _ = fmt.Fprintf(sum, "%s\n%d\n", domain.Name(), len(valid))
		for _, certificate := range valid {
			all.pool.AddCert(certificate)
			_, _ = sum.Write(certificate.Raw)
		}
		all.domains[domain] = valid
	}
	all.digest = [sha256.Size]byte(sum.Sum(nil))
	return all, warnings
}

// OfTrustDomains reports whether each authority may issue certificates for one SPIFFE
// trust domain only. The SPIFFE ID is then the only name in a certificate that counts.
func (a *Authorities) OfTrustDomains() bool { return a != nil && a.domains != nil }

// chainsOfDomain returns the chains that end in an authority of leaf's trust domain.
func (a *Authorities) chainsOfDomain(leaf *x509.Certificate, chains [][]*x509.Certificate) ([][]*x509.Certificate, error) {
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return nil, fmt.Errorf("the certificate %q is not an X509-SVID: %w", nameOf(leaf), err)
	}
	roots := a.domains[id.TrustDomain()]
	var valid [][]*x509.Certificate
	for _, chain := range chains {
		if slices.ContainsFunc(roots, chain[len(chain)-1].Equal) {
			valid = append(valid, chain)
		}
	}
	if len(valid) == 0 {
		return nil, fmt.Errorf("the certificate of %q is not issued by an authority of the trust domain %q: %w", id, id.TrustDomain().Name(), x509.UnknownAuthorityError{Cert: leaf})
	}
	return valid, nil
}

// list describes the authorities. A trust domain's authorities have its ID as their name.
func (a *Authorities) list() (all []Authority) {
	if a == nil {
		return nil
	}
	for _, certificate := range a.certificates {
		all = append(all, Authority{nameOf(certificate), certificate.NotBefore, certificate.NotAfter})
	}
	for domain, authorities := range a.domains {
		for _, certificate := range authorities {
			all = append(all, Authority{domain.IDString(), certificate.NotBefore, certificate.NotAfter})
		}
	}
	slices.SortStableFunc(all[len(a.certificates):], func(x, y Authority) int { return cmp.Compare(x.Name, y.Name) })
	return all
}
