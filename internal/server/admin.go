package server

import (
	"context"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
)

// admin answers operators.
type admin struct {
	tokenbrokerv1.UnimplementedAdminServiceServer

	broker *broker.Broker
}

// PurgeTokens drops the tokens of a client on all replicas.
func (a *admin) PurgeTokens(ctx context.Context, req *tokenbrokerv1.PurgeTokensRequest) (*tokenbrokerv1.PurgeTokensResponse, error) {
	if err := checkPurge(req); err != nil {
		return nil, statusOf(err)
	}
	if err := a.broker.Purge(ctx, req.GetClientName()); err != nil {
		return nil, statusOf(err)
	}
	return &tokenbrokerv1.PurgeTokensResponse{}, nil
}
