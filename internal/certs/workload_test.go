package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/certs/certstest"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// spiffe is an agent of the trust domain example.org, which federates with partner.org.
type spiffe struct {
	*certstest.Agent

	own, partner *devca.Authority
	update       certstest.Update
}

func newSPIFFE(t *testing.T) *spiffe {
	t.Helper()
	s := &spiffe{Agent: must(certstest.New()), own: must(devca.New("own")), partner: must(devca.New("partner"))}
	t.Cleanup(s.Close)
	s.update = certstest.Update{
		SVID: s.broker("broker-1"), Bundle: []*devca.Authority{s.own},
		Federated: map[string][]*devca.Authority{"partner.org": {s.partner}},
	}
	s.start(t)
	s.Send(s.update)
	return s
}

func (s *spiffe) start(t *testing.T) {
	t.Helper()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
}

// broker is a certificate of the broker with that DNS name.
func (s *spiffe) broker(name string) *devca.Pair {
	return must(certstest.Issue(s.own, "example.org", "/broker", named(name)))
}

// rotate sends the broker a certificate with another name.
func (s *spiffe) rotate(name string) {
	s.update.SVID = s.broker(name)
	s.Send(s.update)
}

// open waits for the first certificate. Callers may be of these trust domains.
func (s *spiffe) open(t *testing.T, domains ...string) *certs.Source {
	t.Helper()
	source, err := certs.OpenSPIFFE(t.Context(), certs.SPIFFE{Socket: s.Socket(), TrustDomains: domains})
	if err != nil {
		t.Fatal(err)
	}
	return source
}

// watched runs Poll and passes on what it tells.
func watched(t *testing.T, source *certs.Source) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events, done := make(chan error, 100), make(chan struct{})
	go func() {
		defer close(done)
		source.Poll(ctx, func(err error) { events <- err })
	}()
	t.Cleanup(func() { cancel(); <-done })
	return events
}

func await(t *testing.T, events <-chan error) error {
	t.Helper()
	select {
	case err := <-events:
		return err
	case <-time.After(time.Minute):
		t.Fatal("nothing was told")
		return nil
	}
}

func nameOf(t *testing.T, source *certs.Source) string {
	t.Helper()
	return (&listener{}).presents(t, source)
}

// admits reports whether a connection with that certificate comes about, and checks
// that the authorities judge it alike afterwards.
func admits(t *testing.T, source *certs.Source, pair *devca.Pair) bool {
	t.Helper()
	own := pair.TLS()
	_, errClient, errServer := connect(t, source.TLS(), &tls.Config{
		InsecureSkipVerify:   true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil },
	})
	var chain []*x509.Certificate
	for _, der := range own.Certificate {
		chain = append(chain, must(x509.ParseCertificate(der)))
	}
	until, err := source.Authorities().Verify(chain, time.Now())
	if (err == nil) != (errServer == nil) || (errClient == nil) != (errServer == nil) || (err == nil) == until.IsZero() {
		t.Errorf("client: %v; server: %v; later: %v until %v", errClient, errServer, err, until)
	}
	return errServer == nil
}

func TestSPIFFE_firstSVID(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t)
	if got := nameOf(t, source); got != "broker-1" {
		t.Errorf("presented: %s", got)
	}
	status := source.Status()
	if status.Name != "broker-1" || !status.Expires.Equal(s.update.SVID.Certificate().NotAfter) || status.Failing || len(status.Warnings) > 0 ||
		len(status.Authorities) != 1 || status.Authorities[0] != (certs.Authority{Name: "spiffe://example.org", Begins: s.own.Certificate().NotBefore, Expires: s.own.Certificate().NotAfter}) {
		t.Errorf("status: %+v", status)
	}
	if !admits(t, source, must(certstest.Issue(s.own, "example.org", "/caller", nil))) {
		t.Error("a workload of the broker's own trust domain was refused")
	}
	if admits(t, source, must(certstest.Issue(s.partner, "partner.org", "/caller", nil))) {
		t.Error("a workload of a federated trust domain came in that is not configured")
	}
}

