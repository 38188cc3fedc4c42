package app_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/certs/certstest"
	"github.com/cezzis/tokenbroker/internal/devca"
)

// spiffeAgent is the agent of the trust domain example.com.
type spiffeAgent struct {
	*certstest.Agent

	t  *testing.T
	ca *devca.Authority
}

func newSPIFFEAgent(t *testing.T) *spiffeAgent {
	t.Helper()
	agent, err := certstest.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Close)
	s := &spiffeAgent{Agent: agent, t: t}
	s.replaceCA()
	s.rotate("broker-1")
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *spiffeAgent) replaceCA() {
	s.t.Helper()
	var err error
	if s.ca, err = devca.New("ca"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *spiffeAgent) issue(path string, template *x509.Certificate) *devca.Pair {
	s.t.Helper()
	pair, err := certstest.Issue(s.ca, "example.com", path, template)
	if err != nil {
		s.t.Fatal(err)
	}
	return pair
}

// rotate sends the broker a certificate of that name.
func (s *spiffeAgent) rotate(name string) {
	s.t.Helper()
	s.Send(certstest.Update{
		SVID:   s.issue("/broker", &x509.Certificate{DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}),
		Bundle: []*devca.Authority{s.ca},
	})
}

func (s *spiffeAgent) config() string { return "tls: {spiffe: {socket: '" + s.Socket() + "'}}" }

// client is the TLS of the caller checkout.
func (s *spiffeAgent) client() *tls.Config {
	s.t.Helper()
	return &tls.Config{RootCAs: s.ca.Pool(), MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.issue(checkoutID().Path, nil).TLS()}}
}

func TestSPIFFE_brokerAndCallers(t *testing.T) {
	agent := newSPIFFEAgent(t)
	r := startListening(t, devIDP(t), `grpc: "127.0.0.1:0", `+agent.config(), ofCheckout)
	conn, err := grpc.NewClient(r.GRPCAddr(), grpc.WithTransportCredentials(credentials.NewTLS(agent.client())))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	call := func() error {
		_, err := api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
		return err
	}
	stream := watchOrders(t, r.GRPCAddr(), credentials.NewTLS(agent.client()))
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	stop, calls := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				calls <- nil
				return
			default:
			}
			if err := call(); err != nil {
				calls <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	agent.rotate("broker-2")
	r.await(`new certificates are active" name=broker-2`, 1)
	if got := presented(t, r.GRPCAddr()); got != "broker-2" {
		t.Errorf("presented: %s", got)
	}
	agent.Stop()
	r.await("the SPIFFE agent sends no certificate", 1)
	if _, served := read(t, "http://"+r.OpsAddr()+"/metrics"); !strings.Contains(served, "\ntokenbroker_tls_reload_failing 1\n") ||
		!strings.Contains(served, `tokenbroker_tls_client_ca_expiry_timestamp_seconds{authority="spiffe://example.com"}`) {
		t.Errorf("metrics:\n%s", served)
	}
	if status, _ := read(t, "http://"+r.OpsAddr()+"/readyz"); status != http.StatusOK {
		t.Errorf("/readyz: %d", status)
	}
	close(stop)
	if err := <-calls; err != nil {
		t.Errorf("a call failed while certificates rotated and the agent went away: %v", err)
	}
	agent.replaceCA()
	agent.rotate("broker-3")
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "no longer trusts the authority") {
		t.Errorf("the watch: %v", err)
	}
	if err := call(); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a call by a certificate of an authority that is gone: %v", err)
	}
}

func TestLiveCheck_spiffeAgent(t *testing.T) {
	agent := newSPIFFEAgent(t)
	config := parsed(t, strings.Replace(sampleText(t, 1), "listen: {", "listen: {"+agent.config()+", ", 1))
	passed, failed := live(t, config, devIDP(t).RoundTripper(), false)
	if found := passed["listen.tls"]; len(failed) != 0 || !strings.HasPrefix(found, "broker-1, until ") || !strings.Contains(found, `callers of "spiffe://example.com", until `) {
		t.Errorf("%q, %q", passed, failed)
	}
}
