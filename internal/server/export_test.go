package server

import (
	"context"
	"crypto/x509"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

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

// Recogniser recognises the caller of each call of one connection and lets it in
// and out again, as the server does.
func Recogniser(cfg AdmissionConfig, presented []*x509.Certificate, header metadata.MD) func() error {
	a := NewAdmission(cfg)
	conn := &connection{unidentified: a.unidentified}
	if len(presented) > 0 {
		conn.present(presented, presented[0].NotAfter, a.authorities())
	}
	ctx := peer.NewContext(metadata.NewIncomingContext(context.Background(), header), &peer.Peer{AuthInfo: conn})
	return func() error {
		call, err := a.Enter(ctx, "", false, time.Now())
		if err != nil {
			return err
		}
		call.Leave()
		return nil
	}
}
