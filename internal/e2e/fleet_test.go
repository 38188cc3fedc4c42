package e2e_test

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

// countingIdP is an IdP in the process of the test: it sees and counts each
// request of each replica.
type countingIdP struct {
	*devidp.Server

	client devidp.Client // that it knows
}

// startIdP starts an IdP with one client. Its first audience and all its scopes
// are the client's own in a broker's configuration.
func startIdP(t *testing.T, lifetime time.Duration, registered devidp.Client) *countingIdP {
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
	return &countingIdP{server, registered}
}

// simpleIdP is startIdP for where it does not matter what the client is called.
func simpleIdP(t *testing.T, lifetime time.Duration) *countingIdP {
	t.Helper()
	return startIdP(t, lifetime, devidp.Client{
		ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: audiences(60),
	})
}

func audiences(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("https://api%d.example.com", i)
	}
	return all
}

// calls counts the HTTP requests at the token endpoint.
func (p *countingIdP) calls() int { return p.Requests(devidp.TokenPath) }

// config is the client in a broker's configuration.
func (p *countingIdP) config(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("{token_url: %q, client_id: %q, secret: %q, audience: %q, scopes: [%s]}",
		p.Issuer()+devidp.TokenPath, p.client.ID, "file:"+writeFile(t, "secret", p.client.Secrets[0].Reveal()),
		p.client.Audiences[0], strings.Join(p.client.Scopes, ", "))
}

// clientsConfig is the section clients of a broker's configuration.
func clientsConfig(t *testing.T, clients map[string]*countingIdP) string {
	t.Helper()
	section := "clients:\n"
	for name, idp := range clients {
		section += "  " + name + ": " + idp.config(t) + "\n"
	}
	return section
}

const redisPassword = "a-password-of-Redis"

// redisOptions are those of a Redis in which the broker has the rights that it
// says it needs, and no more.
func redisOptions() redistest.Options {
	return redistest.Options{ACL: []string{strings.Replace(redisstore.ACLExample, "PASSWORD", redisPassword, 1) + " " + redisstore.ACLCluster}}
}

// redisConfig is the section store of a broker's configuration. More settings
// of redis end with a comma.
func redisConfig(t *testing.T, more string, addresses ...string) string {
	t.Helper()
	return fmt.Sprintf("store:\n  redis: {%s username: tokenbroker, password: %q, addresses: [\"%s\"]}\n  sealing_keys: %q\n",
		more, "file:"+writeFile(t, "redis-password", redisPassword), strings.Join(addresses, `", "`), "file:"+makeRing(t))
}

// makeRing makes a ring of sealing keys as an operator does.
func makeRing(t *testing.T) (path string) {
	t.Helper()
	res := run(t, "ring", "new")
	if res.code != 0 {
		t.Fatalf("ring new: %v", res)
	}
	return writeFile(t, "ring.json", res.stdout)
}

// fleet is replicas of a broker that run with one configuration.
type fleet struct {
	config   string // all but listen
	replicas []*replica
}

// replica is one of them, and two connections to it.
type replica struct {
	*broker

	clock time.Duration // by which its clock is ahead
	conns [2]*client.Client
	turn  atomic.Uint32
}

// clockVariable sets the clock of a broker that was built to have it set.
const clockVariable = "CLOCK_AHEAD_SECONDS"

// startFleet starts n replicas at once and waits until all are ready and
// connected.
func startFleet(t *testing.T, n int, config string) *fleet {
	t.Helper()
	f := &fleet{config: config}
	f.add(t, n, "broker", 0)
	return f
}

// add starts n more replicas, whose clocks are ahead of the test's. For that
// the binary must be clockBroker's.
func (f *fleet) add(t *testing.T, n int, binary string, clock time.Duration) []*replica {
	t.Helper()
	var added []*replica
	for range n {
		r := &replica{broker: newBroker(t, f.config), clock: clock}
		r.launch(t, binary, clockVariable+"="+strconv.FormatInt(int64(clock.Seconds()), 10))
		added = append(added, r)
	}
	for _, r := range added {
		r.await(t)
		r.connect(t)
	}
	f.replicas = append(f.replicas, added...)
	return added
}

