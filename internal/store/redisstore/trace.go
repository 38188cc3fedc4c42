package redisstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

// traceHook makes spans of trips to Redis. They show the names of commands and the
// number of their keys: the clients' own traces contain arguments, which are passwords
// and values.
type traceHook struct{ tracer *tracing.Tracer }

var _ redis.Hook = traceHook{}

// DialHook implements redis.Hook.
func (traceHook) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return next(ctx, network, address)
	}
}

// ProcessHook implements redis.Hook.
func (t traceHook) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, command redis.Cmder) error {
		ctx, span := t.tracer.Start(ctx, spanName(command))
		span.Commands(1, keyCount(command))
		err := next(ctx, command)
		span.End(tripFailure(err))
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (t traceHook) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		ctx, span := t.tracer.Start(ctx, spanName(commands...))
		keys := 0
		for _, command := range commands {
			keys += keyCount(command)
		}
		span.Commands(len(commands), keys)
		err := next(ctx, commands)
		span.End(tripFailure(err))
		return err
	}
}

// spanName is the name of a group of commands.
func spanName(commands ...redis.Cmder) tracing.Name {
	name := ""
	for i, command := range commands {
		if i > 0 && command.Name() != name {
			return "redis pipeline"
		}
		name = command.Name()
	}
	switch name {
	case "get", "set", "del", "pttl", "pexpire", "eval", "evalsha", "publish", "subscribe", "ping", "hello", "auth", "info", "cluster", "select":
		return tracing.Name("redis " + name)
	default:
		return "redis other"
	}
}

// keyCount is the number of a command's keys.
func keyCount(command redis.Cmder) int {
	args := command.Args()
	switch command.Name() {
	case "get", "set", "pttl", "pexpire":
		return 1
	case "del":
		return len(args) - 1
	case "eval", "evalsha":
		if len(args) > 2 {
			keys, _ := strconv.Atoi(fmt.Sprint(args[2]))
			return keys
		}
	}
	return 0
}

// tripFailure filters errors that are no failure of the trip: a script that Redis does
// not know yet, and absence.
func tripFailure(err error) error {
	if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "NOSCRIPT") {
		return nil
	}
	return err
}
