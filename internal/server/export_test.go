package server

import (
	"context"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Handler is the service without a server around it.
func Handler(b *broker.Broker) tokenbrokerv1.TokenBrokerServiceServer { return &service{broker: b} }

// From is the context of a call of the caller.
func From(ctx context.Context, caller *policy.Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}