func TestSPIFFE_startWaitsForTheAgent(t *testing.T) {
	s := newSPIFFE(t)
	s.Stop()
	opened := make(chan error)
	go func() {
		_, err := certs.OpenSPIFFE(t.Context(), certs.SPIFFE{Socket: s.Socket()})
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatal("it did not wait:", err)
	case <-time.After(100 * time.Millisecond):
	}
	s.start(t)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

func TestSPIFFE_startWithoutACertificate(t *testing.T) {
	s := newSPIFFE(t)
	unregistered := must(certstest.New())
	t.Cleanup(unregistered.Close)
	if err := unregistered.Start(); err != nil {
		t.Fatal(err)
	}
	expired := newSPIFFE(t)
	expired.update.SVID = must(certstest.Issue(expired.own, "example.org", "/broker", &x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)}))
	expired.Send(expired.update)
	for name, tt := range map[string]struct {
		socket, domain, says string
	}{
		"no agent":            {"unix:///nowhere/agent.sock", "", "no certificate (X509-SVID) within 500ms: unix:///nowhere/agent.sock: "},
		"not registered":      {unregistered.Socket(), "", unregistered.Socket() + ": rpc error: code = PermissionDenied desc = no identity issued: start the SPIFFE agent"},
		"expired":             {expired.Socket(), "", expired.Socket() + `: certificate 1 in it, "spiffe://example.org/broker", expired at`},
		"not encrypted":       {"tcp://127.0.0.1:1", "", "expected unix:// and an absolute path"},
		"relative":            {"unix://agent.sock", "", "expected unix:// and an absolute path"},
		"not a trust domain":  {s.Socket(), "Example.org", "expected the name of a trust domain"},
		"a SPIFFE ID instead": {s.Socket(), "spiffe://example.org", "expected the name of a trust domain"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := certs.SPIFFE{Socket: tt.socket, Wait: 500 * time.Millisecond}
			if tt.domain != "" {
				cfg.TrustDomains = []string{tt.domain}
			}
			if _, err := certs.OpenSPIFFE(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v\nwant: %s", err, tt.says)
			}
		})
	}
}

func TestSPIFFE_rotation(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t)
	before := source.Authorities()
	events := watched(t, source)
	for _, name := range []string{"broker-2", "broker-3"} {
		s.rotate(name)
		if err := await(t, events); err != nil {
			t.Fatal(err)
		}
		if got := nameOf(t, source); got != name {
			t.Errorf("presented: %s, want %s", got, name)
		}
	}
	if source.Authorities() != before {
		t.Error("the authorities are others, so every open connection is judged again")
	}
	if status := source.Status(); status.Applied != 2 || status.Refused != 0 || status.Failing {
		t.Errorf("status: %+v", status)
	}
}

func TestSPIFFE_bundleChanges(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t)
	events := watched(t, source)
	old, next := s.own, must(devca.New("next"))
	s.own = next
	s.update.Bundle = []*devca.Authority{old, next}
	s.rotate("broker-2")
	if err := await(t, events); err != nil {
		t.Fatal(err)
	}
	callers := map[*devca.Authority]*devca.Pair{}
	for _, ca := range s.update.Bundle {
		callers[ca] = must(certstest.Issue(ca, "example.org", "/caller", nil))
		if !admits(t, source, callers[ca]) {
			t.Error("refused while both authorities are there")
		}
	}
	s.update.Bundle = []*devca.Authority{next}
	s.Send(s.update)
	if err := await(t, events); err != nil {
		t.Fatal(err)
	}
	if admits(t, source, callers[old]) || !admits(t, source, callers[next]) {
		t.Error("the bundle does not decide")
	}
}

