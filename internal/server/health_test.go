package server_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// listsServices are all ways in which a peer could learn which services there are.
func listsServices(t *testing.T, conn *grpc.ClientConn) map[string]error {
	t.Helper()
	health := healthpb.NewHealthClient(conn)
	check := func(service string) error {
		_, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		return err
	}
	watch := func(service string) error {
		stream, err := health.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	_, list := health.List(t.Context(), &healthpb.HealthListRequest{})
	reflected, reflection := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if reflection == nil {
		if err := reflected.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
			t.Log(err) // Recv has the status
		}
		_, reflection = reflected.Recv()
	}
	return map[string]error{
		"list": list, "reflection": reflection,
		"check a service": check("tokenbroker.v1.AdminService"), "check no service": check("no.such.Service"),
		"watch a service": watch("tokenbroker.v1.AdminService"), "watch no service": watch("no.such.Service"),
		"call no service": conn.Invoke(t.Context(), "/no.such.Service/Method", &healthpb.HealthCheckRequest{}, &healthpb.HealthCheckResponse{}),
		"call no method":  conn.Invoke(t.Context(), "/tokenbroker.v1.AdminService/Method", &healthpb.HealthCheckRequest{}, &healthpb.HealthCheckResponse{}),
	}
}

func TestReflectionNeedsACaller(t *testing.T) {
	w := newWorld(t)
	anonymous, caller := w.connect(w.anonymous()), w.connect(w.with(w.ca, template(checkout)))
	for way, err := range listsServices(t, anonymous) {
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s, without an identity: %v", way, err)
		}
	}
	want := map[string]codes.Code{"check no service": codes.NotFound, "call no service": codes.Unimplemented, "call no method": codes.Unimplemented}
	for way, err := range listsServices(t, caller) {
		if status.Code(err) != want[way] {
			t.Errorf("%s, as a caller: %v", way, err)
		}
	}
	// What probes, load balancers and the Go client need.
	for _, service := range []string{"", tokenbrokerv1.TokenBrokerService_ServiceDesc.ServiceName} {
		request := &healthpb.HealthCheckRequest{Service: service}
		if got, err := healthpb.NewHealthClient(anonymous).Check(t.Context(), request); err != nil || got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q: %v, %v", service, got, err)
		}
		stream := must(healthpb.NewHealthClient(anonymous).Watch(t.Context(), request))
		if got, err := stream.Recv(); err != nil || got.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("watch of %q: %v, %v", service, got, err)
		}
	}
	for _, family := range must(w.registry.Gather()) {
		if strings.Contains(family.String(), "no.such") {
			t.Error("the name of a service that does not exist is in the metrics")
		}
	}
	if n := w.count("grpc_server_handled_total", map[string]string{"grpc_type": "bidi_stream", "grpc_service": "unknown", "grpc_method": "unknown", "grpc_code": "Unimplemented"}); n != 2 {
		t.Errorf("%v calls of unknown methods are counted", n)
	}
}
