package server

import (
	"cmp"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// Times to retry after a limit on concurrency: a call takes much less, unless it waits
// for an IdP.
const (
	callRetry  = 250 * time.Millisecond
	watchRetry = 10 * time.Second
)

// Limits of callers: the values of a label.
const (
	limitRate       = "rate"
	limitConcurrent = "concurrent"
	limitInFlight   = "in_flight"
	limitWatches    = "watches"
	limitStrangers  = "strangers"
	limitHeaders    = "headers"

	nobody = "" // the label of a call without a caller
)

// limits enforces the limits of callers. A call takes only the lock of its own caller,
// briefly.
type limits struct {
	broker   *broker.Broker
	inFlight atomic.Int64
	most     int64 // limit of inFlight
	places   atomic.Pointer[places]
	refused  *prometheus.CounterVec

	mu sync.Mutex // serializes replacements of places
}

// places are the limits and usage of the callers of one policy. It is immutable.
type places struct {
	policy   *policy.Policy
	byCaller map[*policy.Caller]*place
}

// place holds the limits and usage of one caller. The usage outlives the policy.
type place struct {
	limits policy.Limits
	*usage
}

type usage struct {
	rate              *rate.Limiter
	underWay, watches atomic.Int64
}

func newLimits(b *broker.Broker, inFlight int, registerer prometheus.Registerer) *limits {
	l := &limits{
		broker: b, most: int64(inFlight),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_limited_calls_total",
			Help: "Calls that were refused because of a limit, by caller and limit.",
		}, []string{"caller", "limit"}),
	}
	l.places.Store(&places{})
	if registerer != nil {
		registerer.MustRegister(l.refused)
	}
	return l
}

// placeOf returns the place of a caller. It returns nil if the caller's policy has been
// replaced.
func (l *limits) placeOf(caller *policy.Caller) *place {
	known, now := l.broker.Policy(), l.places.Load()
	if now.policy != known {
		now = l.arrange(known)
	}
	return now.byCaller[caller]
}

// arrange makes the places of a policy. A caller that was in the previous policy, by
// name, keeps its usage.
func (l *limits) arrange(known *policy.Policy) *places {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.places.Load()
	if before.policy == known {
		return before
	}
	used := map[string]*usage{}
	for caller, its := range before.byCaller {
		used[caller.Name()] = its.usage
	}
	next := &places{policy: known, byCaller: map[*policy.Caller]*place{}}
	for _, name := range known.Names() {
		caller := known.Named(name)
		next.byCaller[caller] = newPlace(caller, used[name])
	}
	l.places.Store(next)
	return next
}

func newPlace(caller *policy.Caller, used *usage) *place {
	made := &place{usage: used}
	if its := caller.Limits(); its != nil {
		made.limits = *its
	}
	perSecond, burst := rate.Limit(made.limits.PerSecond), max(1, made.limits.Burst)
	if used == nil {
		made.usage = &usage{rate: rate.NewLimiter(perSecond, burst)}
	}
	if made.rate.Limit() != perSecond || made.rate.Burst() != burst {
		made.rate.SetLimit(perSecond)
		made.rate.SetBurst(burst)
	}
	return made
}

// visit is a call in progress. The leave method of its zero value does nothing.
type visit struct {
	limits *limits
	place  *place // nil: the caller is no longer configured
}

// enter admits a call of a caller, or returns the error of the exceeded limit. leave
// must be called at its end.
func (l *limits) enter(caller *policy.Caller, now time.Time) (visit, *apierror.Error) {
	its := l.placeOf(caller)
	if its != nil {
		if refused := l.mayCall(caller, its, now); refused != nil {
			return visit{}, refused
		}
		if most := its.limits.Concurrent; its.underWay.Add(1) > int64(most) && most > 0 {
			its.underWay.Add(-1)
			return visit{}, l.refuse(caller, limitConcurrent, apierror.ReasonTooManyCalls, callRetry,
				fmt.Sprintf("caller %q has %d calls under way, and may have no more: wait for one of them, or have the caller's limits.concurrent raised", caller.Name(), most))
		}
	}
	v := visit{l, its}
	if l.inFlight.Add(1) > l.most {
		v.leave()
		return visit{}, l.refuse(caller, limitInFlight, apierror.ReasonOverloaded, callRetry,
			"the broker has as many calls under way as it may have: try again, or ask another replica")
	}
	return v, nil
}

// leave releases the call.
func (v visit) leave() {
	if v.limits == nil {
		return
	}
	v.limits.inFlight.Add(-1)
	if v.place != nil {
		v.place.underWay.Add(-1)
	}
}

// mayCall takes one call from the caller's rate limit.
func (l *limits) mayCall(caller *policy.Caller, its *place, now time.Time) *apierror.Error {
	perSecond := its.limits.PerSecond
	if perSecond == 0 || its.rate.AllowN(now, 1) {
		return nil
	}
	missing := max(0, 1-its.rate.TokensAt(now))
	return l.refuse(caller, limitRate, apierror.ReasonRateLimited, time.Duration(missing/perSecond*float64(time.Second)),
		fmt.Sprintf("caller %q makes more than %v calls in a second: keep what was answered until it is due, or have the caller's limits.per_second raised", caller.Name(), perSecond))
}

// watch admits a watch of a caller. At most half the calls of a connection may be
// watches: long-lived watches must leave room for other calls.
func (l *limits) watch(caller *policy.Caller, conn *connection, streams uint32, now time.Time) (leave func(), refused *apierror.Error) {
	its := l.placeOf(caller)
	if its == nil {
		its = &place{usage: &usage{}}
	}
	if refused := l.mayCall(caller, its, now); refused != nil {
		return nil, refused
	}
	if most := max(1, int64(streams)/2); conn.watches.Add(1) > most {
		conn.watches.Add(-1)
		return nil, l.refuse(caller, limitWatches, apierror.ReasonTooManyWatches, watchRetry,
			fmt.Sprintf("this connection has %d watches, and one may have no more; share a watch among those who want the same token, or open another connection", most))
	}
	if most := its.limits.Watches; its.watches.Add(1) > int64(most) && most > 0 {
		conn.watches.Add(-1)
		its.watches.Add(-1)
		return nil, l.refuse(caller, limitWatches, apierror.ReasonTooManyWatches, watchRetry,
			fmt.Sprintf("caller %q has %d watches, and may have no more; share a watch among those who want the same token, or have the caller's limits.watches raised", caller.Name(), most))
	}
	return func() {
		conn.watches.Add(-1)
		its.watches.Add(-1)
	}, nil
}

func (l *limits) refuse(caller *policy.Caller, limit, reason string, after time.Duration, message string) *apierror.Error {
	l.refused.WithLabelValues(caller.Name(), limit).Inc()
	return &apierror.Error{
		Code: apierror.ResourceExhausted, Reason: reason, RetryAfter: cmp.Or(after, time.Millisecond), Message: message,
		Metadata: map[string]string{"caller": caller.Name(), "limit": limit},
	}
}
