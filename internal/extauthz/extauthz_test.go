package extauthz_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/extauthz"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type api struct {
	*apitest.Fixture

	envoy authv3.AuthorizationClient
}

func serve(t *testing.T, fixture *apitest.Fixture, bound string, cfg extauthz.Config) *api {
	t.Helper()
	if cfg.Judge == nil {
		cfg.Judge = gateway.New(gateway.Config{Broker: fixture.Broker})
	}
	s := fixture.Server(t, bound)
	extauthz.Register(s, cfg)
	listener := bufconn.Listen(1 << 20)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///broker",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); s.Shutdown(0, time.Second); <-ended })
	return &api{fixture, authv3.NewAuthorizationClient(conn)}
}

// checkRequest returns a request as Envoy sends it.
func checkRequest(path string, extensions map[string]string, headers ...string) *authv3.CheckRequest {
	all := map[string]string{":method": "GET", ":path": path, "x-auth-subject": "root", "x-auth-actor": "root"}
	for pair := range slices.Chunk(headers, 2) {
		all[pair[0]] = pair[1]
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: extensions,
		Request:           &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: path, Host: "api.example.com:443", Headers: all}},
	}}
}

func headersOf(options []*corev3.HeaderValueOption) map[string]string {
	headers := map[string]string{}
	for _, option := range options {
		headers[option.GetHeader().GetKey()] = option.GetHeader().GetValue()
	}
	return headers
}