// Whoever holds the key of an authority decides about its own trust domain only.
func TestSPIFFE_federation(t *testing.T) {
	s := newSPIFFE(t)
	third := must(devca.New("third"))
	s.update.Federated["third.org"] = []*devca.Authority{third}
	s.Send(s.update)
	source := s.open(t, "example.org", "partner.org")
	intermediate := must(s.partner.Below("below", time.Time{}))
	for name, tt := range map[string]struct {
		pair *devca.Pair
		good bool
	}{
		"own":                              {must(certstest.Issue(s.own, "example.org", "/caller", nil)), true},
		"partner":                          {must(certstest.Issue(s.partner, "partner.org", "/caller", nil)), true},
		"by an intermediate one":           {must(certstest.Issue(intermediate, "partner.org", "/caller", nil)), true},
		"own, by the partner":              {must(certstest.Issue(s.partner, "example.org", "/caller", nil)), false},
		"own, by the partner, below":       {must(certstest.Issue(intermediate, "example.org", "/caller", nil)), false},
		"partner, by the own":              {must(certstest.Issue(s.own, "partner.org", "/caller", nil)), false},
		"a trust domain of no one":         {must(certstest.Issue(s.own, "other.org", "/caller", nil)), false},
		"a trust domain below":             {must(certstest.Issue(s.partner, "sub.partner.org", "/caller", nil)), false},
		"one that is not configured":       {must(certstest.Issue(third, "third.org", "/caller", nil)), false},
		"configured, by that one":          {must(certstest.Issue(third, "example.org", "/caller", nil)), false},
		"without a SPIFFE ID":              {must(s.own.Issue(named("caller"))), false},
		"with two SPIFFE IDs":              {must(certstest.Issue(s.partner, "partner.org", "/caller", &x509.Certificate{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/caller"}}})), false},
		"with a SPIFFE ID and another URI": {must(certstest.Issue(s.own, "example.org", "/caller", &x509.Certificate{URIs: []*url.URL{{Scheme: "https", Host: "example.org"}}})), false},
		"in other letters":                 {must(certstest.Issue(s.own, "EXAMPLE.org", "/caller", nil)), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := admits(t, source, tt.pair); got != tt.good {
				t.Errorf("admitted: %v", got)
			}
		})
	}
}

// Certificates that lead to two authorities end with the chain of their own trust
// domain, not with the other.
func TestSPIFFE_otherChainsDoNotCount(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t, "example.org", "partner.org")
	caller := must(certstest.Issue(s.own, "example.org", "/caller", nil)).Certificate()
	foreign := []*x509.Certificate{caller, s.partner.Certificate()}
	if until := source.Authorities().Until([][]*x509.Certificate{foreign}); !until.IsZero() {
		t.Errorf("good until %v", until)
	}
	short := *caller
	short.NotAfter = time.Unix(1, 0)
	if until := source.Authorities().Until([][]*x509.Certificate{{&short, s.own.Certificate()}, foreign}); until.Unix() != 1 {
		t.Errorf("good until %v", until)
	}
}

func TestSPIFFE_federationEnds(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t, "example.org", "partner.org")
	events := watched(t, source)
	caller := must(certstest.Issue(s.partner, "partner.org", "/caller", nil))
	s.update.Federated = nil
	s.Send(s.update)
	if err := await(t, events); err != nil {
		t.Fatal(err)
	}
	if admits(t, source, caller) {
		t.Error("the trust domain is federated no more, and its workload came in")
	}
	if warnings := source.Status().Warnings; len(warnings) != 1 || !strings.Contains(warnings[0], s.Socket()+`: the agent has no valid authority of the trust domain "partner.org"`) {
		t.Errorf("warnings: %q", warnings)
	}
}

func TestSPIFFE_agentRestarts(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t)
	events := watched(t, source)
	s.rotate("broker-2")
	if err := await(t, events); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s.rotate("broker-3")
	s.start(t)
	if err := await(t, events); err != nil {
		t.Error("a restart is told as a failure:", err)
	}
	if got := nameOf(t, source); got != "broker-3" {
		t.Errorf("presented: %s", got)
	}
}

func TestSPIFFE_agentIsGone(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t)
	events := watched(t, source)
	s.rotate("broker-2")
	if err := await(t, events); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if err := await(t, events); err == nil || !strings.HasPrefix(err.Error(), s.Socket()+": the SPIFFE agent sends no certificate: ") {
		t.Error(err)
	}
	if status := source.Status(); !status.Failing || status.Refused != 0 || status.Name != "broker-2" {
		t.Errorf("status: %+v", status)
	}
	if !admits(t, source, must(certstest.Issue(s.own, "example.org", "/caller", nil))) {
		t.Error("callers are refused while the agent is away")
	}
	s.start(t)
	testkit.Eventually(t, "the same certificate is good again", func() bool { return !source.Status().Failing })
	s.rotate("broker-3")
	for {
		if err := await(t, events); err == nil {
			break
		}
	}
	if got := nameOf(t, source); got != "broker-3" {
		t.Errorf("presented: %s", got)
	}
}

func TestSPIFFE_badUpdateIsRefused(t *testing.T) {
	s := newSPIFFE(t)
	source := s.open(t)
	events := watched(t, source)
	good := s.update.SVID
	s.update.SVID = must(certstest.Issue(s.own, "example.org", "/broker", &x509.Certificate{DNSNames: []string{"broker-2"}, NotBefore: time.Now().Add(time.Hour)}))
	s.Send(s.update)
	if err := await(t, events); err == nil || !strings.Contains(err.Error(), s.Socket()+`: certificate 1 in it, "broker-2", is not valid before`) {
		t.Error(err)
	}
	if status := source.Status(); !status.Failing || status.Refused != 1 || status.Name != "broker-1" {
		t.Errorf("status: %+v", status)
	}
	s.update.SVID = good
	s.Send(s.update)
	testkit.Eventually(t, "the one before is good again", func() bool { return !source.Status().Failing })
}
