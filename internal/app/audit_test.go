package app_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// auditLine is what the tests look at in a line of the audit.
type auditLine struct {
	Event, Outcome, Caller, Client, Action, Reason, Detail, Comment, Peer, Version string

	Request string `json:"request_id"`
	Config  string `json:"config_sha256"`
}

func (l auditLine) String() string { return strings.TrimSpace(l.Event + " " + l.Outcome) }

func auditIn(t *testing.T, path string) (lines []auditLine) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for text := range bytes.Lines(content) {
		var one auditLine
		if err := json.Unmarshal(text, &one); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		lines = append(lines, one)
	}
	return lines
}

func stringsOf(lines []auditLine) (texts []string) {
	for _, line := range lines {
		texts = append(texts, line.String())
	}
	return texts
}

// waitFor waits until the last line is as said.
func waitFor(t *testing.T, path, last string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if lines := auditIn(t, path); len(lines) > 0 && lines[len(lines)-1].String() == last {
			return
		}
	}
	t.Fatalf("the audit does not end with %q: %v", last, stringsOf(auditIn(t, path)))
}

func TestAudit_events(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	content := everybody + "audit: {file: " + file + "}\nclients: {orders: {issuer: \"" + idpIssuer + "\", client_id: abc, secret: \"file:SECRET\", audience: \"https://orders.example.com\"}}\n"
	var digest string
	t.Run("life", func(t *testing.T) {
		r := startReloadable(t, devIDP(t), content)
		if _, err := r.client.Token(t.Context(), "orders"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.client.Token(t.Context(), "billing"); err == nil {
			t.Error("there is a client billing")
		}
		r.apply(content+"# another one\n", "new configuration is active")
		r.apply(content+"logg: {}\nlugg: {}\n", "not applied")
		waitFor(t, file, "reload refused")
		stranger := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer not.a.jwt")
		if _, err := tokenbrokerv1.NewTokenBrokerServiceClient(dial(t, r.GRPCAddr())).GetToken(stranger, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"}); err == nil {
			t.Error("a stranger got a token")
		}
		good, err := os.ReadFile(r.file)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(bytes.TrimSuffix(good, []byte("logg: {}\nlugg: {}\n")))
		digest = hex.EncodeToString(sum[:])
	})
	lines := auditIn(t, file)
	want := []string{"start", "token ok", "token denied", "reload ok", "reload refused", "call unidentified", "stop"}
	if got := stringsOf(lines); !slices.Equal(got, want) {
		t.Fatalf("lines: %v, want %v", got, want)
	}
	if l := lines[0]; l.Version != app.Version() || l.Config != digest {
		t.Errorf("start: %+v, want configuration %s", l, digest)
	}
	if l := lines[1]; l.Caller != "everybody" || l.Client != "orders" || !strings.HasPrefix(l.Peer, "127.0.0.1:") {
		t.Errorf("token: %+v", l)
	}
	if l := lines[3]; l.Config == digest || l.Detail != "" {
		t.Errorf("reload: %+v", l)
	}
	if l := lines[4]; !strings.Contains(l.Detail, "logg: no such key") || strings.Contains(l.Detail, "lugg") || len(l.Config) != 64 {
		t.Errorf("refused: %+v", l)
	}
	if l := lines[5]; l.Caller != "" || l.Action != "/tokenbroker.v1.TokenBrokerService/GetToken" || l.Reason != "CALLER_UNIDENTIFIED" || l.Peer == "" {
		t.Errorf("unidentified: %+v", l)
	}
}

// Each call of an operator that changes something, or fails to, is in the audit with
// its request_id and with the reason that the operator gave.
func TestAudit_requestIDAndComment(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	asked := map[string]string{} // the actions by request_id
	t.Run("calls", func(t *testing.T) {
		r := startReloadable(t, devIDP(t), everybody+"audit: {file: "+file+"}\nissuers: [{issuer: \""+idpIssuer+"\", audiences: [a]}]\n"+
			"clients: {orders: {issuer: \""+idpIssuer+"\", client_id: abc, secret: \"file:SECRET\"}}\n")
		conn := dial(t, r.GRPCAddr())
		service := tokenbrokerv1.File_tokenbroker_v1_admin_proto.Services().ByName("AdminService")
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			if method.Input().Fields().ByName("request_id") == nil {
				continue
			}
			id := "request of " + string(method.Name())
			asked[id] = string(method.Name())
			response, err := protoregistry.GlobalTypes.FindMessageByName(method.Output().FullName())
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.Invoke(t.Context(), "/"+string(service.FullName())+"/"+string(method.Name()), changeRequest(t, method.Input(), id), response.New().Interface())
		}
	})
	if len(asked) < 8 {
		t.Errorf("only %d methods change something: %v", len(asked), asked)
	}
	for _, l := range auditIn(t, file) {
		if method, of := asked[l.Request]; of && l.Event == "admin" && l.Comment == "reason of "+method {
			delete(asked, l.Request)
		}
	}
	for _, method := range asked {
		t.Errorf("no line has the request_id and the reason of a call of %s", method)
	}
}

// changeRequest fills in a request that changes something, as far as it must be to
// get past the checks of its form.
func changeRequest(t *testing.T, kind protoreflect.MessageDescriptor, id string) proto.Message {
	t.Helper()
	found, err := protoregistry.GlobalTypes.FindMessageByName(kind.FullName())
	if err != nil {
		t.Fatal(err)
	}
	made := found.New()
	reason := "reason of " + strings.TrimPrefix(id, "request of ")
	for i := range kind.Fields().Len() {
		field := kind.Fields().Get(i)
		switch field.Name() {
		case "request_id":
			made.Set(field, protoreflect.ValueOfString(id))
		case "reason":
			made.Set(field, protoreflect.ValueOfString(reason))
		case "client_name":
			made.Set(field, protoreflect.ValueOfString("orders"))
		case "id", "version":
			made.Set(field, protoreflect.ValueOfString("x"))
		case "secret", "sealed":
			made.Set(field, protoreflect.ValueOfBytes([]byte("x")))
		case "revocation":
			revocation := &tokenbrokerv1.Revocation{
				Issuer: idpIssuer, Target: &tokenbrokerv1.Revocation_Subject{Subject: "alice"}, Reason: reason,
				ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
			}
			made.Set(field, protoreflect.ValueOfMessage(revocation.ProtoReflect()))
		}
	}
	return made.Interface()
}

func TestAudit_hangupReopens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "audit.jsonl")
	r := startReloadable(t, devIDP(t), everybody+"audit: {file: "+file+"}\nissuers: [{issuer: \""+idpIssuer+"\", audiences: [a]}]\n")
	waitFor(t, file, "start")
	if err := os.Rename(file, file+".1"); err != nil {
		t.Fatal(err)
	}
	r.hangup <- syscall.SIGHUP
	testkit.Eventually(t, "the hangup is heard", func() bool { return strings.Contains(r.log.String(), "SIGHUP: reloading") })
	_, _ = r.client.Token(t.Context(), "orders")
	testkit.Eventually(t, "there is a new file", func() bool { _, err := os.Stat(file); return err == nil })
	waitFor(t, file, "token denied")
}

// dial connects as nobody in particular.
func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestStart_invalidAuditFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none", "audit.jsonl")
	_, err := app.New(parsed(t, sampleText(t, 1)+fmt.Sprintf("audit: {file: %q}\n", file)), app.Options{Logger: quiet()})
	if err == nil || !strings.Contains(err.Error(), "audit.file: ") || !strings.Contains(err.Error(), "its directory must exist") {
		t.Errorf("New: %v", err)
	}
}
