package server

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// ListClients lists the clients in pages. A page begins after the client named by the
// page token.
func (a *admin) ListClients(ctx context.Context, req *tokenbrokerv1.ListClientsRequest) (*tokenbrokerv1.ListClientsResponse, error) {
	if err := checkClientPage(req); err != nil {
		return nil, statusOf(err)
	}
	all, err := a.broker.Clients(ctx, CallerOf(ctx))
	if err != nil {
		return nil, statusOf(err)
	}
	begin := slices.IndexFunc(all, func(c broker.ClientStatus) bool { return c.Name > req.GetPageToken() })
	if begin < 0 {
		begin = len(all)
	}
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	page := all[begin:min(begin+size, len(all))]
	resp := &tokenbrokerv1.ListClientsResponse{}
	for i := range page {
		resp.Clients = append(resp.Clients, clientMessage(&page[i]))
	}
	if begin+size < len(all) {
		resp.NextPageToken = page[len(page)-1].Name
	}
	return resp, nil
}

// GetClient returns one client.
func (a *admin) GetClient(ctx context.Context, req *tokenbrokerv1.GetClientRequest) (*tokenbrokerv1.GetClientResponse, error) {
	if err := firstOf(checkUnknown(req), checkClientName(req.GetClientName())); err != nil {
		return nil, statusOf(err)
	}
	client, err := a.broker.Client(ctx, CallerOf(ctx), req.GetClientName())
	if err != nil {
		return nil, statusOf(err)
	}
	return &tokenbrokerv1.GetClientResponse{Client: clientMessage(&client)}, nil
}

// RotateSecret adds a new secret version.
func (a *admin) RotateSecret(ctx context.Context, req *tokenbrokerv1.RotateSecretRequest) (*tokenbrokerv1.RotateSecretResponse, error) {
	rotation, invalid := rotationOf(req)
	if invalid != nil {
		return nil, statusOf(invalid)
	}
	result, err := a.rotator.Rotate(ctx, CallerOf(ctx), rotation)
	if err != nil {
		return nil, rotationStatus(err)
	}
	return rotated(result), nil
}

// ActivateSecret makes a staged secret current.
func (a *admin) ActivateSecret(ctx context.Context, req *tokenbrokerv1.ActivateSecretRequest) (*tokenbrokerv1.ActivateSecretResponse, error) {
	change, invalid := changeOf(req)
	if invalid = firstOf(invalid, checkVersion("version", req.GetVersion())); invalid != nil {
		return nil, statusOf(invalid)
	}
	result, err := a.rotator.Activate(ctx, CallerOf(ctx), req.GetVersion(), change)
	if err != nil {
		return nil, rotationStatus(err)
	}
	resp := rotated(result)
	return &tokenbrokerv1.ActivateSecretResponse{Version: resp.GetVersion(), Steps: resp.GetSteps()}, nil
}

// RollbackSecret makes the previous secret current again.
func (a *admin) RollbackSecret(ctx context.Context, req *tokenbrokerv1.RollbackSecretRequest) (*tokenbrokerv1.RollbackSecretResponse, error) {
	change, invalid := changeOf(req)
	if invalid != nil {
		return nil, statusOf(invalid)
	}
	result, err := a.rotator.Rollback(ctx, CallerOf(ctx), change)
	if err != nil {
		return nil, rotationStatus(err)
	}
	resp := rotated(result)
	return &tokenbrokerv1.RollbackSecretResponse{Version: resp.GetVersion(), Steps: resp.GetSteps()}, nil
}

// RetireSecret erases a secret version.
func (a *admin) RetireSecret(ctx context.Context, req *tokenbrokerv1.RetireSecretRequest) (*tokenbrokerv1.RetireSecretResponse, error) {
	change, problem := changeOf(req)
	if problem == nil && req.GetVersion() == "" {
		problem = invalid("version", "it is required: the version to wipe")
	}
	if problem = firstOf(problem, checkVersion("version", req.GetVersion())); problem != nil {
		return nil, statusOf(problem)
	}
	result, err := a.rotator.Retire(ctx, CallerOf(ctx), req.GetVersion(), change)
	if err != nil {
		return nil, rotationStatus(err)
	}
	resp := rotated(result)
	return &tokenbrokerv1.RetireSecretResponse{Version: resp.GetVersion(), Steps: resp.GetSteps()}, nil
}

// ExportSecret returns a backup of a secret.
func (a *admin) ExportSecret(ctx context.Context, req *tokenbrokerv1.ExportSecretRequest) (*tokenbrokerv1.ExportSecretResponse, error) {
	if err := firstOf(checkUnknown(req), checkClientName(req.GetClientName())); err != nil {
		return nil, statusOf(err)
	}
	backup, err := a.rotator.Export(ctx, CallerOf(ctx), req.GetClientName())
	if err != nil {
		return nil, statusOf(err)
	}
	return &tokenbrokerv1.ExportSecretResponse{Sealed: backup.Sealed, CurrentVersion: backup.Current}, nil
}

