package server

import (
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cezzis/tokenbroker/internal/broker"
)

// errorDomain is the domain of the ErrorInfo of every error.
const errorDomain = "tokenbroker"

// code is the one table from the broker's errors to gRPC's.
func code(c broker.Code) codes.Code {
	switch c {
	case broker.InvalidArgument:
		return codes.InvalidArgument
	case broker.NotFound:
		return codes.NotFound
	case broker.PermissionDenied:
		return codes.PermissionDenied
	case broker.Unauthenticated:
		return codes.Unauthenticated
	case broker.FailedPrecondition:
		return codes.FailedPrecondition
	case broker.ResourceExhausted:
		return codes.ResourceExhausted
	case broker.Unavailable:
		return codes.Unavailable
	case broker.DeadlineExceeded:
		return codes.DeadlineExceeded
	case broker.Canceled:
		return codes.Canceled
	case broker.Internal:
		return codes.Internal
	default:
		return codes.Internal
	}
}

// StatusOf is how an error of the broker's looks to a caller of any service.
func StatusOf(err error) error { return statusOf(err) }

// statusOf is how an error looks to a caller. What is no broker.Error was not
// written for callers, and is not shown to them.
func statusOf(err error) error {
	told, ok := errors.AsType[*broker.Error](err)
	if !ok {
		told = broker.Fault(err)
	}
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: told.Reason, Domain: errorDomain, Metadata: told.Metadata},
	}
	if told.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(told.RetryAfter)})
	}
	if told.Field != "" {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: told.Field, Description: told.Message},
		}})
	}
	bare := status.New(code(told.Code), told.Message)
	full, err := bare.WithDetails(details...)
	if err != nil {
		return bare.Err()
	}
	return full.Err()
}
