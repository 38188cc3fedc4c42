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
	// FirstSVID is how long OpenSPIFFE waits for the first certificate.
	FirstSVID = 30 * time.Second
	// workloadRetry is the time between two attempts to reach the Workload API.
	workloadRetry = time.Second
)

// SPIFFE names a SPIFFE Workload API, which issues the listener's certificate and
// knows the authorities of trust domains.
type SPIFFE struct {
	// Socket is unix:// and the absolute path of the agent's socket. Required.
	Socket string
	// TrustDomains lists the trust domains whose workloads may be callers. Empty: the
	// trust domain of the listener's own certificate.
	TrustDomains []string
	// MinVersion is the lowest version of TLS that is spoken. Zero: 1.3.
	MinVersion uint16
	// Wait bounds the wait for the first certificate. Zero: FirstSVID.
	Wait time.Duration
}

// CheckSocket returns an error unless socket can be that of a Workload API. Other
// kinds of addresses are refused, because the private key crosses the connection
// unencrypted.
func CheckSocket(socket string) error {
	if !strings.HasPrefix(socket, "unix:///") || workloadapi.ValidateAddress(socket) != nil {
		return errors.New("expected unix:// and an absolute path, such as unix:///run/spire/agent.sock")
	}
	return nil
}

// CheckTrustDomain returns an error unless name is that of a SPIFFE trust domain.
func CheckTrustDomain(name string) error {
	if domain, err := spiffeid.TrustDomainFromString(name); err != nil || domain.Name() != name {
		return errors.New("expected the name of a trust domain in lower case, such as example.org")
	}
	return nil
}

// workload is a Workload API.
type workload struct {
	SPIFFE

	domains []spiffeid.TrustDomain
}

// OpenSPIFFE fetches the first certificate and the authorities. It returns an error
// that names the socket if it has none after Wait.
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
	made, err := w.first(ctx)
	if err != nil {
		return nil, err
	}
	s := &Source{minVersion: cfg.MinVersion, workload: w}
	s.inForce.Store(made)
	return s, nil
}

// first tries until there is something good, or Wait is over.
func (w *workload) first(ctx context.Context) (*material, error) {
	waiting, cancel := context.WithTimeout(ctx, w.Wait)
	defer cancel()
	var before error
	for {
		made, err := w.fetch(waiting)
		if err == nil {
			return made, nil
		}
		if before == nil || waiting.Err() == nil {
			before = err // not that the time is over
		}
		select {
		case <-waiting.Done():
			if ctx.Err() != nil {
				return nil, problem(w.Socket, "%w", ctx.Err())
			}
			return nil, fmt.Errorf("no certificate (X509-SVID) within %v: %w: start the SPIFFE agent there, let the broker's user connect to its socket, and register the broker with it",
				w.Wait, before)
		case <-time.After(workloadRetry):
		}
	}
}

// fetch asks once. A new client does not inherit the back-off of one before.
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

// watch applies what the Workload API sends until ctx ends. A stream that breaks is
// opened again; only a second failure in a row is told, since agents restart.
func (s *Source) watch(ctx context.Context, tell func(err error)) {
	failures, told := 0, ""
	apply := func(received *workloadapi.X509Context) error {
		before := s.inForce.Load()
		made, err := s.workload.check(received, before, time.Now())
		if err != nil {
			return &badUpdateError{err}
		}
		failures, told = 0, ""
		if made.digest == before.digest {
			s.refused.Store(false)
			return nil
		}
		s.inForce.Store(made)
		s.note(true, nil)
		tell(nil)
		return nil
	}
	for {
		err := s.workload.session(ctx, apply)
		if ctx.Err() != nil {
			return
		}
		if failures++; failures > 1 && told != err.Error() {
			s.fail(err)
			tell(err)
			told = err.Error()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(workloadRetry):
		}
	}
}

// fail notes that nothing new can be had. Only an update that is not good counts as
// a change that was refused.
func (s *Source) fail(err error) {
	if _, bad := errors.AsType[*badUpdateError](err); bad {
		s.refusals.Add(1)
	}
	s.refused.Store(true)
}

// badUpdateError is what is wrong with an update.
type badUpdateError struct{ error }

