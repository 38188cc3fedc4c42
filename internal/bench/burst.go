package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const burstCommand = "burst"

// burstOutcome is the outcome of one burst, and the CPU time, in microseconds, of its
// callers themselves.
type burstOutcome struct {
	outcome

	CPU float64 `json:"cpu"`
}

// coldAndWarm are two bursts of the same calls: the second finds the token cached.
type coldAndWarm struct {
	Cold burstOutcome `json:"cold"`
	Warm burstOutcome `json:"warm"`
}

// burst makes callers at each of the servers request the token of a client at once, and
// then again; so for each of the clients. It prints the outcomes as JSON.
func burst(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(burstCommand, flag.ContinueOnError)
	names := flags.String("clients", "", "ask for the tokens of the clients `NAME,NAME`, one after the other")
	each := flags.Int("callers", 1, "ask `N` times at each server")
	first := flags.Int("question", -1, "instead, once with another question for each caller, from the `N`th one; -1: with the client's own")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() == 0 || *names == "" {
		return fmt.Errorf("usage: bench %s -clients NAME,NAME [-callers 1] [-question -1] ADDR [ADDR]", burstCommand)
	}
	brokers, hangUp, err := dialAll(ctx, flags.Args(), *each)
	if err != nil {
		return err
	}
	defer hangUp()
	if *first >= 0 {
		o, err := atOnce(ctx, brokers, func(i int) *tokenbrokerv1.GetTokenRequest { return question(*names, *first+i) })
		return errors.Join(err, json.NewEncoder(os.Stdout).Encode(o))
	}
	var outcomes []coldAndWarm
	for name := range strings.SplitSeq(*names, ",") {
		get := func(int) *tokenbrokerv1.GetTokenRequest { return &tokenbrokerv1.GetTokenRequest{ClientName: name} }
		var pair coldAndWarm
		for _, o := range []*burstOutcome{&pair.Cold, &pair.Warm} {
			if *o, err = atOnce(ctx, brokers, get); err != nil {
				return err
			}
		}
		outcomes = append(outcomes, pair)
	}
	return json.NewEncoder(os.Stdout).Encode(outcomes)
}

// dialAll returns a client for each of the callers at each server. All connections are
// open.
func dialAll(ctx context.Context, addresses []string, each int) (brokers []tokenbrokerv1.TokenBrokerServiceClient, hangUp func(), err error) {
	var open []*grpc.ClientConn
	hangUp = func() {
		for _, connection := range open {
			_ = connection.Close()
		}
	}
	for _, address := range addresses {
		var dialed []tokenbrokerv1.TokenBrokerServiceClient
		for range connections {
			connection, err := connect(address, proof{})
			if err != nil {
				hangUp()
				return nil, nil, err
			}
			open = append(open, connection)
			dialed = append(dialed, tokenbrokerv1.NewTokenBrokerServiceClient(connection))
		}
		for i := range each {
			brokers = append(brokers, dialed[i%len(dialed)])
		}
	}
	for _, connection := range open {
		if _, err := healthpb.NewHealthClient(connection).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
			hangUp()
			return nil, nil, err
		}
	}
	return brokers, hangUp, nil
}

// atOnce makes a request at each of the brokers. Each caller's wait begins at the common
// start: the time before its own turn counts.
func atOnce(ctx context.Context, brokers []tokenbrokerv1.TokenBrokerServiceClient, request func(i int) *tokenbrokerv1.GetTokenRequest) (burstOutcome, error) {
	loops := make([]loop, len(brokers))
	gate := make(chan struct{})
	var start time.Time
	var waiting, running sync.WaitGroup
	waiting.Add(len(brokers))
	for i, broker := range brokers {
		do := getToken(func() *tokenbrokerv1.GetTokenRequest { return request(i) })
		running.Go(func() {
			waiting.Done()
			<-gate
			loops[i].err = do(ctx, broker)
			loops[i].latencies = []time.Duration{time.Since(start)}
			if loops[i].err != nil {
				loops[i].failed++
			}
		})
	}
	waiting.Wait()
	before, errBefore := ownCPU()
	start = time.Now()
	close(gate)
	running.Wait()
	elapsed := time.Since(start)
	after, errAfter := ownCPU()
	return burstOutcome{
		outcome: summarize(loops, elapsed),
		CPU:     float64(after-before) / float64(time.Microsecond),
	}, errors.Join(errBefore, errAfter)
}

// ownCPU returns the CPU time of this process, with a finer resolution than /proc.
func ownCPU() (time.Duration, error) {
	var usage syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), err
}
