package verify_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// stage is the environment of a sequence of steps: keys, the sets that two issuers may
// publish, and tokens. All sequences share it, because they begin at the same instant.
type stage struct {
	sets   map[string][][]jsonObject // by host
	tokens []string
	twins  map[string]string // the other spelling of an ECDSA signature
}

const (
	hostA = "a.example"
	hostB = "b.example"
)

func newStage(t *testing.T) *stage {
	s := &stage{twins: map[string]string{}}
	synctest.Test(t, func(t *testing.T) { // at the instant at which each sequence begins
		one, other := josetest.New(t, "EdDSA", "one"), josetest.New(t, "EdDSA", "one") // one kid
		two, es, rs := josetest.New(t, "EdDSA", "two"), josetest.New(t, "ES256", "es"), josetest.New(t, "RS256", "rs")
		keyB := josetest.New(t, "EdDSA", "one")
		all := []jsonObject{one.JWK(), two.JWK(), es.JWK(), rs.JWK()}
		s.sets = map[string][][]jsonObject{
			hostA: {
				all, all, all,
				{two.JWK(), es.JWK(), rs.JWK()},                                       // one is gone
				{other.JWK(), two.JWK(), es.JWK(), rs.JWK()},                          // one was replaced
				{one.JWK(), es.JWK(), rs.JWK(jsonObject{"alg": "PS256"})},             // rs is for something else now
				{one.JWK(), other.JWK(), two.JWK(), es.JWK(jsonObject{"use": "enc"})}, // one is nobody's
				{one.JWK(jsonObject{"kid": "two"}), two.JWK(jsonObject{"kid": "one"}), es.JWK(), rs.JWK()},
			},
			hostB: {{keyB.JWK()}, {one.JWK()}, {keyB.JWK(), two.JWK()}},
		}
		for _, key := range []*josetest.Signer{one, other, two, es, rs} {
			s.mint(key, issuerA)
		}
		s.mint(keyB, issuerB)
		s.mint(one, issuerB)
	})
	return s
}

func (s *stage) mint(key *josetest.Signer, issuer string) {
	now := time.Now().Unix()
	for n, change := range []jsonObject{
		{"sub": "bob"}, {"exp": now + 60}, {"exp": now + 3600, "aud": []string{"x", audience}}, {"nbf": now + 120, "exp": now + 7200},
		{"scope": "read", "scp": "write", "exp": now + 5400, "cnf": jsonObject{"jkt": "t"}}, {"aud": "x"}, {"exp": now + 23*3600}, {"sub": 1},
	} {
		token := key.Token(key.Header(), claims(jsonObject{"iss": issuer, "jti": fmt.Sprint(n)}, change))
		s.tokens = append(s.tokens, token)
		if key.Algorithm == "ES256" {
			s.twins[token] = twinOf(key, token)
		}
	}
	s.tokens = append(s.tokens, key.Token(key.Header(jsonObject{"typ": "JWT"}), claims(jsonObject{"iss": issuer})))
}

// twinOf replaces the signature (r, s) of an ES256 token with (r, n-s), which
// holds as well.
func twinOf(key *josetest.Signer, token string) string {
	dot := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[dot+1:])
	if err != nil {
		panic(err)
	}
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(key.Private.(*ecdsa.PrivateKey).Params().N, s).FillBytes(signature[32:])
	return token[:dot+1] + josetest.Base64(signature)
}

// step is one event. The meaning of its numbers depends on its kind.
type step struct {
	What       string
	A, B, C, D int
}

func drawStep(t *rapid.T) step {
	number := rapid.IntRange(0, 1<<20)
	return step{
		What: rapid.SampledFrom([]string{
			"present", "present", "present", "present", "mutate", "mutate", "callers", "wait", "wait", "clock", "publish", "trouble", "recover", "reload",
		}).Draw(t, "what"),
		A: number.Draw(t, "a"), B: number.Draw(t, "b"), C: number.Draw(t, "c"), D: number.Draw(t, "d"),
	}
}

func pick[T any](list []T, n int) T { return list[n%len(list)] }

// requests are the requests of callers.
var requests = []verify.Request{
	{}, {}, {Scopes: []string{"read"}}, {Scopes: []string{"write", "read"}}, {Scopes: []string{"admin"}}, {Audience: []string{"x"}},
	{Audience: []string{"y", audience}}, {Issuer: issuerA}, {Issuer: issuerB}, {Issuer: issuerB, Audience: []string{"x"}},
}

