package server

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/verify"
)

func TestEveryCodeHasAStatus(t *testing.T) {
	table := map[apierror.Code]codes.Code{
		apierror.Internal:           codes.Internal,
		apierror.InvalidArgument:    codes.InvalidArgument,
		apierror.PermissionDenied:   codes.PermissionDenied,
		apierror.FailedPrecondition: codes.FailedPrecondition,
		apierror.ResourceExhausted:  codes.ResourceExhausted,
		apierror.Unavailable:        codes.Unavailable,
		apierror.DeadlineExceeded:   codes.DeadlineExceeded,
		apierror.Canceled:           codes.Canceled,
	}
	for from, want := range table {
		if got := status.Code(statusOf(&apierror.Error{Code: from})); got != want {
			t.Errorf("code %d becomes %v, want %v", from, got, want)
		}
	}
}

func TestForeignErrorIsNotShown(t *testing.T) {
	got := status.Convert(statusOf(errors.New("canary")))
	if got.Code() != codes.Internal || strings.Contains(got.Message(), "canary") {
		t.Errorf("status = %v", got)
	}
}

func TestEachRejectionReasonHasAName(t *testing.T) {
	for r := verify.Malformed; r <= verify.InsufficientScope; r++ {
		name := strings.ToLower(strings.TrimPrefix(reason(r).String(), "REJECTION_REASON_"))
		if name != r.String() {
			t.Errorf("%v becomes %q", r, name)
		}
	}
}
