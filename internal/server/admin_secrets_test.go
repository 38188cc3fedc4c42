package server_test

import (
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// rotator is a served broker with the managed clients "billing" and "orders", and
// the IdP that takes their secrets "one" and "two".
type rotator struct {
	*api

	admin tokenbrokerv1.AdminServiceClient
}

func serveManaged(t *testing.T) *rotator {
	t.Helper()
	return serveManagedFor(t, everybody(), "everybody")
}

// serveManagedFor takes all calls for those of one caller.
func serveManagedFor(t *testing.T, who *policy.Policy, bound string) *rotator {
	t.Helper()
	secrets := []redact.String{redact.New("canary-one"), redact.New("canary-two")}
	idpServer, err := devidp.New(devidp.Config{Issuer: issuer, Clients: []devidp.Client{
		{ID: "orders", Secrets: secrets}, {ID: "billing", Secrets: secrets},
	}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ring.json")
	if err := sealed.WriteRing(path, sealed.GenerateRing()); err != nil {
		t.Fatal(err)
	}
	rings, err := sealed.OpenRing(path)
	if err != nil {
		t.Fatal(err)
	}
	f := &api{idp: idpServer, log: &testkit.Log{}}
	log := slog.New(slog.NewJSONHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var clients []broker.ClientConfig
	for _, name := range []string{"orders", "billing"} {
		client, err := idp.New(idp.Config{TokenURL: issuer + devidp.TokenPath, ClientID: name, HTTP: discovery.NewHTTPClient(idpServer.RoundTripper())})
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, broker.ClientConfig{
			Name: name, IdP: client, Managed: true,
			About: broker.About{ClientID: name, TokenURL: issuer + devidp.TokenPath, Auth: "client_secret_basic", Secret: "managed"},
		})
	}
	b, err := broker.New(broker.Config{Setup: broker.Setup{Clients: clients, Policy: who}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	f.open(t, server.Config{Broker: b, Rotator: rotation.New(b, rings), Bound: caller.Bound{TCP: bound}, Logger: log})
	return &rotator{f, tokenbrokerv1.NewAdminServiceClient(f.conn)}
}

func (r *rotator) client(t *testing.T, name string) *tokenbrokerv1.Client {
	t.Helper()
	got, err := r.admin.GetClient(t.Context(), &tokenbrokerv1.GetClientRequest{ClientName: name})
	if err != nil {
		t.Fatal(err)
	}
	return got.GetClient()
}

func TestRotationOverTheAPI(t *testing.T) {
	r := serveManaged(t)
	if got := r.client(t, "orders"); got.GetState() != tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET || got.GetSecretSource() != "managed" ||
		got.GetClientId() != "orders" || got.GetAuthMethod() != "client_secret_basic" || got.GetTokenUrl() == "" {
		t.Errorf("before: %v", got)
	}
	first, err := r.admin.RotateSecret(t.Context(), &tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: []byte("canary-one"), RequestId: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, step := range first.GetSteps() {
		if !step.GetOk() || step.GetMessage() == "" || step.GetTook() == nil {
			t.Errorf("step %v", step)
		}
		names = append(names, step.GetName())
	}
	if strings.Join(names, " ") != "stage prove activate" || !strings.Contains(first.GetSteps()[0].GetWarning(), "memory of this process") {
		t.Errorf("steps: %v", first.GetSteps())
	}
	staged, err := r.admin.RotateSecret(t.Context(), &tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: []byte("canary-two"), RequestId: "2", StageOnly: true})
	if err != nil || staged.GetVersion().GetState() != tokenbrokerv1.SecretState_SECRET_STATE_PENDING {
		t.Fatalf("%v, %v", staged, err)
	}
	activated, err := r.admin.ActivateSecret(t.Context(), &tokenbrokerv1.ActivateSecretRequest{
		ClientName: "orders", ExpectedCurrentVersion: first.GetVersion().GetVersion(), RequestId: "3",
	})
	if err != nil || activated.GetVersion().GetVersion() != staged.GetVersion().GetVersion() || len(activated.GetSteps()) != 2 {
		t.Fatalf("%v, %v", activated, err)
	}
	back, err := r.admin.RollbackSecret(t.Context(), &tokenbrokerv1.RollbackSecretRequest{ClientName: "orders", RequestId: "4", Reason: "a test"})
	if err != nil || back.GetVersion().GetVersion() != first.GetVersion().GetVersion() {
		t.Fatalf("%v, %v", back, err)
	}
	retired, err := r.admin.RetireSecret(t.Context(), &tokenbrokerv1.RetireSecretRequest{
		ClientName: "orders", Version: staged.GetVersion().GetVersion(), RequestId: "5",
	})
	if err != nil || retired.GetVersion().GetState() != tokenbrokerv1.SecretState_SECRET_STATE_RETIRED {
		t.Fatalf("%v, %v", retired, err)
	}
	got := r.client(t, "orders")
	if got.GetState() != tokenbrokerv1.ClientState_CLIENT_STATE_OK || got.GetSecretGeneration() != 6 || got.GetSecretInUse() != first.GetVersion().GetVersion() ||
		got.GetTokenExpiresAt() == nil || got.GetNextRefreshAt() == nil || got.GetLastSuccessAt() == nil || len(got.GetSecretVersions()) != 2 {
		t.Errorf("after: %v", got)
	}
	if current := got.GetSecretVersions()[1]; current.GetLastSuccessAt() == nil || current.GetStateSince() == nil || !current.GetKnownHere() || current.GetCreatedBy() != "everybody" {
		t.Errorf("the current version: %v", current)
	}
	if text := r.log.String(); strings.Contains(text, "canary") {
		t.Error("a secret is in the log")
	}
}

func TestFailedRotationReportsItsStep(t *testing.T) {
	r := serveManaged(t)
	_, err := r.admin.RotateSecret(t.Context(), &tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: []byte("canary-wrong"), RequestId: "1"})
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	if info := detail[*errdetails.ErrorInfo](err); info.GetReason() != apierror.ReasonCredentialsRefused || info.GetMetadata()["client"] != "orders" {
		t.Errorf("%v", info)
	}
	got := detail[*tokenbrokerv1.RotateSecretResponse](err)
	if len(got.GetSteps()) != 3 || !got.GetSteps()[0].GetOk() || got.GetSteps()[1].GetOk() || got.GetVersion().GetState() != tokenbrokerv1.SecretState_SECRET_STATE_RETIRED {
		t.Errorf("%v", got)
	}
	if strings.Contains(err.Error(), "canary") || strings.Contains(r.log.String(), "canary") {
		t.Error("the secret is in the error or in the log")
	}
}

func TestListClients_pages(t *testing.T) {
	r := serveManaged(t)
	var names []string
	for token := ""; ; {
		page, err := r.admin.ListClients(t.Context(), &tokenbrokerv1.ListClientsRequest{PageSize: 1, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range page.GetClients() {
			names = append(names, one.GetName())
		}
		if token = page.GetNextPageToken(); token == "" {
			break
		}
	}
	if strings.Join(names, " ") != "billing orders" {
		t.Errorf("listed %v", names)
	}
	if page, err := r.admin.ListClients(t.Context(), &tokenbrokerv1.ListClientsRequest{PageToken: "zebra"}); err != nil || len(page.GetClients()) != 0 {
		t.Errorf("after the last: %v, %v", page, err)
	}
}

func TestBackupsOverTheAPI(t *testing.T) {
	r := serveManaged(t)
	if _, err := r.admin.ExportSecret(t.Context(), &tokenbrokerv1.ExportSecretRequest{ClientName: "orders"}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a client without a secret: %v", err)
	}
	rotate := func(value, request string) {
		t.Helper()
		if _, err := r.admin.RotateSecret(t.Context(), &tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: []byte(value), RequestId: request}); err != nil {
			t.Fatal(err)
		}
	}
	rotate("canary-one", "1")
	backup, err := r.admin.ExportSecret(t.Context(), &tokenbrokerv1.ExportSecretRequest{ClientName: "orders"})
	if err != nil || strings.Contains(string(backup.GetSealed()), "canary") || backup.GetCurrentVersion() == "" {
		t.Fatalf("%v, %v", backup, err)
	}
	rotate("canary-two", "2")
	bring := func(name string, sealed []byte, replace bool, request string) error {
		_, err := r.admin.ImportSecret(t.Context(), &tokenbrokerv1.ImportSecretRequest{ClientName: name, Sealed: sealed, Replace: replace, RequestId: request})
		return err
	}
	if err := bring("orders", backup.GetSealed(), false, "3"); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("over what there is: %v", err)
	}
	if err := bring("billing", backup.GetSealed(), false, "4"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("to another client: %v", err)
	}
	if err := bring("orders", []byte("canary-one"), true, "5"); status.Code(err) != codes.InvalidArgument || strings.Contains(err.Error(), "canary") {
		t.Errorf("what is no backup: %v", err)
	}
	if err := bring("orders", backup.GetSealed(), true, "6"); err != nil {
		t.Fatal(err)
	}
	got := r.client(t, "orders")
	if current := got.GetSecretVersions()[0]; current.GetVersion() != backup.GetCurrentVersion() || current.GetState() != tokenbrokerv1.SecretState_SECRET_STATE_CURRENT {
		t.Errorf("%v", got)
	}
}

func TestInvalidSecretChangesAreExplained(t *testing.T) {
	r := serveManaged(t)
	rotate := func(req *tokenbrokerv1.RotateSecretRequest) func() error {
		return func() error { _, err := r.admin.RotateSecret(t.Context(), req); return err }
	}
	secret := []byte("canary-one")
	for name, tt := range map[string]struct {
		call  func() error
		field string
	}{
		"no client":       {rotate(&tokenbrokerv1.RotateSecretRequest{Secret: secret, RequestId: "1"}), "client_name"},
		"no secret":       {rotate(&tokenbrokerv1.RotateSecretRequest{ClientName: "orders", RequestId: "1"}), "secret"},
		"a large secret":  {rotate(&tokenbrokerv1.RotateSecretRequest{ClientName: "orders", RequestId: "1", Secret: make([]byte, 16<<10+1)}), "secret"},
		"no request id":   {rotate(&tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: secret}), "request_id"},
		"a long reason":   {rotate(&tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: secret, RequestId: "1", Reason: strings.Repeat("x", 257)}), "reason"},
		"a long version":  {rotate(&tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: secret, RequestId: "1", ExpectedCurrentVersion: strings.Repeat("x", 65)}), "expected_current_version"},
		"staged and gone": {rotate(&tokenbrokerv1.RotateSecretRequest{ClientName: "orders", Secret: secret, RequestId: "1", StageOnly: true, Compromised: true}), "compromised"},
		"no version": {func() error {
			_, err := r.admin.RetireSecret(t.Context(), &tokenbrokerv1.RetireSecretRequest{ClientName: "orders", RequestId: "1"})
			return err
		}, "version"},
		"no backup": {func() error {
			_, err := r.admin.ImportSecret(t.Context(), &tokenbrokerv1.ImportSecretRequest{ClientName: "orders", RequestId: "1"})
			return err
		}, "sealed"},
		"a page of nothing": {func() error {
			_, err := r.admin.ListClients(t.Context(), &tokenbrokerv1.ListClientsRequest{PageSize: -1})
			return err
		}, "page_size"},
	} {
		err := tt.call()
		if fault := detail[*errdetails.BadRequest](err); status.Code(err) != codes.InvalidArgument || fault.GetFieldViolations()[0].GetField() != tt.field {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: it repeats the secret", name)
		}
	}
	if r.idp.Requests(devidp.TokenPath) != 0 {
		t.Error("the IdP was asked")
	}
}

func TestOperatorsNeedEachAction(t *testing.T) {
	who := policy.New(policy.Config{
		Callers: []policy.CallerConfig{{Name: "operator", Roles: []string{"orders"}}},
		Roles: map[string]policy.Role{"orders": {Admin: []policy.AdminGrant{{
			Actions: []policy.Action{policy.ListClients, policy.GetClient, policy.RotateSecret}, Clients: []string{"orders"},
		}}}},
		Clients: map[string]policy.Defaults{"orders": {}, "billing": {}},
	})
	r := serveManagedFor(t, who, "operator")
	list, err := r.admin.ListClients(t.Context(), &tokenbrokerv1.ListClientsRequest{})
	if err != nil || len(list.GetClients()) != 1 || list.GetClients()[0].GetName() != "orders" {
		t.Errorf("listed %v, %v", list, err)
	}
	rotate := func(name string) error {
		_, err := r.admin.RotateSecret(t.Context(), &tokenbrokerv1.RotateSecretRequest{ClientName: name, Secret: []byte("canary-one"), RequestId: "1"})
		return err
	}
	if err := rotate("orders"); err != nil {
		t.Error(err)
	}
	version := r.client(t, "orders").GetSecretVersions()[0].GetVersion()
	denied := map[string]error{"rotating another client's": rotate("billing"), "rotating nobody's": rotate("nobody")}
	_, denied["another client"] = r.admin.GetClient(t.Context(), &tokenbrokerv1.GetClientRequest{ClientName: "billing"})
	_, denied["activating"] = r.admin.ActivateSecret(t.Context(), &tokenbrokerv1.ActivateSecretRequest{ClientName: "orders", RequestId: "2"})
	_, denied["rolling back"] = r.admin.RollbackSecret(t.Context(), &tokenbrokerv1.RollbackSecretRequest{ClientName: "orders", RequestId: "3"})
	_, denied["retiring"] = r.admin.RetireSecret(t.Context(), &tokenbrokerv1.RetireSecretRequest{ClientName: "orders", Version: version, RequestId: "4"})
	_, denied["exporting"] = r.admin.ExportSecret(t.Context(), &tokenbrokerv1.ExportSecretRequest{ClientName: "orders"})
	_, denied["importing"] = r.admin.ImportSecret(t.Context(), &tokenbrokerv1.ImportSecretRequest{ClientName: "orders", Sealed: []byte("x"), RequestId: "5"})
	_, denied["purging"] = r.admin.PurgeTokens(t.Context(), &tokenbrokerv1.PurgeTokensRequest{ClientName: "orders", RequestId: "6"})
	for name, err := range denied {
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := r.client(t, "orders"); len(got.GetSecretVersions()) != 1 {
		t.Errorf("what was denied happened: %v", got)
	}
}
