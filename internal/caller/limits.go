package caller

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/cezzis/tokenbroker/internal/apierror"
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

	noCaller = "" // the label of a call without a caller
)

// Defaults of Limits.
const (
	DefaultConnections      = 10_000
	DefaultStreams          = 250
	DefaultInFlight         = 10_000
	DefaultStrangers        = 2000
	DefaultConnectionAge    = 30 * time.Minute
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultMessageSize      = 64 << 10
	DefaultHeaderSize       = 16 << 10
	DefaultTokenSize        = 16 << 10
)

// Limits bound the load of all callers together. Zero fields take their defaults.
type Limits struct {
	// Connections is how many connections may be open at a time. More are refused.
	Connections int
	// Streams is how many open calls one connection may have. gRPC clients queue
	// further calls by themselves.
	Streams uint32
	// InFlight is how many unary calls may be in progress at a time. More are refused.
	InFlight int
	// Strangers is how many calls may be open, over all connections together, on
	// connections without an identified caller. More are refused. Any peer that can
	// connect can begin calls and never send their requests. Each takes memory, and
	// calls of callers must not fail for lack of it.
	Strangers int
	// ConnectionAge is the time, randomized by a tenth either way, after which a client
	// must reconnect, so that it finds new replicas and authenticates again.
	ConnectionAge time.Duration
	// HandshakeTimeout is how long a client may take until it can make calls.
	HandshakeTimeout time.Duration
	// MessageSize and HeaderSize bound the message and the headers of a call, in bytes.
	// The headers may have another TokenSize bytes in authorization.
	MessageSize           int
	HeaderSize, TokenSize uint32
}

// WithDefaults returns the limits with defaults in place of zero fields.
func (l *Limits) WithDefaults() Limits {
	return Limits{
		Connections:      cmp.Or(l.Connections, DefaultConnections),
		Streams:          cmp.Or(l.Streams, DefaultStreams),
		InFlight:         cmp.Or(l.InFlight, DefaultInFlight),
		Strangers:        cmp.Or(l.Strangers, DefaultStrangers),
		ConnectionAge:    cmp.Or(l.ConnectionAge, DefaultConnectionAge),
		HandshakeTimeout: cmp.Or(l.HandshakeTimeout, DefaultHandshakeTimeout),
		MessageSize:      cmp.Or(l.MessageSize, DefaultMessageSize),
		HeaderSize:       cmp.Or(l.HeaderSize, DefaultHeaderSize),
		TokenSize:        cmp.Or(l.TokenSize, DefaultTokenSize),
	}
}

// limiter enforces the limits of callers. A call takes only the lock of its own caller,
// briefly.
type limiter struct {
	broker      Broker
	inFlight    atomic.Int64
	maxInFlight int64
	maxWatches  int64 // per connection
	current     atomic.Pointer[policyLimits]
	refused     *prometheus.CounterVec

	mu sync.Mutex // serializes replacements of current
}

// policyLimits are the limits and usage of the callers of one policy. It is immutable.
type policyLimits struct {
	policy   *policy.Policy
	byCaller map[*policy.Caller]*callerLimits
}

// callerLimits are the limits and usage of one caller. The usage outlives the policy.
type callerLimits struct {
	limits policy.Limits
	*usage
}

type usage struct {
	rate                *rate.Limiter
	inProgress, watches atomic.Int64
}

// newLimiter makes a limiter. At most half the calls of a connection may be watches:
// long-lived watches must leave room for other calls.
func newLimiter(b Broker, shared *Limits, registerer prometheus.Registerer) *limiter {
	l := &limiter{
		broker: b, maxInFlight: int64(shared.InFlight), maxWatches: max(1, int64(shared.Streams)/2),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "tokenbroker_limited_calls_total",
			Help: "Calls that were refused because of a limit, by caller and limit.",
		}, []string{"caller", "limit"}),
	}
	l.current.Store(&policyLimits{})
	if registerer != nil {
		registerer.MustRegister(l)
	}
	return l
}

// Describe implements prometheus.Collector.
func (l *limiter) Describe(out chan<- *prometheus.Desc) { l.refused.Describe(out) }

// Collect implements prometheus.Collector. It applies a new policy first, so that the
// counters of its callers are visible before their first increase.
func (l *limiter) Collect(out chan<- prometheus.Metric) {
	l.of(nil)
	l.refused.Collect(out)
}

// of returns the limits of a caller. It returns nil if the caller's policy has been
// replaced.
func (l *limiter) of(caller *policy.Caller) *callerLimits {
	latest, current := l.broker.Policy(), l.current.Load()
	if current.policy != latest {
		current = l.apply(latest)
	}
	return current.byCaller[caller]
}

// apply replaces the limits by those of a new policy. A caller that was in the previous
// policy, by name, keeps its usage.
func (l *limiter) apply(latest *policy.Policy) *policyLimits {
	l.mu.Lock()
	defer l.mu.Unlock()
	previous := l.current.Load()
	if previous.policy == latest {
		return previous
	}
	used := map[string]*usage{}
	for caller, limits := range previous.byCaller {
		used[caller.Name()] = limits.usage
	}
	next := &policyLimits{policy: latest, byCaller: map[*policy.Caller]*callerLimits{}}
	for _, name := range latest.Names() {
		caller := latest.Named(name)
		next.byCaller[caller] = newCallerLimits(caller, used[name])
		delete(used, name)
		for _, limit := range []string{limitRate, limitConcurrent, limitInFlight, limitWatches} {
			l.refused.WithLabelValues(name, limit)
		}
	}
	for name := range used {
		l.refused.DeletePartialMatch(prometheus.Labels{"caller": name})
	}
	l.current.Store(next)
	return next
}