// policies are configurations of the two issuers.
var policies = []func(a, b *verify.IssuerConfig){
	func(_, _ *verify.IssuerConfig) {},
	func(a, b *verify.IssuerConfig) { a.Algorithms, b.Algorithms = []string{"EdDSA"}, []string{"ES256"} },
	func(a, b *verify.IssuerConfig) { a.Types, b.ScopeClaim = []string{"JWT", "at+jwt"}, []string{"scp"} },
	func(a, _ *verify.IssuerConfig) { a.ScopeClaim, a.Leeway, a.MaxAge = []string{"scp"}, -1, 5*time.Minute },
	func(a, _ *verify.IssuerConfig) { a.Keys.MaxStale, a.MaxLifetime = 5*time.Minute, time.Hour },
	func(_, b *verify.IssuerConfig) { b.Issuer = "https://c.example" }, // B is not configured any more
}

// play is a sequence in progress.
type play struct {
	*stage

	t                *testing.T
	web              sites
	cached, uncached *verify.Verifier // with the cache and without, on the same keys
	clock            time.Duration    // by how much the wall clock was set
	now              time.Time        // that it showed last
	stop             func()
	log              []string
	tally            map[string]int
	hits             int
	returned         map[*verify.Facts]string // all facts that were returned, as they were then
}

func (s *stage) play(t *testing.T, policy int, steps []step, tally map[string]int) (failure string, hits int) {
	p := &play{stage: s, t: t, web: sites{hostA: serve(josetest.Set(s.sets[hostA][0]...)), hostB: serve(josetest.Set(s.sets[hostB][0]...))}, tally: tally, returned: map[*verify.Facts]string{}}
	p.load(policy)
	defer func() { p.unload() }()
	for _, step := range steps {
		p.log = append(p.log, fmt.Sprintf("%+v", step))
		if failure := p.do(step); failure != "" {
			return failure + fmt.Sprintf(" after policy %d and:\n", policy) + strings.Join(p.log, "\n"), 0
		}
	}
	p.unload()
	return "", p.hits
}

func (p *play) load(policy int) {
	a, b := configOf(issuerA), configOf(issuerB)
	pick(policies, policy)(&a, &b)
	v, err := verify.New(verify.Config{Issuers: []verify.IssuerConfig{a, b}, HTTP: discovery.NewHTTPClient(p.web), CacheBytes: 1 << 20}, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cached, p.uncached = v, v.WithoutCache()
	ctx, cancel := context.WithCancel(p.t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); v.Run(ctx) }()
	p.stop = func() { cancel(); <-ended }
}

func (p *play) unload() {
	p.stop()
	hits, _ := p.cached.Lookups()
	p.hits += hits
}

func (p *play) do(s step) (failure string) {
	host := pick([]string{hostA, hostA, hostB}, s.A)
	switch s.What {
	case "present":
		return p.present(p.tokens[s.A%(1+s.B%len(p.tokens))], pick(requests, s.C)) // some tokens come again and again
	case "mutate":
		return p.present(p.mutated(s), pick(requests, s.C))
	case "callers":
		return p.callers(pick(p.tokens, s.A))
	case "wait":
		time.Sleep(pick([]time.Duration{1, time.Second, 10 * time.Second, 29 * time.Second, time.Minute, 5 * time.Minute, 20 * time.Minute, 61 * time.Minute}, s.A))
	case "clock":
		p.clock += pick([]time.Duration{-time.Hour, -10 * time.Minute, -time.Minute, -time.Second, time.Second, time.Minute, 10 * time.Minute, time.Hour}, s.A)
	case "publish":
		p.web[host].publish(pick(p.sets[host], s.B)...)
	case "trouble":
		p.web[host].set(pick([]func(*http.Request) (*http.Response, error){
			hang, respond(http.StatusServiceUnavailable, nil, nil), respond(http.StatusOK, []byte(`{"keys":[]}`), nil), after(2*time.Second, respond(http.StatusOK, josetest.Set(pick(p.sets[host], s.C)...), nil)),
		}, s.B))
	case "recover":
		p.web[host].publish(p.sets[host][0]...)
	case "reload":
		if s.A%4 == 0 {
			p.unload()
			p.load(s.B)
		}
	}
	return ""
}

func (p *play) mutated(s step) string {
	token := pick(p.tokens, s.A)
	if twin, ok := p.twins[token]; ok && s.B%3 == 0 {
		return twin
	}
	at := s.D % len(token)
	header, payload, _ := split3(token)
	_, _, signature := split3(pick(p.tokens, s.D))
	switch s.B % 7 {
	case 0:
		return pick(mutants(token, at), s.C)
	case 1:
		return pick([]string{token + "=", token + "\n", " " + token, spare(token), token[:at] + "\r\n" + token[at:]}, s.C)
	case 2:
		return header + "." + payload + "." + signature
	case 3:
		_, payload, _ := split3(pick(p.tokens, s.C))
		return header + "." + payload + "." + signature
	case 4:
		return token[:at]
	case 5:
		return token + pick(p.tokens, s.C)[:at%32]
	default:
		return josetest.Base64(josetest.Marshal(jsonObject{"alg": "EdDSA", "kid": fmt.Sprint("x", s.C%3), "typ": "at+jwt"})) + "." + payload + "." + signature
	}
}

