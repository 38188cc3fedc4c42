// Command bench measures the cost of a call to the broker for its server, beside the
// cost of the same call to a bare grpc-go server in the same run. The servers, and the
// load that drives them, are separate processes.
//
// The ratio between the two is the result: it holds from machine to machine and from day
// to day, which absolute numbers do not. Bench therefore asserts nothing about time; it
// fails only if calls fail. It reads /proc, so it needs Linux, and it uses loopback
// only.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run is every process except the broker and Redis: the binary starts itself again as
// the echo, as the load and as the plain client.
func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		switch args[0] {
		case echoCommand:
			return echo(ctx, args[1:])
		case driveCommand:
			return drive(ctx, args[1:])
		case burstCommand:
			return burst(ctx, args[1:])
		case bareCommand:
			return bare(ctx, args[1:])
		case requestCommand:
			return request(ctx, args[1:])
		case plainCommand:
			return plain(ctx, args[1:])
		}
	}
	return orchestrate(ctx, args)
}

// options are the flags of the main process.
type options struct {
	rounds int
	// length is how long a round drives one server with one case.
	length time.Duration
	// replicas is the number of replicas of the cold fleet.
	replicas int
	// questions is the number of requests, with a token each, for one broker.
	questions int
	// tokens is the number of tokens that a broker verifies for the first time in a round.
	tokens int
	// only is the part to measure; empty: all.
	only string
	// build is the binary of the broker; empty: it is built. beside is the binary of another
	// build, which is measured in place of the echo.
	build, beside string
}

func partNames() (names []string) {
	for _, part := range (*bench)(nil).parts() {
		names = append(names, part.name)
	}
	return names
}

// maxTokens of about 900 bytes fit into the cache of a broker, and in a file.
const maxTokens = 100_000

func parseOptions(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 6, "measure each case `N` times and report medians")
	seconds := flags.Float64("seconds", 3, "drive for `S` seconds in each round; short rounds show other work of the machine")
	flags.IntVar(&o.replicas, "replicas", 20, "start a fleet of `N` cold")
	flags.IntVar(&o.questions, "questions", 100_000, "have a broker hold `N` tokens")
	flags.StringVar(&o.only, "only", "", "measure only the `PART` "+strings.Join(partNames(), ", "))
	flags.StringVar(&o.build, "broker", "", "measure the broker at `PATH`; empty: build it")
	flags.StringVar(&o.beside, "beside", "", "compare with the broker at `PATH`, of another version, instead of an echo")
	flags.IntVar(&o.tokens, "tokens", 20_000, "verify `N` new tokens in each round")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	o.length = time.Duration(*seconds * float64(time.Second))
	switch {
	case flags.NArg() > 0:
		return options{}, fmt.Errorf("unknown command %q; there are only flags, see -help", flags.Arg(0))
	case o.only != "" && !slices.Contains(partNames(), o.only):
		return options{}, fmt.Errorf("there is no part %q; want one of %s", o.only, strings.Join(partNames(), ", "))
	case o.rounds < 1 || o.rounds > 100 || *seconds < 0.1:
		return options{}, fmt.Errorf("want 1 to 100 rounds of at least 0.1 seconds, got %d of %v", o.rounds, *seconds)
	case o.replicas < 1 || o.replicas > 100:
		return options{}, fmt.Errorf("want 1 to 100 replicas, got %d", o.replicas)
	case o.questions < 1 || o.questions > maxQuestions:
		return options{}, fmt.Errorf("want 1 to %d questions, got %d", maxQuestions, o.questions)
	case o.tokens < 1 || o.tokens > maxTokens:
		return options{}, fmt.Errorf("want 1 to %d tokens, got %d", maxTokens, o.tokens)
	}
	return o, nil
}
