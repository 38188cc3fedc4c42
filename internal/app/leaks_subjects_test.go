package app_test

import (
	"maps"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/grpc/codes"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
)

// leaksBehalf is the client that exchanges tokens of users.
const leaksBehalf = "behalf"

// user makes a subject token.
func (l *leaks) user(changes map[string]any) string {
	claims := map[string]any{
		"iss": l.issuer, "sub": "alice", "client_id": "web", "aud": "bff", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "jti": redacttest.Canary("jti"),
	}
	maps.Copy(claims, changes)
	return l.token("subject token", l.idp.Mint(claims).Reveal())
}

// exchangeTokens exchanges tokens of users, well and badly, with both APIs.
func (l *leaks) exchangeTokens(api tokenbrokerv1.TokenBrokerServiceClient, robot string) {
	l.t.Helper()
	opaque := l.token("subject token", l.idp.MintOpaque(map[string]any{
		"iss": l.issuer, "sub": "bob", "client_id": "web", "aud": "bff", "token_type": "Bearer", "exp": time.Now().Add(time.Hour).Unix(),
	}).Reveal())
	for _, tt := range []struct {
		audience, token, kind string
		want                  codes.Code
		status                int
	}{
		{"", l.user(nil), "", codes.OK, 200},
		{"", opaque, "", codes.OK, 200},
		{leaksJSON, l.user(nil), "", codes.FailedPrecondition, 502},
		{leaksDescription, l.user(nil), "", codes.FailedPrecondition, 400},
		{leaksHTML, l.user(nil), "", codes.Unavailable, 503},
		{leaksBroken, l.user(nil), "", codes.Unavailable, 503},
		{leaksRedirect, l.user(nil), "", codes.FailedPrecondition, 502},
		{leaksHangUp, l.user(nil), "", codes.Unavailable, 503},
		{leaksPanic, l.user(nil), "", codes.Internal, 500},
		{"", l.user(map[string]any{"aud": "another"}), "", codes.InvalidArgument, 400},
		{"", l.user(map[string]any{"exp": 1}), "", codes.InvalidArgument, 400},
		{"", l.user(nil), idp.TypeIDToken, codes.InvalidArgument, 400},
		{"", l.user(nil), l.secret("type of a subject token"), codes.InvalidArgument, 400},
		{"", l.user(nil) + " " + l.user(nil), "", codes.InvalidArgument, 400},
		{"", l.junk(), "", codes.InvalidArgument, 400},
		{"", l.token("subject token", "opaque-"+redacttest.Canary("unknown")), "", codes.InvalidArgument, 400},
		{"", l.secrets["opaque token that is echoed"][0], "", codes.Unavailable, 503},
	} {
		response, err := api.GetToken(l.as(robot), &tokenbrokerv1.GetTokenRequest{ClientName: leaksBehalf, Audience: tt.audience, Subject: &tokenbrokerv1.Subject{Token: tt.token, TokenType: tt.kind}})
		l.expect("GetToken with a subject", err, tt.want)
		if err == nil {
			l.token("token that was given", response.GetAccessToken())
		}
		form := url.Values{
			"grant_type": {idp.TokenExchange}, "client_id": {leaksBehalf}, "audience": {tt.audience}, "subject_token": {tt.token}, "subject_token_type": {tt.kind},
		}
		if tt.kind == "" {
			form.Set("subject_token_type", idp.TypeAccessToken)
		}
		header := bearerOf(robot)
		header.Set("Content-Type", "application/x-www-form-urlencoded")
		if status, _ := l.askHTTP(l.apis.anybody, http.MethodPost, "/oauth2/token", header, form.Encode()); status != tt.status {
			l.t.Errorf("/oauth2/token with a subject for %q: %d, want %d", tt.audience, status, tt.status)
		}
	}
	stream, err := api.WatchToken(l.as(robot), &tokenbrokerv1.WatchTokenRequest{ClientName: leaksBehalf, Subject: &tokenbrokerv1.Subject{Token: l.user(nil)}})
	if err == nil {
		_, err = stream.Recv()
	}
	l.expect("WatchToken with a subject", err, codes.InvalidArgument)
}
