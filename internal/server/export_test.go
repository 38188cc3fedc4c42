package server

import (
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/broker"
)

// Handler is the service without a server around it.
func Handler(b *broker.Broker) tokenbrokerv1.TokenBrokerServiceServer { return &service{broker: b} }
