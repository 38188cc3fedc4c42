package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

const driveCommand = "drive"

// The load: a closed loop, so that a slower server gets fewer calls and never a
// queue.
const (
	callers     = 32
	connections = 4
)

// The cases of the load.
const (
	caseGet    = "GetToken"
	caseVerify = "VerifyToken"
)

// workload describes the requests of the load.
type workload struct {
	name   string // of the case
	client string
	// questions are random requests with equal shares. Zero: only the client's own.
	questions int
	jwt       bool // the caller presents a JWT, over TLS
	// subject is a file with the token of a user, on whose behalf the load requests tokens.
	// Empty: it requests the client's own.
	subject string
	// tokens is a file of tokens, one a line: the load presents each once and then ends.
	// Empty: it presents the client's token again and again.
	tokens string
}

// outcome is the JSON output of the load. Times are in microseconds.
type outcome struct {
	Calls   int     `json:"calls"`
	Failed  int     `json:"failed"`
	Error   string  `json:"error,omitempty"` // of one of the failed calls
	Seconds float64 `json:"seconds"`
	P50     float64 `json:"p50"`
	P99     float64 `json:"p99"`
	Max     float64 `json:"max"`
}

// call makes one call and checks the response. It returns errAllPresented instead if the
// tokens of the load are used up.
type call func(ctx context.Context, broker tokenbrokerv1.TokenBrokerServiceClient) error

// drive puts load on the server at ADDR and prints the outcome as JSON.
func drive(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(driveCommand, flag.ContinueOnError)
	var w workload
	flags.StringVar(&w.client, "client", "", "ask for the token of the client `NAME`")
	flags.IntVar(&w.questions, "questions", 0, "ask for `N` tokens of the client, at random; 0: for its own")
	flags.StringVar(&w.tokens, "tokens", "", "present each token in `FILE` once; empty: the client's token again and again")
	flags.StringVar(&w.subject, "subject", "", "ask on behalf of the user whose token is in `FILE`")
	http := flags.String("http", "", "`ADDR` where the server answers gateways over HTTP")
	length := flags.Duration("for", time.Second, "how long")
	by := proofFlags(flags)
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 2 {
		return fmt.Errorf("usage: bench %s -client NAME [-questions 0] [-tokens FILE] [-subject FILE] [-for 1s] [-tls DIR [-jwt]] [-http ADDR] ADDR CASE", driveCommand)
	}
	w.name = flags.Arg(1)
	brokers, hangUp, err := dial(flags.Arg(0), *by)
	if err != nil {
		return err
	}
	defer hangUp()
	do, err := prepare(ctx, w, brokers, *http, *by)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(load(ctx, brokers, do, *length))
}

// connect opens a connection with a short retry interval until the server is up.
func connect(address string, by proof) (*grpc.ClientConn, error) {
	const retry = 5 * time.Millisecond
	options, err := by.client()
	if err != nil {
		return nil, err
	}
	return grpc.NewClient(address, append(options, grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: retry, Multiplier: 1, MaxDelay: retry},
		MinConnectTimeout: time.Second,
	}))...)
}

// dial returns a client for each connection of the load.
func dial(address string, by proof) (brokers []tokenbrokerv1.TokenBrokerServiceClient, hangUp func(), err error) {
	var open []*grpc.ClientConn
	hangUp = func() {
		for _, connection := range open {
			_ = connection.Close()
		}
	}
	for range connections {
		connection, err := connect(address, by)
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		open = append(open, connection)
		brokers = append(brokers, newPeer(connection))
	}
	return brokers, hangUp, nil
}

