package server_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/server"
)

type tokenStream = grpc.ServerStreamingClient[tokenbrokerv1.WatchTokenResponse]

// watch opens a watch and receives its first token.
func (f *api) watch(ctx context.Context, t *testing.T) (tokenStream, *tokenbrokerv1.GetTokenResponse) {
	t.Helper()
	stream, err := f.api.WatchToken(ctx, &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	return stream, next(t, stream)
}

func next(t *testing.T, stream tokenStream) *tokenbrokerv1.GetTokenResponse {
	t.Helper()
	got, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return got.GetToken()
}

func TestWatch_sendsEachToken(t *testing.T) {
	f := serve(t)
	stream, first := f.watch(t.Context(), t)
	if first.GetAccessToken() == "" || first.GetTokenType() != "Bearer" || first.GetExpiresAt() == nil || first.GetRefreshAt() == nil {
		t.Errorf("incomplete: type %q, expires %v", first.GetTokenType(), first.GetExpiresAt())
	}
	admin := tokenbrokerv1.NewAdminServiceClient(f.conn)
	if _, err := admin.PurgeTokens(t.Context(), &tokenbrokerv1.PurgeTokensRequest{ClientName: "orders", RequestId: "1"}); err != nil {
		t.Fatal(err)
	}
	if second := next(t, stream); second.GetAccessToken() == first.GetAccessToken() {
		t.Error("the purged token came again")
	}
}

func TestWatch_isAuthorized(t *testing.T) {
	f := serve(t)
	for name, test := range map[string]struct {
		req  *tokenbrokerv1.WatchTokenRequest
		code codes.Code
	}{
		"no client":      {&tokenbrokerv1.WatchTokenRequest{}, codes.InvalidArgument},
		"unknown client": {&tokenbrokerv1.WatchTokenRequest{ClientName: "zebra"}, codes.PermissionDenied},
		"bad scope":      {&tokenbrokerv1.WatchTokenRequest{ClientName: "orders", Scopes: []string{"a b"}}, codes.InvalidArgument},
		"refused scope":  {&tokenbrokerv1.WatchTokenRequest{ClientName: "orders", Scopes: []string{"zebra"}}, codes.FailedPrecondition},
	} {
		stream, err := f.api.WatchToken(t.Context(), test.req)
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != test.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWatch_refusesASubject(t *testing.T) {
	f := serve(t)
	stream, err := f.api.WatchToken(t.Context(), &tokenbrokerv1.WatchTokenRequest{ClientName: "orders", Subject: &tokenbrokerv1.Subject{Token: "canary-subject"}})
	if err == nil {
		_, err = stream.Recv()
	}
	violations := detail[*errdetails.BadRequest](err).GetFieldViolations()
	if status.Code(err) != codes.InvalidArgument || len(violations) != 1 || violations[0].GetField() != "subject" || !strings.Contains(status.Convert(err).Message(), "call GetToken with the subject") {
		t.Errorf("error = %v, violations = %v", err, violations)
	}
	if text := fmt.Sprint(err) + f.log.String(); strings.Contains(text, "canary-subject") {
		t.Errorf("the subject token is in the error or the log: %s", text)
	}
}

func TestWatchesLeaveRoomForOtherCalls(t *testing.T) {
	fixture := apitest.NewFor(t, everybody())
	f := &api{idp: fixture.IdP, log: fixture.Log}
	f.open(t, server.Config{Broker: fixture.Broker, Bound: caller.Bound{TCP: "everybody"}, Logger: fixture.Logger, Limits: caller.Limits{Streams: 4}})
	leaving, leave := context.WithCancel(t.Context())
	first, _ := f.watch(leaving, t)
	f.watch(t.Context(), t)

	third, err := f.api.WatchToken(t.Context(), &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"})
	if err == nil {
		_, err = third.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted || detail[*errdetails.RetryInfo](err) == nil || detail[*errdetails.ErrorInfo](err).GetReason() != "TOO_MANY_WATCHES" {
		t.Errorf("a third watch on a connection of 4 streams: %v", err)
	}
	if _, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}); err != nil {
		t.Errorf("a call beside the watches: %v", err)
	}
	leave()
	for err = error(nil); err == nil; {
		_, err = first.Recv()
	}
	// The server may still be about to notice.
	for range 1000 {
		again, err := f.api.WatchToken(t.Context(), &tokenbrokerv1.WatchTokenRequest{ClientName: "orders"})
		if err == nil {
			_, err = again.Recv()
		}
		if err == nil {
			return
		}
	}
	t.Error("the place of a watch that ended is not free again")
}

func TestDrain_endsWatches(t *testing.T) {
	f := serve(t)
	stream, _ := f.watch(t.Context(), t)
	ended := make(chan struct{})
	go func() { defer close(ended); f.server.Shutdown(0, time.Minute) }()
	_, err := stream.Recv()
	if status.Code(err) != codes.Unavailable || detail[*errdetails.ErrorInfo](err).GetReason() != "SHUTTING_DOWN" {
		t.Errorf("the watch ended with %v", err)
	}
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Error("a watch held up the shutdown")
	}
}

func TestPurge_invalidRequests(t *testing.T) {
	f := serve(t)
	admin := tokenbrokerv1.NewAdminServiceClient(f.conn)
	for name, test := range map[string]struct {
		req  *tokenbrokerv1.PurgeTokensRequest
		code codes.Code
		says string
	}{
		"no client":       {&tokenbrokerv1.PurgeTokensRequest{RequestId: "1"}, codes.InvalidArgument, "client_name"},
		"no request id":   {&tokenbrokerv1.PurgeTokensRequest{ClientName: "orders"}, codes.InvalidArgument, "request_id"},
		"long request id": {&tokenbrokerv1.PurgeTokensRequest{ClientName: "orders", RequestId: strings.Repeat("x", 65)}, codes.InvalidArgument, "request_id"},
		"long reason":     {&tokenbrokerv1.PurgeTokensRequest{ClientName: "orders", RequestId: "1", Reason: strings.Repeat("x", 257)}, codes.InvalidArgument, "reason"},
		"unknown client":  {&tokenbrokerv1.PurgeTokensRequest{ClientName: "zebra", RequestId: "1"}, codes.PermissionDenied, "zebra"},
	} {
		_, err := admin.PurgeTokens(t.Context(), test.req)
		if status.Code(err) != test.code || !strings.Contains(status.Convert(err).Message(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
