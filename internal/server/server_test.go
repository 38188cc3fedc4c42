package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

const (
	issuer       = apitest.Issuer
	audience     = apitest.Audience
	secretCanary = apitest.SecretCanary
)

// api is a served broker and the IdP behind it.
type api struct {
	idp    *devidp.Server
	conn   *grpc.ClientConn
	api    tokenbrokerv1.TokenBrokerServiceClient
	server *server.Server
	log    *testkit.Log
	ended  chan error
}

// everybody is a caller who may everything.
func everybody() *policy.Policy {
	return allowing(policy.CallerConfig{Name: "everybody"})
}

// allowing lets the callers do everything.
func allowing(callers ...policy.CallerConfig) *policy.Policy {
	for i := range callers {
		callers[i].Roles = []string{"all"}
	}
	all := []string{policy.Any}
	return policy.New(policy.Config{
		Callers: callers,
		Roles: map[string]policy.Role{"all": {
			Get:    []policy.GetGrant{{Client: policy.Any, Audiences: all, Resources: all, Scopes: all}},
			Verify: []policy.VerifyGrant{{Issuer: policy.Any, Audiences: all}},
			Admin:  []policy.AdminGrant{{Actions: []policy.Action{policy.AnyAction}}},
		}},
		Clients: map[string]policy.Defaults{"orders": {}},
		Issuers: map[string][]string{issuer: {audience}},
	})
}

func serve(t *testing.T) *api {
	t.Helper()
	return serveFixture(t, apitest.NewFor(t, everybody()))
}

func serveFixture(t *testing.T, fixture *apitest.Fixture) *api {
	t.Helper()
	f := &api{idp: fixture.IdP, log: fixture.Log}
	f.open(t, server.Config{Broker: fixture.Broker, Bound: caller.Bound{TCP: "everybody"}, Logger: fixture.Logger, Reflection: true})
	return f
}

func (f *api) open(t *testing.T, cfg server.Config) {
	t.Helper()
	f.server = server.New(cfg)
	listener := bufconn.Listen(1 << 20)
	f.ended = make(chan error, 1)
	go func() { f.ended <- f.server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///broker",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	f.conn, f.api = conn, tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	t.Cleanup(func() { _ = conn.Close(); f.server.Shutdown(0, time.Second) })
}

func detail[T any](err error) (found T) {
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(T); ok {
			return d
		}
	}
	return found
}

func TestGetToken_secondCallIsAHit(t *testing.T) {
	f := serve(t)
	for _, origin := range []tokenbrokerv1.TokenOrigin{tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_FETCHED, tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_MEMORY} {
		resp, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
		if err != nil {
			t.Fatal(err)
		}
		life := time.Until(resp.GetExpiresAt().AsTime())
		if resp.GetAccessToken() == "" || resp.GetTokenType() != "Bearer" || resp.GetOrigin() != origin || life < 59*time.Minute ||
			!resp.GetRefreshAt().AsTime().Before(resp.GetExpiresAt().AsTime()) || strings.Join(resp.GetScopes(), " ") != "read write" {
			t.Errorf("origin %v, life %v, scopes %v, type %q, refresh at %v", resp.GetOrigin(), life, resp.GetScopes(), resp.GetTokenType(), resp.GetRefreshAt().AsTime())
		}
	}
}

func TestVerifyToken(t *testing.T) {
	f := serve(t)
	got, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	good, err := f.api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: got.GetAccessToken(), RequiredScopes: []string{"read"}})
	if err != nil {
		t.Fatal(err)
	}
	if !good.GetActive() || good.GetIssuer() != issuer || good.GetSubject() != "abc" || good.GetRejection() != nil || !bytes.Contains(good.GetClaimsJson(), []byte(`"scope"`)) {
		t.Errorf("answer: active %v, issuer %q, subject %q, rejection %v", good.GetActive(), good.GetIssuer(), good.GetSubject(), good.GetRejection())
	}
	bad, err := f.api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: got.GetAccessToken(), RequiredScopes: []string{"admin"}})
	if err != nil {
		t.Fatal(err)
	}
	if bad.GetActive() || bad.GetRejection().GetReason() != tokenbrokerv1.RejectionReason_REJECTION_REASON_INSUFFICIENT_SCOPE || bad.GetSubject() != "" {
		t.Errorf("a missing scope: active %v, %v", bad.GetActive(), bad.GetRejection())
	}
}

