package client_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/redistest"
)

// greet writes the subject of the caller.
func greet(w http.ResponseWriter, r *http.Request) {
	claims, ok := client.ClaimsFromContext(r.Context())
	if !ok {
		panic("there are no claims")
	}
	_, _ = w.Write([]byte(claims.Subject))
}

// get makes a request with these Authorization headers.
func get(handler http.Handler, path string, headers ...string) *http.Response {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for _, header := range headers {
		r.Header.Add("Authorization", header)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w.Result()
}

func TestHTTPMiddlewareFollowsRFC6750(t *testing.T) {
	b := brokertest.New(t)
	v := b.Client().Verifier(client.RequireScopes("read"), client.WithRealm(`the "shop"`))
	protect := client.HTTPMiddleware(v)
	mux := http.NewServeMux()
	mux.Handle("/", protect(http.HandlerFunc(greet)))
	mux.Handle("/write", client.HTTPMiddleware(v, client.RequireScopes("read", "write"))(http.HandlerFunc(greet)))
	mux.Handle("/admin", protect(client.ScopesMiddleware("admin")(http.HandlerFunc(greet))))
	mux.Handle("/bare", client.ScopesMiddleware("admin")(http.HandlerFunc(greet)))

	reader := "Bearer " + b.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read"}})
	writer := "bearer  " + b.Mint(brokertest.Claims{Subject: "bob", Scopes: []string{"write", "read"}})
	noScopes := "Bearer " + b.Mint(brokertest.Claims{})
	expired := "Bearer " + b.Mint(brokertest.Claims{Lifetime: -time.Hour, Scopes: []string{"read"}})
	const realm = `Bearer realm="the 'shop'"`
	for _, c := range []struct {
		name, path string
		headers    []string
		status     int
		challenge  string // a pattern
	}{
		{"a good token", "/", []string{reader}, 200, `^$`},
		{"another spelling of the scheme", "/write", []string{writer}, 200, `^$`},
		{"no token", "/", nil, 401, `^` + realm + `, scope="read"$`},
		{"another scheme", "/", []string{"Basic YTpi"}, 401, `^` + realm + `, scope="read"$`},
		{"two headers", "/", []string{reader, writer}, 401, `^` + realm + `, error="invalid_token", error_description="[^"]+", scope="read"$`},
		{"an empty token", "/", []string{"Bearer "}, 401, `error="invalid_token"`},
		{"no token behind the scheme", "/", []string{"Bearer"}, 401, `error="invalid_token"`},
		{"two tokens", "/", []string{reader + " " + reader}, 401, `error="invalid_token"`},
		{"an expired token", "/", []string{expired}, 401, `error="invalid_token", error_description="[^"]+", scope="read"$`},
		{"a token that lacks the common scope", "/", []string{noScopes}, 403, `error="insufficient_scope", error_description="[^"]+", scope="read"$`},
		{"a token that lacks a scope of the route", "/write", []string{reader}, 403, `error="insufficient_scope", error_description="[^"]+", scope="read write"$`},
		{"a token that lacks a scope of ScopesMiddleware", "/admin", []string{writer}, 403, `^` + realm + `, error="insufficient_scope", error_description="[^"]+", scope="admin"$`},
		{"ScopesMiddleware without HTTPMiddleware", "/bare", []string{writer}, 500, `^$`},
	} {
		resp := get(mux, c.path, c.headers...)
		if resp.StatusCode != c.status || !regexp.MustCompile(c.challenge).MatchString(resp.Header.Get("WWW-Authenticate")) {
			t.Errorf("%s: %d, %s", c.name, resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
		}
	}
}

func TestHTTPMiddlewareFailsClosed(t *testing.T) {
	b := brokertest.New(t)
	var log strings.Builder
	c := b.Client(client.WithLogger(logTo(&log)))
	handler := client.HTTPMiddleware(c.Verifier())(http.HandlerFunc(greet))
	cached, uncached := "Bearer "+b.Mint(brokertest.Claims{}), "Bearer "+b.Mint(brokertest.Claims{})
	if resp := get(handler, "/", cached); resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	b.Kill()
	for label, c := range map[string]struct {
		header string
		status int
	}{"seen": {cached, 200}, "unseen": {uncached, 503}, "bad": {"Bearer x.y.z", 503}, "none": {"", 401}} {
		resp := get(handler, "/", c.header)
		if resp.StatusCode != c.status || (resp.Header.Get("Retry-After") != "") != (c.status == 503) || c.status == 503 && resp.Header.Get("WWW-Authenticate") != "" {
			t.Errorf("%s: %d, %v", label, resp.StatusCode, resp.Header)
		}
	}
	if !strings.Contains(log.String(), "could not verify") || strings.Contains(log.String(), uncached[7:40]) {
		t.Errorf("log: %s", log.String())
	}
}

// clientCertificate returns the client's certificate.
func clientCertificate(t *testing.T, certs *redistest.Certificates) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(read(t, certs.ClientCert))
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// A token that is bound to a key is valid only for the holder of the key.
func TestHTTPMiddleware_boundToken(t *testing.T) {
	b := brokertest.New(t)
	cert, otherCert := clientCertificate(t, redistest.NewCertificates(t)), clientCertificate(t, redistest.NewCertificates(t))
	thumbprint := sha256.Sum256(cert.Raw)
	bound := b.Mint(brokertest.Claims{More: map[string]any{"cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(thumbprint[:])}}})
	dpop := b.Mint(brokertest.Claims{More: map[string]any{"cnf": map[string]any{"jkt": base64.RawURLEncoding.EncodeToString(thumbprint[:])}}})
	unknown := b.Mint(brokertest.Claims{More: map[string]any{"cnf": map[string]any{"kid": "k1"}}})
	handler := client.HTTPMiddleware(b.Client().Verifier())(http.HandlerFunc(greet))
	for _, c := range []struct {
		name, token string
		tls         *tls.ConnectionState
		status      int
	}{
		{"without TLS", bound, nil, 401},
		{"without a certificate", bound, &tls.ConnectionState{}, 401},
		{"with another certificate", bound, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{otherCert, cert}}, 401},
		{"with its certificate", bound, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}, 200},
		{"with an unknown binding", unknown, nil, 401},
		{"with an unknown binding and a certificate", unknown, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}, 401},
		{"to a DPoP key", dpop, &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}, 401},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.TLS = c.tls
		r.Header.Set("Authorization", "Bearer "+c.token)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
	}
}

// newerBroker reports that each token is bound to a certificate, and in another way that
// this client does not know.
type newerBroker struct {
	tokenbrokerv1.UnimplementedTokenBrokerServiceServer

	thumbprint string
}

func (b *newerBroker) VerifyToken(context.Context, *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
	bound := &tokenbrokerv1.Confirmation{X5TS256: b.thumbprint}
	bound.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 15, protowire.BytesType), "x"))
	return &tokenbrokerv1.VerifyTokenResponse{Active: true, Confirmation: bound, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}, nil
}

