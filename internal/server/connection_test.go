package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/server"
)

// aged keeps connections for longer than the tests last.
func aged(c *server.Config) { c.Limits.ConnectionAge = 1000 * time.Hour }

func get(t *testing.T, api tokenbrokerv1.TokenBrokerServiceClient) error {
	t.Helper()
	_, err := api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	return err
}

func mustGet(t *testing.T, api tokenbrokerv1.TokenBrokerServiceClient, what string) {
	t.Helper()
	if err := get(t, api); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// mustNot fails unless the call failed as that of somebody who is not known.
func mustNot(t *testing.T, err error, says string) {
	t.Helper()
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), says) {
		t.Errorf("want UNAUTHENTICATED with %q: %v", says, err)
	}
}

// until is a certificate of the checkout service that lives for a while.
func until(d time.Duration) *x509.Certificate {
	like := template(checkout)
	like.NotBefore, like.NotAfter = time.Now().Add(-time.Minute), time.Now().Add(d)
	return like
}

// A connection outlives the certificate that it was made with, its caller does not:
// the connection is closed, and the next one is made with the certificate that has
// taken the place of the old one.
func TestExpiredCertificateEndsItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, aged)
		pair := must(w.ca.Issue(until(time.Hour))).TLS()
		config := w.anonymous()
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		api := w.api(config)
		mustGet(t, api, "at first")
		time.Sleep(59 * time.Minute)
		mustGet(t, api, "a minute before the end")
		pair = must(w.ca.Issue(until(time.Hour))).TLS() // renewed in time, which the connection does not know
		time.Sleep(2 * time.Minute)
		mustNot(t, get(t, api), "expired at")
		time.Sleep(2 * time.Second)
		mustGet(t, api, "over another connection")
	})
}

func TestExpiredAuthorityEndsItsCallers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, aged)
		between := must(w.ca.Below("between", time.Now().Add(time.Hour)))
		api := w.api(w.with(between, template(checkout))) // which says that it lives for longer
		mustGet(t, api, "at first")
		time.Sleep(59 * time.Minute)
		mustGet(t, api, "a minute before the end")
		time.Sleep(2 * time.Minute)
		mustNot(t, get(t, api), "expired at")
	})
}

func TestNewAuthoritiesRecheckConnections(t *testing.T) {
	w := newWorld(t)
	api := w.api(w.with(w.ca, template(checkout)))
	mustGet(t, api, "at first")
	w.trust(w.strangers, w.ca)
	mustGet(t, api, "with another authority beside it")
	w.trust(w.strangers)
	mustNot(t, get(t, api), "no longer trusts the authority")
	w.trust(w.ca)
	mustGet(t, api, "trusted again")
	mustGet(t, w.api(w.with(w.ca, template(checkout))), "over another connection")
}

func TestBoundJWTNeedsATrustedCertificate(t *testing.T) {
	w := newWorld(t)
	config, header := w.boundFor(time.Hour)
	api, ctx := w.api(config), metadata.NewOutgoingContext(t.Context(), header)
	if _, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}); err != nil {
		t.Fatal(err)
	}
	w.trust(w.strangers)
	_, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	mustNot(t, err, "no longer trusts the authority")
}

func TestNewPolicyRechecksConnections(t *testing.T) {
	w := newWorld(t)
	api := w.api(w.with(w.ca, template(checkout)))
	mustGet(t, api, "at first")
	setup := w.Setup
	setup.Policy = allowing(policy.CallerConfig{Name: "gateway", Match: policy.Match{DNSSAN: gateway}})
	if err := w.Broker.Apply(setup); err != nil {
		t.Fatal(err)
	}
	mustNot(t, get(t, api), "matches no caller")
	setup.Policy = allowing(callersOfTheWorld()...)
	if err := w.Broker.Apply(setup); err != nil {
		t.Fatal(err)
	}
	mustGet(t, api, "a caller again")
}

// watch opens a watch and takes the first token from it.
func (w *world) watch(config *tls.Config, header metadata.MD) grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse] {
	w.t.Helper()
	stream := must(w.api(config).WatchToken(metadata.NewOutgoingContext(w.t.Context(), header), &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"}))
	must(stream.Recv())
	return stream
}

// boundFor is a connection with a certificate that ends after d, of no caller, and a JWT
// of an hour that is bound to it.
func (w *world) boundFor(d time.Duration) (*tls.Config, metadata.MD) {
	like := until(d)
	like.URIs = template("urn:example:other").URIs
	pair := must(w.ca.Issue(like))
	return presenting(w, pair), bearer(w.jwt(map[string]any{"cnf": map[string]any{"x5t#S256": jose.CertificateThumbprint(pair.Certificate())}}))
}

// A watch to which nothing is sent ends all the same when its caller's proof has
// ended.
func TestWatchEndsWithItsCredential(t *testing.T) {
	for name, tt := range map[string]struct {
		config func(w *world) *tls.Config
		header func(w *world) metadata.MD
		lasts  time.Duration
		says   string
	}{
		"a certificate": {
			func(w *world) *tls.Config { return w.with(w.ca, until(10*time.Minute)) },
			func(*world) metadata.MD { return nil },
			10 * time.Minute, "expired at",
		},
		"a JWT, with the leeway of its issuer": {
			func(w *world) *tls.Config { return w.anonymous() },
			func(w *world) metadata.MD {
				return bearer(w.jwt(map[string]any{"exp": time.Now().Add(10 * time.Minute).Unix()}))
			},
			10*time.Minute + 30*time.Second, "expired",
		},
		"the certificate that a JWT is bound to": {nil, nil, 10 * time.Minute, "expired at"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, aged)
				config, header := w.boundFor(10 * time.Minute)
				if tt.header != nil {
					config, header = tt.config(w), tt.header(w)
				}
				stream, begun := w.watch(config, header), time.Now()
				_, err := stream.Recv() // the token lives for an hour: nothing comes
				mustNot(t, err, tt.says)
				if lasted := time.Since(begun); lasted < tt.lasts-time.Second || lasted > tt.lasts+2*time.Second {
					t.Errorf("the watch lasted %v, want %v", lasted, tt.lasts)
				}
			})
		})
	}
}

func TestRecheckEndsUntrustedWatches(t *testing.T) {
	w := newWorld(t)
	stream := w.watch(w.with(w.ca, template(checkout)), nil)
	w.Broker.Rejudge() // nothing has changed for it
	w.trust(w.strangers)
	w.Broker.Rejudge()
	_, err := stream.Recv()
	mustNot(t, err, "no longer trusts the authority")
}