func TestVerifyTokenDoesNotChangeFacts(t *testing.T) {
	fixture := apitest.NewFor(t, everybody())
	f, token := serveFixture(t, fixture), fixture.Token(apitest.ManyFacts())
	fixture.ExpectUnchangedFacts(t, token, apitest.Audience)
	for _, scope := range []string{"read", "none"} {
		request := &tokenbrokerv1.VerifyTokenRequest{Token: token, Audiences: []string{apitest.Audience}, RequiredScopes: []string{scope}}
		if _, err := f.api.VerifyToken(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUnavailableKeysAreNoRejection(t *testing.T) {
	f := serveFixture(t, apitest.NewFor(t, everybody(), func(idp *devidp.Server) { idp.SetDown(true) }))
	presented := f.idp.Mint(map[string]any{"iss": issuer, "sub": "x", "aud": audience, "exp": time.Now().Add(time.Hour).Unix()})
	_, err := f.api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: presented.Reveal()})
	if status.Code(err) != codes.Unavailable || detail[*errdetails.ErrorInfo](err).GetReason() != apierror.ReasonKeysUnavailable {
		t.Errorf("error = %v", err)
	}
}

func TestErrorsCarryTheirDetails(t *testing.T) {
	f := serve(t)
	f.idp.FailNext(1, 429, "", map[string][]string{"Retry-After": {"17"}})
	_, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	info := detail[*errdetails.ErrorInfo](err)
	if status.Code(err) != codes.ResourceExhausted || info.GetReason() != apierror.ReasonIdPThrottled || info.GetDomain() != "tokenbroker" || info.GetMetadata()["client"] != "orders" {
		t.Errorf("error = %v, info = %v", err, info)
	}
	if wait := detail[*errdetails.RetryInfo](err).GetRetryDelay().AsDuration(); wait > 17*time.Second || wait < 10*time.Second {
		t.Errorf("RetryInfo says %v", wait)
	}
	_, err = f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "nobody"})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("an unknown client: %v", err)
	}
}

func subject(token, kind string) *tokenbrokerv1.GetTokenRequest {
	return &tokenbrokerv1.GetTokenRequest{ClientName: "orders", Subject: &tokenbrokerv1.Subject{Token: token, TokenType: kind}}
}

