package harness

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// CountingIdP is an IdP in the process of the test: it sees and counts each
// request of each replica.
type CountingIdP struct {
	*devidp.Server

	Client devidp.Client // that it knows
}

// StartIdP starts an IdP with one client. Its first audience and all its scopes
// are the client's own in a broker's configuration.
func StartIdP(t *testing.T, lifetime time.Duration, registered devidp.Client) *CountingIdP {
	t.Helper()
	listener := httptest.NewUnstartedServer(nil)
	server, err := devidp.New(devidp.Config{
		Issuer:    "http://" + listener.Listener.Addr().String(),
		Clients:   []devidp.Client{registered},
		Lifetime:  lifetime,
		Algorithm: "EdDSA",
	})
	if err != nil {
		t.Fatal(err)
	}
	listener.Config.Handler = server
	listener.Start()
	t.Cleanup(func() {
		listener.CloseClientConnections()
		listener.Close()
	})
	return &CountingIdP{server, registered}
}

// SimpleIdP is StartIdP for where it does not matter what the client is called.
func SimpleIdP(t *testing.T, lifetime time.Duration) *CountingIdP {
	t.Helper()
	return StartIdP(t, lifetime, devidp.Client{
		ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: Audiences(60),
	})
}

func Audiences(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("https://api%d.example.com", i)
	}
	return all
}

// Calls counts the HTTP requests at the token endpoint.
func (p *CountingIdP) Calls() int { return p.Requests(devidp.TokenPath) }

// Config is the client in a broker's configuration.
func (p *CountingIdP) Config(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("{token_url: %q, client_id: %q, secret: %q, audience: %q, scopes: [%s]}",
		p.Issuer()+devidp.TokenPath, p.Client.ID, "file:"+WriteFile(t, "secret", p.Client.Secrets[0].Reveal()),
		p.Client.Audiences[0], strings.Join(p.Client.Scopes, ", "))
}

// ClientsConfig is the section clients of a broker's configuration.
func ClientsConfig(t *testing.T, clients map[string]*CountingIdP) string {
	t.Helper()
	section := strings.Builder{}
	section.WriteString("clients:\n")
	for name, idp := range clients {
		section.WriteString("  " + name + ": " + idp.Config(t) + "\n")
	}
	return section.String()
}

const RedisPassword = "a-password-of-Redis"

// RedisOptions are those of a Redis in which the broker has the rights that it
// says it needs, and no more.
func RedisOptions() redistest.Options {
	return redistest.Options{ACL: []string{strings.Replace(redisstore.ACLExample, "PASSWORD", RedisPassword, 1) + " " + redisstore.ACLCluster}}
}

// RedisConfig is the section store of a broker's configuration. More settings
// of redis end with a comma.
func RedisConfig(t *testing.T, more string, addresses ...string) string {
	t.Helper()
	return fmt.Sprintf("store:\n  redis: {%s username: tokenbroker, password: %q, addresses: [\"%s\"]}\n  sealing_keys: %q\n",
		more, "file:"+WriteFile(t, "redis-password", RedisPassword), strings.Join(addresses, `", "`), "file:"+MakeRing(t))
}

// MakeRing makes a ring of sealing keys as an operator does.
func MakeRing(t *testing.T) (path string) {
	t.Helper()
	res := Run(t, "ring", "new")
	if res.Code != 0 {
		t.Fatalf("ring new: %v", res)
	}
	return WriteFile(t, "ring.json", res.Stdout)
}

// Fleet is replicas of a broker that run with one configuration.
type Fleet struct {
	Config   string // all but listen
	Replicas []*Replica
}

// Replica is one of them, and two connections to it.
type Replica struct {
	*Broker

	clock time.Duration // by which its clock is ahead
	conns [2]*client.Client
	turn  atomic.Uint32
}

// ClockVariable sets the clock of a broker that was built to have it set.
const ClockVariable = "CLOCK_AHEAD_SECONDS"

// StartFleet starts n replicas at once and waits until all are ready and
// connected.
func StartFleet(t *testing.T, n int, config string) *Fleet {
	t.Helper()
	f := &Fleet{Config: config}
	f.Add(t, n, "broker", 0)
	return f
}

// Add starts n more replicas, whose clocks are ahead of the test's. For that
// the binary must be clockBroker's.
func (f *Fleet) Add(t *testing.T, n int, binary string, clock time.Duration) []*Replica {
	t.Helper()
	var added []*Replica
	for range n {
		r := &Replica{Broker: NewBroker(t, f.Config), clock: clock}
		r.Launch(t, binary, ClockVariable+"="+strconv.FormatInt(int64(clock.Seconds()), 10))
		added = append(added, r)
	}
	for _, r := range added {
		r.Await(t)
		r.Connect(t)
	}
	f.Replicas = append(f.Replicas, added...)
	return added
}

