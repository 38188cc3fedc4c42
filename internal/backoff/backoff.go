// Package backoff decides how long the broker waits after a failure of an IdP, and
// remembers failures until then. Replicas share them through the store.
package backoff

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/token"
)

// Failure is a failed fetch. Until it ends, callers get its error without another
// fetch. It is immutable.
type Failure struct {
	Err   *apierror.Error
	Until time.Time
	Class idp.Class
	// Tries counts the failures of this class in a row.
	Tries int
	// At is when this replica learned of the failure.
	At time.Time
	// Fence is that of the fetch that failed: the higher is the newer.
	Fence uint64
	// Doubted is the version of the secret that may have caused the failure. The
	// failure counts only while that version is current. Empty: the secret is not the
	// cause.
	Doubted string
}

// ErrorOf returns the error for callers after a request to the IdP failed with err.
func ErrorOf(client, secretVersion string, err error) *apierror.Error {
	failure := &apierror.Error{Metadata: map[string]string{"client": client}, Cause: err}
	fault, ok := errors.AsType[*idp.Error](err)
	if !ok {
		failure.Code, failure.Reason = apierror.Unavailable, apierror.ReasonIdPUnavailable
		failure.Message = fmt.Sprintf("client %q: no token came in time", client)
		return failure
	}
	if fault.Code != "" {
		failure.Metadata["oauth_error"] = fault.Code
	}
	switch fault.Class {
	case idp.CredentialRefused:
		failure.Code, failure.Reason = apierror.FailedPrecondition, apierror.ReasonCredentialsRefused
		failure.Metadata["secret_version"] = secretVersion
	case idp.RequestRefused:
		failure.Code, failure.Reason = apierror.FailedPrecondition, apierror.ReasonRequestRefused
		if fault.Interaction() {
			failure.Reason = apierror.ReasonInteraction
		}
		if fault.Claims != "" {
			failure.Metadata["claims"] = fault.Claims
		}
	case idp.Misconfigured:
		failure.Code, failure.Reason = apierror.FailedPrecondition, apierror.ReasonIdPMisconfigured
	case idp.Throttled:
		failure.Code, failure.Reason = apierror.ResourceExhausted, apierror.ReasonIdPThrottled
	case idp.Transient:
		failure.Code, failure.Reason = apierror.Unavailable, apierror.ReasonIdPUnavailable
	default:
		return apierror.Fault(err)
	}
	failure.Message = fmt.Sprintf("client %q: %v", client, fault)
	return failure
}

// Active reports whether it is too early for another attempt. A nil Failure is not
// active.
func (f *Failure) Active(now time.Time) bool { return f != nil && now.Before(f.Until) }

// ErrorAt returns the error with the time that remains until the next attempt.
func (f *Failure) ErrorAt(now time.Time) *apierror.Error {
	return f.Err.WithRetryAfter(f.Until.Sub(now))
}

// TriesBefore returns how often fetches failed with this class in a row.
func (f *Failure) TriesBefore(class idp.Class) int {
	if f == nil || f.Class != class {
		return 0
	}
	return f.Tries
}

// Slot holds the newest failure of one kind; nil after a success. The zero value is
// empty. It is safe for concurrent use.
type Slot struct{ atomic.Pointer[Failure] }

// Record stores a failure of this replica, unless the slot has a newer one.
func (s *Slot) Record(next *Failure) {
	for {
		before := s.Load()
		if before != nil && before.Fence > next.Fence || s.CompareAndSwap(before, next) {
			return
		}
	}
}

// Adopt stores a failure of another replica, unless the slot has one that is as new.
func (s *Slot) Adopt(next *Failure) {
	for {
		before := s.Load()
		if before != nil && before.Fence >= next.Fence || s.CompareAndSwap(before, next) {
			return
		}
	}
}

// Succeeded empties the slot if its failure is older than a success with this fence.
func (s *Slot) Succeeded(fence uint64) {
	if before := s.Load(); before != nil && before.Fence < fence {
		s.CompareAndSwap(before, nil)
	}
}

// LeastPause is the shortest time between two attempts with a refused secret.
const LeastPause = 5 * time.Second

// SecretDelay returns how long a secret is not sent again after the IdP has refused it
// n times in a row. During a rotation the IdP is likely to accept it soon.
func SecretDelay(n int, rotating bool) time.Duration {
	steps := []time.Duration{30 * time.Second, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute}
	if rotating {
		steps = append([]time.Duration{LeastPause, 15 * time.Second, 45 * time.Second}, steps[1:]...)
	}
	return steps[min(n, len(steps))-1]
}

// Delay returns how long the broker does not repeat a fetch that has failed with err n
// times in a row. held is the token that the fetch was to replace; nil: none.
func Delay(err error, n int, held *token.Token, now time.Time) time.Duration {
	step := func(steps ...time.Duration) time.Duration { return steps[min(n, len(steps))-1] }
	failure, ok := errors.AsType[*idp.Error](err)
	if !ok {
		return transientDelay(n, held, now)
	}
	switch failure.Class {
	case idp.Throttled:
		return failure.RetryAfter
	case idp.RequestRefused:
		return step(time.Minute, 5*time.Minute)
	case idp.Misconfigured:
		return time.Minute
	default:
		return transientDelay(n, held, now)
	}
}

// transientDelay doubles from 1 s to 30 s, spread by half either way. While a token is
// held it leaves time for a few more attempts before the token ends.
func transientDelay(n int, held *token.Token, now time.Time) time.Duration {
	const (
		most  = 30 * time.Second
		least = 500 * time.Millisecond
	)
	wait := most
	if n <= 5 {
		wait = time.Second << (n - 1)
	}
	wait = time.Duration(float64(wait) * (0.5 + rand.Float64()))
	if held != nil && held.Usable(now, 0) {
		wait = min(wait, held.UsableUntil.Sub(now)/4)
	}
	return max(wait, least)
}

// Sleep waits for d, or until something is received from event. False: ctx has ended.
func Sleep(ctx context.Context, event <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-event:
		return true
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