func TestMalformedRequestsNameTheField(t *testing.T) {
	f := serve(t)
	long := strings.Repeat("x", 513)
	many := func(n int) []string { return strings.Split(strings.Repeat("x ", n-1)+"x", " ") }
	withUnknown := &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}
	withUnknown.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1))
	for name, tt := range map[string]struct {
		req   proto.Message
		field string
	}{
		"no client":              {&tokenbrokerv1.GetTokenRequest{}, "client_name"},
		"long client":            {&tokenbrokerv1.GetTokenRequest{ClientName: long}, "client_name"},
		"odd client":             {&tokenbrokerv1.GetTokenRequest{ClientName: "a b"}, "client_name"},
		"long audience":          {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Audience: long}, "audience"},
		"control character":      {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Audience: "a\nb"}, "audience"},
		"many resources":         {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Resources: many(9)}, "resources"},
		"empty resource":         {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Resources: []string{""}}, "resources"},
		"many scopes":            {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: many(65)}, "scopes"},
		"scopes in one":          {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{"read write"}}, "scopes"},
		"empty scope":            {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{""}}, "scopes"},
		"long scope":             {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{strings.Repeat("x", 257)}}, "scopes"},
		"negative min_ttl":       {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", MinTtl: durationpb.New(-1)}, "min_ttl"},
		"endless min_ttl":        {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", MinTtl: durationpb.New(25 * time.Hour)}, "min_ttl"},
		"unsound min_ttl":        {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", MinTtl: &durationpb.Duration{Seconds: 1, Nanos: -1}}, "min_ttl"},
		"short hash":             {&tokenbrokerv1.GetTokenRequest{ClientName: "orders", RejectedTokenSha256: make([]byte, 31)}, "rejected_token_sha256"},
		"unknown field":          {withUnknown, "request"},
		"empty subject":          {subject("", ""), "subject.token"},
		"subject with Bearer":    {subject("Bearer a.b.c", ""), "subject.token"},
		"subject with a break":   {subject("a.b.c\n", ""), "subject.token"},
		"subject beyond ASCII":   {subject("a.b.\u00e9", ""), "subject.token"},
		"refresh token":          {subject("a", "urn:ietf:params:oauth:token-type:refresh_token"), "subject.token_type"},
		"SAML assertion":         {subject("a", "urn:ietf:params:oauth:token-type:saml2"), "subject.token_type"},
		"unknown token type":     {subject("a", "access_token"), "subject.token_type"},
		"no token":               {&tokenbrokerv1.VerifyTokenRequest{}, "token"},
		"many audiences":         {&tokenbrokerv1.VerifyTokenRequest{Token: "x", Audiences: many(17)}, "audiences"},
		"empty audience":         {&tokenbrokerv1.VerifyTokenRequest{Token: "x", Audiences: []string{""}}, "audiences"},
		"required scopes in one": {&tokenbrokerv1.VerifyTokenRequest{Token: "x", RequiredScopes: []string{"a b"}}, "required_scopes"},
		"long issuer":            {&tokenbrokerv1.VerifyTokenRequest{Token: "x", Issuer: long}, "issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			switch req := tt.req.(type) {
			case *tokenbrokerv1.GetTokenRequest:
				_, err = f.api.GetToken(t.Context(), req)
			case *tokenbrokerv1.VerifyTokenRequest:
				_, err = f.api.VerifyToken(t.Context(), req)
			}
			violations := detail[*errdetails.BadRequest](err).GetFieldViolations()
			if status.Code(err) != codes.InvalidArgument || len(violations) != 1 || violations[0].GetField() != tt.field {
				t.Errorf("error = %v, violations = %v", err, violations)
			}
		})
	}
	if f.idp.Requests(devidp.TokenPath) != 0 {
		t.Error("a malformed request reached the IdP")
	}
}

func TestRejectedTokenIsReplaced(t *testing.T) {
	f := serve(t)
	first, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(first.GetAccessToken()))
	second, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders", RejectedTokenSha256: sum[:]})
	if err != nil || second.GetAccessToken() == first.GetAccessToken() {
		t.Errorf("the rejected token came back (%v)", err)
	}
}

func TestHealthOfEachServiceUntilShutdown(t *testing.T) {
	f := serve(t)
	health := healthpb.NewHealthClient(f.conn)
	for _, name := range []string{"", "tokenbroker.v1.TokenBrokerService", "tokenbroker.v1.AdminService"} {
		resp, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
		if err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v, %v", name, resp, err)
		}
	}
	watch, err := health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := watch.Recv(); err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Fatalf("watch: %v, %v", resp, err)
	}
	go f.server.Shutdown(100*time.Millisecond, time.Second)
	if resp, err := watch.Recv(); err != nil || resp.GetStatus() != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("at shutdown: %v, %v", resp, err)
	}
}

