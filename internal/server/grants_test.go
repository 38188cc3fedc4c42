package server_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// methods returns the RPCs of both services, in the order of the API.
func methods() (all []protoreflect.MethodDescriptor) {
	for _, file := range []protoreflect.FileDescriptor{tokenbrokerv1.File_tokenbroker_v1_tokenbroker_proto, tokenbrokerv1.File_tokenbroker_v1_admin_proto} {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				all = append(all, methods.Get(j))
			}
		}
	}
	return all
}

// snake turns PurgeTokens into purge_tokens.
func snake(name protoreflect.Name) string {
	var made strings.Builder
	for i, letter := range string(name) {
		if unicode.IsUpper(letter) && i > 0 {
			made.WriteByte('_')
		}
		made.WriteRune(unicode.ToLower(letter))
	}
	return made.String()
}

func TestEachAdminRPCIsAnAction(t *testing.T) {
	var want []policy.Action
	for _, method := range methods() {
		if method.Parent().Name() == "AdminService" {
			want = append(want, policy.Action(snake(method.Name())))
		}
	}
	if got := policy.Actions(); !slices.Equal(got, want) {
		t.Errorf("the actions that can be granted are %v, and the RPCs of AdminService are %v", got, want)
	}
}

// Each RPC is let in by one kind of grant, or by one action, and denied to callers that
// have all others. No kind of grant and no action is without an RPC.
func TestEachRPCIsGrantedByItself(t *testing.T) {
	grants := map[string]policy.Role{
		"get":    {Get: []policy.GetGrant{{Client: "orders"}}},
		"verify": {Verify: []policy.VerifyGrant{{Issuer: issuer}}},
	}
	for _, action := range policy.Actions() {
		grants[string(action)] = policy.Role{Admin: []policy.AdminGrant{{Actions: []policy.Action{action}}}}
	}
	cfg := policy.Config{Roles: grants, Clients: map[string]policy.Defaults{"orders": {Audience: audience, Scopes: []string{"read", "write"}}}, Issuers: map[string][]string{issuer: {audience}}}
	for name := range grants {
		cfg.Callers = append(cfg.Callers, policy.CallerConfig{Name: name, Match: policy.Match{Issuer: issuer, Subject: name}, Roles: []string{name}})
	}
	w := newWorldOf(t, policy.New(cfg))
	conn := w.connect(w.anonymous())
	used := map[string]bool{}
	for _, method := range methods() {
		var letIn []string
		for name := range grants {
			err := callWith(t, conn, bearer(w.jwt(map[string]any{"sub": name})), method, validRequest(t, method))
			switch code := status.Code(err); code {
			case codes.PermissionDenied:
			case codes.Unauthenticated, codes.Unimplemented, codes.Internal:
				t.Fatalf("%s by %s: %v", method.Name(), name, err)
			default:
				letIn = append(letIn, name)
				used[name] = true
			}
		}
		if len(letIn) != 1 {
			t.Errorf("%s is granted by %v, want one grant", method.Name(), letIn)
		}
		if method.Parent().Name() == "AdminService" && !slices.Equal(letIn, []string{snake(method.Name())}) {
			t.Errorf("%s is granted by %v, want the action of its name", method.Name(), letIn)
		}
	}
	for name := range grants {
		if !used[name] {
			t.Errorf("%s grants no RPC", name)
		}
	}
}

// validRequest returns a request for an RPC that is well formed. A field with a name that is
// not in the list is left out; add it if a new RPC requires it.
func validRequest(t *testing.T, method protoreflect.MethodDescriptor) proto.Message {
	t.Helper()
	var set []string
	for field, value := range map[protoreflect.Name]string{
		"client_name": `"orders"`, "request_id": `"request"`, "secret": `"c2VjcmV0"`, "sealed": `"c2VhbGVk"`, "version": `"version"`, "id": `"id"`, "token": `"x.y.z"`,
		"revocation": fmt.Sprintf(`{"issuer": %q, "subject": "mallory", "expires_at": %q}`, issuer, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)),
	} {
		if method.Input().Fields().ByName(field) != nil {
			set = append(set, fmt.Sprintf("%q: %s", field, value))
		}
	}
	req := message(method.Input())
	if err := protojson.Unmarshal([]byte("{"+strings.Join(set, ", ")+"}"), req); err != nil {
		t.Fatal(err)
	}
	return req
}

// callWith makes a call, and waits for the first message if the response is a stream.
func callWith(t *testing.T, conn *grpc.ClientConn, header metadata.MD, method protoreflect.MethodDescriptor, req proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(t.Context(), header), 20*time.Second)
	defer cancel()
	name, resp := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name()), message(method.Output())
	if !method.IsStreamingServer() {
		return conn.Invoke(ctx, name, req, resp)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name)
	if err == nil {
		err = stream.SendMsg(req)
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err == nil {
		err = stream.RecvMsg(resp)
	}
	return err
}

// The API's reasons of a rejection have the numbers and names of package verify.
// WRONG_HOLDER is for receivers that check the confirmation of a token: no verifier
// returns it.
func TestReasonsMatchTheVerifier(t *testing.T) {
	reasons := tokenbrokerv1.RejectionReason(0).Descriptor().Values()
	for i := range reasons.Len() {
		value := reasons.Get(i)
		name := strings.ToLower(strings.TrimPrefix(string(value.Name()), "REJECTION_REASON_"))
		if value.Number() == tokenbrokerv1.RejectionReason_REJECTION_REASON_WRONG_HOLDER.Number() {
			name = "unspecified"
		}
		if got := verify.Reason(value.Number()).String(); got != name {
			t.Errorf("reason %d is %s to the verifier, and %s in the API", value.Number(), got, name)
		}
	}
	if next := verify.Reason(reasons.Len()).String(); next != "unspecified" {
		t.Errorf("the API lacks the reason %s", next)
	}
}
