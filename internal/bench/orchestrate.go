package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// bench is what the measurements share.
type bench struct {
	options

	self   string // this binary
	binary string // the broker's
	dir    string // temporary
	idp    *provider
}

// orchestrate is the process that starts the others and prints the report.
func orchestrate(ctx context.Context, args []string) error {
	opts, err := parseOptions(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tokenbroker-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b, err := setUp(ctx, opts, dir)
	if err != nil {
		return err
	}
	defer b.idp.close()
	return b.report(ctx)
}

func setUp(ctx context.Context, opts options, dir string) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &bench{options: opts, self: self, binary: filepath.Join(dir, "broker"), dir: dir}
	build := exec.CommandContext(ctx, "go", "build", "-o", b.binary, "github.com/cezzis/tokenbroker/cmd/broker")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("building the broker: %w", err)
	}
	b.idp, err = startProvider(ctx, dir)
	return b, err
}

// report measures everything and prints each part when it is known.
func (b *bench) report(ctx context.Context) error {
	fmt.Fprintf(os.Stdout, "%s, %s/%s, %d cores; %d callers on %d connections; medians of rounds: %d of %v\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), callers, connections, b.rounds, b.length)
	broker, err := b.startBroker(ctx, 2)
	if err != nil {
		return err
	}
	defer broker.stop()
	for _, part := range []func(context.Context, *server) (string, error){b.compare, b.slowRefresh, b.manyClients} {
		text, err := part(ctx, broker)
		if err != nil {
			return err
		}
		fmt.Fprint(os.Stdout, "\n", text)
	}
	return nil
}

// startBroker starts a broker that is configured with the first n clients.
func (b *bench) startBroker(ctx context.Context, n int) (*server, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(b.dir, fmt.Sprintf("broker-%d.yaml", n))
	if err := os.WriteFile(path, []byte(brokerConfig(address, b.idp.Issuer(), b.dir, n)), 0o600); err != nil {
		return nil, err
	}
	return startServer(ctx, address, b.binary, "serve", "--config", path)
}

func (b *bench) startEcho(ctx context.Context, broker *server) (*server, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	return startServer(ctx, address, b.self, echoCommand, address, broker.address, clientName(0))
}

// drive puts load on s from a process of its own. Failed calls are an error.
func (b *bench) drive(ctx context.Context, s *server, name, client string, length time.Duration) (outcome, error) {
	// The calls have no deadline, as a header on each would have its own price.
	ctx, cancel := context.WithTimeout(ctx, length+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.self, driveCommand, "-client", client, "-for", length.String(), s.address, name)
	cmd.Stderr = os.Stderr
	printed, err := cmd.Output()
	if err != nil {
		return outcome{}, fmt.Errorf("driving %s: %w", name, errors.Join(err, ctx.Err()))
	}
	var o outcome
	if err := json.Unmarshal(printed, &o); err != nil {
		return outcome{}, fmt.Errorf("reading the outcome of the load: %w", err)
	}
	if o.Failed > 0 || o.Calls == 0 {
		return outcome{}, fmt.Errorf("%d of %d calls of %s failed, one of them with: %s", o.Failed, o.Calls, name, o.Error)
	}
	return o, nil
}

// fetch asks for the token of a client.
func fetch(ctx context.Context, broker tokenbrokerv1.TokenBrokerServiceClient, client string) (*tokenbrokerv1.GetTokenResponse, error) {
	answer, err := broker.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: client})
	if err != nil {
		return nil, fmt.Errorf("asking for the token of %s: %w", client, err)
	}
	return answer, nil
}
