package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// tick is the unit of CPU time in /proc/PID/stat: USER_HZ is 100 wherever Go runs.
const tick = 10 * time.Millisecond

// process is a program that runs beside this one.
type process struct {
	pid int
	// alive is done when the process has ended; its cause is the result.
	alive     context.Context //nolint:containedctx // the life of the process, not of a call
	terminate context.CancelFunc
}

// launch starts a program.
func launch(ctx context.Context, program string, args ...string) (*process, error) {
	ctx, terminate := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		terminate()
		return nil, err
	}
	alive, ended := context.WithCancelCause(context.WithoutCancel(ctx))
	go func() {
		_ = cmd.Wait() // its state has the same and more
		ended(fmt.Errorf("%s %s has ended: %s", filepath.Base(program), args[0], cmd.ProcessState))
	}()
	return &process{pid: cmd.Process.Pid, alive: alive, terminate: terminate}, nil
}

// stop ends the process and waits until it has.
func (p *process) stop() {
	p.terminate()
	<-p.alive.Done()
}

// server is a server under test.
type server struct {
	*process

	address string
	proof   proof   // how to connect
	ops     string  // address of its metrics; empty: no metrics
	http    string  // address of its HTTP API for gateways; empty: not served
	setting setting // of a broker
	// startup is the time from the start of the process until it served.
	startup time.Duration
}

// startServer starts a program and returns when it serves at address.
func startServer(ctx context.Context, address string, by proof, program string, args ...string) (*server, error) {
	start := time.Now()
	p, err := launch(ctx, program, args...)
	if err != nil {
		return nil, err
	}
	s := &server{process: p, address: address, proof: by}
	if err := s.awaitServing(); err != nil {
		s.stop()
		return nil, err
	}
	s.startup = time.Since(start)
	return s, nil
}

// awaitServing returns when the health check of the server succeeds.
func (s *server) awaitServing() error {
	connection, err := connect(s.address, s.proof)
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	ctx, cancel := context.WithTimeout(s.alive, time.Minute)
	defer cancel()
	for {
		answer, err := healthpb.NewHealthClient(connection).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		if s.alive.Err() != nil {
			return context.Cause(s.alive)
		}
		if err != nil {
			return fmt.Errorf("waiting for %s to serve: %w", s.address, err)
		}
		if answer.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return nil
		}
		if err := wait(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// cpu returns the CPU time that the process has used, in user and kernel mode: exactly
// if the kernel keeps that of each thread, and else in ticks. Threads of Go do not end.
func (p *process) cpu() (time.Duration, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.pid))
	if err != nil || len(threads) == 0 {
		return p.cpuInTicks()
	}
	var sum time.Duration
	for _, thread := range threads {
		text, err := os.ReadFile(thread)
		if err != nil {
			return 0, err
		}
		spent, err := parseSchedStat(text)
		if err != nil {
			return 0, err
		}
		sum += spent
	}
	return sum, nil
}

// parseSchedStat reads the first field of /proc/PID/task/TID/schedstat, the nanoseconds on
// a CPU.
func parseSchedStat(text []byte) (time.Duration, error) {
	spent, _, _ := strings.Cut(string(text), " ")
	nanoseconds, err := strconv.ParseInt(spent, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/task/TID/schedstat: %w", err)
	}
	return time.Duration(nanoseconds), nil
}

func (p *process) cpuInTicks() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return 0, err
	}
	return parseCPU(stat)
}

// parseCPU reads utime and stime, fields 14 and 15 of proc_pid_stat(5). The
// second field is the program's name, which may hold spaces and parentheses.
func parseCPU(stat []byte) (time.Duration, error) {
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 13 {
		return 0, errors.New("/proc/PID/stat has too few fields")
	}
	user, errUser := strconv.ParseInt(fields[11], 10, 64)
	system, errSystem := strconv.ParseInt(fields[12], 10, 64)
	if err := errors.Join(errUser, errSystem); err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	return time.Duration(user+system) * tick, nil
}

// memory returns a value of proc_pid_status(5), such as VmRSS, in MiB.
func (p *process) memory(name string) (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	if err != nil {
		return 0, err
	}
	return parseMemory(string(status), name)
}

func parseMemory(status, name string) (float64, error) {
	kilobytes, err := parseNumber(strings.ReplaceAll(status, " kB", ""), name+":")
	return kilobytes / 1024, err
}

// freeAddress returns a loopback address without a listener. Its port is below the range
// from which Linux takes the ports of outgoing connections, so that no connection takes it
// before the intended process does.
func freeAddress(ctx context.Context) (string, error) {
	var err error
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000))
		var listener net.Listener
		if listener, err = new(net.ListenConfig).Listen(ctx, "tcp", address); err == nil {
			return address, listener.Close()
		}
	}
	return "", err
}

func listen(ctx context.Context) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
