package server

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/rotation"
)

// admin implements the AdminService API for operators.
type admin struct {
	tokenbrokerv1.UnimplementedAdminServiceServer

	broker  *broker.Broker
	rotator *rotation.Rotator
	status  func(ctx context.Context) fleet.Summary // nil: unknown
}

// PurgeTokens drops the tokens of a client on all replicas.
func (a *admin) PurgeTokens(ctx context.Context, req *tokenbrokerv1.PurgeTokensRequest) (*tokenbrokerv1.PurgeTokensResponse, error) {
	if err := checkPurge(req); err != nil {
		return nil, statusOf(err)
	}
	if err := a.broker.Purge(ctx, CallerOf(ctx), broker.Purge{Client: req.GetClientName(), Request: req.GetRequestId(), Reason: req.GetReason()}); err != nil {
		return nil, statusOf(err)
	}
	return &tokenbrokerv1.PurgeTokensResponse{}, nil
}

// RevokeTokens makes verification refuse tokens.
func (a *admin) RevokeTokens(ctx context.Context, req *tokenbrokerv1.RevokeTokensRequest) (*tokenbrokerv1.RevokeTokensResponse, error) {
	requested, err := revocationOf(req)
	if err != nil {
		return nil, statusOf(err)
	}
	stored, failed := a.broker.Revocations().Revoke(ctx, CallerOf(ctx), requested, req.GetRequestId())
	if failed != nil {
		return nil, statusOf(failed)
	}
	return &tokenbrokerv1.RevokeTokensResponse{Revocation: revocationMessage(stored)}, nil
}

// ListRevocations lists the active revocations in pages. A page begins after the
// revocation whose ID is the page token, or at the first one if that revocation has
// expired since.
func (a *admin) ListRevocations(ctx context.Context, req *tokenbrokerv1.ListRevocationsRequest) (*tokenbrokerv1.ListRevocationsResponse, error) {
	if err := checkList(req); err != nil {
		return nil, statusOf(err)
	}
	all, err := a.broker.Revocations().List(ctx, CallerOf(ctx), req.GetIssuer())
	if err != nil {
		return nil, statusOf(err)
	}
	begin := 1 + slices.IndexFunc(all, func(r revocation.Revocation) bool { return r.ID == req.GetPageToken() })
	size := int(req.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	page := all[begin:min(begin+size, len(all))]
	resp := &tokenbrokerv1.ListRevocationsResponse{}
	for _, r := range page {
		resp.Revocations = append(resp.Revocations, revocationMessage(r))
	}
	if begin+size < len(all) {
		resp.NextPageToken = page[len(page)-1].ID
	}
	return resp, nil
}

// DeleteRevocation ends a revocation before it expires.
func (a *admin) DeleteRevocation(ctx context.Context, req *tokenbrokerv1.DeleteRevocationRequest) (*tokenbrokerv1.DeleteRevocationResponse, error) {
	if err := checkDelete(req); err != nil {
		return nil, statusOf(err)
	}
	if err := a.broker.Revocations().Delete(ctx, CallerOf(ctx), revocation.Deletion{ID: req.GetId(), Request: req.GetRequestId(), Reason: req.GetReason()}); err != nil {
		return nil, statusOf(err)
	}
	return &tokenbrokerv1.DeleteRevocationResponse{}, nil
}

func revocationMessage(r revocation.Revocation) *tokenbrokerv1.Revocation {
	m := &tokenbrokerv1.Revocation{
		Id: r.ID, Issuer: r.Issuer, ExpiresAt: timestamppb.New(r.ExpiresAt), CreatedAt: timestamppb.New(r.CreatedAt),
		CreatedBy: r.CreatedBy, Reason: r.Reason, IssuedBefore: timestampOf(r.IssuedBefore),
	}
	switch {
	case r.TokenID != "":
		m.Target = &tokenbrokerv1.Revocation_TokenId{TokenId: r.TokenID}
	case r.Subject != "":
		m.Target = &tokenbrokerv1.Revocation_Subject{Subject: r.Subject}
	case r.ClientID != "":
		m.Target = &tokenbrokerv1.Revocation_ClientId{ClientId: r.ClientID}
	default:
		m.Target = &tokenbrokerv1.Revocation_All{All: true}
	}
	return m
}

// timestampOf returns nil for the zero time.
func timestampOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
