package server

import (
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// errorDomain is the domain of the ErrorInfo of every error.
const errorDomain = "tokenbroker"

// code maps the broker's error codes to gRPC codes.
func code(c apierror.Code) codes.Code {
	switch c {
	case apierror.InvalidArgument:
		return codes.InvalidArgument
	case apierror.NotFound:
		return codes.NotFound
	case apierror.PermissionDenied:
		return codes.PermissionDenied
	case apierror.Unauthenticated:
		return codes.Unauthenticated
	case apierror.FailedPrecondition:
		return codes.FailedPrecondition
	case apierror.ResourceExhausted:
		return codes.ResourceExhausted
	case apierror.Unavailable:
		return codes.Unavailable
	case apierror.DeadlineExceeded:
		return codes.DeadlineExceeded
	case apierror.Canceled:
		return codes.Canceled
	case apierror.Internal:
		return codes.Internal
	default:
		return codes.Internal
	}
}

// StatusOf converts a broker error to the status for a caller of any service.
func StatusOf(err error) error { return statusOf(err) }

// statusOf converts an error to the status for a caller. Errors other than
// apierror.Error were not written for callers, so their text is not shown.
func statusOf(err error) error {
	e, ok := errors.AsType[*apierror.Error](err)
	if !ok {
		e = apierror.Fault(err)
	}
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: e.Reason, Domain: errorDomain, Metadata: e.Metadata},
	}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	if e.Field != "" {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
			{Field: e.Field, Description: e.Message},
		}})
	}
	bare := status.New(code(e.Code), e.Message)
	full, err := bare.WithDetails(details...)
	if err != nil {
		return bare.Err()
	}
	return full.Err()
}
