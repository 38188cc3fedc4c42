package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const redisCommand = "redis-server"

// withoutRedis ends the line of an omitted measurement.
const withoutRedis = "not measured, because " + redisCommand + " is not installed (apt-get install " + redisCommand + ")\n"

func hasRedis() bool {
	_, err := exec.LookPath(redisCommand)
	return err == nil
}

// redisServer is a Redis on a loopback port, with the ring that seals the brokers'
// values there.
type redisServer struct {
	*process

	address, ring string
}

// startRedis starts an empty Redis that persists like one in production, but does not
// compact its log during a measurement.
func (b *bench) startRedis(ctx context.Context) (*redisServer, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(b.dir, "redis-")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config := fmt.Sprintf("bind 127.0.0.1\nport %s\ndir %s\nsave \"\"\nappendonly yes\nauto-aof-rewrite-percentage 0\nloglevel warning\n", port, dir)
	path, ring := filepath.Join(dir, "redis.conf"), filepath.Join(dir, "ring.json")
	keys, err := exec.CommandContext(ctx, b.binary, "ring", "new").Output()
	if err != nil {
		return nil, fmt.Errorf("broker ring new: %w", err)
	}
	if err := errors.Join(os.WriteFile(path, []byte(config), 0o600), os.WriteFile(ring, keys, 0o600)); err != nil {
		return nil, err
	}
	p, err := launch(ctx, redisCommand, path)
	if err != nil {
		return nil, err
	}
	r := &redisServer{process: p, address: address, ring: ring}
	if err := r.awaitAnswer(); err != nil {
		r.stop()
		return nil, err
	}
	return r, nil
}

// withRedis lends a broker that keeps its tokens in a Redis of its own.
func (b *bench) withRedis(ctx context.Context, with setting, use func(*server, *redisServer) error) error {
	redis, err := b.startRedis(ctx)
	if err != nil {
		return err
	}
	defer redis.stop()
	with.redis = redis
	broker, err := b.startBroker(ctx, with)
	if err != nil {
		return err
	}
	defer broker.stop()
	return use(broker, redis)
}

// awaitAnswer returns when Redis responds.
func (r *redisServer) awaitAnswer() error {
	ctx, cancel := context.WithTimeout(r.alive, time.Minute)
	defer cancel()
	for {
		_, err := r.usedMemory(ctx)
		if err == nil {
			return nil
		}
		if wait(ctx, 5*time.Millisecond) != nil {
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// usedMemory returns how many bytes Redis has allocated.
func (r *redisServer) usedMemory(ctx context.Context) (float64, error) {
	connection, err := new(net.Dialer).DialContext(ctx, "tcp", r.address)
	if err != nil {
		return 0, err
	}
	defer func() { _ = connection.Close() }()
	if err := connection.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(connection, "INFO memory\r\nQUIT\r\n"); err != nil {
		return 0, err
	}
	answer, err := io.ReadAll(connection)
	if err != nil {
		return 0, err
	}
	return parseNumber(string(answer), "used_memory:")
}

// parseNumber returns the rest of the line that begins with the prefix, as a number.
func parseNumber(text, prefix string) (float64, error) {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, prefix); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("no line begins with %q", prefix)
}