func TestUnknownBindingIsRefused(t *testing.T) {
	certificate := clientCertificate(t, redistest.NewCertificates(t))
	thumbprint := sha256.Sum256(certificate.Raw)
	server := grpc.NewServer()
	tokenbrokerv1.RegisterTokenBrokerServiceServer(server, &newerBroker{thumbprint: base64.RawURLEncoding.EncodeToString(thumbprint[:])})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-ended })
	c, err := client.New(listener.Addr().String(), client.WithPlaintext())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	claims, err := c.Verify(t.Context(), "token")
	if err != nil || claims.Confirmation == nil || *claims.Confirmation != (client.Confirmation{}) {
		t.Fatalf("%+v, %v", claims, err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{certificate}}
	r.Header.Set("Authorization", "Bearer token")
	w := httptest.NewRecorder()
	client.HTTPMiddleware(c.Verifier())(http.HandlerFunc(greet)).ServeHTTP(w, r)
	if w.Code != http.StatusUnauthorized {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// startProtected starts a gRPC API behind the interceptors.
func startProtected(t *testing.T, v *client.Verifier, opts ...grpc.ServerOption) string {
	t.Helper()
	rules := []client.InterceptorOption{
		client.PublicMethods("/grpc.health.v1.Health/"),
		client.MethodScopes("/tokenbroker.v1.TokenBrokerService/WatchToken", "watch"),
	}
	check := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		if claims, ok := client.ClaimsFromContext(ctx); strings.HasSuffix(info.FullMethod, "GetToken") && (!ok || claims.Subject != "alice") {
			t.Error("the handler does not have the claims")
		}
		return handler(ctx, req)
	}
	return startRecordingServer(t, "tcp", "127.0.0.1:0", append(opts,
		grpc.ChainUnaryInterceptor(client.UnaryServerInterceptor(v, rules...), check),
		grpc.ChainStreamInterceptor(client.StreamServerInterceptor(v, rules...)))...).addr
}

func TestInterceptors_statuses(t *testing.T) {
	b := brokertest.New(t)
	addr := startProtected(t, b.Client().Verifier(client.RequireScopes("read")))
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("a public method: %v", err)
	}
	unary := func(ctx context.Context, opts ...grpc.CallOption) error {
		_, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{}, opts...)
		return err
	}
	stream := func(ctx context.Context, opts ...grpc.CallOption) error {
		stream, err := api.WatchToken(ctx, &tokenbrokerv1.WatchTokenRequest{}, opts...)
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	good := b.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read"}})
	uncached := b.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read", "watch"}})
	check := func(label string, call func(context.Context, ...grpc.CallOption) error, tokens []string, code codes.Code, reason, challenge string) {
		t.Helper()
		ctx := metadata.NewOutgoingContext(t.Context(), metadata.MD{"authorization": tokens})
		var trailer metadata.MD
		err := call(ctx, grpc.Trailer(&trailer))
		got := ""
		for _, detail := range status.Convert(err).Details() {
			if info, ok := detail.(*errdetails.ErrorInfo); ok && info.GetDomain() == client.ErrorDomain {
				got = info.GetReason()
			}
		}
		if status.Code(err) != code || got != reason || !strings.Contains(strings.Join(trailer["www-authenticate"], ""), challenge) || challenge == "" && trailer["www-authenticate"] != nil {
			t.Errorf("%s: %v, %q, %q", label, err, got, trailer["www-authenticate"])
		}
	}
	check("a good token", unary, []string{"Bearer " + good}, codes.OK, "", "")
	check("a good token after several spaces", unary, []string{"Bearer   " + good}, codes.OK, "", "")
	check("no token", unary, nil, codes.Unauthenticated, "NO_TOKEN", `Bearer realm="api", scope="read"`)
	check("no token, stream", stream, nil, codes.Unauthenticated, "NO_TOKEN", `scope="watch"`)
	check("two tokens", unary, []string{"Bearer " + good, "Bearer " + good}, codes.Unauthenticated, "MALFORMED", `error="invalid_token"`)
	check("an expired token", unary, []string{"Bearer " + b.Mint(brokertest.Claims{Lifetime: -time.Hour})}, codes.Unauthenticated, "EXPIRED", `error="invalid_token"`)
	check("no scope", unary, []string{"Bearer " + b.Mint(brokertest.Claims{})}, codes.PermissionDenied, "INSUFFICIENT_SCOPE", `error="insufficient_scope"`)
	check("no scope for the method", stream, []string{"Bearer " + good}, codes.PermissionDenied, "INSUFFICIENT_SCOPE", `scope="watch"`)
	b.Kill()
	check("no broker, a cached token", unary, []string{"Bearer " + good}, codes.OK, "", "")
	check("no broker", stream, []string{"Bearer " + uncached}, codes.Unavailable, "TOKEN_NOT_VERIFIED", "")
}

