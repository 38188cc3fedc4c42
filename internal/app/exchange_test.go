package app_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// TestExchange_throughTheAPI exchanges the token of a user with a configured broker.
func TestExchange_throughTheAPI(t *testing.T) {
	idp, err := devidp.New(devidp.Config{Issuer: idpIssuer, Algorithm: "ES256", Clients: []devidp.Client{{
		ID: "obo", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read"}, Audiences: []string{"https://orders.example.com"},
		Exchange: &devidp.Exchange{SubjectAudiences: []string{"https://bff.example.com"}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	r := startReloadable(t, idp, `
clients:
  orders: {issuer: "`+idpIssuer+`", client_id: obo, secret: "file:SECRET", audience: "https://orders.example.com", scopes: [read], exchange: {}}
issuers: [{issuer: "`+idpIssuer+`", audiences: ["https://bff.example.com"]}]
callers: [{name: everybody, roles: [all]}]
roles: {all: {exchange: [{client: orders, from: {issuers: ["`+idpIssuer+`"], audiences: ["https://bff.example.com"]}}]}}
`)
	conn, err := grpc.NewClient(r.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	user := func(audience string) string {
		now := time.Now().Unix()
		return idp.Mint(map[string]any{"iss": idpIssuer, "sub": "alice", "client_id": "web", "aud": audience, "iat": now, "exp": now + 600}).Reveal()
	}
	token, foreign := user("https://bff.example.com"), user("https://other.example.com")
	for n, origin := range []tokenbrokerv1.TokenOrigin{tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_FETCHED, tokenbrokerv1.TokenOrigin_TOKEN_ORIGIN_MEMORY} {
		got, err := api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders", Subject: &tokenbrokerv1.Subject{Token: token}})
		if err != nil {
			t.Fatal(err)
		}
		if got.GetOrigin() != origin || got.GetIssuedTokenType() != "urn:ietf:params:oauth:token-type:access_token" || got.GetAccessToken() == token || got.GetExpiresAt().AsTime().After(time.Now().Add(601*time.Second)) {
			t.Errorf("call %d: origin %v, type %q, expires %v", n, got.GetOrigin(), got.GetIssuedTokenType(), got.GetExpiresAt().AsTime())
		}
	}
	for name, tt := range map[string]struct {
		subject *tokenbrokerv1.Subject
		code    codes.Code
	}{
		"a token for another service": {&tokenbrokerv1.Subject{Token: foreign}, codes.InvalidArgument},
		"no subject":                  {nil, codes.PermissionDenied},
	} {
		if _, err := api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders", Subject: tt.subject}); status.Code(err) != tt.code || strings.Contains(err.Error(), foreign) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := idp.Requests(devidp.TokenPath); n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
	if r.log.Contains(token) || r.log.Contains(foreign) {
		t.Error("the log has a subject token")
	}
}