func newCallerLimits(caller *policy.Caller, used *usage) *callerLimits {
	c := &callerLimits{usage: used}
	if limits := caller.Limits(); limits != nil {
		c.limits = *limits
	}
	perSecond, burst := rate.Limit(c.limits.PerSecond), max(1, c.limits.Burst)
	if used == nil {
		c.usage = &usage{rate: rate.NewLimiter(perSecond, burst)}
	}
	if c.rate.Limit() != perSecond || c.rate.Burst() != burst {
		c.rate.SetLimit(perSecond)
		c.rate.SetBurst(burst)
	}
	return c
}

// Call is a call in progress. The Leave method of its zero value does nothing.
type Call struct {
	Caller  *policy.Caller
	limiter *limiter
	limits  *callerLimits // nil: the caller is no longer configured
}

// enter admits a call of a caller, or returns the error of the exceeded limit.
func (l *limiter) enter(caller *policy.Caller, now time.Time) (Call, error) {
	own := l.of(caller)
	if own != nil {
		if err := l.take(caller, own, now); err != nil {
			return Call{}, err
		}
		if most := own.limits.Concurrent; own.inProgress.Add(1) > int64(most) && most > 0 {
			own.inProgress.Add(-1)
			return Call{}, l.refuse(caller, limitConcurrent, apierror.ReasonTooManyCalls, callRetry,
				fmt.Sprintf("caller %q has reached its limit of %d calls in progress: wait until one has ended, or raise limits.concurrent of the caller in the broker's configuration", caller.Name(), most))
		}
	}
	call := Call{caller, l, own}
	if l.inFlight.Add(1) > l.maxInFlight {
		call.Leave()
		return Call{}, l.refuse(caller, limitInFlight, apierror.ReasonOverloaded, callRetry,
			"the broker has reached its limit of calls in progress: try again, or call another replica")
	}
	return call, nil
}

// Leave ends the call.
func (c Call) Leave() {
	if c.limiter == nil {
		return
	}
	c.limiter.inFlight.Add(-1)
	if c.limits != nil {
		c.limits.inProgress.Add(-1)
	}
}

// take takes one call from the caller's rate limit.
func (l *limiter) take(caller *policy.Caller, own *callerLimits, now time.Time) error {
	perSecond := own.limits.PerSecond
	if perSecond == 0 || own.rate.AllowN(now, 1) {
		return nil
	}
	missing := max(0, 1-own.rate.TokensAt(now))
	return l.refuse(caller, limitRate, apierror.ReasonRateLimited, time.Duration(missing/perSecond*float64(time.Second)),
		fmt.Sprintf("caller %q exceeds its limit of %v calls per second: cache tokens until they are due for a refresh, or raise limits.per_second of the caller in the broker's configuration", caller.Name(), perSecond))
}

// watch admits a watch of a caller over the connection of ctx.
func (l *limiter) watch(ctx context.Context, caller *policy.Caller, now time.Time) (leave func(), err error) {
	conn, own := connectionOf(ctx), l.of(caller)
	if own == nil {
		own = &callerLimits{usage: &usage{}}
	}
	if err := l.take(caller, own, now); err != nil {
		return nil, err
	}
	if conn.watches.Add(1) > l.maxWatches {
		conn.watches.Add(-1)
		return nil, l.refuse(caller, limitWatches, apierror.ReasonTooManyWatches, watchRetry,
			fmt.Sprintf("this connection has reached its limit of %d watches: share one watch of each token, or open another connection", l.maxWatches))
	}
	if most := own.limits.Watches; own.watches.Add(1) > int64(most) && most > 0 {
		conn.watches.Add(-1)
		own.watches.Add(-1)
		return nil, l.refuse(caller, limitWatches, apierror.ReasonTooManyWatches, watchRetry,
			fmt.Sprintf("caller %q has reached its limit of %d watches: share one watch of each token, or raise limits.watches of the caller in the broker's configuration", caller.Name(), most))
	}
	return func() {
		conn.watches.Add(-1)
		own.watches.Add(-1)
	}, nil
}

func (l *limiter) refuse(caller *policy.Caller, limit, reason string, after time.Duration, message string) *apierror.Error {
	l.refused.WithLabelValues(caller.Name(), limit).Inc()
	return &apierror.Error{
		Code: apierror.ResourceExhausted, Reason: reason, RetryAfter: cmp.Or(after, time.Millisecond), Message: message,
		Metadata: map[string]string{"caller": caller.Name(), "limit": limit},
	}
}

// PerSecond counts events in the current second.
type PerSecond struct{ second, count atomic.Int64 }

// Admits counts an event and reports whether the count of this second is within the limit.
func (p *PerSecond) Admits(now time.Time, most int64) bool {
	p.turn(now)
	return p.count.Add(1) <= most
}

// Reached reports whether this second already has most events.
func (p *PerSecond) Reached(now time.Time, most int64) bool {
	p.turn(now)
	return p.count.Load() >= most
}

func (p *PerSecond) turn(now time.Time) {
	second := now.Unix()
	if p.second.Load() != second && p.second.Swap(second) != second {
		p.count.Store(0)
	}
}
