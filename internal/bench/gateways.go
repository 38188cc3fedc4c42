package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// The cases of gateways.
const (
	caseCheck   = "Check"
	caseForward = "/verify"
)

// peer is a connection of the load, with all services that a server may have.
type peer struct {
	tokenbrokerv1.TokenBrokerServiceClient

	envoy authv3.AuthorizationClient
}

func newPeer(connection *grpc.ClientConn) *peer {
	return &peer{tokenbrokerv1.NewTokenBrokerServiceClient(connection), authv3.NewAuthorizationClient(connection)}
}

// checkRequest is Envoy's check of a request with a token and some usual headers.
func checkRequest(token string) *authv3.CheckRequest {
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: map[string]string{"scope": "read"},
		Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
			Id: "1", Method: http.MethodGet, Path: "/orders/7?page=2", Host: "api.example.com", Scheme: "https", Protocol: "HTTP/2",
			Headers: map[string]string{
				":authority": "api.example.com", ":method": http.MethodGet, ":path": "/orders/7?page=2", ":scheme": "https",
				"accept": "application/json", "authorization": "Bearer " + token, "x-request-id": "5b0f3c2e-6f0e-4c35-9a3a-0d2f3e4b5c6d",
			},
		}},
	}}
}

// checked makes a check as Envoy does.
func checked(next func() (string, error)) call {
	return func(ctx context.Context, broker tokenbrokerv1.TokenBrokerServiceClient) error {
		with, ok := broker.(*peer)
		if !ok {
			return errors.New("not a connection of the load")
		}
		token, err := next()
		if err != nil {
			return err
		}
		answer, err := with.envoy.Check(ctx, checkRequest(token))
		if err == nil && answer.GetOkResponse() == nil {
			return fmt.Errorf("the request was denied: %v", answer.GetDeniedResponse().GetStatus())
		}
		return err
	}
}

// forwarded makes a request to /verify as gateways do.
func forwarded(address string, by proof, next func() (string, error)) (call, error) {
	client, err := by.http()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, _ tokenbrokerv1.TokenBrokerServiceClient) error {
		token, err := next()
		if err == nil {
			_, err = getVerify(ctx, client, by.url(address), token)
		}
		return err
	}, nil
}

// http is a client with a connection for each caller.
func (p proof) http() (*http.Client, error) {
	if p.dir == "" {
		return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}, nil
	}
	pair, authority, err := p.pair(loadFile)
	if err != nil {
		return nil, err
	}
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: authority, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: callers,
	}}, nil
}

// url returns the URL at which gateways send requests to a server at address.
func (p proof) url(address string) string {
	if p.dir == "" {
		return "http://" + address + "/verify?scope=read"
	}
	return "https://" + address + "/verify?scope=read"
}

// getVerify returns the header of a response that allows a request; any other is an
// error.
func getVerify(ctx context.Context, client *http.Client, url, token string) (http.Header, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+token)
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("the request was denied: %s", answer.Status)
	}
	return answer.Header, errors.Join(err, answer.Body.Close())
}

// gateways repeats fixed responses, as fixed does, for the APIs of gateways.
type gateways struct {
	authv3.UnimplementedAuthorizationServer
	checker

	answer *authv3.CheckResponse
	header http.Header
}

// Check implements the service.
func (g *gateways) Check(_ context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return g.answer, g.check(strings.TrimPrefix(req.GetAttributes().GetRequest().GetHttp().GetHeaders()["authorization"], "Bearer "))
}

// ServeHTTP implements http.Handler.
func (g *gateways) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if g.check(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	maps.Copy(w.Header(), g.header)
	w.WriteHeader(http.StatusOK)
}

// learnGateways gets the responses of the broker that an echo repeats.
func learnGateways(ctx context.Context, address, httpAddress string, by proof, token string) (*gateways, error) {
	connection, err := connect(address, by)
	if err != nil {
		return nil, err
	}
	defer func() { _ = connection.Close() }()
	client, err := by.http()
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	g := &gateways{}
	if g.answer, err = authv3.NewAuthorizationClient(connection).Check(ctx, checkRequest(token)); err != nil {
		return nil, err
	}
	if g.header, err = getVerify(ctx, client, by.url(httpAddress), token); err != nil {
		return nil, err
	}
	g.header.Del("Date")
	g.header.Del("Content-Length")
	return g, nil
}

// serve serves the requests of gateways over HTTP, until ctx is done.
func (g *gateways) serve(ctx context.Context, address string, by proof) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	if by.dir != "" {
		secure, err := by.serverTLS()
		if err != nil {
			return err
		}
		listener = tls.NewListener(listener, secure)
	}
	server := &http.Server{Handler: g, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }() // it ends with ctx; before that, calls fail
	return nil
}

// compareGateways drives an echo and a broker with the requests of gateways, over TLS.
func (b *bench) compareGateways(ctx context.Context) (string, error) {
	contests, err := b.measureGateways(ctx)
	if err != nil {
		return "", err
	}
	return table(contests...), nil
}

func (b *bench) measureGateways(ctx context.Context) ([]*contest, error) {
	by, err := b.prove(b.dir)
	if err != nil {
		return nil, err
	}
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	broker, err := b.startBroker(ctx, setting{idp: b.idp, clients: 1, proof: by, http: address})
	if err != nil {
		return nil, err
	}
	defer broker.stop()
	client := clientName(0)
	contests := []*contest{
		{workload: workload{name: caseCheck, client: client}, label: "ext_authz, mTLS", server: broker},
		{workload: workload{name: caseForward, client: client}, label: "/verify, mTLS", server: broker},
	}
	return contests, b.compete(ctx, contests...)
}