func TestCheckDecides(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{})
	good := f.Token(nil)
	fresh := func() string { return f.Token(nil) } // each case begins with a token that no other case has left in a cache
	expired := f.Token(map[string]any{"exp": time.Now().Add(-time.Hour).Unix(), "iat": time.Now().Add(-2 * time.Hour).Unix()})
	scope := map[string]string{"scope": "read"}
	if _, err := f.envoy.Check(t.Context(), checkRequest("/", scope, "authorization", "Bearer "+good)); err != nil { // so that it is remembered when it was tampered with
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		req       *authv3.CheckRequest
		code      codes.Code
		http      int32
		challenge string
	}{
		"good":                 {checkRequest("/", scope, "authorization", "Bearer "+good), codes.OK, 0, ""},
		"several spaces":       {checkRequest("/", scope, "authorization", "Bearer   "+fresh()), codes.OK, 0, ""},
		"a tab":                {checkRequest("/", scope, "authorization", "Bearer \t"+fresh()), codes.Unauthenticated, 401, "invalid_request"},
		"spaces and no token":  {checkRequest("/", scope, "authorization", "Bearer   "), codes.Unauthenticated, 401, "invalid_request"},
		"no extensions":        {checkRequest("/", nil, "authorization", "Bearer "+fresh()), codes.OK, 0, ""},
		"its audience":         {checkRequest("/?a=%20", map[string]string{"audience": apitest.Audience}, "authorization", "Bearer "+fresh()), codes.OK, 0, ""},
		"no token":             {checkRequest("/", scope), codes.Unauthenticated, 401, `Bearer realm="api"`},
		"two tokens":           {checkRequest("/", scope, "authorization", "Bearer "+good+",Bearer "+fresh()), codes.Unauthenticated, 401, "invalid_request"},
		"a token in the query": {checkRequest("/?access_token="+fresh(), scope, "authorization", "Bearer "+fresh()), codes.Unauthenticated, 401, "invalid_request"},
		"expired":              {checkRequest("/", scope, "authorization", "Bearer "+expired), codes.Unauthenticated, 401, "expired"},
		"tampered":             {checkRequest("/", scope, "authorization", "Bearer "+good[:len(good)-4]+"AAAA"), codes.Unauthenticated, 401, "invalid_token"},
		"without a scope":      {checkRequest("/", map[string]string{"scope": "admin"}, "authorization", "Bearer "+fresh()), codes.PermissionDenied, 403, `scope="admin"`},
	} {
		for range 2 { // the second time by what is remembered of the token
			got, err := f.envoy.Check(t.Context(), tt.req)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			refusal := got.GetDeniedResponse()
			if codes.Code(got.GetStatus().GetCode()) != tt.code || int32(refusal.GetStatus().GetCode()) != tt.http {
				t.Errorf("%s: %v, HTTP %v", name, codes.Code(got.GetStatus().GetCode()), refusal.GetStatus().GetCode())
			}
			if challenge := headersOf(refusal.GetHeaders())["www-authenticate"]; !strings.Contains(challenge, tt.challenge) || (tt.challenge == "") != (challenge == "") {
				t.Errorf("%s: challenge %q", name, challenge)
			}
			if (tt.code == codes.OK) != (got.GetOkResponse() != nil) {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
	if log := f.Log.String(); strings.Contains(log, good[20:60]) {
		t.Error("a token is in the log")
	}
}

func TestCheckDoesNotChangeFacts(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{Claims: []string{"aud", "scope", "nested"}})
	token := f.Token(apitest.ManyFacts())
	f.ExpectUnchangedFacts(t, token, apitest.Audience)
	for _, scope := range []string{"read", "write admin", "none"} {
		if _, err := f.envoy.Check(t.Context(), checkRequest("/", map[string]string{"scope": scope}, "authorization", "Bearer "+token)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEveryIdentityHeaderIsReplacedOrRemoved(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{Claims: []string{"tenant", "absent"}})
	for _, claims := range []map[string]any{{"tenant": map[string]any{"id": 7}}, {"client_id": nil, "scope": nil}} {
		got, err := f.envoy.Check(t.Context(), checkRequest("/", nil, "authorization", "Bearer "+f.Token(claims)))
		if err != nil {
			t.Fatal(err)
		}
		var named []string
		for _, option := range got.GetOkResponse().GetHeaders() {
			if option.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD || option.GetHeader().GetValue() == "" {
				t.Errorf("%v", option)
			}
			named = append(named, option.GetHeader().GetKey())
		}
		named = append(named, got.GetOkResponse().GetHeadersToRemove()...)
		slices.Sort(named)
		if want := []string{"x-auth-actor", "x-auth-client-id", "x-auth-issuer", "x-auth-scope", "x-auth-subject", "x-auth-subject-type"}; !slices.Equal(named, want) {
			t.Errorf("%v, want %v", named, want)
		}
		metadata := got.GetDynamicMetadata().AsMap()
		if metadata["sub"] != "user-1" || metadata["iss"] != apitest.Issuer || (claims["tenant"] != nil) != (metadata["tenant"] != nil) || metadata["absent"] != nil {
			t.Errorf("metadata: %v", metadata)
		}
	}
}

// Envoy is told to remove every spelling that a service might take for an identity
// header, as the request has it.
func TestOtherSpellingsOfIdentityHeadersAreRemoved(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{})
	spellings := []string{"x_auth_subject", "x-auth_subject", "x_auth-subject", "x.auth.subject", "x!auth~subject", "x-auth-client_id", "x+auth+client+id", "x_auth_scope", "x-auth_issuer", "x|auth-issuer", "x_auth_actor", "x-auth.actor"}
	harmless := []string{"x-auth-subject-", "xauthsubject", "x-auth-subjects", "x-auth--subject", "x_request_id", "x-auth-subj_ct", "authorization", "accept"}
	req := checkRequest("/", nil, "authorization", "Bearer "+f.Token(nil), "accept", "*/*")
	for _, name := range slices.Concat(spellings, harmless[:6]) {
		req.GetAttributes().GetRequest().GetHttp().Headers[name] = "root"
	}
	got, err := f.envoy.Check(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	removed := slices.Sorted(slices.Values(got.GetOkResponse().GetHeadersToRemove()))
	// The reserved header is removed from every request: no token has an actor.
	if want := slices.Sorted(slices.Values(append(spellings, "x-auth-actor"))); !slices.Equal(removed, want) {
		t.Errorf("removed: %v, want %v", removed, want)
	}
	// Envoy sends headers as they are on the wire if it is configured to.
	raw := checkRequest("/", nil)
	http := raw.GetAttributes().GetRequest().GetHttp()
	http.Headers = nil
	http.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "authorization", RawValue: []byte("Bearer " + f.Token(nil))}, {Key: "x_auth_subject", RawValue: []byte("root")}}}
	if got, err = f.envoy.Check(t.Context(), raw); err != nil || !slices.Equal(got.GetOkResponse().GetHeadersToRemove(), []string{"x-auth-actor", "x_auth_subject"}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestRulesSetRequirements(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{Rules: []gateway.Rule{
		{Host: "other.example.com", Needs: verify.Request{}},
		{Path: "/admin/", Needs: verify.Request{Scopes: []string{"admin"}}},
		{Host: "*.example.com", Path: "/orders/", Needs: verify.Request{Scopes: []string{"read"}}},
		{Path: "/exact", Needs: verify.Request{Scopes: []string{"read"}}},
	}})
	for path, want := range map[string]codes.Code{
		"/orders/7?x=/../admin/": codes.OK, "/orders": codes.OK, "/orders/": codes.OK, "/exact": codes.OK, "/order%73/7": codes.OK, "/orders/caf%C3%A9": codes.OK,
		"/admin/": codes.PermissionDenied, "/admin": codes.PermissionDenied, "/%61dmin/x": codes.PermissionDenied,
		"/orders/../admin/x": codes.PermissionDenied, "/orders/%2e%2e/admin": codes.PermissionDenied, "/orders%2f7": codes.PermissionDenied, "//orders/7": codes.PermissionDenied,
		"/orders/..%5cadmin": codes.PermissionDenied, "/orders/%252e%252e/admin": codes.PermissionDenied, "/orders/..;/admin": codes.PermissionDenied, "/exact/": codes.PermissionDenied,
		"/ordersx": codes.PermissionDenied, "/orders/%zz": codes.PermissionDenied, "orders/": codes.PermissionDenied, "/": codes.PermissionDenied,
	} {
		token := "Bearer " + f.Token(nil)
		for range 2 { // the second time by what is remembered of the token
			got, err := f.envoy.Check(t.Context(), checkRequest(path, nil, "authorization", token))
			if err != nil || codes.Code(got.GetStatus().GetCode()) != want {
				t.Errorf("%s: %v, %v; want %v", path, got.GetStatus().GetCode(), err, want)
			}
		}
	}
	odd, err := f.envoy.Check(t.Context(), checkRequest("/", map[string]string{"scope": "read"}, "authorization", "Bearer "+f.Token(nil)))
	if err != nil || codes.Code(odd.GetStatus().GetCode()) != codes.OK {
		t.Errorf("the route says it itself: %v %v", odd, err)
	}
}

func TestUnclearPathReachesNoLaterRule(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{Rules: []gateway.Rule{
		{Path: "/admin/", Needs: verify.Request{Scopes: []string{"admin"}}}, {Needs: verify.Request{Scopes: []string{"read"}}},
	}})
	for path, want := range map[string]codes.Code{"/x": codes.OK, "//admin/": codes.PermissionDenied, "/x/../admin/": codes.PermissionDenied} {
		got, err := f.envoy.Check(t.Context(), checkRequest(path, nil, "authorization", "Bearer "+f.Token(nil)))
		if err != nil || codes.Code(got.GetStatus().GetCode()) != want {
			t.Errorf("%s: %v %v, want %v", path, got.GetStatus().GetCode(), err, want)
		}
	}
}

