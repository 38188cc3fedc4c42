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

// When those may try again who have too much under way: a call takes much less,
// unless an IdP is waited for.
const (
	callRetry  = 250 * time.Millisecond
	watchRetry = 10 * time.Second
)

// What callers are held to: the values of a label.
const (
	limitRate       = "rate"
	limitConcurrent = "concurrent"
	limitInFlight   = "in_flight"
	limitWatches    = "watches"
	limitStrangers  = "strangers"
	limitHeaders    = "headers"

	nobody = "" // the caller, where there is none
)

// limits holds callers to what they may ask for at a time. A call takes no lock
// but its caller's own, for an instant.
type limits struct {
	broker   *broker.Broker
	inFlight atomic.Int64
	most     int64 // in flight
	places   atomic.Pointer[places]
	refused  *prometheus.CounterVec

	mu sync.Mutex // held by the one who replaces places
}

// places are those of the callers of one policy. It is immutable.
type places struct {
	policy   *policy.Policy
	byCaller map[*policy.Caller]*place
}

// place is a caller's. What is used up of it outlives the policy.
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

// placeOf returns the place of a caller; nil: the policy that it is of is no more
// in force, and this is its last call.
func (l *limits) placeOf(caller *policy.Caller) *place {
	known, now := l.broker.Policy(), l.places.Load()
	if now.policy != known {
		now = l.arrange(known)
	}
	return now.byCaller[caller]
}

// arrange makes the places of a policy. Who was there before, by its name, has used
// up what it had used up.
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

// visit is a call under way. Its zero value is none.
type visit struct {
	limits *limits
	place  *place // nil: of nobody who is configured any more
}

// enter lets a call of a caller in, which then must leave.
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

// leave ends the visit.
func (v visit) leave() {
	if v.limits == nil {
		return
	}
	v.limits.inFlight.Add(-1)
	if v.place != nil {
		v.place.underWay.Add(-1)
	}
}

// mayCall takes a call from what a caller may make in a second.
func (l *limits) mayCall(caller *policy.Caller, its *place, now time.Time) *apierror.Error {
	perSecond := its.limits.PerSecond
	if perSecond == 0 || its.rate.AllowN(now, 1) {
		return nil
	}
	missing := max(0, 1-its.rate.TokensAt(now))
	return l.refuse(caller, limitRate, apierror.ReasonRateLimited, time.Duration(missing/perSecond*float64(time.Second)),
		fmt.Sprintf("caller %q makes more than %v calls in a second: keep what was answered until it is due, or have the caller's limits.per_second raised", caller.Name(), perSecond))
}

// watch lets a watch of a caller in, over a connection of which half the calls may
// be watches: those who keep some for ever must leave room for the others.
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
