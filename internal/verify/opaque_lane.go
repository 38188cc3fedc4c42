package verify

import (
	"errors"
	"time"
)

const (
	// After toleratedFailures consecutive failures the broker backs off from the
	// endpoint: first for minBackoff, which doubles with each further failure up to
	// opaqueBackoff. One failure is not enough, because a single bad token can cause it.
	toleratedFailures = 3
	minBackoff        = time.Second
	opaqueBackoff     = 30 * time.Second
	// Once the endpoint has answered a request, it tolerates more failures that may
	// concern the presented token only, and the backoff after them is shorter. Both
	// bound how often the broker sends a client secret that was revoked since: an IdP
	// may lock the client out after too many attempts.
	toleratedAmbiguous = 10
	ambiguousBackoff   = 5 * time.Second
	// maxRequestedBackoff bounds the backoff that the endpoint itself requests.
	maxRequestedBackoff = 5 * time.Minute
)

// lane has the calls for one kind of opaque token: tokens that were active before, or
// all others, which anyone can invent. Each kind has slots and backoffs of its own, so
// that invented tokens block no known token. The lock of [opaqueVerifier] guards it.
type lane struct {
	name         string
	slots        chan struct{} // holds one value for each request to the issuer
	calls        int
	failures     int       // consecutive
	backoffBegan time.Time // start of the last backoff
	backoffUntil time.Time // zero: the last request succeeded
	err          error     // of the last failure
}

func newLane(name string, slots int) *lane {
	return &lane{name: name, slots: make(chan struct{}, slots)}
}

// failing reports whether the lane has backed off and no request succeeded since.
func (l *lane) failing() bool { return !l.backoffUntil.IsZero() }

// admit returns nil if a call may start now; otherwise the reason and the time to wait.
func (l *lane) admit(now time.Time) (time.Duration, error) {
	switch wait := l.backoffUntil.Sub(now); {
	case wait > 0:
		return wait, l.err
	case l.failing() && l.calls > 0: // a single call tests the endpoint after a backoff
		return minBackoff, l.err
	case l.calls >= maxCalls:
		return minBackoff, errTooManyCalls
	}
	return 0, nil
}

// nextBackoff returns the backoff after the latest failure; zero: none. ambiguous
// states that the failure may concern the presented token only, answered that the
// endpoint has answered requests before.
func (l *lane) nextBackoff(ambiguous, answered bool) time.Duration {
	tolerated, limit := toleratedFailures, opaqueBackoff
	if ambiguous && answered {
		tolerated, limit = toleratedAmbiguous, ambiguousBackoff
	}
	doublings := l.failures - tolerated
	if l.failing() {
		doublings = max(doublings, 1)
	}
	if doublings < 0 {
		return 0
	}
	return min(minBackoff<<min(doublings, 10), limit)
}

func (l *lane) backOff(now time.Time, wait time.Duration, err error) {
	l.backoffBegan, l.backoffUntil, l.err = now, now.Add(wait), err
}

// reset clears the failures after a successful request.
func (l *lane) reset() { l.failures, l.backoffUntil, l.err = 0, time.Time{}, nil }

// requestedBackoff returns the backoff that an error requests. Zero: none; negative: the
// failure concerns one token only.
func requestedBackoff(err error) time.Duration {
	if e, ok := errors.AsType[interface {
		error
		Backoff() time.Duration
	}](err); ok {
		return e.Backoff()
	}
	return 0
}

// isAmbiguous reports whether a failure may concern the presented token only.
func isAmbiguous(err error) bool {
	e, ok := errors.AsType[interface {
		error
		Ambiguous() bool
	}](err)
	return ok && e.Ambiguous()
}
