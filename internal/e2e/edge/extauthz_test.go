package edge

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"go.yaml.in/yaml/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

// envoyDescriptors are Envoy's own descriptors of the service, in a file.
func envoyDescriptors(t *testing.T) string {
	t.Helper()
	set := &descriptorpb.FileDescriptorSet{}
	known := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(file protoreflect.FileDescriptor) {
		if known[file.Path()] {
			return
		}
		known[file.Path()] = true
		for i := range file.Imports().Len() {
			add(file.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(file))
	}
	add(authv3.File_envoy_service_auth_v3_external_auth_proto)
	data, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return harness.WriteFile(t, "ext_authz.protoset", string(data))
}

// verdictOfEnvoy is what Envoy would do, of an answer or an error.
func verdictOfEnvoy(answer *authv3.CheckResponse, err error) string {
	if err != nil {
		return "error " + status.Code(err).String()
	}
	if answer.GetOkResponse() != nil && answer.GetStatus().GetCode() == 0 {
		var set []string
		for _, option := range answer.GetOkResponse().GetHeaders() {
			set = append(set, option.GetHeader().GetKey()+"="+option.GetHeader().GetValue())
		}
		for _, name := range answer.GetOkResponse().GetHeadersToRemove() {
			set = append(set, "-"+name)
		}
		slices.Sort(set)
		return "pass " + strings.Join(set, " ")
	}
	return fmt.Sprint(int32(answer.GetDeniedResponse().GetStatus().GetCode()))
}

// envoyAsks sends what Envoy sends, by two clients that know the service from
// Envoy's own descriptors.
type envoyAsks struct {
	edge     *delegation
	protoset string
	client   authv3.AuthorizationClient
}

func (a *envoyAsks) ask(t *testing.T, by string, headers map[string]string, path string, extensions map[string]string) string {
	t.Helper()
	headers[":path"], headers["x-auth-subject"], headers["x-auth-actor"] = path, "spoofed", "spoofed"
	req := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		ContextExtensions: extensions,
		Request:           &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: path, Host: "api.example.com", Headers: headers}},
	}}
	if by == "go-control-plane" {
		return verdictOfEnvoy(a.client.Check(t.Context(), req))
	}
	text, err := protojson.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	res := harness.Command{Name: "grpcurl", Input: string(text)}.Run(t, "-plaintext", "-connect-timeout", "3", "-max-time", "20", "-protoset", a.protoset, "-d", "@", a.edge.Grpc, "envoy.service.auth.v3.Authorization/Check")
	if res.Code != 0 {
		_, code, _ := strings.Cut(res.Stderr, "Code: ")
		code, _, _ = strings.Cut(code, "\n")
		if strings.Contains(res.Stderr, "Failed to dial") { // grpcurl connects before it calls
			code = codes.Unavailable.String()
		}
		return "error " + strings.TrimSpace(code)
	}
	answer := &authv3.CheckResponse{}
	if err := protojson.Unmarshal([]byte(res.Stdout), answer); err != nil {
		t.Fatalf("%v: %v", err, res)
	}
	return verdictOfEnvoy(answer, nil)
}