func TestShutdown_finishesCallsInProgress(t *testing.T) {
	f := serve(t)
	f.idp.SetDelay(300 * time.Millisecond)
	answered := make(chan error, 1)
	go func() {
		_, err := f.api.GetToken(context.Background(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
		answered <- err
	}()
	for f.idp.Requests(devidp.TokenPath) == 0 {
		select {
		case err := <-answered:
			t.Fatalf("answered early: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	f.server.Shutdown(0, 20*time.Second)
	if err := <-answered; err != nil {
		t.Errorf("the call in progress: %v", err)
	}
	if err := <-f.ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestPanicShowsTheCallerNothing(t *testing.T) {
	f := &api{log: &testkit.Log{}}
	f.open(t, server.Config{Bound: caller.Bound{TCP: "everybody"}, Logger: slog.New(slog.NewTextHandler(f.log, nil))}) // without a broker
	_, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	if told := status.Convert(err); told.Code() != codes.Internal || strings.Contains(told.Message(), "nil pointer") || strings.Contains(told.Message(), "goroutine") {
		t.Errorf("status = %v", told)
	}
	if !strings.Contains(f.log.String(), "a handler crashed") {
		t.Error("the crash is not in the log")
	}
}

func TestLogHasNoHitsAndNoSecrets(t *testing.T) {
	f := serve(t)
	var tokens []string
	get := func(req *tokenbrokerv1.GetTokenRequest) {
		if resp, err := f.api.GetToken(t.Context(), req); err == nil {
			tokens = append(tokens, resp.GetAccessToken())
		}
	}
	get(&tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	// The first fetch of the issuer's keys writes a line of its own.
	testkit.Eventually(t, "the issuer's keys are fetched", func() bool { return f.log.Contains("is trusted from now on") })
	before := f.log.String()
	for range 100 {
		get(&tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	}
	if f.log.String() != before {
		t.Errorf("hits are logged: %s", f.log.String()[len(before):])
	}
	// Every kind of failure, with a secret in its way.
	get(&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{"unknown"}})
	f.idp.SetSecrets("abc", redact.New("another"))
	get(&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Audience: "https://other.example.com"})
	f.idp.SetDown(true)
	get(&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{"read"}})
	for _, req := range []*tokenbrokerv1.VerifyTokenRequest{{Token: tokens[0]}, {Token: tokens[0] + "x"}, {Token: tokens[0], Audiences: []string{"other"}}} {
		_, _ = f.api.VerifyToken(t.Context(), req)
	}
	_, err := f.api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: tokens[0], Issuer: strings.Repeat("x", 600)})
	if err == nil {
		t.Error("a malformed request was answered")
	}
	out := f.log.String()
	if !strings.Contains(out, "call failed") || !strings.Contains(out, "no token from the IdP") {
		t.Fatal("failures are not in the log; the test does not test what it should")
	}
	signature := tokens[0][strings.LastIndexByte(tokens[0], '.')+1:]
	for name, canary := range map[string]string{"secret": secretCanary, "token": tokens[0][:40], "signature": signature} {
		if strings.Contains(out, canary) {
			t.Errorf("the log shows the %s", name)
		}
	}
}

func TestFailuresAreLoggedInFewLines(t *testing.T) {
	f := serve(t)
	for range 500 {
		_, _ = f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "nobody"})
	}
	if lines := strings.Count(f.log.String(), "call failed"); lines == 0 || lines > 100 {
		t.Errorf("500 failures wrote %d lines", lines)
	}
}

func TestOversizedMessageIsRefused(t *testing.T) {
	f := serve(t)
	_, err := f.api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: strings.Repeat("x", 1<<20)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("error = %v", err)
	}
}

func TestWarmCallAllocatesLittle(t *testing.T) {
	handler := server.Handler(apitest.NewFor(t, everybody()).Broker)
	req := &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}
	ctx := server.From(context.Background(), everybody().Named("everybody"))
	if _, err := handler.GetToken(ctx, req); err != nil {
		t.Fatal(err)
	}
	allocs := testing.AllocsPerRun(1000, func() { _, _ = handler.GetToken(ctx, req) })
	if allocs > 3 {
		t.Errorf("%v allocations", allocs)
	}
	t.Logf("%v allocations", allocs)
}
