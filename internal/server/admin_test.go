package server_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

func inAnHour() *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(time.Hour)) }

func TestRevocation_untilDeleted(t *testing.T) {
	f := serve(t)
	admin := tokenbrokerv1.NewAdminServiceClient(f.conn)
	got, err := f.api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
	if err != nil {
		t.Fatal(err)
	}
	verify := func() *tokenbrokerv1.VerifyTokenResponse {
		t.Helper()
		resp, err := f.api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: got.GetAccessToken()})
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	good := verify()
	if !good.GetActive() {
		t.Fatalf("rejected before: %v", good.GetRejection())
	}
	made, err := admin.RevokeTokens(t.Context(), &tokenbrokerv1.RevokeTokensRequest{RequestId: "1", Revocation: &tokenbrokerv1.Revocation{
		Issuer: issuer, Target: &tokenbrokerv1.Revocation_Subject{Subject: good.GetSubject()}, ExpiresAt: inAnHour(), Reason: "left",
	}})
	if err != nil {
		t.Fatal(err)
	}
	if bad := verify(); bad.GetActive() || bad.GetRejection().GetReason() != tokenbrokerv1.RejectionReason_REJECTION_REASON_REVOKED || bad.GetSubject() != "" {
		t.Errorf("after the revocation: %v", bad)
	}
	list, err := admin.ListRevocations(t.Context(), &tokenbrokerv1.ListRevocationsRequest{Issuer: issuer})
	if err != nil || len(list.GetRevocations()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	listed := list.GetRevocations()[0]
	if listed.GetId() != made.GetRevocation().GetId() || listed.GetSubject() != good.GetSubject() || listed.GetReason() != "left" ||
		listed.GetIssuedBefore() != nil || listed.GetCreatedAt() == nil || listed.GetExpiresAt() == nil {
		t.Errorf("listed: %v", listed)
	}
	if _, err := admin.DeleteRevocation(t.Context(), &tokenbrokerv1.DeleteRevocationRequest{Id: listed.GetId(), RequestId: "2"}); err != nil {
		t.Fatal(err)
	}
	if again := verify(); !again.GetActive() {
		t.Errorf("after the end of the revocation: %v", again.GetRejection())
	}
	_, err = admin.DeleteRevocation(t.Context(), &tokenbrokerv1.DeleteRevocationRequest{Id: "zebra", RequestId: "3"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("deleting what is not there: %v", err)
	}
}

func TestListRevocations_pages(t *testing.T) {
	f := serve(t)
	admin := tokenbrokerv1.NewAdminServiceClient(f.conn)
	want := map[string]bool{}
	for id := range strings.FieldsSeq("a b c d e") {
		made, err := admin.RevokeTokens(t.Context(), &tokenbrokerv1.RevokeTokensRequest{RequestId: "1", Revocation: &tokenbrokerv1.Revocation{
			Issuer: issuer, Target: &tokenbrokerv1.Revocation_TokenId{TokenId: id}, ExpiresAt: inAnHour(),
		}})
		if err != nil {
			t.Fatal(err)
		}
		want[made.GetRevocation().GetId()] = true
	}
	pages, token := 0, ""
	for {
		page, err := admin.ListRevocations(t.Context(), &tokenbrokerv1.ListRevocationsRequest{PageSize: 2, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, one := range page.GetRevocations() {
			if !want[one.GetId()] {
				t.Errorf("%v came twice, or is none of ours", one)
			}
			delete(want, one.GetId())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if pages != 3 || len(want) != 0 {
		t.Errorf("%d pages, %d missing", pages, len(want))
	}
}

func TestRevoke_invalidRequests(t *testing.T) {
	f := serve(t)
	admin := tokenbrokerv1.NewAdminServiceClient(f.conn)
	subject := &tokenbrokerv1.Revocation_Subject{Subject: "a"}
	for name, test := range map[string]struct {
		revocation *tokenbrokerv1.Revocation
		request    string
		field      string
	}{
		"no request id":      {&tokenbrokerv1.Revocation{Issuer: issuer, Target: subject, ExpiresAt: inAnHour()}, "", "request_id"},
		"nothing":            {nil, "1", "revocation.issuer"},
		"no target":          {&tokenbrokerv1.Revocation{Issuer: issuer, ExpiresAt: inAnHour()}, "1", "revocation"},
		"all but not really": {&tokenbrokerv1.Revocation{Issuer: issuer, Target: &tokenbrokerv1.Revocation_All{}, ExpiresAt: inAnHour()}, "1", "revocation"},
		"control characters": {&tokenbrokerv1.Revocation{Issuer: issuer, Target: &tokenbrokerv1.Revocation_Subject{Subject: "a\x00"}, ExpiresAt: inAnHour()}, "1", "revocation.subject"},
		"no instant":         {&tokenbrokerv1.Revocation{Issuer: issuer, Target: subject, ExpiresAt: &timestamppb.Timestamp{Nanos: -1}}, "1", "revocation.expires_at"},
		"long reason":        {&tokenbrokerv1.Revocation{Issuer: issuer, Target: subject, ExpiresAt: inAnHour(), Reason: strings.Repeat("x", 257)}, "1", "revocation.reason"},
	} {
		_, err := admin.RevokeTokens(t.Context(), &tokenbrokerv1.RevokeTokensRequest{RequestId: test.request, Revocation: test.revocation})
		if fault := detail[*errdetails.BadRequest](err); status.Code(err) != codes.InvalidArgument || fault.GetFieldViolations()[0].GetField() != test.field {
			t.Errorf("%s: %v, %v", name, err, fault)
		}
	}
	if _, err := admin.ListRevocations(t.Context(), &tokenbrokerv1.ListRevocationsRequest{PageSize: 1001}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a page of 1001: %v", err)
	}
	if _, err := admin.DeleteRevocation(t.Context(), &tokenbrokerv1.DeleteRevocationRequest{RequestId: "1"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no id: %v", err)
	}
}
