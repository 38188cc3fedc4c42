package caller_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
)

const checkout = "spiffe://example.com/ns/shop/sa/checkout"

// connect returns the context of a request over a new connection to a listener.
func connect(t *testing.T, h *caller.HTTP, network string) context.Context {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	client, err := net.Dial(network, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := h.Listen(listener).Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _, _ = client.Close(), conn.Close(), listener.Close() })
	return h.Connected(t.Context(), conn)
}

// issue returns the state of a connection with a certificate that an authority issued.
func issue(t *testing.T, template *x509.Certificate) *tls.ConnectionState {
	t.Helper()
	authority, err := devca.New("ca")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(template)
	if err != nil {
		t.Fatal(err)
	}
	chain := []*x509.Certificate{pair.Certificate()}
	return &tls.ConnectionState{PeerCertificates: chain, VerifiedChains: [][]*x509.Certificate{append(chain, authority.Certificate())}}
}

func named(t *testing.T, uri string, dnsNames ...string) *x509.Certificate {
	t.Helper()
	parsed, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{URIs: []*url.URL{parsed}, DNSNames: dnsNames}
}

// withCallers is a policy with callers of each kind.
func withCallers(limits *policy.Limits) *policy.Policy {
	user := uint32(os.Getuid())
	return policy.New(policy.Config{Callers: []policy.CallerConfig{
		{Name: "checkout", Match: policy.Match{SPIFFEID: checkout}, Limits: limits},
		{Name: "gate", Match: policy.Match{DNSSAN: "gate.example.com"}},
		{Name: "shop", Match: policy.Match{Issuer: apitest.Issuer, Subject: apitest.Shop}},
		{Name: "user", Match: policy.Match{UID: &user}},
		{Name: "bound"},
	}})
}

func TestIdentifyByCertificateThenJWTThenListener(t *testing.T) {
	f := apitest.NewFor(t, withCallers(nil))
	jwt := func(claims map[string]any) []string {
		all := map[string]any{"sub": apitest.Shop, "aud": caller.DefaultAudience}
		maps.Copy(all, claims)
		return []string{"Bearer " + f.Token(all)}
	}
	other := issue(t, named(t, "urn:example:other"))
	authority := named(t, checkout)
	authority.IsCA, authority.BasicConstraintsValid = true, true
	boundTo := func(state *tls.ConnectionState) []string {
		return jwt(map[string]any{"cnf": map[string]any{"x5t#S256": jose.CertificateThumbprint(state.PeerCertificates[0])}})
	}
	for name, tt := range map[string]struct {
		bound         string
		network       string
		state         *tls.ConnectionState
		authorization []string
		gateway       bool
		want          string
		err           string
	}{
		"SPIFFE ID":                         {state: issue(t, named(t, checkout)), want: "checkout"},
		"SPIFFE ID, longer":                 {state: issue(t, named(t, checkout+"/admin")), err: "matches no caller"},
		"SPIFFE ID of an authority":         {state: issue(t, authority), err: "belongs to a certificate authority"},
		"DNS name":                          {state: issue(t, named(t, "urn:example:gate", "gate.example.com")), want: "gate"},
		"certificate before JWT":            {state: issue(t, named(t, checkout)), authorization: jwt(nil), want: "checkout"},
		"certificate that was not verified": {state: &tls.ConnectionState{PeerCertificates: issue(t, named(t, checkout)).PeerCertificates}, err: "no proof"},
		"JWT":                               {authorization: jwt(nil), want: "shop"},
		"JWT beside another certificate":    {state: other, authorization: jwt(nil), want: "shop"},
		"JWT for another audience":          {authorization: jwt(map[string]any{"aud": apitest.Audience}), err: `must be for the audience "tokenbroker"`},
		"JWT of another subject":            {authorization: jwt(map[string]any{"sub": "other"}), err: "matches no caller"},
		"JWT bound to the certificate":      {state: other, authorization: boundTo(other), want: "shop"},
		"JWT bound to another certificate":  {state: issue(t, named(t, "urn:example:other")), authorization: boundTo(other), err: "does not prove possession"},
		"two JWTs":                          {authorization: append(jwt(nil), jwt(nil)...), err: "more than once"},
		"password":                          {authorization: []string{"Basic eDp4"}, err: "is not \"Bearer \""},
		"Unix user":                         {network: "unix", want: "user"},
		"Unix user before JWT":              {network: "unix", authorization: jwt(nil), want: "user"},
		"listener":                          {bound: "bound", want: "bound"},
		"listener after JWT":                {bound: "bound", authorization: jwt(nil), want: "shop"},
		"listener with an invalid JWT":      {bound: "bound", authorization: jwt(map[string]any{"aud": "x"}), err: "not valid"},
		"gateway by certificate":            {state: issue(t, named(t, "urn:example:gate", "gate.example.com")), gateway: true, want: "gate"},
		"gateway by listener":               {bound: "bound", gateway: true, want: "bound"},
		"gateway without proof":             {gateway: true, err: "a gateway must connect"},
		"no proof":                          {err: "no proof"},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.network == "" {
				tt.network = "tcp"
			}
			h := caller.New(caller.Config{Broker: f.Broker, Logger: f.Logger}).HTTP(caller.Bound{TCP: tt.bound})
			ctx, now := connect(t, h, tt.network), time.Now()
			var call caller.Call
			var err error
			if tt.gateway {
				call, err = h.Gateway(ctx, tt.state, "test", now)
			} else {
				call, err = h.Caller(ctx, tt.state, tt.authorization, "test", now)
			}
			switch {
			case tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("caller %q, error %v, want %q", call.Caller.Name(), err, tt.err)
			case tt.err == "" && (err != nil || call.Caller.Name() != tt.want):
				t.Errorf("caller %q, error %v, want %q", call.Caller.Name(), err, tt.want)
			}
			call.Leave()
		})
	}
}

