package server_test

import (
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/devidp"
)

// A caller that is newer than the broker must not be served as if it had not sent
// the field: it may be a restriction.
func TestUnknownFieldsAreRefused(t *testing.T) {
	f := serve(t)
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 9999, protowire.VarintType), 1)
	for _, method := range methods() {
		for field, req := range requestsWith(method.Input(), unknown) {
			t.Run(string(method.Name())+field, func(t *testing.T) {
				err := callWith(t, f.conn, nil, method, req)
				violations := detail[*errdetails.BadRequest](err).GetFieldViolations()
				if status.Code(err) != codes.InvalidArgument || len(violations) != 1 || violations[0].GetField() != "request" {
					t.Errorf("error = %v, violations = %v", err, violations)
				}
			})
		}
	}
}

// requestsWith returns requests of a type with the unknown bytes at the top and in
// each message of this API below it, by the name of that field.
func requestsWith(kind protoreflect.MessageDescriptor, unknown []byte) map[string]proto.Message {
	top := message(kind)
	top.ProtoReflect().SetUnknown(unknown)
	requests := map[string]proto.Message{"": top}
	for i := range kind.Fields().Len() {
		field := kind.Fields().Get(i)
		if field.Message() == nil || field.Message().ParentFile().Package() != kind.ParentFile().Package() {
			continue
		}
		for name, inner := range requestsWith(field.Message(), unknown) {
			outer := message(kind)
			if field.IsList() {
				outer.ProtoReflect().Mutable(field).List().Append(protoreflect.ValueOfMessage(inner.ProtoReflect()))
			} else {
				outer.ProtoReflect().Set(field, protoreflect.ValueOfMessage(inner.ProtoReflect()))
			}
			requests["."+string(field.Name())+name] = outer
		}
	}
	return requests
}

// Whether a client exists is known to those who may see it.
func TestGetClientOfAnUnknownNameIsDenied(t *testing.T) {
	admin := tokenbrokerv1.NewAdminServiceClient(serve(t).conn)
	_, err := admin.GetClient(t.Context(), &tokenbrokerv1.GetClientRequest{ClientName: "zebra"})
	if status.Code(err) != codes.PermissionDenied || detail[*errdetails.ErrorInfo](err).GetReason() != apierror.ReasonNotEntitled {
		t.Errorf("error = %v", err)
	}
}

func TestRevoke_repeatedRequestID(t *testing.T) {
	admin := tokenbrokerv1.NewAdminServiceClient(serve(t).conn)
	expires := inAnHour()
	revoke := func() string {
		t.Helper()
		made, err := admin.RevokeTokens(t.Context(), &tokenbrokerv1.RevokeTokensRequest{RequestId: "1", Revocation: &tokenbrokerv1.Revocation{
			Issuer: issuer, Target: &tokenbrokerv1.Revocation_Subject{Subject: "alice"}, ExpiresAt: expires,
		}})
		if err != nil {
			t.Fatal(err)
		}
		return made.GetRevocation().GetId()
	}
	expectListed := func(n int, when string) {
		t.Helper()
		list, err := admin.ListRevocations(t.Context(), &tokenbrokerv1.ListRevocationsRequest{})
		if err != nil || len(list.GetRevocations()) != n {
			t.Errorf("%s: %v, %v", when, list.GetRevocations(), err)
		}
	}
	id := revoke()
	if again := revoke(); again != id {
		t.Errorf("the repeated call made the revocation %s, the first %s", again, id)
	}
	expectListed(1, "after a repeated RevokeTokens")
	for range 2 {
		if _, err := admin.DeleteRevocation(t.Context(), &tokenbrokerv1.DeleteRevocationRequest{Id: id, RequestId: "2", Reason: "a mistake"}); err != nil {
			t.Fatal(err)
		}
	}
	expectListed(0, "after a repeated DeleteRevocation")
	if again := revoke(); again != id {
		t.Errorf("after the deletion the repeated call made the revocation %s, the first %s", again, id)
	}
	expectListed(0, "after a RevokeTokens that was repeated after the deletion")
}

func TestRotationRPC_repeatedRequestID(t *testing.T) {
	r := serveManaged(t)
	rotate := func(secret string) (*tokenbrokerv1.RotateSecretResponse, error) {
		return r.admin.RotateSecret(t.Context(), &tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: []byte(secret), RequestId: "1"})
	}
	first, err := rotate("canary-one")
	if err != nil {
		t.Fatal(err)
	}
	requests, generation := r.idp.Requests(devidp.TokenPath), r.client(t, "orders").GetSecretGeneration()
	again, err := rotate("canary-one")
	if err != nil || again.GetVersion().GetVersion() != first.GetVersion().GetVersion() {
		t.Errorf("the repeated call: %v, %v", again, err)
	}
	if r.idp.Requests(devidp.TokenPath) != requests || r.client(t, "orders").GetSecretGeneration() != generation {
		t.Errorf("the repeated call changed something: %v", again)
	}
	if _, err := rotate("canary-two"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another secret with the same request_id: %v", err)
	}
}
