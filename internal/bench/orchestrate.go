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
	"strconv"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// bench is the state that the measurements share.
type bench struct {
	options

	self   string // this binary
	binary string // the broker's
	dir    string // temporary
	idp    *provider
	// broker keeps its tokens in memory. It is idle while a part measures another one.
	broker *server
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
	binary := opts.build
	if binary == "" {
		if binary, err = buildBroker(ctx, dir); err != nil {
			return err
		}
	}
	b, err := setUp(ctx, opts, dir, binary, clientCount)
	if err != nil {
		return err
	}
	defer b.idp.close()
	return b.report(ctx)
}

// buildBroker builds the broker in dir and returns the path of its binary.
func buildBroker(ctx context.Context, dir string) (binary string, err error) {
	binary = filepath.Join(dir, "broker")
	build := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/cezzis/tokenbroker/cmd/broker")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("building the broker: %w", err)
	}
	return binary, nil
}

// setUp starts an IdP with n clients.
func setUp(ctx context.Context, opts options, dir, binary string, n int) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	b := &bench{options: opts, self: self, binary: binary, dir: dir}
	b.idp, err = startProvider(ctx, dir, "RS256", clients(n), way{})
	return b, err
}

// report measures everything and prints each part when it is complete.
func (b *bench) report(ctx context.Context) error {
	fmt.Fprintf(os.Stdout, "%s, %s/%s, %d cores; %d callers on %d connections; medians of rounds: %d of %v\n",
		runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), callers, connections, b.rounds, b.length)
	var err error
	if b.broker, err = b.startBroker(ctx, setting{idp: b.idp, clients: 2}); err != nil {
		return err
	}
	defer b.broker.stop()
	for _, part := range b.parts() {
		if b.only != "" && b.only != part.name {
			continue
		}
		text, err := part.measure(ctx)
		if err != nil {
			return err
		}
		fmt.Fprint(os.Stdout, "\n", text)
	}
	return nil
}

// part is a part of the report.
type part struct {
	name    string
	measure func(context.Context) (string, error)
}

func (b *bench) parts() []part {
	return []part{
		{"hits", b.compare},
		{"tls", b.compareProved},
		{"gateways", b.compareGateways},
		{"behalf", b.measureBehalf},
		{"uncached", b.compareUncached},
		{"refresh", b.slowRefresh},
		{"clients", b.manyClients},
		{"tokens", b.manyQuestions},
		{"misses", b.misses},
		{"fleet", b.coldFleet},
		{"peers", b.comparePeers},
	}
}

func (b *bench) startBroker(ctx context.Context, with setting) (*server, error) {
	return b.startBuild(ctx, b.binary, with)
}

// startBuild starts a build of the broker.
func (b *bench) startBuild(ctx context.Context, binary string, with setting) (*server, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	ops := address
	for ops == address {
		if ops, err = freeAddress(ctx); err != nil {
			return nil, err
		}
	}
	file, err := os.CreateTemp(b.dir, "broker-*.yaml")
	if err != nil {
		return nil, err
	}
	_, err = file.WriteString(with.config(address, ops))
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, err
	}
	s, err := startServer(ctx, address, with.proof, binary, "serve", "--config", file.Name())
	if err != nil {
		return nil, err
	}
	s.ops, s.http, s.setting = ops, with.http, with
	return s, nil
}

// startEcho starts an echo of a broker's response for a client. Flags in extra change what
// it does.
func (b *bench) startEcho(ctx context.Context, broker *server, client string, extra ...string) (*server, error) {
	address, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	args := append(append([]string{echoCommand}, extra...), broker.proof.args()...)
	http := ""
	if broker.http != "" {
		if http, err = freeAddress(ctx); err != nil {
			return nil, err
		}
		args = append(args, "-http", http, "-from", broker.http)
	}
	s, err := startServer(ctx, address, broker.proof, b.self, append(args, address, broker.address, client)...)
	if err != nil {
		return nil, err
	}
	s.http = http
	return s, nil
}

// drive puts load on s. Failed calls are an error.
func (b *bench) drive(ctx context.Context, s *server, w workload, length time.Duration) (outcome, error) {
	var o outcome
	if w.tokens != "" {
		length = max(length, time.Minute) // it ends with the tokens
	}
	by := s.proof
	by.jwt = w.jwt
	args := append([]string{driveCommand, "-client", w.client, "-questions", strconv.Itoa(w.questions), "-tokens", w.tokens, "-subject", w.subject, "-for", length.String(), "-http", s.http}, by.args()...)
	err := b.load(ctx, length, &o, append(args, s.address, w.name)...)
	if err != nil {
		return outcome{}, fmt.Errorf("driving %s: %w", w.name, err)
	}
	return o, o.check(w.name)
}

// load runs a load for length, in a process of its own, and reads its output.
func (b *bench) load(ctx context.Context, length time.Duration, into any, args ...string) error {
	// The calls have no deadline, because a header on each would have its own cost.
	ctx, cancel := context.WithTimeout(ctx, length+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.self, args...)
	cmd.Stderr = os.Stderr
	printed, err := cmd.Output()
	if err != nil {
		return errors.Join(err, ctx.Err())
	}
	if err := json.Unmarshal(printed, into); err != nil {
		return fmt.Errorf("reading the outcome of the load: %w", err)
	}
	return nil
}

// check returns an error if calls failed or no call was made.
func (o outcome) check(name string) error {
	if o.Failed > 0 || o.Calls == 0 {
		return fmt.Errorf("%d of %d calls of %s failed, one of them with: %s", o.Failed, o.Calls, name, o.Error)
	}
	return nil
}

// fetch requests a token.
func fetch(ctx context.Context, broker tokenbrokerv1.TokenBrokerServiceClient, request *tokenbrokerv1.GetTokenRequest) (*tokenbrokerv1.GetTokenResponse, error) {
	answer, err := broker.GetToken(ctx, request)
	if err != nil {
		return nil, fmt.Errorf("asking for the token of %s: %w", request.GetClientName(), err)
	}
	return answer, nil
}
