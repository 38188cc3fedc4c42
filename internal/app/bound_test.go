package app_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	brokerclient "github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// boundWorld is a broker with all its APIs, a gateway that asks it, and two who hold
// certificates that belong to no caller.
type boundWorld struct {
	t             *testing.T
	idp           *devidp.Server
	broker        *app.App
	gate          *grpc.ClientConn
	verifier      *brokerclient.Verifier
	none          *tls.Config
	gateTLS       *tls.Config
	holder, other *devca.Pair
}

// newBoundWorld takes more lines of its configuration.
func newBoundWorld(t *testing.T, more ...string) *boundWorld {
	t.Helper()
	p := newPKI(t)
	secret := filepath.Join(t.TempDir(), "secret")
	testkit.WriteFile(t, secret, "right")
	text := fmt.Sprintf(`listen: {grpc: "127.0.0.1:0", http: "127.0.0.1:0", ops: "off", %s}
gateways: {ext_authz: {}}
clients: {orders: {issuer: %[2]q, client_id: abc, secret: %[3]q, audience: "https://orders.example.com"}}
issuers: [{issuer: %[2]q, audiences: ["https://orders.example.com"], introspection: {client: orders, cache: 0s}}]
callers: [{name: gate, spiffe_id: %[4]q, roles: [all]}, {name: robot, issuer: %[2]q, subject: robot, roles: [all]}]
roles: {all: {get: [{client: orders, scopes: [read]}], verify: [{issuer: "*", audiences: ["*"]}], admin: [{actions: [purge_tokens]}]}}
`, p.config(), idpIssuer, "file:"+secret, checkout)
	w := &boundWorld{t: t, idp: devIDP(t), none: p.client(nil), gateTLS: p.client(checkoutID())}
	for at, name := range map[**devca.Pair]string{&w.holder: "holder", &w.other: "other"} {
		pair, err := p.ca.Issue(&x509.Certificate{URIs: []*url.URL{{Scheme: "urn", Opaque: "example:" + name}}})
		if err != nil {
			t.Fatal(err)
		}
		*at = pair
	}
	var c *brokerclient.Client
	w.broker, c = run(t, parsed(t, text+strings.Join(more, "\n")), w.idp, brokerclient.WithTLS(w.gateTLS))
	w.verifier, w.gate = c.Verifier(brokerclient.WithCacheSize(0)), w.connect(w.gateTLS)
	return w
}

// nameOf names a certificate in messages.
func (w *boundWorld) nameOf(pair *devca.Pair) string {
	return map[*devca.Pair]string{nil: "of nobody", w.holder: "of the holder", w.other: "of another"}[pair]
}

// with presents a certificate; nil: none.
func (w *boundWorld) with(pair *devca.Pair) *tls.Config {
	config := w.none.Clone()
	if pair != nil {
		config.Certificates = []tls.Certificate{pair.TLS()}
	}
	return config
}

