package server_test

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/server"
)

// everyStatus is a status in which no field is empty.
func everyStatus(context.Context) fleet.Summary {
	now := time.Now()
	record := &fleet.Record{
		Replica:             fleet.Replica{ID: "host/1", Host: "host", Version: "v1", Started: now, Written: now},
		Config:              fleet.Config{Digest: fleet.Digest{1}, Applied: now, Refused: now},
		Ring:                &fleet.Ring{Primary: "01", IDs: []fleet.Name{"01"}},
		Revocations:         fleet.Revocations{Count: 1, Usable: true, Loaded: now},
		CertificatesFailing: now,
		Audit:               fleet.Audit{On: true, Failing: now, Lost: 1},
		Tracing:             fleet.Tracing{On: true, Failing: now},
	}
	return fleet.Summary{
		Findings: []fleet.Finding{{Severity: fleet.Critical, ID: fleet.AuditFailing, Subject: "x", Replicas: []fleet.Name{"host/1"}, Message: "m", Action: "a", Since: now}},
		Replicas: []fleet.Member{
			{Presence: fleet.Alive, Replica: record.Replica, Record: record, Age: time.Second, Clock: 2 * time.Second},
			{Presence: fleet.Lost, Replica: fleet.Replica{ID: "host/2"}},
		},
		Store:        fleet.Store{Kind: fleet.Redis, Durable: fleet.Yes, Evicts: fleet.No, Servers: []fleet.Server{{Name: "redis", Reads: true, WritesSince: now, Cause: fleet.OutOfMemory}, {Writes: true}}},
		Issuers:      []fleet.Issuer{{Name: issuer, Keys: 1, Loaded: now, Failure: fleet.Unreachable}},
		Clients:      []fleet.FleetClient{{Client: fleet.Client{Name: "orders", State: fleet.ClientRefused, Success: now, Failed: now, Failure: fleet.SecretRefused, Resolved: true, Generation: 1, SecretSince: now, Fallback: now, Pending: now}, Differs: true}},
		Certificates: []fleet.Certificate{{Use: fleet.ListenerUse, Name: "broker", Ends: now}},
		Omitted:      1,
		Incomplete:   true,
	}
}

func TestGetStatusReturnsEveryField(t *testing.T) {
	fixture := apitest.NewFor(t, everybody())
	f := &api{}
	f.open(t, server.Config{Broker: fixture.Broker, Bound: caller.Bound{TCP: "everybody"}, Logger: fixture.Logger, Status: everyStatus})
	got, err := tokenbrokerv1.NewAdminServiceClient(f.conn).GetStatus(t.Context(), &tokenbrokerv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	collectFields(got.ProtoReflect(), set)
	for _, message := range []proto.Message{
		got, &tokenbrokerv1.Finding{}, &tokenbrokerv1.ReplicaStatus{}, &tokenbrokerv1.StoreStatus{}, &tokenbrokerv1.StoreServerStatus{},
		&tokenbrokerv1.IssuerStatus{}, &tokenbrokerv1.ClientStatus{}, &tokenbrokerv1.CertificateStatus{},
	} {
		fields := message.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if name := string(fields.Get(i).FullName()); !set[name] {
				t.Errorf("%s is empty", name)
			}
		}
	}
	if c := got.GetClients()[0]; c.GetState() != tokenbrokerv1.ClientState_CLIENT_STATE_REFUSED || c.GetLastError() != "it refuses the client's credentials" {
		t.Errorf("client: %v", c)
	}
	if r := got.GetReplicas()[1]; r.GetPresence() != tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_LOST || !r.GetUnreadable() {
		t.Errorf("lost replica: %v", r)
	}
}

// collectFields adds the names of all fields that are set in a message of this API, and in those below it.
func collectFields(m protoreflect.Message, set map[string]bool) {
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		set[string(field.FullName())] = true
		if field.Message() == nil || field.Message().ParentFile().Package() != "tokenbroker.v1" {
			return true
		}
		if !field.IsList() {
			collectFields(value.Message(), set)
			return true
		}
		for i := range value.List().Len() {
			collectFields(value.List().Get(i).Message(), set)
		}
		return true
	})
}

// A caller that may act on some clients only must not see the others.
func TestGetStatusNeedsAGrantForAllClients(t *testing.T) {
	grant := policy.AdminGrant{Actions: []policy.Action{policy.GetStatus}, Clients: []string{"orders"}}
	who := policy.New(policy.Config{
		Callers: []policy.CallerConfig{{Name: "caller-robot", Match: policy.Match{Issuer: issuer, Subject: robot}, Roles: []string{"some"}}},
		Roles:   map[string]policy.Role{"some": {Admin: []policy.AdminGrant{grant}}},
		Clients: map[string]policy.Defaults{"orders": {}},
		Issuers: map[string][]string{issuer: {audience}},
	})
	w := newWorldOf(t, who, func(cfg *server.Config) { cfg.Status = everyStatus })
	client := tokenbrokerv1.NewAdminServiceClient(w.connect(w.anonymous()))
	_, err := client.GetStatus(metadata.NewOutgoingContext(t.Context(), bearer(w.jwt(map[string]any{"sub": robot}))), &tokenbrokerv1.GetStatusRequest{})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("error = %v", err)
	}
}
