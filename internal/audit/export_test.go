package audit

import "time"

// Bounds for tests.
const (
	FlushDelay        = flushDelay
	FollowInterval    = followInterval
	RetryInterval     = retryInterval
	RefusalsPerSecond = refusalsPerSecond
)

// WithBuffer bounds what waits to be written.
func (c Config) WithBuffer(bytes int) Config {
	c.buffer = bytes
	return c
}

// Line is the line of an event.
func Line(replica string, e *Event, now time.Time) string {
	return string(appendEvent(appendHead(nil, replica), e, now))
}