func (e *badUpdateError) Unwrap() error { return e.error }

// session passes on updates until the stream breaks, an update is not good, or ctx
// ends, and returns why it ended.
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

// watcher ends a session at its first error. The first call of end decides why.
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

// check makes material of what the Workload API sent, after the one before, if there
// was one.
func (w *workload) check(received *workloadapi.X509Context, before *material, now time.Time) (*material, error) {
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
	for _, one := range svid.Certificates {
		pair.Certificate = append(pair.Certificate, one.Raw)
	}
	sum := sha256.New()
	_, _ = sum.Write(authorities.digest[:])
	for _, der := range pair.Certificate {
		_, _ = sum.Write(der)
	}
	made := newMaterial(pair, svid.Certificates, authorities.orSame(before), w.MinVersion)
	made.digest = [sha256.Size]byte(sum.Sum(nil))
	for _, warning := range warnings {
		made.warnings = append(made.warnings, w.Socket+": "+warning)
	}
	return made, nil
}

// authoritiesOf are those of the trust domains. A trust domain whose authorities are
// gone is trusted no more: the agent may have been told so.
func authoritiesOf(domains []spiffeid.TrustDomain, received *workloadapi.X509Context, now time.Time) (found *Authorities, warnings []string) {
	found = &Authorities{pool: x509.NewCertPool(), domains: map[spiffeid.TrustDomain][]*x509.Certificate{}}
	sum := sha256.New()
	for _, domain := range domains {
		var good []*x509.Certificate
		if bundle, known := received.Bundles.Get(domain); known {
			good = slices.DeleteFunc(slices.Clone(bundle.X509Authorities()), func(one *x509.Certificate) bool { return !one.IsCA || now.After(one.NotAfter) })
		}
		if len(good) == 0 {
			warnings = append(warnings, fmt.Sprintf("the agent has no valid authority of the trust domain %q: its workloads are refused; if it is another one, federate with it and let the broker's entry do so", domain.Name()))
		}
		slices.SortFunc(good, func(a, b *x509.Certificate) int { return slices.Compare(a.Raw, b.Raw) })
		_, _ = fmt.Fprintf(sum, "%s\n%d\n", domain.Name(), len(good))
		for _, one := range good {
			found.pool.AddCert(one)
			_, _ = sum.Write(one.Raw)
		}
		found.domains[domain] = good
	}
	found.digest = [sha256.Size]byte(sum.Sum(nil))
	return found, warnings
}

// OfTrustDomains reports whether each authority may issue certificates for one SPIFFE
// trust domain only. Then the SPIFFE ID is the only name in a certificate that counts.
func (a *Authorities) OfTrustDomains() bool { return a != nil && a.domains != nil }

// ofDomain returns the chains that lead to an authority of the trust domain in the
// SPIFFE ID of leaf.
func (a *Authorities) ofDomain(leaf *x509.Certificate, chains [][]*x509.Certificate) ([][]*x509.Certificate, error) {
	id, err := x509svid.IDFromCert(leaf)
	if err != nil {
		return nil, fmt.Errorf("the certificate %q is not an X509-SVID: %w", nameOf(leaf), err)
	}
	roots := a.domains[id.TrustDomain()]
	var good [][]*x509.Certificate
	for _, chain := range chains {
		if slices.ContainsFunc(roots, chain[len(chain)-1].Equal) {
			good = append(good, chain)
		}
	}
	if len(good) == 0 {
		return nil, fmt.Errorf("the certificate of %q is not issued by an authority of the trust domain %q: %w", id, id.TrustDomain().Name(), x509.UnknownAuthorityError{Cert: leaf})
	}
	return good, nil
}

// list names the authorities: those of a trust domain by its ID.
func (a *Authorities) list() (all []Authority) {
	if a == nil {
		return nil
	}
	for _, one := range a.certificates {
		all = append(all, Authority{nameOf(one), one.NotAfter})
	}
	for domain, authorities := range a.domains {
		for _, one := range authorities {
			all = append(all, Authority{domain.IDString(), one.NotAfter})
		}
	}
	slices.SortStableFunc(all[len(a.certificates):], func(x, y Authority) int { return cmp.Compare(x.Name, y.Name) })
	return all
}