func (w *boundWorld) connect(config *tls.Config) *grpc.ClientConn {
	w.t.Helper()
	conn, err := grpc.NewClient(w.broker.GRPCAddr(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// mint makes a token that is good for the service and as a JWT of the caller robot.
func (w *boundWorld) mint(opaque bool, cnf string) string {
	if opaque {
		return w.mintOpaque("Bearer", cnf)
	}
	return w.idp.Mint(claimsWith(cnf)).Reveal()
}

func (w *boundWorld) mintOpaque(tokenType, cnf string) string {
	claims := claimsWith(cnf)
	claims["token_type"] = tokenType
	return w.idp.MintOpaque(claims).Reveal()
}

func claimsWith(cnf string) map[string]any {
	now := time.Now()
	claims := map[string]any{
		"iss": idpIssuer, "sub": "robot", "aud": []string{"https://orders.example.com", "tokenbroker"}, "client_id": "robot", "scope": "read",
		"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
	if cnf != "" {
		claims["cnf"] = json.RawMessage(cnf)
	}
	return claims
}

// request sends a request over HTTP and returns the response's status and body.
func (w *boundWorld) request(config *tls.Config, method, path, authorization string, form url.Values) (int, string) {
	w.t.Helper()
	request, err := http.NewRequestWithContext(w.t.Context(), method, "https://"+w.broker.HTTPAddr()+path, strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	if authorization != "" {
		request.Header.Set("Authorization", authorization)
	}
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	transport := &http.Transport{TLSClientConfig: config.Clone(), DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// The two ways in which the broker reports a token.

func (w *boundWorld) verified(token string) string {
	w.t.Helper()
	resp, err := tokenbrokerv1.NewTokenBrokerServiceClient(w.gate).VerifyToken(w.t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: token})
	switch c := resp.GetConfirmation(); {
	case err != nil:
		return err.Error()
	case !resp.GetActive():
		return resp.GetRejection().GetReason().String()
	case c == nil:
		return "bearer"
	case c.GetJkt() == "" && c.GetX5TS256() == "":
		return "bound in another way"
	default:
		return fmt.Sprintf("jkt=%s x5t=%t", c.GetJkt(), c.GetX5TS256() != "")
	}
}

func (w *boundWorld) introspected(token string) (tokenType, cnf string) {
	w.t.Helper()
	code, body := w.request(w.gateTLS, http.MethodPost, "/oauth2/introspect", "", url.Values{"token": {token}})
	var answer struct {
		Active    bool            `json:"active"`
		TokenType string          `json:"token_type"`
		CNF       json.RawMessage `json:"cnf"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || code != http.StatusOK {
		w.t.Fatal(code, body, err)
	}
	if !answer.Active {
		return "inactive", ""
	}
	return answer.TokenType, string(answer.CNF)
}

// boundAPI is an API that lets in the presenter of a token, or not.
type boundAPI struct {
	name string
	// jwtOnly: opaque tokens are never accepted.
	jwtOnly bool
	// matches: the API compares a binding to a certificate with that of the connection.
	matches bool
	admits  func(token string, pair *devca.Pair) bool
}

func (w *boundWorld) apis() []boundAPI {
	token := url.Values{"grant_type": {"client_credentials"}, "client_id": {"orders"}}
	with := func(name, value string) url.Values {
		form := url.Values{name: {value}}
		maps.Copy(form, token)
		return form
	}
	admittedHTTP := func(token string, pair *devca.Pair, form url.Values) bool {
		authorization := "Bearer " + token
		if token == "" {
			authorization = ""
		}
		code, body := w.request(w.with(pair), http.MethodPost, "/oauth2/token", authorization, form)
		if code != http.StatusOK && code != http.StatusUnauthorized {
			w.t.Error(code, body)
		}
		return code == http.StatusOK
	}
	return []boundAPI{
		{"/verify", false, false, func(token string, _ *devca.Pair) bool {
			code, _ := w.request(w.gateTLS, http.MethodGet, "/verify?scope=read", "Bearer "+token, nil)
			return code == http.StatusOK
		}},
		{"ext_authz", false, false, func(token string, _ *devca.Pair) bool {
			resp, err := authv3.NewAuthorizationClient(w.gate).Check(w.t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
				Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Host: "a", Path: "/", Headers: map[string]string{"authorization": "Bearer " + token}}},
			}})
			if err != nil {
				w.t.Fatal(err)
			}
			return resp.GetOkResponse() != nil
		}},
		{"caller over gRPC", true, true, func(token string, pair *devca.Pair) bool {
			ctx := metadata.AppendToOutgoingContext(w.t.Context(), "authorization", "Bearer "+token)
			_, err := tokenbrokerv1.NewTokenBrokerServiceClient(w.connect(w.with(pair))).GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
			if code := status.Code(err); code != codes.OK && code != codes.Unauthenticated {
				w.t.Error(err)
			}
			return err == nil
		}},
		{"caller over HTTP, in the header", true, true, func(jwt string, pair *devca.Pair) bool { return admittedHTTP(jwt, pair, token) }},
		{"caller over HTTP, as client_secret", true, true, func(jwt string, pair *devca.Pair) bool {
			return admittedHTTP("", pair, with("client_secret", jwt))
		}},
		{"caller over HTTP, as client_assertion", true, true, func(jwt string, pair *devca.Pair) bool {
			form := with("client_assertion", jwt)
			form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
			return admittedHTTP("", pair, form)
		}},
		{"client.HTTPMiddleware", false, true, func(token string, pair *devca.Pair) bool {
			r := httptest.NewRequestWithContext(w.t.Context(), http.MethodGet, "/", http.NoBody)
			r.Header.Set("Authorization", "Bearer "+token)
			if pair != nil {
				r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Certificate()}}
			}
			recorder := httptest.NewRecorder()
			brokerclient.HTTPMiddleware(w.verifier)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})).ServeHTTP(recorder, r)
			return recorder.Code == http.StatusOK
		}},
		{"client.UnaryServerInterceptor", false, true, func(token string, pair *devca.Pair) bool {
			_, err := brokerclient.UnaryServerInterceptor(w.verifier)(w.called(token, pair), nil, &grpc.UnaryServerInfo{FullMethod: "/a/b"},
				func(context.Context, any) (any, error) { return nil, nil })
			return err == nil
		}},
		{"client.StreamServerInterceptor", false, true, func(token string, pair *devca.Pair) bool {
			err := brokerclient.StreamServerInterceptor(w.verifier)(nil, &calledStream{ctx: w.called(token, pair)}, &grpc.StreamServerInfo{FullMethod: "/a/b"},
				func(any, grpc.ServerStream) error { return nil })
			return err == nil
		}},
	}
}

// called is the context of a call that a service behind the interceptors gets.
func (w *boundWorld) called(token string, pair *devca.Pair) context.Context {
	var state tls.ConnectionState
	if pair != nil {
		state.PeerCertificates = []*x509.Certificate{pair.Certificate()}
	}
	ctx := peer.NewContext(w.t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}})
	return metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token))
}

type calledStream struct {
	grpc.ServerStream

	ctx context.Context
}

func (s *calledStream) Context() context.Context { return s.ctx }

func (*calledStream) SetTrailer(metadata.MD) {}

// Each API reports, matches or refuses a token with each kind of cnf.
func TestBoundTokensInEveryAPI(t *testing.T) {
	w := newBoundWorld(t)
	x5t := jose.CertificateThumbprint(w.holder.Certificate())
	const (
		bearer  = "bearer"
		another = "bound in another way"
		unsound = "REJECTION_REASON_BAD_CLAIMS"
	)
	for _, tt := range []struct {
		name, cnf string
		verified  string // by VerifyToken
		tokenType string // by introspection
		held      bool   // good with the holder's certificate where that is compared
	}{
		{"no cnf", ``, bearer, "Bearer", true},
		{"x5t#S256", `{"x5t#S256":"` + x5t + `"}`, "jkt= x5t=true", "Bearer", true},
		{"x5t#S256, padded", `{"x5t#S256":"` + x5t + `="}`, "jkt= x5t=true", "Bearer", false},
		{"jkt", `{"jkt":"` + x5t + `"}`, "jkt=" + x5t + " x5t=false", "DPoP", false},
		{"jkt and x5t#S256", `{"jkt":"t","x5t#S256":"` + x5t + `"}`, "jkt=t x5t=true", "DPoP", false},
		{"x5t#S256 and kid", `{"x5t#S256":"` + x5t + `","kid":"k"}`, another, "", false},
		{"x5t#S256 and an empty jkt", `{"x5t#S256":"` + x5t + `","jkt":""}`, another, "", false},
		{"jkt and jwk", `{"jkt":"t","jwk":{"kty":"OKP"}}`, another, "DPoP", false},
		{"jwk", `{"jwk":{"kty":"OKP","crv":"Ed25519","x":"AAAA"}}`, another, "", false},
		{"kid", `{"kid":"k1"}`, another, "", false},
		{"jwe", `{"jwe":"a.b.c.d.e"}`, another, "", false},
		{"jku", `{"jku":"https://keys.example.com","kid":"k1"}`, another, "", false},
		{"an unknown member", `{"tbh":"hash"}`, another, "", false},
		{"an unknown member that is null", `{"tbh":null}`, another, "", false},
		{"an empty object", `{}`, another, "", false},
		{"an empty jkt", `{"jkt":""}`, another, "", false},
		{"an empty x5t#S256", `{"x5t#S256":""}`, another, "", false},
		{"x5t", `{"x5t":"` + x5t + `"}`, another, "", false},
		{"other letters", `{"X5T#S256":"` + x5t + `"}`, another, "", false},
		{"null", `null`, unsound, "inactive", false},
		{"jkt null", `{"jkt":null}`, unsound, "inactive", false},
		{"x5t#S256 a number", `{"x5t#S256":1}`, unsound, "inactive", false},
		{"a text", `"x5t"`, unsound, "inactive", false},
		{"a list", `[{"x5t#S256":"` + x5t + `"}]`, unsound, "inactive", false},
		{"false", `false`, unsound, "inactive", false},
	} {
		for _, opaque := range []bool{false, true} {
			token := w.mint(opaque, tt.cnf)
			name := fmt.Sprintf("%s, opaque %v", tt.name, opaque)
			if got := w.verified(token); got != tt.verified {
				t.Errorf("%s: VerifyToken: %s, want %s", name, got, tt.verified)
			}
			wantCNF := tt.cnf
			if tt.tokenType == "inactive" {
				wantCNF = ""
			}
			if tokenType, cnf := w.introspected(token); tokenType != tt.tokenType || cnf != wantCNF {
				t.Errorf("%s: introspection: token_type %q, cnf %s; want %q, %s", name, tokenType, cnf, tt.tokenType, wantCNF)
			}
			for _, api := range w.apis() {
				// Those who do not hold the key try before and after its holder, when the token is in caches.
				for _, pair := range []*devca.Pair{nil, w.other, w.holder, nil, w.other} {
					want := tt.verified == bearer || tt.held && api.matches && pair == w.holder
					if opaque && api.jwtOnly {
						want = false
					}
					if got := api.admits(token, pair); got != want {
						t.Errorf("%s: %s with the certificate %s: admitted: %v, want %v", name, api.name, w.nameOf(pair), got, want)
					}
				}
			}
		}
	}
}

// An issuer can bind an opaque token by the token type DPoP alone (RFC 9449 section 6.2).
func TestTokensBoundByTypeInEveryAPI(t *testing.T) {
	w := newBoundWorld(t)
	for _, cnf := range []string{"", `{"x5t#S256":"` + jose.CertificateThumbprint(w.holder.Certificate()) + `"}`} {
		token := w.mintOpaque("DPoP", cnf)
		if got := w.verified(token); got != "bound in another way" {
			t.Errorf("cnf %s: VerifyToken: %s", cnf, got)
		}
		// Receivers that look at cnf alone must refuse the token too.
		if tokenType, reported := w.introspected(token); tokenType != "DPoP" || reported != cmp.Or(cnf, "{}") {
			t.Errorf("cnf %s: introspection: token_type %q, cnf %s", cnf, tokenType, reported)
		}
		for _, api := range w.apis() {
			if api.admits(token, nil) || api.admits(token, w.holder) {
				t.Errorf("cnf %s: %s admits it", cnf, api.name)
			}
		}
	}
}

// Whoever can connect must not be able to make the broker send requests to an issuer.
func TestTokensOfCallersAreNotIntrospected(t *testing.T) {
	w := newBoundWorld(t)
	for _, token := range []string{"v4.public.abc", w.mint(true, "")} {
		for _, api := range w.apis() {
			if api.jwtOnly && api.admits(token, nil) {
				t.Errorf("%s accepts an opaque token", api.name)
			}
		}
	}
	if n := w.idp.Requests(devidp.IntrospectionPath); n != 0 {
		t.Errorf("the issuer was asked %d times", n)
	}
}
