package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Answer is what one call came to.
type Answer struct {
	replica *Replica
	Token   *client.Token // nil after an error
	Err     error
	asked   time.Time
	took    time.Duration
}

// Ask asks a replica once.
func (r *Replica) Ask(t *testing.T, name string, options ...client.TokenOption) Answer {
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	conn := r.conns[r.turn.Add(1)%uint32(len(r.conns))]
	a := Answer{replica: r, asked: time.Now()}
	a.Token, a.Err = conn.Token(ctx, name, options...)
	a.took = time.Since(a.asked)
	return a
}

// Wrong says what is wrong with an answer; nil: nothing. It was given after it
// was asked for, so its token must have lived that long at least.
func (a Answer) Wrong() error {
	if a.Err != nil {
		return a.Err
	}
	issued, err := issuedAs(a.Token.AccessToken())
	if err != nil {
		return err
	}
	margin := min(time.Minute, issued.life/10)
	expires := a.Token.ExpiresAt().Add(-a.replica.clock)
	// The IdP counts in whole seconds, and cuts off the rest.
	if late := expires.Sub(issued.expires); late > time.Second {
		return fmt.Errorf("the broker takes the token to live %v longer than it does", late)
	}
	if left := expires.Sub(a.asked); left < margin {
		return fmt.Errorf("a token that lives %v was served %v before its end, below its margin", issued.life, left)
	}
	return nil
}

type issued struct {
	expires time.Time
	life    time.Duration
}

// issuedTokens are what is known of tokens already, by their texts.
var issuedTokens sync.Map

// issuedAs reads a token as the IdP issued it.
func issuedAs(token string) (issued, error) {
	if known, found := issuedTokens.Load(token); found {
		return known.(issued), nil
	}
	var claims jwt.RegisteredClaims
	if _, _, err := jwt.NewParser().ParseUnverified(token, &claims); err != nil {
		return issued{}, fmt.Errorf("what the broker gave is no token: %T", err)
	}
	read := issued{claims.ExpiresAt.Time, claims.ExpiresAt.Sub(claims.IssuedAt.Time)}
	issuedTokens.Store(token, read)
	return read, nil
}

// AnswerList are those to calls that were made at once.
type AnswerList []Answer

// askAll has callers at each replica ask at once, each once.
func askAll(t *testing.T, replicas []*Replica, each int, name string, options ...client.TokenOption) AnswerList {
	t.Helper()
	got := make(AnswerList, each*len(replicas))
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = replicas[i%len(replicas)].Ask(t, name, options...) })
	}
	wg.Wait()
	return got
}

// Good fails the test for answers that are wrong.
func (all AnswerList) Good(t *testing.T, what string) AnswerList {
	t.Helper()
	wrong := 0
	for _, a := range all {
		if err := a.Wrong(); err != nil {
			if wrong++; wrong <= 3 {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	if wrong > 0 {
		t.Fatalf("%s: %d of %d calls went wrong", what, wrong, len(all))
	}
	return all
}

// OneToken fails the test unless all answers, which are good, are one token.
func (all AnswerList) OneToken(t *testing.T, what string) string {
	t.Helper()
	tokens := map[string]int{}
	for _, a := range all {
		tokens[a.Token.AccessToken()]++
	}
	if len(tokens) != 1 {
		t.Fatalf("%s: %d calls got %d different tokens", what, len(all), len(tokens))
	}
	return all[0].Token.AccessToken()
}

func (all AnswerList) Took() Latencies {
	took := make(Latencies, len(all))
	for i, a := range all {
		took[i] = a.took
	}
	return took
}

type Latencies []time.Duration

func (l Latencies) String() string {
	if len(l) == 0 {
		return "no calls"
	}
	slices.Sort(l)
	at := func(share float64) time.Duration { return l[int(share*float64(len(l)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("%d calls, p50 %v, p99 %v, max %v", len(l), at(.5), at(.99), at(1))
}

// Load is callers who ask all the time.
type Load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	Took     Latencies
	wrong    int
	Firsts   []string // of what went wrong
	Codes    map[codes.Code]int
	Tokens   map[string]time.Time // when each was first seen
	Degraded int
}

// startLoad has callers at each replica request a token again and again, with a pause after
// each response, until the load is ended. There are fewer callers unless time does not
// matter.
func startLoad(t *testing.T, replicas []*Replica, each int, pause time.Duration, name string, options ...client.TokenOption) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &Load{cancel: cancel, Tokens: map[string]time.Time{}, Codes: map[codes.Code]int{}}
	if !harness.IsLong() {
		each = max(1, each/4)
	}
	for _, r := range replicas {
		for range each {
			l.wg.Go(func() {
				for wait(ctx, pause) {
					l.note(r.Ask(t, name, options...))
				}
			})
		}
	}
	t.Cleanup(func() { l.End() })
	return l
}

// wait waits, and reports whether ctx still lasts.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (l *Load) note(a Answer) {
	err := a.Wrong()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Took = append(l.Took, a.took)
	l.Codes[status.Code(a.Err)]++
	switch {
	case err != nil:
		if l.wrong++; l.wrong <= 5 {
			l.Firsts = append(l.Firsts, fmt.Sprintf("%s: %v", a.asked.Format(time.StampMilli), err))
		}
	default:
		if _, seen := l.Tokens[a.Token.AccessToken()]; !seen {
			l.Tokens[a.Token.AccessToken()] = time.Now()
		}
		if a.Token.Degraded() {
			l.Degraded++
		}
	}
}

// End ends the load and waits for the last answers.
func (l *Load) End() *Load {
	l.cancel()
	l.wg.Wait()
	return l
}

// Good ends the load once enough calls were made to say anything, and fails the test
// if some went wrong.
func (l *Load) Good(t *testing.T, what string) {
	t.Helper()
	testkit.Eventually(t, what+": a hundred calls", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.Took) >= 100
	})
	l.End()
	if l.wrong > 0 {
		t.Errorf("%s: %d of %d calls went wrong, first %s", what, l.wrong, len(l.Took), strings.Join(l.Firsts, "; "))
	}
}