func TestCallerIsRefusedBeyondItsLimits(t *testing.T) {
	state := issue(t, named(t, checkout))
	for name, tt := range map[string]struct {
		limits policy.Limits
		shared caller.Limits
		reason string
	}{
		"rate":       {limits: policy.Limits{PerSecond: 0.001, Burst: 1}, reason: apierror.ReasonRateLimited},
		"concurrent": {limits: policy.Limits{Concurrent: 1}, reason: apierror.ReasonTooManyCalls},
		"in flight":  {shared: caller.Limits{InFlight: 1}, reason: apierror.ReasonOverloaded},
	} {
		t.Run(name, func(t *testing.T) {
			f := apitest.NewFor(t, withCallers(&tt.limits))
			h := caller.New(caller.Config{Broker: f.Broker, Limits: tt.shared, Logger: slog.New(slog.DiscardHandler)}).HTTP(caller.Bound{})
			enter := func() (caller.Call, string) {
				call, err := h.Caller(connect(t, h, "tcp"), state, nil, "test", time.Now())
				if refusal, ok := errors.AsType[*apierror.Error](err); ok {
					return call, refusal.Reason
				}
				return call, ""
			}
			first, reason := enter()
			if reason != "" {
				t.Fatal(reason)
			}
			if _, reason := enter(); reason != tt.reason {
				t.Errorf("beyond the limit: %q, want %q", reason, tt.reason)
			}
			first.Leave()
			if call, reason := enter(); tt.limits.PerSecond == 0 && reason != "" {
				t.Errorf("after the first call has ended: %q", reason)
			} else {
				call.Leave()
			}
		})
	}
}

func TestUnidentifiedClientsHaveALimit(t *testing.T) {
	f := apitest.NewFor(t, withCallers(nil))
	h := caller.New(caller.Config{Broker: f.Broker, Limits: caller.Limits{Strangers: 2}, Logger: f.Logger}).HTTP(caller.Bound{})
	state := issue(t, named(t, checkout))
	begin := func(state *tls.ConnectionState) (func(), error) { return h.Begin(connect(t, h, "tcp"), state) }
	first, err1 := begin(nil)
	second, err2 := begin(nil)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if _, err := begin(nil); err == nil || !strings.Contains(err.Error(), "unidentified clients") {
		t.Errorf("beyond the limit: %v", err)
	}
	if end, err := begin(state); err != nil {
		t.Errorf("a caller with a certificate: %v", err)
	} else {
		end()
	}
	first()
	if third, err := begin(nil); err != nil {
		t.Errorf("when there is room: %v", err)
	} else {
		third()
	}
	second()
}

func TestConnectionsHaveALimit(t *testing.T) {
	f := apitest.NewFor(t, withCallers(nil))
	h := caller.New(caller.Config{Broker: f.Broker, Limits: caller.Limits{Connections: 1}, Logger: f.Logger}).HTTP(caller.Bound{})
	connect(t, h, "tcp")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = h.Listen(listener).Accept() }()
	defer func() { _ = listener.Close() }()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	_ = client.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := client.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a second connection stays open: %v", err)
	}
}
