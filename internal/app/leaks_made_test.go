package app_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// leaksMade is a client whose keys the broker makes.
const leaksMade = "made"

// made is leaksMade at the IdP, which reads the keys where the broker publishes them.
func (l *leaks) made() devidp.Client {
	return devidp.Client{ID: leaksMade, Auth: devidp.AuthPrivateKeyJWT, Audiences: []string{"api"}, KeysAt: func() ([]byte, error) {
		response, err := http.Get(l.publicKeys)
		if err != nil {
			return nil, err
		}
		defer response.Body.Close()
		return io.ReadAll(response.Body)
	}}
}

// rotateKeys does with keys what operators do.
func (l *leaks) rotateKeys(admin tokenbrokerv1.AdminServiceClient, api tokenbrokerv1.TokenBrokerServiceClient) {
	l.t.Helper()
	robot, guest := l.jwt("robot", nil), l.jwt("guest", nil)
	told := func(what string, resp proto.Message, err error, want codes.Code) {
		l.t.Helper()
		l.expect(what, err, want)
		fmt.Fprintln(&l.statuses, resp, prototext.Format(resp))
	}
	list := func() *tokenbrokerv1.ListKeysResponse {
		l.t.Helper()
		resp, err := admin.ListKeys(l.as(robot), &tokenbrokerv1.ListKeysRequest{ClientName: leaksMade})
		told("ListKeys", resp, err, codes.OK)
		return resp
	}
	l.publicKeys = list().GetUrl()
	testkit.Succeeds(l.t, "the first key is in use", func() error {
		_, err := api.GetToken(l.as(robot), &tokenbrokerv1.GetTokenRequest{ClientName: leaksMade})
		return err
	})
	l.madeKeys(admin, robot)
	_, err := admin.RotateKey(l.as(guest), &tokenbrokerv1.RotateKeyRequest{ClientName: leaksMade, RequestId: "k0"})
	l.expect("RotateKey by a guest", err, codes.PermissionDenied)
	_, err = admin.RotateSecret(l.as(robot), &tokenbrokerv1.RotateSecretRequest{ClientName: leaksMade, Secret: []byte(l.secret("secret in place of a made key")), RequestId: "k1"})
	l.expect("RotateSecret of a made key", err, codes.FailedPrecondition)
	_, err = admin.RotateKey(l.as(robot), &tokenbrokerv1.RotateKeyRequest{ClientName: leaksManaged, RequestId: "k2"})
	l.expect("RotateKey of a managed secret", err, codes.FailedPrecondition)
	staged, err := admin.RotateKey(l.as(robot), &tokenbrokerv1.RotateKeyRequest{ClientName: leaksMade, RequestId: "k3"})
	told("RotateKey", staged, err, codes.OK)
	_, err = admin.RotateKey(l.as(robot), &tokenbrokerv1.RotateKeyRequest{ClientName: leaksMade, RequestId: "k4"})
	l.expect("RotateKey while a key is published", err, codes.FailedPrecondition)
	if keys := list().GetKeys(); len(keys) != 2 || keys[0].GetState() != tokenbrokerv1.SecretState_SECRET_STATE_PENDING {
		l.t.Errorf("keys: %v", keys)
	}
	urgent, err := admin.RotateKey(l.as(robot), &tokenbrokerv1.RotateKeyRequest{ClientName: leaksMade, RequestId: "k5", Compromised: true})
	told("RotateKey of a key that leaked", urgent, err, codes.OK)
	if urgent.GetVersion().GetVersion() != staged.GetVersion().GetVersion() {
		l.t.Error("the key that was published already was not used")
	}
	l.madeKeys(admin, robot)
	if keys := list().GetKeys(); len(keys) != 1 || keys[0].GetState() != tokenbrokerv1.SecretState_SECRET_STATE_CURRENT {
		l.t.Errorf("keys after the rotation: %v", keys)
	}
	for _, path := range []string{"/", "/metrics", "/x/jwks.json", "/../ring.json"} {
		status, body := read(l.t, "http://"+l.PublicKeysAddr()+path)
		if status != http.StatusNotFound || strings.TrimSpace(body) != "not found" {
			l.t.Errorf("%s: %d %q", path, status, body)
		}
	}
	_, document := read(l.t, l.publicKeys)
	fmt.Fprintln(&l.answers, document)
}

// madeKeys remembers the private parts of the keys that exist now.
func (l *leaks) madeKeys(admin tokenbrokerv1.AdminServiceClient, robot string) {
	l.t.Helper()
	backup, err := admin.ExportSecret(l.as(robot), &tokenbrokerv1.ExportSecretRequest{ClientName: leaksMade})
	if err != nil {
		l.t.Fatal(err)
	}
	opened, err := l.OpenBackup(leaksMade, backup.GetSealed())
	if err != nil {
		l.t.Fatal(err)
	}
	history, err := secret.FromStored(opened)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, record := range history.Versions {
		if record.Value.IsZero() {
			continue
		}
		var key struct {
			D string `json:"d"`
		}
		if err := json.Unmarshal([]byte(record.Value.Reveal()), &key); err != nil || key.D == "" {
			l.t.Fatal("the key is no private JWK", err)
		}
		l.secretly("key that the broker made", key.D)
	}
}
