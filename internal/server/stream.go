package server

import (
	"context"
	"errors"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// clientStream records the first error that gRPC returned for a message of a stream.
// Such an error concerns the client or the network: a handler that returns it must not
// make the call look like a fault of the broker.
type clientStream struct {
	grpc.ServerStream

	err atomic.Pointer[error]
}

// SendMsg implements grpc.ServerStream.
func (s *clientStream) SendMsg(message any) error {
	err := s.ServerStream.SendMsg(message)
	if err != nil {
		s.note(sendError(s.Context(), err))
	}
	return err
}

// RecvMsg implements grpc.ServerStream.
func (s *clientStream) RecvMsg(message any) error {
	err := s.ServerStream.RecvMsg(message)
	if err != nil && !errors.Is(err, io.EOF) {
		s.note(receiveError(s.Context(), err))
	}
	return err
}

func (s *clientStream) note(err error) { s.err.CompareAndSwap(nil, &err) }

// result returns the error of the call: the transport error if there was one, else the
// error of the handler.
func (s *clientStream) result(handled error) error {
	if err := s.err.Load(); err != nil && handled != nil {
		return *err
	}
	return handled
}

// sendError returns the status of a call after its response could not be sent. A
// message that cannot be encoded remains a fault of the broker.
func sendError(ctx context.Context, err error) error {
	switch code := status.Code(err); {
	case ctx.Err() != nil:
		return statusOf(disconnected(ctx.Err()))
	case code == codes.Canceled, code == codes.Unavailable, code == codes.Unknown:
		return statusOf(disconnected(context.Canceled)) // the connection has ended, and ctx ends soon
	default:
		return err
	}
}

// receiveError returns the status of a call after its request could not be received.
// gRPC reports a missing, truncated or malformed message as INTERNAL, and ends the
// stream.
func receiveError(ctx context.Context, err error) error {
	received := status.Convert(err)
	switch code := received.Code(); {
	case code == codes.Internal, code == codes.Unknown:
		return statusOf(&apierror.Error{
			Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Message: "the request could not be read: " + received.Message(),
		})
	case ctx.Err() != nil:
		return statusOf(disconnected(ctx.Err()))
	case code == codes.Unavailable:
		return statusOf(disconnected(context.Canceled))
	default:
		return err
	}
}

// disconnected returns the error of a call that the client ended.
func disconnected(cause error) *apierror.Error {
	if errors.Is(cause, context.DeadlineExceeded) {
		return &apierror.Error{Code: apierror.DeadlineExceeded, Reason: apierror.ReasonCallerGaveUp, Message: "the caller's deadline passed while a message was on its way"}
	}
	return &apierror.Error{Code: apierror.Canceled, Reason: apierror.ReasonCallerGaveUp, Message: "the caller disconnected while a message was on its way"}
}