func TestFailureIsNoDenial(t *testing.T) {
	down := apitest.New(t, func(idp *devidp.Server) { idp.SetDown(true) })
	req := checkRequest("/", nil, "authorization", "Bearer "+down.Token(nil))
	f := serve(t, down, apitest.Gate, extauthz.Config{})
	if _, err := f.envoy.Check(t.Context(), req); status.Code(err) != codes.Unavailable {
		t.Errorf("as an error: %v", err)
	}
	f = serve(t, down, apitest.Gate, extauthz.Config{Undecided: gateway.AsErrorResponse})
	got, err := f.envoy.Check(t.Context(), req)
	if err != nil || got.GetErrorResponse().GetStatus().GetCode() != 503 || got.GetStatus().GetCode() == 0 {
		t.Errorf("as an error response: %v %v", got, err)
	}
	f = serve(t, down, apitest.Gate, extauthz.Config{Undecided: gateway.AsDenial})
	got, err = f.envoy.Check(t.Context(), req)
	// The pause before the next request for the issuer's keys is drawn at random from about 1 s.
	retryAfter := headersOf(got.GetDeniedResponse().GetHeaders())["retry-after"]
	if err != nil || got.GetDeniedResponse().GetStatus().GetCode() != 503 || retryAfter != "1" && retryAfter != "2" {
		t.Errorf("as a denial: %v %v", got, err)
	}
}

