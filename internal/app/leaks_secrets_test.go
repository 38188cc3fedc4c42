package app_test

import (
	"fmt"
	"strconv"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// Clients whose secrets operators bring.
// leaksPrinted is a client whose secret a command prints.
const leaksPrinted = "printed"

const leaksManaged, leaksManagedEcho, leaksManagedPanic = "managed", "managed-echo", "managed-panic"

// leaksManagedClients are the audiences that they ask for: these say what the IdP
// does.
func leaksManagedClients() map[string]string {
	return map[string]string{leaksManaged: "api", leaksManagedEcho: leaksJSON, leaksManagedPanic: leaksPanic, leaksHandlerOfSecrets: "api"}
}

// rotateSecrets does with secrets what operators do, well and badly.
func (l *leaks) rotateSecrets(admin tokenbrokerv1.AdminServiceClient) {
	l.t.Helper()
	robot, guest := l.jwt("robot", nil), l.jwt("guest", nil)
	calls := 0
	id := func() string { calls++; return strconv.Itoa(calls) }
	told := func(what string, resp proto.Message, err error, want codes.Code) {
		l.t.Helper()
		l.expect(what, err, want)
		fmt.Fprintln(&l.statuses, resp, prototext.Format(resp))
	}
	rotate := func(jwt, name, secret string, want codes.Code, more *tokenbrokerv1.RotateSecretRequest) {
		l.t.Helper()
		ask := &tokenbrokerv1.RotateSecretRequest{ClientName: name, Secret: []byte(secret), RequestId: id()}
		proto.Merge(ask, more)
		resp, err := admin.RotateSecret(l.as(jwt), ask)
		told("RotateSecret of "+name, resp, err, want)
	}

	good := l.secrets["managed secret"]
	rotate(robot, leaksManaged, good[0], codes.OK, nil)
	rotate(robot, leaksManaged, good[1], codes.OK, &tokenbrokerv1.RotateSecretRequest{RequestId: "again"})
	rotate(robot, leaksManaged, good[0], codes.InvalidArgument, &tokenbrokerv1.RotateSecretRequest{RequestId: "again"})
	rotate(robot, leaksManaged, l.secret("wrong managed secret"), codes.FailedPrecondition, nil)
	rotate(guest, leaksManaged, l.secret("managed secret of one who may not bring it"), codes.PermissionDenied, nil)
	rotate("", leaksManaged, l.secret("managed secret of nobody"), codes.Unauthenticated, nil)
	rotate(robot, leaksGood, l.secret("secret of a client that is not managed"), codes.FailedPrecondition, nil)
	rotate(robot, leaksManagedEcho, l.secret("managed secret that is echoed"), codes.FailedPrecondition, nil)
	rotate(robot, leaksManagedPanic, l.secret("managed secret whose proof panics"), codes.Internal, nil)
	rotate(robot, leaksHandlerOfSecrets, l.secret("managed secret whose handler panics"), codes.Internal, nil)
	rotate(robot, leaksManaged, good[2], codes.OK, &tokenbrokerv1.RotateSecretRequest{StageOnly: true})
	activated, err := admin.ActivateSecret(l.as(robot), &tokenbrokerv1.ActivateSecretRequest{ClientName: leaksManaged, RequestId: id()})
	told("ActivateSecret", activated, err, codes.OK)
	back, err := admin.RollbackSecret(l.as(robot), &tokenbrokerv1.RollbackSecretRequest{ClientName: leaksManaged, RequestId: id()})
	told("RollbackSecret", back, err, codes.OK)
	client, err := admin.GetClient(l.as(robot), &tokenbrokerv1.GetClientRequest{ClientName: leaksManaged})
	told("GetClient", client, err, codes.OK)
	all, err := admin.ListClients(l.as(robot), &tokenbrokerv1.ListClientsRequest{})
	told("ListClients", all, err, codes.OK)
	made, err := admin.ExportSecret(l.as(robot), &tokenbrokerv1.ExportSecretRequest{ClientName: leaksManaged})
	told("ExportSecret", made, err, codes.OK)
	l.statuses.Write(made.GetSealed())
	retired, err := admin.RetireSecret(l.as(robot), &tokenbrokerv1.RetireSecretRequest{ClientName: leaksManaged, Version: activated.GetVersion().GetVersion(), RequestId: id()})
	told("RetireSecret", retired, err, codes.OK)
	brought, err := admin.ImportSecret(l.as(robot), &tokenbrokerv1.ImportSecretRequest{ClientName: leaksManaged, Sealed: made.GetSealed(), Replace: true, RequestId: id()})
	told("ImportSecret", brought, err, codes.OK)
	broken, err := admin.ImportSecret(l.as(robot), &tokenbrokerv1.ImportSecretRequest{ClientName: leaksManaged, Sealed: []byte(l.secret("what is no backup")), Replace: true, RequestId: id()})
	told("ImportSecret of what is no backup", broken, err, codes.InvalidArgument)
}
