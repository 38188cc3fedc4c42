package store

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/sony/gobreaker/v2"
)

// redisAwayError is ErrAway with the reason.
type redisAwayError struct{ reason string }

func (e *redisAwayError) Error() string { return "Redis is away: " + e.reason }

// Is reports whether target is ErrAway.
func (e *redisAwayError) Is(target error) bool { return target == ErrAway }

var (
	// errRedisAnswer hides what it is about: a garbled answer may hold values.
	errRedisAnswer = errors.New("an answer of Redis that the client does not understand")
	// errRedisBusy says that there are more calls than Redis or this process can
	// keep up with. Where Redis hangs, those calls fail that have a connection.
	errRedisBusy = errors.New("no connection to Redis became free in time")
)

// redisSilence is a log that nobody reads.
type redisSilence struct{}

// Printf does nothing.
func (redisSilence) Printf(context.Context, string, ...any) {}

// away is the answer while the breaker is open: what opened it.
func (r *Redis) away() error {
	if failure := r.failure.Load(); failure != nil {
		return &redisAwayError{*failure}
	}
	return ErrAway
}

// explain turns the error of a call into one that may be shown, and tells what
// the caller or Close did from what Redis did.
func (r *Redis) explain(ctx context.Context, err error) error {
	deadline, hasDeadline := ctx.Deadline()
	switch {
	case r.ctx.Err() != nil:
		return ErrClosed
	case ctx.Err() != nil:
		return ctx.Err()
	case hasDeadline && !time.Now().Before(deadline): // its timer comes late
		return context.DeadlineExceeded
	case errors.Is(err, redis.ErrPoolTimeout):
		return errRedisBusy
	}
	failure := redisSay(err)
	r.failure.Store(&failure)
	if cluster, ok := r.client.(*redis.ClusterClient); ok {
		cluster.ReloadState(ctx) // or it would ask a dead master for a minute
	}
	return errors.New(failure)
}

// redisCallersOwn reports whether an error says nothing of how Redis is.
func redisCallersOwn(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, ErrClosed) || errors.Is(err, errRedisBusy)
}

// tellOfState logs when Redis goes and comes back, not each probe between.
func (r *Redis) tellOfState(_ string, from, to gobreaker.State) {
	switch {
	case from == gobreaker.StateClosed:
		r.logger.Warn("Redis is away: going on without it", "error", r.away())
	case to == gobreaker.StateClosed:
		r.logger.Info("Redis is back")
	}
}

// redisSay says in words what went wrong. It shows only texts that cannot hold
// what was sent or read.
func redisSay(err error) string {
	var network *net.OpError
	var certificate *tls.CertificateVerificationError
	var notTLS tls.RecordHeaderError
	var answer redis.Error
	switch {
	case errors.As(err, &network) && network.Op == "dial":
		return network.Error()
	case redisIsTimeout(err):
		return "Redis did not answer in time"
	case errors.Is(err, redis.ErrPoolTimeout):
		return errRedisBusy.Error()
	case errors.As(err, &network):
		return network.Error()
	case errors.As(err, &certificate):
		return certificate.Error()
	case errors.As(err, &notTLS):
		return notTLS.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "Redis closed the connection"
	case errors.Is(err, redis.Nil):
		return "the sentinels do not know the master"
	case errors.As(err, &answer):
		return "Redis answered " + redisAnswer(answer)
	default:
		return errRedisAnswer.Error()
	}
}

func redisIsTimeout(err error) bool {
	var network net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) ||
		errors.As(err, &network) && network.Timeout()
}

// redisAnswer is the error that Redis answered, up to where it may repeat what
// it was sent: that comes quoted, or behind a comma or colon.
func redisAnswer(answer redis.Error) string {
	text := answer.Error()
	if end := strings.IndexAny(text, "'\"`,:"); end >= 0 {
		text = text[:end]
	}
	return strings.TrimSpace(text)
}
