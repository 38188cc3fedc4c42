package verify

import (
	"errors"
	"time"
)

const (
	// After so many failures in a row the endpoint is left alone: at first for
	// minBackoff, and then for twice as long each time, up to opaqueBackoff. One
	// failure is not enough: a token may be made to cause it.
	toleratedFailures = 3
	opaqueBackoff     = 30 * time.Second
	// Once the endpoint has answered a question, more failures that may be about
	// the presented tokens are tolerated, and the rest after them is shorter.
	// Both bound how often a secret is sent that was revoked since: locking the
	// client out takes attempts.
	toleratedAmbiguous = 10
	ambiguousBackoff   = 5 * time.Second
	// longestRest bounds what the endpoint itself asks for.
	longestRest = 5 * time.Minute
)

// lane holds the questions about one kind of opaque token: those that the issuer
// called active before, or the others, which anybody can invent. Each kind has
// room and rests of its own, so that invented tokens stop no token that is known.
type lane struct {
	name      string
	turns     chan struct{} // holds one for each question that is with the issuer
	questions int
	failures  int       // in a row
	restBegan time.Time // when the endpoint was last left alone
	restUntil time.Time // zero: the last answer was good
	err       error     // of the last failure
}

func newLane(name string, turns int) *lane {
	return &lane{name: name, turns: make(chan struct{}, turns)}
}

// doubted reports whether the lane rests, or has rested and got no answer since.
func (l *lane) doubted() bool { return !l.restUntil.IsZero() }

// busy returns why no question may be asked now, and for how long; nil: one may.
func (l *lane) busy(now time.Time) (time.Duration, error) {
	switch rest := l.restUntil.Sub(now); {
	case rest > 0:
		return rest, l.err
	case l.doubted() && l.questions > 0: // one finds out how the endpoint is
		return minBackoff, l.err
	case l.questions >= maxWaiting:
		return minBackoff, errCrowded
	}
	return 0, nil
}

// restAfter is how long the endpoint is left alone after a further failure, which
// may be about the presented token (ambiguous), where questions were answered
// before (answered).
func (l *lane) restAfter(ambiguous, answered bool) time.Duration {
	tolerated, most := toleratedFailures, opaqueBackoff
	if ambiguous && answered {
		tolerated, most = toleratedAmbiguous, ambiguousBackoff
	}
	beyond := l.failures - tolerated
	if l.doubted() {
		beyond = max(beyond, 1)
	}
	if beyond < 0 {
		return 0
	}
	return min(minBackoff<<min(beyond, 10), most)
}

// rest leaves the endpoint alone.
func (l *lane) rest(now time.Time, wait time.Duration, err error) {
	l.restBegan, l.restUntil, l.err = now, now.Add(wait), err
}

// recovered notes that the endpoint has answered.
func (l *lane) recovered() { l.failures, l.restUntil, l.err = 0, time.Time{}, nil }

// askedToRest is how long an error itself says that the endpoint is to be left
// alone. Zero: it does not say; negative: it is about one token.
func askedToRest(err error) time.Duration {
	if told, ok := errors.AsType[interface {
		error
		Backoff() time.Duration
	}](err); ok {
		return told.Backoff()
	}
	return 0
}

// mayBeTheToken reports whether a failure may be about the presented token alone.
func mayBeTheToken(err error) bool {
	told, ok := errors.AsType[interface {
		error
		Ambiguous() bool
	}](err)
	return ok && told.Ambiguous()
}