// prepare returns the call of a case. It makes one call on each connection, so that all
// of them are open before the load begins.
func prepare(ctx context.Context, w workload, brokers []tokenbrokerv1.TokenBrokerServiceClient, http string, by proof) (call, error) {
	request := &tokenbrokerv1.GetTokenRequest{ClientName: w.client}
	if w.subject != "" {
		user, err := os.ReadFile(w.subject)
		if err != nil {
			return nil, err
		}
		request.Subject = &tokenbrokerv1.Subject{Token: string(user)}
	}
	var token string
	for _, broker := range brokers {
		answer, err := broker.GetToken(ctx, request, grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		token = answer.GetAccessToken()
	}
	next := func() (string, error) { return token, nil }
	if w.tokens != "" {
		list, err := readTokens(w.tokens)
		if err != nil {
			return nil, err
		}
		next = eachOnce(list)
	}
	switch {
	case w.name == caseGet && w.questions > 0:
		return getToken(func() *tokenbrokerv1.GetTokenRequest { return question(w.client, rand.IntN(w.questions)) }), nil
	case w.name == caseGet:
		return getToken(func() *tokenbrokerv1.GetTokenRequest { return request }), nil
	case w.name == caseVerify:
		return verifyToken(next), nil
	case w.name == caseCheck:
		return checked(next), nil
	case w.name == caseForward:
		return forwarded(http, by, next)
	default:
		return nil, fmt.Errorf("there is no case %q; want %s, %s, %s or %s", w.name, caseGet, caseVerify, caseCheck, caseForward)
	}
}

func getToken(next func() *tokenbrokerv1.GetTokenRequest) call {
	return func(ctx context.Context, broker tokenbrokerv1.TokenBrokerServiceClient) error {
		answer, err := broker.GetToken(ctx, next())
		if err == nil && answer.GetAccessToken() == "" {
			return errors.New("an answer without a token")
		}
		return err
	}
}

func verifyToken(next func() (string, error)) call {
	return func(ctx context.Context, broker tokenbrokerv1.TokenBrokerServiceClient) error {
		token, err := next()
		if err != nil {
			return err
		}
		answer, err := broker.VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{Token: token})
		if err == nil && !answer.GetActive() {
			return fmt.Errorf("the token was rejected: %s", answer.GetRejection().GetMessage())
		}
		return err
	}
}

// load makes calls until length is over, and waits for the last ones.
func load(ctx context.Context, brokers []tokenbrokerv1.TokenBrokerServiceClient, do call, length time.Duration) outcome {
	loops := make([]loop, callers)
	start := time.Now()
	var running sync.WaitGroup
	for i := range loops {
		running.Go(func() { loops[i].run(ctx, brokers[i%len(brokers)], do, start.Add(length)) })
	}
	running.Wait()
	return summarize(loops, time.Since(start))
}

// loop is one caller and its measurements.
type loop struct {
	latencies []time.Duration // by all calls, the failed ones included
	failed    int
	err       error
}

func (l *loop) run(ctx context.Context, broker tokenbrokerv1.TokenBrokerServiceClient, do call, until time.Time) {
	for start := time.Now(); start.Before(until) && ctx.Err() == nil; {
		err := do(ctx, broker)
		if errors.Is(err, errAllPresented) {
			return
		}
		if err != nil {
			l.failed++
			l.err = err
		}
		ended := time.Now()
		l.latencies = append(l.latencies, ended.Sub(start))
		start = ended
	}
}

func summarize(loops []loop, elapsed time.Duration) outcome {
	sum := outcome{Seconds: elapsed.Seconds()}
	var all []time.Duration
	for _, l := range loops {
		all = append(all, l.latencies...)
		sum.Failed += l.failed
		if l.err != nil {
			sum.Error = l.err.Error()
		}
	}
	slices.Sort(all)
	sum.Calls = len(all)
	sum.P50, sum.P99, sum.Max = quantile(all, 0.5), quantile(all, 0.99), quantile(all, 1)
	return sum
}

// quantile returns, in microseconds, the smallest of the sorted values that a share q of
// them does not exceed; 0 without values.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return float64(sorted[max(rank, 1)-1]) / float64(time.Microsecond)
}
