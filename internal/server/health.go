package server

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/caller"
)

// healthService is grpc.health.v1.Health. Probes and load balancers have no identity,
// so every peer may see the health of the whole broker and of the service that every
// broker has. Only callers may see the other services.
type healthService struct {
	healthpb.UnimplementedHealthServer

	callers *caller.Admission
	// now serves Check and List, watched serves Watch: see Shutdown.
	now, watched *health.Server
	draining     context.Context //nolint:containedctx // it ends when the server drains
}

// public reports whether every peer may see the health of a service.
func public(service string) bool {
	return service == "" || service == tokenbrokerv1.TokenBrokerService_ServiceDesc.ServiceName
}

// Check implements the service.
func (h *healthService) Check(ctx context.Context, req *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	if err := h.permit(ctx, req.GetService()); err != nil {
		return nil, err
	}
	return h.now.Check(ctx, req)
}

// Watch implements the service.
func (h *healthService) Watch(req *healthpb.HealthCheckRequest, stream healthpb.Health_WatchServer) error {
	if err := h.permit(stream.Context(), req.GetService()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(h.draining, cancel)()
	err := h.watched.Watch(req, &healthWatch{stream, ctx})
	if h.draining.Err() != nil && stream.Context().Err() == nil {
		_ = stream.Send(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_NOT_SERVING})
		return status.Error(codes.Unavailable, "this replica of the token broker is shutting down")
	}
	return err
}

// List implements the service. The observer admits callers only.
func (h *healthService) List(ctx context.Context, req *healthpb.HealthListRequest) (*healthpb.HealthListResponse, error) {
	return h.now.List(ctx, req)
}

// permit returns an error if the peer is not a caller and the service is not public.
// The error is the same whether or not the service exists.
func (h *healthService) permit(ctx context.Context, service string) error {
	if public(service) {
		return nil
	}
	method, _ := grpc.Method(ctx)
	if _, err := h.callers.Identify(ctx, method, false, time.Now()); err != nil {
		return statusOf(err)
	}
	return nil
}

// healthWatch is a stream that also ends when the server drains.
type healthWatch struct {
	healthpb.Health_WatchServer

	ctx context.Context //nolint:containedctx // it replaces that of the stream
}

// Context implements grpc.ServerStream.
func (w *healthWatch) Context() context.Context { return w.ctx }
