package main

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// In a real service, protoc-gen-go-grpc generates this file from the definition of a
// service with one method.

const countMethod = "/shop.v1.Orders/Count"

type ordersServer interface {
	Count(ctx context.Context, of *wrapperspb.StringValue) (*wrapperspb.Int64Value, error)
}

func registerOrders(server *grpc.Server, orders ordersServer) {
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "shop.v1.Orders",
		HandlerType: (*ordersServer)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Count", Handler: countHandler}},
	}, orders)
}

func countHandler(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) { //nolint:revive // as it is generated
	req := new(wrapperspb.StringValue)
	if err := decode(req); err != nil {
		return nil, err
	}
	handle := func(ctx context.Context, req any) (any, error) {
		return srv.(ordersServer).Count(ctx, req.(*wrapperspb.StringValue)) //nolint:forcetypeassert // as it is generated
	}
	if intercept == nil {
		return handle(ctx, req)
	}
	return intercept(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: countMethod}, handle)
}

func callCount(ctx context.Context, conn grpc.ClientConnInterface, of string) (int64, error) {
	count := new(wrapperspb.Int64Value)
	err := conn.Invoke(ctx, countMethod, wrapperspb.String(of), count)
	return count.GetValue(), err
}
