package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// GetStatus returns the status of the fleet.
func (a *admin) GetStatus(ctx context.Context, req *tokenbrokerv1.GetStatusRequest) (*tokenbrokerv1.GetStatusResponse, error) {
	if err := checkUnknown(req); err != nil {
		return nil, statusOf(err)
	}
	if err := a.broker.Actions().Allow(ctx, CallerOf(ctx), policy.GetStatus); err != nil {
		return nil, statusOf(err)
	}
	if a.status == nil {
		return &tokenbrokerv1.GetStatusResponse{Incomplete: true}, nil
	}
	return statusMessage(a.status(ctx)), nil
}

func statusMessage(s fleet.Summary) *tokenbrokerv1.GetStatusResponse {
	resp := &tokenbrokerv1.GetStatusResponse{
		Store:          storeMessage(s.Store),
		OmittedClients: int32(s.Omitted), //nolint:gosec // the clients of a configuration
		Incomplete:     s.Incomplete,
	}
	for _, one := range s.Findings {
		resp.Findings = append(resp.Findings, findingMessage(one))
	}
	for _, one := range s.Replicas {
		resp.Replicas = append(resp.Replicas, replicaMessage(one))
	}
	for _, one := range s.Issuers {
		resp.Issuers = append(resp.Issuers, &tokenbrokerv1.IssuerStatus{
			Issuer: string(one.Name), Keys: int32(one.Keys), //nolint:gosec // bounded by the size of a JWK set
			KeysLoadedAt: timestampOf(one.Loaded), LastError: one.Failure.Sentence(),
		})
	}
	for i := range s.Clients {
		resp.Clients = append(resp.Clients, clientStatusMessage(&s.Clients[i]))
	}
	for _, one := range s.Certificates {
		resp.Certificates = append(resp.Certificates, &tokenbrokerv1.CertificateStatus{Use: one.Use.String(), Name: string(one.Name), ExpiresAt: timestampOf(one.Ends)})
	}
	return resp
}

func findingMessage(one fleet.Finding) *tokenbrokerv1.Finding {
	severity := tokenbrokerv1.FindingSeverity_FINDING_SEVERITY_WARNING
	if one.Severity == fleet.Critical {
		severity = tokenbrokerv1.FindingSeverity_FINDING_SEVERITY_CRITICAL
	}
	return &tokenbrokerv1.Finding{
		Severity: severity, Id: one.ID, Subject: string(one.Subject), Replicas: texts(one.Replicas),
		Message: one.Message, Action: one.Action, Since: timestampOf(one.Since),
	}
}

func texts(names []fleet.Name) []string {
	all := make([]string, 0, len(names))
	for _, name := range names {
		all = append(all, string(name))
	}
	return all
}

func replicaMessage(one fleet.Member) *tokenbrokerv1.ReplicaStatus {
	m := &tokenbrokerv1.ReplicaStatus{
		Id: string(one.Replica.ID), Presence: presenceOf(one.Presence), Version: string(one.Replica.Version), StartedAt: timestampOf(one.Replica.Started),
		Age: durationpb.New(one.Age), ClockDifference: durationpb.New(one.Clock.Round(time.Second)), Unreadable: one.Record == nil,
	}
	r := one.Record
	if r == nil {
		return m
	}
	m.ConfigSha256, m.ConfigAppliedAt, m.ConfigRefusedSince = r.Config.Digest[:], timestampOf(r.Config.Applied), timestampOf(r.Config.Refused)
	if r.Ring != nil {
		m.SealingKey, m.SealingKeys = string(r.Ring.Primary), texts(r.Ring.IDs)
	}
	m.Revocations = int32(r.Revocations.Count) //nolint:gosec // at most MaxRevocations
	m.RevocationsLoadedAt, m.RevocationsUsable = timestampOf(r.Revocations.Loaded), r.Revocations.Usable
	m.AuditOn, m.AuditFailingSince, m.AuditLinesLost = r.Audit.On, timestampOf(r.Audit.Failing), r.Audit.Lost
	m.TracingOn, m.TracingFailingSince = r.Tracing.On, timestampOf(r.Tracing.Failing)
	m.CertificatesFailingSince = timestampOf(r.CertificatesFailing)
	return m
}

func presenceOf(p fleet.Presence) tokenbrokerv1.ReplicaPresence {
	switch p {
	case fleet.Alive:
		return tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_ALIVE
	case fleet.Lost:
		return tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_LOST
	case fleet.Sealed:
		return tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_SEALED
	default:
		return tokenbrokerv1.ReplicaPresence_REPLICA_PRESENCE_UNSPECIFIED
	}
}

func storeMessage(s fleet.Store) *tokenbrokerv1.StoreStatus {
	m := &tokenbrokerv1.StoreStatus{Kind: s.Kind.String(), Durable: s.Durable.String(), Evicts: s.Evicts.String()}
	for _, one := range s.Servers {
		since := one.WritesSince
		if !one.Reads {
			since = one.ReadsSince
		}
		m.Servers = append(m.Servers, &tokenbrokerv1.StoreServerStatus{
			Name: string(one.Name), Reads: one.Reads, Writes: one.Writes, FailingSince: timestampOf(since), Error: one.Cause.Sentence(),
		})
	}
	return m
}

func clientStatusMessage(c *fleet.FleetClient) *tokenbrokerv1.ClientStatus {
	return &tokenbrokerv1.ClientStatus{
		Name: string(c.Name), State: clientStates[c.State], LastSuccessAt: timestampOf(c.Success), LastFailureAt: timestampOf(c.Failed),
		LastError: c.Failure.Sentence(), LastFailureResolved: c.Resolved, SecretGeneration: c.Generation, SecretGenerationsDiffer: c.Differs,
		SecretCurrentSince: timestampOf(c.SecretSince), SecretFallbackSince: timestampOf(c.Fallback), SecretPendingSince: timestampOf(c.Pending),
	}
}

//nolint:gochecknoglobals // a constant that Go cannot express as such
var clientStates = map[fleet.ClientState]tokenbrokerv1.ClientState{
	fleet.ClientIdle:      tokenbrokerv1.ClientState_CLIENT_STATE_IDLE,
	fleet.ClientOK:        tokenbrokerv1.ClientState_CLIENT_STATE_OK,
	fleet.ClientFailing:   tokenbrokerv1.ClientState_CLIENT_STATE_FAILING,
	fleet.ClientRefused:   tokenbrokerv1.ClientState_CLIENT_STATE_REFUSED,
	fleet.ClientThrottled: tokenbrokerv1.ClientState_CLIENT_STATE_THROTTLED,
	fleet.ClientNoSecret:  tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET,
}
