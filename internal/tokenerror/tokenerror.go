// Package tokenerror has the errors of requests for tokens that do not come from an IdP.
package tokenerror

import (
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/token"
)

// ForcedTooOften is the error for a forced fetch sooner than interval after the last one.
func ForcedTooOften(client string, interval time.Duration) *apierror.Error {
	return &apierror.Error{
		Code:     apierror.ResourceExhausted,
		Reason:   apierror.ReasonForcedFetchLimited,
		Metadata: map[string]string{"client": client},
		Message:  fmt.Sprintf("client %q: the cached token does not live long enough for min_ttl, and a newer one was fetched less than %v ago; try again later, or with a lower min_ttl", client, interval),
	}
}

// TooShort is the error for a min_ttl that exceeds the lifetime of the IdP's tokens.
func TooShort(client string, tok *token.Token) *apierror.Error {
	life := tok.Lifetime().Round(time.Second)
	return &apierror.Error{
		Code:     apierror.FailedPrecondition,
		Reason:   apierror.ReasonMinTTLUnattainable,
		Metadata: map[string]string{"client": client, "lifetime": life.String()},
		Message:  fmt.Sprintf("client %q: the IdP issues tokens that live %v, which is too short for min_ttl; ask for less, or have the lifetime raised at the IdP", client, life),
	}
}

// Unavailable returns an error after which a call can be repeated in a second.
func Unavailable(client, reason, message string) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: reason, RetryAfter: time.Second,
		Metadata: map[string]string{"client": client}, Message: message,
	}
}

// Purged is the error for a request whose token was purged while it was fetched.
func Purged(client string) *apierror.Error {
	return Unavailable(client, apierror.ReasonPurged, fmt.Sprintf("client %q: its tokens were purged while one was being fetched; try again", client))
}

// TooLate is the error for a fetched token that can no longer be used.
func TooLate(client string, tok *token.Token) *apierror.Error {
	return Unavailable(client, apierror.ReasonIdPUnavailable,
		fmt.Sprintf("client %q: the IdP took so long that the token, which lives %v, can no longer be used; raise its lifetime at the IdP", client, tok.Lifetime().Round(time.Second)))
}

// ShuttingDown is the error for callers that this replica can no longer serve.
func ShuttingDown(client string) *apierror.Error {
	return Unavailable(client, apierror.ReasonShuttingDown, "this replica is shutting down; call another one")
}
