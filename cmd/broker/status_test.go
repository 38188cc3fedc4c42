package main

import (
	"bytes"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

func TestStatusIsReadAtAGlance(t *testing.T) {
	now := time.Date(2026, 3, 1, 3, 0, 0, 0, time.UTC)
	status := &tokenbrokerv1.GetStatusResponse{
		Replicas: []*tokenbrokerv1.ReplicaStatus{
			{Id: "a", Presence: tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_ALIVE, Version: "v1"},
			{Id: "b", Presence: tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_LOST, Version: "v1"},
		},
		Store:        &tokenbrokerv1.StoreStatus{Kind: "redis", Servers: []*tokenbrokerv1.StoreServerStatus{{Name: "r:1", Reads: true, Writes: true}}},
		Issuers:      []*tokenbrokerv1.IssuerStatus{{Issuer: "i", KeysLoadedAt: timestamppb.New(now)}},
		Clients:      []*tokenbrokerv1.ClientStatus{{Name: "x", State: tokenbrokerv1.ClientState_CLIENT_STATE_OK}, {Name: "y", State: tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET}},
		Certificates: []*tokenbrokerv1.CertificateStatus{{Use: "listener", Name: "broker\x1b[2J", ExpiresAt: timestamppb.New(now)}},
		Findings:     []*tokenbrokerv1.Finding{{Severity: tokenbrokerv1.FindingSeverity_FINDING_SEVERITY_CRITICAL, Id: "secret-missing", Message: "Client y has no secret.", Action: "Set it.", Since: timestamppb.New(now.Add(-2 * time.Minute))}},
	}
	want := `replicas      1 alive of 2, version v1
store         redis, reads and writes work
clients       2 configured, 1 ok, 1 no secret
issuers       1 configured, all keys are fetched
certificates  the first expires on 2026-03-01: listener broker\u001b[2J

CRITICAL  Client y has no secret.
          For 2m. Set it. [secret-missing]
`
	var out bytes.Buffer
	if err := printStatus(&out, status, now); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
}