// Connect makes the connections, so that no measurement counts that.
func (r *Replica) Connect(t *testing.T) {
	t.Helper()
	for i := range r.conns {
		c, err := client.New(r.Grpc, client.WithPlaintext())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		if r.conns[i] != nil {
			_ = r.conns[i].Close() // to the process before
		}
		r.conns[i] = c
		if _, err := c.Token(t.Context(), "nobody"); err == nil {
			t.Fatal("a client that is not configured got a token")
		}
	}
}

// API is the generated client, for what package client does not offer.
func (r *Replica) API(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(r.Grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// Purge purges the tokens of a client, by a call to this replica.
func (r *Replica) Purge(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	request := &tokenbrokerv1.PurgeTokensRequest{ClientName: name, RequestId: strconv.FormatInt(time.Now().UnixNano(), 10)}
	if _, err := tokenbrokerv1.NewAdminServiceClient(r.API(t)).PurgeTokens(ctx, request); err != nil {
		t.Fatalf("purge of %s: %v", name, err)
	}
}

// Metrics is what the replica tells of itself.
func (b *Broker) Metrics(t *testing.T) string {
	t.Helper()
	response, err := Fetch(t, &http.Client{Timeout: Patience}, http.MethodGet, "http://"+b.Ops+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Metric is the value of a series, such as name{label="value"}.
func (b *Broker) Metric(t *testing.T, series string) float64 {
	t.Helper()
	for line := range strings.Lines(b.Metrics(t)) {
		if text, found := strings.CutPrefix(line, series+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("there is no metric %s", series)
	return 0
}

// Sum adds up a series over the fleet.
func (f *Fleet) Sum(t *testing.T, series string) float64 {
	t.Helper()
	total := 0.0
	for _, r := range f.Replicas {
		total += r.Metric(t, series)
	}
	return total
}

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
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
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

// Everybody has callers at each replica ask at once, each once.
func Everybody(t *testing.T, replicas []*Replica, each int, name string, options ...client.TokenOption) AnswerList {
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

// StartLoad has callers at each replica ask again and again, with a pause after
// each answer, until the load is ended.
func StartLoad(t *testing.T, replicas []*Replica, each int, pause time.Duration, name string, options ...client.TokenOption) *Load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &Load{cancel: cancel, Tokens: map[string]time.Time{}, Codes: map[codes.Code]int{}}
	for _, r := range replicas {
		for range each {
			l.wg.Go(func() {
				for Wait(ctx, pause) {
					l.note(r.Ask(t, name, options...))
				}
			})
		}
	}
	t.Cleanup(func() { l.End() })
	return l
}

// Wait waits, and reports whether ctx still lasts.
func Wait(ctx context.Context, d time.Duration) bool {
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

// Rest is for the time that a load needs.
func Rest(t *testing.T, d time.Duration) {
	t.Helper()
	if !Wait(t.Context(), d) {
		t.Fatal(t.Context().Err())
	}
}

// Logged reports whether the replica has logged a line that holds all words.
func (b *Broker) Logged(words ...string) bool {
	for line := range strings.Lines(b.Process.Output.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			return true
		}
	}
	return false
}

// Long skips a test that takes minutes, unless it is asked for.
func Long(t *testing.T) {
	t.Helper()
	if !IsLong() {
		t.Skip("takes minutes: make test-long")
	}
}

func IsLong() bool { return os.Getenv("TOKENBROKER_LONG") != "" }

// Managed is the section clients of a broker's configuration, with one client whose
// secret operators bring.
func (p *CountingIdP) Managed(name string) string {
	return fmt.Sprintf("clients:\n  %s: {token_url: %q, client_id: %q, secret: managed, audience: %q, scopes: [%s]}\n",
		name, p.Issuer()+"/token", p.Client.ID, p.Client.Audiences[0], strings.Join(p.Client.Scopes, ", "))
}

// Takes has the IdP take these secrets and no others.
func (p *CountingIdP) Takes(secrets ...string) {
	values := make([]redact.String, len(secrets))
	for i, s := range secrets {
		values[i] = redact.New(s)
	}
	p.SetSecrets(p.Client.ID, values...)
}

func (p *CountingIdP) Refused(secret string) int {
	_, refused := p.Attempts(p.Client.ID, redact.New(secret))
	return refused
}

// AddWith starts one more replica, with a configuration of its own.
func (f *Fleet) AddWith(t *testing.T, config string) *Replica {
	t.Helper()
	r := &Replica{Broker: NewBroker(t, config)}
	r.Launch(t, "broker")
	r.Await(t)
	r.Connect(t)
	f.Replicas = append(f.Replicas, r)
	return r
}