// connect makes the connections, so that no measurement counts that.
func (r *replica) connect(t *testing.T) {
	t.Helper()
	for i := range r.conns {
		c, err := client.New(r.grpc, client.WithPlaintext())
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

// api is the generated client, for what package client does not offer.
func (r *replica) api(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(r.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// purge purges the tokens of a client, by a call to this replica.
func (r *replica) purge(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	request := &tokenbrokerv1.PurgeTokensRequest{ClientName: name, RequestId: strconv.FormatInt(time.Now().UnixNano(), 10)}
	if _, err := tokenbrokerv1.NewAdminServiceClient(r.api(t)).PurgeTokens(ctx, request); err != nil {
		t.Fatalf("purge of %s: %v", name, err)
	}
}

// metrics is what the replica tells of itself.
func (b *broker) metrics(t *testing.T) string {
	t.Helper()
	response, err := fetch(t, &http.Client{Timeout: patience}, http.MethodGet, "http://"+b.ops+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	if err != nil || response.Body.Close() != nil {
		t.Fatal(err)
	}
	return string(text)
}

// metric is the value of a series, such as name{label="value"}.
func (b *broker) metric(t *testing.T, series string) float64 {
	t.Helper()
	for line := range strings.Lines(b.metrics(t)) {
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

// sum adds up a series over the fleet.
func (f *fleet) sum(t *testing.T, series string) float64 {
	t.Helper()
	total := 0.0
	for _, r := range f.replicas {
		total += r.metric(t, series)
	}
	return total
}

// answer is what one call came to.
type answer struct {
	replica *replica
	token   *client.Token // nil after an error
	err     error
	asked   time.Time
	took    time.Duration
}

// ask asks a replica once.
func (r *replica) ask(t *testing.T, name string, options ...client.TokenOption) answer {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn := r.conns[r.turn.Add(1)%uint32(len(r.conns))]
	a := answer{replica: r, asked: time.Now()}
	a.token, a.err = conn.Token(ctx, name, options...)
	a.took = time.Since(a.asked)
	return a
}

// wrong says what is wrong with an answer; nil: nothing. It was given after it
// was asked for, so its token must have lived that long at least.
func (a answer) wrong() error {
	if a.err != nil {
		return a.err
	}
	issued, err := issuedAs(a.token.AccessToken())
	if err != nil {
		return err
	}
	margin := min(time.Minute, issued.life/10)
	expires := a.token.ExpiresAt().Add(-a.replica.clock)
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

// answerList are those to calls that were made at once.
type answerList []answer

// everybody has callers at each replica ask at once, each once.
func everybody(t *testing.T, replicas []*replica, each int, name string, options ...client.TokenOption) answerList {
	t.Helper()
	got := make(answerList, each*len(replicas))
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() { got[i] = replicas[i%len(replicas)].ask(t, name, options...) })
	}
	wg.Wait()
	return got
}

// good fails the test for answers that are wrong.
func (all answerList) good(t *testing.T, what string) answerList {
	t.Helper()
	wrong := 0
	for _, a := range all {
		if err := a.wrong(); err != nil {
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

// oneToken fails the test unless all answers, which are good, are one token.
func (all answerList) oneToken(t *testing.T, what string) string {
	t.Helper()
	tokens := map[string]int{}
	for _, a := range all {
		tokens[a.token.AccessToken()]++
	}
	if len(tokens) != 1 {
		t.Fatalf("%s: %d calls got %d different tokens", what, len(all), len(tokens))
	}
	return all[0].token.AccessToken()
}

func (all answerList) took() latencies {
	took := make(latencies, len(all))
	for i, a := range all {
		took[i] = a.took
	}
	return took
}

type latencies []time.Duration

func (l latencies) String() string {
	if len(l) == 0 {
		return "no calls"
	}
	slices.Sort(l)
	at := func(share float64) time.Duration { return l[int(share*float64(len(l)-1))].Round(10 * time.Microsecond) }
	return fmt.Sprintf("%d calls, p50 %v, p99 %v, max %v", len(l), at(.5), at(.99), at(1))
}

// load is callers who ask all the time.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex
	took     latencies
	wrong    int
	firsts   []string // of what went wrong
	codes    map[codes.Code]int
	tokens   map[string]time.Time // when each was first seen
	degraded int
}

// startLoad has callers at each replica ask again and again, with a pause after
// each answer, until the load is ended.
func startLoad(t *testing.T, replicas []*replica, each int, pause time.Duration, name string, options ...client.TokenOption) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cancel: cancel, tokens: map[string]time.Time{}, codes: map[codes.Code]int{}}
	for _, r := range replicas {
		for range each {
			l.wg.Go(func() {
				for wait(ctx, pause) {
					l.note(r.ask(t, name, options...))
				}
			})
		}
	}
	t.Cleanup(func() { l.end() })
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

func (l *load) note(a answer) {
	err := a.wrong()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, a.took)
	l.codes[status.Code(a.err)]++
	switch {
	case err != nil:
		if l.wrong++; l.wrong <= 5 {
			l.firsts = append(l.firsts, fmt.Sprintf("%s: %v", a.asked.Format(time.StampMilli), err))
		}
	default:
		if _, seen := l.tokens[a.token.AccessToken()]; !seen {
			l.tokens[a.token.AccessToken()] = time.Now()
		}
		if a.token.Degraded() {
			l.degraded++
		}
	}
}

// end ends the load and waits for the last answers.
func (l *load) end() *load {
	l.cancel()
	l.wg.Wait()
	return l
}

// good ends the load once enough calls were made to say anything, and fails the test
// if some went wrong.
func (l *load) good(t *testing.T, what string) {
	t.Helper()
	testkit.Eventually(t, what+": a hundred calls", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.took) >= 100
	})
	l.end()
	if l.wrong > 0 {
		t.Errorf("%s: %d of %d calls went wrong, first %s", what, l.wrong, len(l.took), strings.Join(l.firsts, "; "))
	}
}

// rest is for the time that a load needs.
func rest(t *testing.T, d time.Duration) {
	t.Helper()
	if !wait(t.Context(), d) {
		t.Fatal(t.Context().Err())
	}
}

// logged reports whether the replica has logged a line that holds all words.
func (b *broker) logged(words ...string) bool {
	for line := range strings.Lines(b.process.output.String()) {
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
			return true
		}
	}
	return false
}

// long skips a test that takes minutes, unless it is asked for.
func long(t *testing.T) {
	t.Helper()
	if !isLong() {
		t.Skip("takes minutes: make test-long")
	}
}

func isLong() bool { return os.Getenv("TOKENBROKER_LONG") != "" }