// reply is the visible part of a result.
type reply struct {
	Outcome, Message string
	Facts            *verify.Facts
	ValidUntil       time.Time
}

func (p *play) verify(v *verify.Verifier, token string, req verify.Request) reply {
	result, err := v.VerifyAt(p.t.Context(), redact.New(token), req, p.now)
	r := reply{Outcome: word(p.t, result, err), Facts: result.Facts, ValidUntil: result.ValidUntil}
	if result.Rejection != nil {
		r.Message = result.Rejection.Message
	}
	return r
}

// present verifies a token with both Verifiers at the same instant.
func (p *play) present(token string, req verify.Request) (failure string) {
	cached, uncached := p.verifyBoth(token, []verify.Request{req})
	return p.compare(req, cached[0], uncached[0])
}

// callers send different requests at the same time.
func (p *play) callers(token string) (failure string) {
	cached, uncached := p.verifyBoth(token, requests)
	for i, req := range requests {
		failure += p.compare(req, cached[i], uncached[i])
	}
	return failure
}

// askBoth sends all requests at one instant; those that wait for keys see the new keys.
func (p *play) verifyBoth(token string, reqs []verify.Request) (cached, uncached []reply) {
	cached, uncached = make([]reply, len(reqs)), make([]reply, len(reqs))
	synctest.Wait()
	p.now = time.Now().Add(p.clock)
	var all sync.WaitGroup
	for i, req := range reqs {
		all.Go(func() { cached[i] = p.verify(p.cached, token, req) })
		all.Go(func() { uncached[i] = p.verify(p.uncached, token, req) })
	}
	all.Wait()
	return cached, uncached
}

func (p *play) compare(req verify.Request, cached, uncached reply) (failure string) {
	p.tally[uncached.Outcome]++
	if !reflect.DeepEqual(cached, uncached) {
		return fmt.Sprintf("%+v: with the cache: %+v; without: %+v\n", req, cached, uncached)
	}
	if expired := cached.Facts != nil && !p.now.Before(cached.Facts.ExpiresAt.Add(30*time.Second)); expired {
		return fmt.Sprintf("%+v: accepted at %v: %+v\n", req, p.now, cached)
	}
	return p.unchanged(cached.Facts)
}

// unchanged compares facts with what they were when they were first returned: results
// share them.
func (p *play) unchanged(f *verify.Facts) (failure string) {
	if f == nil {
		return ""
	}
	now := fmt.Sprintf("%+v %+v %s", *f, f.Confirmation, f.Claims)
	first, ok := p.returned[f]
	if !ok {
		p.returned[f] = now
		return ""
	}
	if first != now {
		return fmt.Sprintf("facts were %s and now are %s\n", first, now)
	}
	return ""
}

// I1: after any events in any order, each result equals the result without a cache: reason,
// message and facts.
func TestCacheChangesNoAnswer(t *testing.T) {
	stage := newStage(t)
	tally, hits, sequences := map[string]int{}, 0, 0
	for part := range long(1, 3) { // each plays as many sequences as rapid is set to, by default 100
		t.Run(fmt.Sprint(part), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				steps := rapid.SliceOfN(rapid.Custom(drawStep), 20, 60).Draw(rt, "steps")
				policy := rapid.SampledFrom([]int{0, 1, 2, 3, 4, 5}).Draw(rt, "policy")
				sequences++
				var failure string
				synctest.Test(t, func(t *testing.T) {
					var n int
					failure, n = stage.play(t, policy, steps, tally)
					hits += n
				})
				if failure != "" {
					rt.Fatal(failure)
				}
			})
		})
	}
	t.Logf("%d sequences, %d hits; %v", sequences, hits, tally)
	const enough = 60 // -short plays as many: in fewer, not every answer comes up
	if sequences < enough {
		return
	}
	for _, want := range []string{
		"active", "unavailable", "malformed", "unknown_issuer", "algorithm_not_allowed", "unknown_key", "bad_signature", "bad_claims",
		"wrong_type", "expired", "not_yet_valid", "lifetime_too_long", "wrong_audience", "insufficient_scope",
	} {
		if tally[want] < sequences/30 {
			t.Errorf("%q was the answer only %d times in %d sequences", want, tally[want], sequences)
		}
	}
	if hits < 2*sequences {
		t.Errorf("only %d hits in %d sequences: the test tests nothing", hits, sequences)
	}
}
