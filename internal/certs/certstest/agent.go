// Package certstest simulates a SPIFFE agent for tests. It serves a Workload API on a
// Unix socket with the protocol definitions of go-spiffe.
package certstest

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/internal/devca"
)

// Issue returns an X509-SVID of a trust domain. The test decides whether by is an
// authority of that domain. template may be nil.
func Issue(by *devca.Authority, domain, path string, template *x509.Certificate) (*devca.Pair, error) {
	var full x509.Certificate
	if template != nil {
		full = *template
	}
	full.URIs = append([]*url.URL{{Scheme: "spiffe", Host: domain, Path: path}}, full.URIs...)
	full.KeyUsage = x509.KeyUsageDigitalSignature
	return by.Issue(&full)
}

// Update is the response of an agent.
type Update struct {
	// SVID is the workload's certificate.
	SVID *devca.Pair
	// Bundle contains the authorities of its trust domain.
	Bundle []*devca.Authority
	// Federated contains the authorities of other trust domains, by name.
	Federated map[string][]*devca.Authority
}

// Agent serves a Workload API. Its methods are safe for concurrent use.
type Agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	dir, path string

	mu      sync.Mutex
	server  *grpc.Server // nil if the agent is stopped
	update  *Update      // nil if no workload is registered
	changed chan struct{}
}

// New returns a stopped agent without a registered workload. The caller must Close it.
func New() (*Agent, error) {
	dir, err := os.MkdirTemp("", "tb") // paths of sockets must be short
	if err != nil {
		return nil, err
	}
	return &Agent{dir: dir, path: filepath.Join(dir, "agent.sock"), changed: make(chan struct{})}, nil
}

// Socket returns the address of the Workload API.
func (a *Agent) Socket() string { return "unix://" + a.path }

// Send sends an update to every open stream and to every later one.
func (a *Agent) Send(update Update) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.update = &update
	close(a.changed)
	a.changed = make(chan struct{})
}

// Start serves until Stop.
func (a *Agent) Start() error {
	var network net.ListenConfig
	listener, err := network.Listen(context.Background(), "unix", a.path)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.server = grpc.NewServer()
	workload.RegisterSpiffeWorkloadAPIServer(a.server, a)
	go func(server *grpc.Server) { _ = server.Serve(listener) }(a.server)
	return nil
}

// Stop breaks all streams and removes the socket.
func (a *Agent) Stop() {
	a.mu.Lock()
	server := a.server
	a.server = nil
	a.mu.Unlock()
	if server != nil {
		server.Stop()
	}
}

// Close stops the agent and removes its directory.
func (a *Agent) Close() {
	a.Stop()
	_ = os.RemoveAll(a.dir)
}

// FetchX509SVID implements workload.SpiffeWorkloadAPIServer.
func (a *Agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if got := metadata.ValueFromIncomingContext(stream.Context(), "workload.spiffe.io"); len(got) != 1 || got[0] != "true" {
		return status.Error(codes.InvalidArgument, "the security header is missing")
	}
	for {
		a.mu.Lock()
		update, changed := a.update, a.changed
		a.mu.Unlock()
		if update == nil {
			return status.Error(codes.PermissionDenied, "no identity issued")
		}
		response, err := update.response()
		if err != nil {
			return err
		}
		if err := stream.Send(response); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		}
	}
}

func (u *Update) response() (*workload.X509SVIDResponse, error) {
	pair := u.SVID.TLS()
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return nil, err
	}
	if len(pair.Leaf.URIs) == 0 {
		return nil, errors.New("the certificate has no SPIFFE ID")
	}
	svid := &workload.X509SVID{SpiffeId: pair.Leaf.URIs[0].String(), X509SvidKey: key, Bundle: der(u.Bundle)}
	for _, certificate := range pair.Certificate {
		svid.X509Svid = append(svid.X509Svid, certificate...)
	}
	response := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{svid}, FederatedBundles: map[string][]byte{}}
	for domain, authorities := range u.Federated {
		response.FederatedBundles["spiffe://"+domain] = der(authorities)
	}
	return response, nil
}

func der(authorities []*devca.Authority) (all []byte) {
	for _, authority := range authorities {
		all = append(all, authority.Certificate().Raw...)
	}
	return all
}
