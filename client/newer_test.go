package client_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Enum values that a newer broker added become "unknown", not a number.
func TestEnumValuesOfANewerBrokerAreUnknown(t *testing.T) {
	s := &stub{
		get: func(context.Context, *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
			token := newTokenResponse("token", time.Hour)
			token.Origin = 99
			return token, nil
		},
		verify: func(_ context.Context, req *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
			if req.GetToken() == "bad" {
				return &tokenbrokerv1.VerifyTokenResponse{Rejection: &tokenbrokerv1.Rejection{Reason: 99, Message: "The moon is full."}}, nil
			}
			return &tokenbrokerv1.VerifyTokenResponse{
				Active: true, Subject: "alice", SubjectType: 99, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
			}, nil
		},
	}
	c := s.serve(t)
	if token, err := c.Token(t.Context(), name); err != nil || token.Origin() != "unknown" {
		t.Errorf("origin %q, %v", token.Origin(), err)
	}
	if _, err := c.Verify(t.Context(), "bad"); reasonOf(err) != client.ReasonUnknown || !strings.Contains(err.Error(), "The moon is full.") {
		t.Errorf("rejection: %v", err)
	}
	if claims, err := c.Verify(t.Context(), "good"); err != nil || claims.SubjectType != client.SubjectUnknown || claims.Subject != "" {
		t.Errorf("a subject of an unknown type is taken for another: %+v, %v", claims, err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer bad")
	w := httptest.NewRecorder()
	client.HTTPMiddleware(c.Verifier())(http.HandlerFunc(greet)).ServeHTTP(w, r)
	if challenge := w.Header().Get("WWW-Authenticate"); w.Code != http.StatusUnauthorized || !strings.Contains(challenge, `error="invalid_token"`) {
		t.Errorf("%d, %q", w.Code, challenge)
	}
}

func TestBrokerJudgesTheSizeOfTokens(t *testing.T) {
	var sizes []int
	s := &stub{verify: func(_ context.Context, req *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
		sizes = append(sizes, len(req.GetToken()))
		return &tokenbrokerv1.VerifyTokenResponse{Active: true, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour))}, nil
	}}
	v := s.serve(t).Verifier()
	for _, size := range []int{8<<10 + 1, 64 << 10} {
		if _, err := v.Verify(t.Context(), strings.Repeat("a", size)); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if _, err := v.Verify(t.Context(), strings.Repeat("a", 64<<10+1)); reasonOf(err) != client.ReasonMalformed || len(sizes) != 2 {
		t.Errorf("more than 64 KiB: %v; sent: %v", err, sizes)
	}
}

func TestReasonNamesMatchTheAPI(t *testing.T) {
	var reason tokenbrokerv1.RejectionReason
	s := &stub{verify: func(context.Context, *tokenbrokerv1.VerifyTokenRequest) (*tokenbrokerv1.VerifyTokenResponse, error) {
		return &tokenbrokerv1.VerifyTokenResponse{Rejection: &tokenbrokerv1.Rejection{Reason: reason}}, nil
	}}
	c := s.serve(t)
	for number, enumName := range tokenbrokerv1.RejectionReason_name {
		want := client.Reason(strings.ToLower(strings.TrimPrefix(enumName, "REJECTION_REASON_")))
		if number == 0 {
			want = client.ReasonUnknown
		}
		reason = tokenbrokerv1.RejectionReason(number)
		if _, err := c.Verify(t.Context(), "token"); reasonOf(err) != want {
			t.Errorf("%s: %v, want %s", enumName, err, want)
		}
	}
}