func TestGatewayIsIdentifiedByItsConnection(t *testing.T) {
	f := serve(t, apitest.New(t), "", extauthz.Config{})
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+f.CallerJWT(apitest.Shop))
	_, err := f.envoy.Check(ctx, checkRequest("/", nil, "authorization", "Bearer "+f.Token(nil)))
	if status.Code(err) != codes.Unauthenticated || !strings.Contains(err.Error(), "a gateway must connect with") {
		t.Errorf("a JWT of a caller: %v", err)
	}
	idle := serve(t, f.Fixture, apitest.Idle, extauthz.Config{})
	if _, err := idle.envoy.Check(t.Context(), checkRequest("/", nil, "authorization", "Bearer "+f.Token(nil))); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a gateway that may not ask: %v", err)
	}
}

func TestClientIsNoSubjectForServices(t *testing.T) {
	f := serve(t, apitest.New(t), apitest.Gate, extauthz.Config{})
	got, err := f.envoy.Check(t.Context(), checkRequest("/", nil, "authorization", "Bearer "+f.Token(map[string]any{"sub": nil, "client_id": "alice"})))
	if err != nil {
		t.Fatal(err)
	}
	headers := headersOf(got.GetOkResponse().GetHeaders())
	if headers["x-auth-subject-type"] != "client_id" || headers["x-auth-client-id"] != "alice" || !slices.Contains(got.GetOkResponse().GetHeadersToRemove(), "x-auth-subject") {
		t.Errorf("%v", got.GetOkResponse())
	}
	metadata := got.GetDynamicMetadata().AsMap()
	if _, ok := metadata["sub"]; ok || metadata["subject_type"] != "client_id" || metadata["client_id"] != "alice" {
		t.Errorf("metadata: %v", metadata)
	}
}

// With several issuers of opaque tokens the rule says which one to ask, the route's
// context extension, or the listener.
func TestSeveralIssuersOfOpaqueTokens(t *testing.T) {
	a, b := apitest.OpaqueToken(apitest.OpaqueA), apitest.OpaqueToken(apitest.OpaqueB)
	rules := []gateway.Rule{{Path: "/a/", Needs: verify.Request{Issuer: apitest.OpaqueA}}, {}}
	for name, tt := range map[string]struct {
		listener, path, token string
		extensions            map[string]string
		want                  codes.Code
	}{
		"the rule says":                  {"", "/a/1", a, nil, codes.OK},
		"the rule names the other":       {"", "/a/1", b, nil, codes.Unauthenticated},
		"nobody says":                    {"", "/b", a, nil, codes.Unauthenticated},
		"the extension says":             {"", "/b", b, map[string]string{"issuer": apitest.OpaqueB}, codes.OK},
		"the listener says":              {apitest.OpaqueB, "/b", b, nil, codes.OK},
		"the listener names the other":   {apitest.OpaqueB, "/b", a, nil, codes.Unauthenticated},
		"the rule goes before":           {apitest.OpaqueB, "/a/1", a, nil, codes.OK},
		"the request says, in its query": {"", "/b?issuer=" + apitest.OpaqueA, a, nil, codes.Unauthenticated},
	} {
		t.Run(name, func(t *testing.T) {
			fixture := apitest.NewOpaque(t)
			fixture.OpaqueIssuer = tt.listener
			f := serve(t, fixture, apitest.Gate, extauthz.Config{Rules: rules})
			got, err := f.envoy.Check(t.Context(), checkRequest(tt.path, tt.extensions, "authorization", "Bearer "+tt.token))
			if err != nil || codes.Code(got.GetStatus().GetCode()) != tt.want {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
}