// ImportSecret restores a backup of a secret.
func (a *admin) ImportSecret(ctx context.Context, req *tokenbrokerv1.ImportSecretRequest) (*tokenbrokerv1.ImportSecretResponse, error) {
	change, problem := changeOf(req)
	if problem == nil && len(req.GetSealed()) == 0 {
		problem = invalid("sealed", "it is required: the sealed backup that ExportSecret returned")
	}
	if problem != nil {
		return nil, statusOf(problem)
	}
	result, err := a.rotator.Import(ctx, CallerOf(ctx), req.GetSealed(), req.GetReplace(), change)
	if err != nil {
		return nil, rotationStatus(err)
	}
	resp := rotated(result)
	return &tokenbrokerv1.ImportSecretResponse{Version: resp.GetVersion(), Steps: resp.GetSteps()}, nil
}

func clientMessage(c *broker.ClientStatus) *tokenbrokerv1.Client {
	m := &tokenbrokerv1.Client{
		Name: c.Name, ClientId: c.About.ClientID, Issuer: c.About.Issuer, TokenUrl: c.About.TokenURL,
		AuthMethod: c.About.Auth, SecretSource: c.About.Secret,
		State:          clientState(c.State),
		TokenExpiresAt: timestampOf(c.TokenExpiresAt), NextRefreshAt: timestampOf(c.NextRefreshAt),
		LastSuccessAt: timestampOf(c.LastSuccess), LastFailureAt: timestampOf(c.LastFailure), LastError: c.LastError,
		LastFailureResolved: c.Resolved,
		BackoffUntil:        timestampOf(c.BackoffUntil),
		SecretGeneration:    c.Generation, SecretInUse: c.InUse, SecretFallback: c.Fallback,
	}
	for _, v := range c.Versions {
		m.SecretVersions = append(m.SecretVersions, versionMessage(v))
	}
	return m
}

func clientState(s broker.ClientState) tokenbrokerv1.ClientState {
	switch s {
	case broker.ClientIdle:
		return tokenbrokerv1.ClientState_CLIENT_STATE_IDLE
	case broker.ClientOK:
		return tokenbrokerv1.ClientState_CLIENT_STATE_OK
	case broker.ClientFailing:
		return tokenbrokerv1.ClientState_CLIENT_STATE_FAILING
	case broker.ClientRefused:
		return tokenbrokerv1.ClientState_CLIENT_STATE_REFUSED
	case broker.ClientThrottled:
		return tokenbrokerv1.ClientState_CLIENT_STATE_THROTTLED
	case broker.ClientNoSecret:
		return tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET
	default:
		return tokenbrokerv1.ClientState_CLIENT_STATE_UNSPECIFIED
	}
}

func versionMessage(v credential.VersionStatus) *tokenbrokerv1.SecretVersion {
	return &tokenbrokerv1.SecretVersion{
		Version: v.ID, State: secretState(v.State), StateSince: timestampOf(v.Since),
		CreatedAt: timestampOf(v.CreatedAt), CreatedBy: v.CreatedBy,
		LastSuccessAt: timestampOf(v.LastSuccess), RefusedAt: timestampOf(v.RefusedAt), KnownHere: v.Here,
	}
}

func secretState(s secret.State) tokenbrokerv1.SecretState {
	switch s {
	case secret.Pending:
		return tokenbrokerv1.SecretState_SECRET_STATE_PENDING
	case secret.Current:
		return tokenbrokerv1.SecretState_SECRET_STATE_CURRENT
	case secret.Previous:
		return tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS
	case secret.Retired:
		return tokenbrokerv1.SecretState_SECRET_STATE_RETIRED
	default:
		return tokenbrokerv1.SecretState_SECRET_STATE_UNSPECIFIED
	}
}

// rotationStatus returns the gRPC status of a failed secret change. Its details show
// how far the change got.
func rotationStatus(err error) error {
	bare := statusOf(err)
	failed, ok := errors.AsType[*rotation.Error](err)
	if !ok {
		return bare
	}
	full, err := status.Convert(bare).WithDetails(protoadapt.MessageV1Of(rotated(failed.Result)))
	if err != nil {
		return bare
	}
	return full.Err()
}

// rotated converts the result of a secret change, complete or partial, to a message.
func rotated(r rotation.Result) *tokenbrokerv1.RotateSecretResponse {
	m := &tokenbrokerv1.RotateSecretResponse{}
	if r.Version.ID != "" {
		m.Version = versionMessage(r.Version)
	}
	for _, step := range r.Steps {
		m.Steps = append(m.Steps, &tokenbrokerv1.RotationStep{
			Name: step.Name, Ok: step.OK, Message: step.Message, Took: durationpb.New(step.Took), Warning: step.Warning,
		})
	}
	return m
}
