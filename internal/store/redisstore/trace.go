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

// redisTrace makes spans of trips to Redis. They show the names of commands and the
// number of their keys: the clients' own traces contain arguments, which are passwords
// and values.
type redisTrace struct{ tracer *tracing.Tracer }

var _ redis.Hook = redisTrace{}

// DialHook implements redis.Hook.
func (redisTrace) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return next(ctx, network, address)
	}
}

// ProcessHook implements redis.Hook.
func (t redisTrace) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, command redis.Cmder) error {
		ctx, span := t.tracer.Start(ctx, redisSpan(command))
		span.Commands(1, redisKeys(command))
		err := next(ctx, command)
		span.End(redisFailure(err))
		return err
	}
}

// ProcessPipelineHook implements redis.Hook.
func (t redisTrace) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, commands []redis.Cmder) error {
		ctx, span := t.tracer.Start(ctx, redisSpan(commands...))
		keys := 0
		for _, command := range commands {
			keys += redisKeys(command)
		}
		span.Commands(len(commands), keys)
		err := next(ctx, commands)
		span.End(redisFailure(err))
		return err
	}
}

// redisSpan is the name of a group of commands.
func redisSpan(commands ...redis.Cmder) tracing.Name {
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

// redisKeys is the number of a command's keys.
func redisKeys(command redis.Cmder) int {
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

// redisFailure filters errors that are no failure of the trip: a script that Redis does
// not know yet, and absence.
func redisFailure(err error) error {
	if errors.Is(err, redis.Nil) || redis.HasErrorPrefix(err, "NOSCRIPT") {
		return nil
	}
	return err
}