func TestStreamContextHasClaims(t *testing.T) {
	b := brokertest.New(t)
	v := b.Client().Verifier()
	var subject atomic.Value
	handler := func(_ any, stream grpc.ServerStream) error {
		claims, _ := client.ClaimsFromContext(stream.Context())
		subject.Store(claims.Subject)
		return nil
	}
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+b.Mint(brokertest.Claims{Subject: "alice"})))
	if err := client.StreamServerInterceptor(v)(nil, &serverStream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/a/b"}, handler); err != nil || subject.Load() != "alice" {
		t.Errorf("%v, %v", subject.Load(), err)
	}
}

type serverStream struct {
	grpc.ServerStream

	ctx context.Context
}

func (s *serverStream) Context() context.Context { return s.ctx }

func TestInterceptors_boundToken(t *testing.T) {
	b := brokertest.New(t)
	certs := redistest.NewCertificates(t)
	addr := startProtected(t, b.Client().Verifier(), serverTLS(t, certs))
	thumbprint := sha256.Sum256(clientCertificate(t, certs).Raw)
	token := b.Mint(brokertest.Claims{Subject: "alice", More: map[string]any{"cnf": map[string]any{"x5t#S256": base64.RawURLEncoding.EncodeToString(thumbprint[:])}}})
	for _, c := range []struct {
		name   string
		config *tls.Config
		want   codes.Code
	}{
		{"without a certificate", certs.Anonymous(), codes.Unauthenticated},
		{"with its certificate", certs.Client(t), codes.OK},
		{"without a certificate, after a call of its holder", certs.Anonymous(), codes.Unauthenticated},
	} {
		api := dial(t, addr, grpc.WithTransportCredentials(credentials.NewTLS(c.config)))
		_, err := api.GetToken(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), &tokenbrokerv1.GetTokenRequest{})
		if status.Code(err) != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}