// No Envoy is at hand: its service is asked by clients that Envoy's descriptors make.
func TestExtAuthzServesEnvoyDescriptors(t *testing.T) {
	t.Parallel()
	harness.Need(t, "grpcurl")
	e := startDelegation(t)
	conn, err := grpc.NewClient(e.Grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	asks := &envoyAsks{e, envoyDescriptors(t), authv3.NewAuthorizationClient(conn)}
	revoked := e.token(map[string]any{"jti": "revoked-1"})
	if res := e.Run(t, "revocations", "add", "--issuer", e.idp.Issuer(), "--token-id", "revoked-1"); res.Code != 0 {
		t.Fatal(res)
	}
	good, hourAgo := e.token(nil), time.Now().Add(-time.Hour).Unix()
	passes := "pass -x-auth-actor x-auth-client-id=web x-auth-issuer=" + e.idp.Issuer() + " x-auth-scope=read x-auth-subject-type=sub x-auth-subject=alice"
	var table strings.Builder
	out := tabwriter.NewWriter(&table, 0, 4, 2, ' ', 0)
	try := func(name, want, token, path string, extensions map[string]string) {
		t.Helper()
		for _, by := range []string{"grpcurl", "go-control-plane"} {
			headers := map[string]string{}
			if token != "" {
				headers["authorization"] = "Bearer " + token
			}
			got := asks.ask(t, by, headers, path, extensions)
			fmt.Fprintf(out, "%s\t%s\t%s\n", name, by, got)
			if got != want {
				t.Errorf("%s, %s: %s, want %s", name, by, got, want)
			}
		}
	}
	try("good", passes, good, "/orders/7", nil)
	try("good, by the route", passes, good, "/elsewhere", map[string]string{"audience": exampleAudience, "scope": "read"})
	try("good, without client_id", "pass -x-auth-actor -x-auth-client-id x-auth-issuer="+e.idp.Issuer()+" x-auth-scope=read x-auth-subject-type=sub x-auth-subject=alice", e.token(map[string]any{"client_id": ""}), "/orders/7", nil)
	try("good, of a client without a user", "pass -x-auth-actor -x-auth-subject x-auth-client-id=alice x-auth-issuer="+e.idp.Issuer()+" x-auth-scope=read x-auth-subject-type=client_id", e.token(map[string]any{"sub": nil, "client_id": "alice"}), "/orders/7", nil)
	try("missing", "401", "", "/orders/7", nil)
	try("tampered", "401", good[:len(good)-4]+"AAAA", "/orders/7", nil)
	try("expired", "401", e.token(map[string]any{"iat": hourAgo - 60, "exp": hourAgo}), "/orders/7", nil)
	try("another audience", "401", e.token(map[string]any{"aud": "https://other.example.com"}), "/orders/7", nil)
	try("two tokens", "401", good+",Bearer "+good, "/orders/7", nil)
	try("a token in the query", "401", good, "/orders/7?access_token="+good, nil)
	try("without the scope", "403", e.token(map[string]any{"scope": "write"}), "/orders/7", nil)
	try("no rule", "403", good, "/orders/../admin", nil)
	try("revoked", "401", revoked, "/orders/7", nil)
	try("an audience that the gateway may not ask about", "error PermissionDenied", good, "/orders/7", map[string]string{"audience": "https://other.example.com"})
	e.Process.Stop(t, os.Kill)
	try("broker down", "error Unavailable", good, "/orders/7", nil)
	_ = out.Flush()
	t.Logf("\n%s", &table)
}

// The example for Envoy is what Envoy's own messages and their constraints admit.
func TestEnvoyExampleIsValid(t *testing.T) {
	t.Parallel()
	var read any
	if err := yaml.Load([]byte(readExample(t, filepath.Join("envoy", "envoy.yaml"))), &read); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(read)
	if err != nil {
		t.Fatal(err)
	}
	parsed := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(text, parsed); err != nil {
		t.Fatal(err)
	}
	if err := parsed.ValidateAll(); err != nil {
		t.Error(err)
	}
	checked := 0
	eachAny(t, parsed.ProtoReflect(), func(inner proto.Message) {
		checked++
		if validated, ok := inner.(interface{ ValidateAll() error }); ok {
			if err := validated.ValidateAll(); err != nil {
				t.Errorf("%s: %v", inner.ProtoReflect().Descriptor().FullName(), err)
			}
		}
	})
	if checked < 5 {
		t.Errorf("only %d configurations of extensions were checked", checked)
	}
}

// eachAny calls visit with each message that is packed into another.
func eachAny(t *testing.T, m protoreflect.Message, visit func(proto.Message)) {
	t.Helper()
	if packed, ok := m.Interface().(interface {
		UnmarshalNew() (proto.Message, error)
	}); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		visit(inner)
		eachAny(t, inner.ProtoReflect(), visit)
		return
	}
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap() && field.MapValue().Message() != nil:
			value.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				eachAny(t, v.Message(), visit)
				return true
			})
		case field.IsList() && field.Message() != nil:
			for i := range value.List().Len() {
				eachAny(t, value.List().Get(i).Message(), visit)
			}
		case field.Message() != nil && !field.IsMap() && !field.IsList():
			eachAny(t, value.Message(), visit)
		}
		return true
	})
}
