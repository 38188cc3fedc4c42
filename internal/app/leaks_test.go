package app_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// goThroughAllFlows asks the broker for everything, well and badly.
func (l *leaks) goThroughAllFlows() {
	l.t.Helper()
	api, admin := tokenbrokerv1.NewTokenBrokerServiceClient(l.conn), tokenbrokerv1.NewAdminServiceClient(l.conn)
	robot, guest := l.jwt("robot", nil), l.jwt("guest", nil)
	get := func(jwt string, ask *tokenbrokerv1.GetTokenRequest, want codes.Code) string {
		l.t.Helper()
		resp, err := api.GetToken(l.as(jwt), ask)
		l.expect(fmt.Sprintf("GetToken %.20s", ask.GetClientName()), err, want)
		if err == nil {
			l.token("token that was given", resp.GetAccessToken())
		}
		return resp.GetAccessToken()
	}
	own := func(name string) *tokenbrokerv1.GetTokenRequest {
		return &tokenbrokerv1.GetTokenRequest{ClientName: name}
	}

	for begun := time.Now(); time.Since(begun) < time.Minute; time.Sleep(100 * time.Millisecond) {
		// The store is new: no caller is identified by a JWT for 10 s.
		if _, err := api.GetToken(l.as(robot), own("nothing")); status.Code(err) != codes.Unavailable {
			break
		}
	}
	given := get(robot, own(leaksGood), codes.OK)
	opaque := get(robot, own(leaksOpaque), codes.OK)
	get(robot, &tokenbrokerv1.GetTokenRequest{ClientName: leaksGood, Audience: "api"}, codes.OK)
	get(robot, &tokenbrokerv1.GetTokenRequest{ClientName: leaksGood, MinTtl: durationpb.New(20 * time.Hour)}, codes.FailedPrecondition)
	get(robot, &tokenbrokerv1.GetTokenRequest{ClientName: given}, codes.InvalidArgument)
	get(guest, own(leaksOpaque), codes.PermissionDenied)
	for name, want := range map[string]codes.Code{
		leaksJSON: codes.FailedPrecondition, leaksDescription: codes.FailedPrecondition, leaksHTML: codes.Unavailable, leaksHeader: codes.ResourceExhausted,
		leaksBroken: codes.Unavailable, leaksRedirect: codes.FailedPrecondition, leaksHangUp: codes.Unavailable,
		leaksRefused: codes.Unavailable, leaksPlain: codes.Unavailable, leaksPanic: codes.Internal, leaksHandler: codes.Internal,
	} {
		get(robot, own(name), want)
	}

	// Callers who are none.
	tampered := l.token("JWT of a caller", robot[:len(robot)-8]+"AAAAAAAA")
	get(tampered, own(leaksGood), codes.Unauthenticated)
	get(l.secret("what is no JWT of a caller"), own(leaksGood), codes.Unauthenticated)
	get(l.jwt("stranger", nil), own(leaksGood), codes.Unauthenticated)
	get(l.jwt("robot", map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), own(leaksGood), codes.Unauthenticated)
	get(l.jwt("robot", map[string]any{"aud": "another"}), own(leaksGood), codes.Unauthenticated)

	verify := func(token string, want codes.Code, active bool) {
		l.t.Helper()
		resp, err := api.VerifyToken(l.as(robot), &tokenbrokerv1.VerifyTokenRequest{Token: l.token("token that was presented", token), Audiences: []string{leaksGood, leaksOpaque, "api"}})
		l.expect("VerifyToken", err, want)
		if resp.GetActive() != active {
			l.t.Errorf("active: %v, %v", resp.GetActive(), resp.GetRejection())
		}
		fmt.Fprintln(&l.statuses, resp.GetRejection())
	}
	verify(given, codes.OK, true)
	verify(opaque, codes.OK, true)
	verify(given[:len(given)-8]+"AAAAAAAA", codes.OK, false)
	verify(redacttest.Canary("junk")+"."+redacttest.Canary("junk")+"."+redacttest.Canary("junk"), codes.OK, false)
	verify("opaque-"+redacttest.Canary("unknown"), codes.OK, false)
	verify(l.idp.Mint(map[string]any{"iss": l.issuer, "sub": "x", "aud": "api", "exp": 1, "jti": redacttest.Canary("jti")}).Reveal(), codes.OK, false)
	verify(l.idp.Mint(map[string]any{"iss": "https://other.example.com/" + l.secret("issuer that nobody knows"), "sub": "x", "exp": time.Now().Add(time.Hour).Unix()}).Reveal(), codes.OK, false)
	verify("token-that-panics-"+redacttest.Canary("opaque"), codes.Unavailable, false)
	verify(l.secrets["opaque token that is echoed"][0], codes.Unavailable, false)

	l.exchangeTokens(api, robot)
	l.askVerify(given)
	l.askOAuth(given)
	l.askExtAuthz(given)
	l.askUpstream()

	stream, err := api.WatchToken(l.as(robot), &tokenbrokerv1.WatchTokenRequest{ClientName: leaksGood})
	if err == nil {
		_, err = stream.Recv()
	}
	l.expect("WatchToken", err, codes.OK)
	_, err = admin.PurgeTokens(l.as(robot), &tokenbrokerv1.PurgeTokensRequest{ClientName: leaksGood, RequestId: "1"})
	l.expect("PurgeTokens", err, codes.OK)
	_, err = admin.PurgeTokens(l.as(guest), &tokenbrokerv1.PurgeTokensRequest{ClientName: leaksGood, RequestId: "1"})
	l.expect("PurgeTokens", err, codes.PermissionDenied)
	_, err = admin.RevokeTokens(l.as(robot), &tokenbrokerv1.RevokeTokensRequest{RequestId: "1", Revocation: &tokenbrokerv1.Revocation{
		Issuer: l.issuer, Target: &tokenbrokerv1.Revocation_Subject{Subject: leaksGood}, ExpiresAt: timestamppb.New(time.Now().Add(time.Hour)),
	}})
	l.expect("RevokeTokens", err, codes.OK)
	verify(get(robot, own(leaksGood), codes.OK), codes.OK, false)

	l.rotateSecrets(admin)
	l.rotateKeys(admin, api)

	testkit.Succeeds(l.t, "the status shows the failures", func() error {
		report, err := admin.GetStatus(l.as(robot), &tokenbrokerv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		text := prototext.Format(report)
		for _, part := range []string{"idp-down", "secret-refused", "issuer-keys-unusable", leaksManaged} {
			if !strings.Contains(text, part) {
				return fmt.Errorf("no %s in %s", part, text)
			}
		}
		for _, name := range []string{"robot", "guest", "gate"} {
			if strings.Contains(text, strconv.Quote(name)) {
				l.t.Errorf("the status names the caller %s", name)
			}
		}
		fmt.Fprintln(&l.statuses, text)
		return nil
	})
	_, err = admin.GetStatus(l.as(guest), &tokenbrokerv1.GetStatusRequest{})
	l.expect("GetStatus", err, codes.PermissionDenied)

	// A call that is still under way when the goroutines are looked at.
	go func() { _, _ = api.GetToken(l.as(robot), own(leaksHanging)) }()
	testkit.Eventually(l.t, "a fetch hangs", func() bool { return strings.Contains(l.goroutines(2), "(*Broker).fetch") })
}

func (l *leaks) goroutines(debug int) string {
	_, text := read(l.t, fmt.Sprintf("http://%s/debug/pprof/goroutine?debug=%d", l.OpsAddr(), debug))
	return text
}

// places are all that can be searched.
func (l *leaks) places() redacttest.Places {
	l.t.Helper()
	_, metrics := read(l.t, "http://"+l.OpsAddr()+"/metrics")
	book, err := os.ReadFile(filepath.Join(l.dir, "audit.jsonl"))
	if err != nil {
		l.t.Fatal(err)
	}
	l.collector.mu.Lock()
	spans := strings.Join(l.collector.whole, "\n")
	l.collector.mu.Unlock()
	_, page := read(l.t, "http://"+l.OpsAddr()+"/")
	_, checks := read(l.t, "http://"+l.OpsAddr()+"/readyz?verbose")
	found := redacttest.Places{
		"status page": page, "checks": checks,
		"log": l.log.String(), "audit": string(book), "metrics": metrics, "spans": spans,
		"statuses": l.statuses.String(), "answers": l.answers.String(), "errors": l.errors.String(),
		"goroutines, debug=1": l.goroutines(1), "goroutines, debug=2": l.goroutines(2),
		"MONITOR": l.monitored(), "SLOWLOG": l.redis.CLI("slowlog", "get", "-1"), "CLIENT LIST": l.redis.CLI("client", "list"), "keys": l.redis.CLI("--scan"),
	}
	for key := range strings.Lines(found["keys"]) {
		found["values"] += l.redis.CLI("get", strings.TrimSuffix(key, "\n")) + "\n"
	}
	logs, err := filepath.Glob(filepath.Join(l.redis.Dir(), "appendonlydir", "*"))
	if err != nil || len(logs) == 0 {
		l.t.Fatal("there is no append-only file", err)
	}
	for _, path := range logs {
		content, err := os.ReadFile(path)
		if err != nil {
			l.t.Fatal(err)
		}
		found["append-only file"] += string(content)
	}
	return found
}

// No secret is anywhere that anybody looks: whatever the flow, the failure and the
// panic, at the most talkative level, with all that tells of it switched on.
func TestNoSecretLeaks(t *testing.T) {
	l := startLeaks(t)
	l.goThroughAllFlows()
	testkit.Eventually(t, "the spans come", func() bool {
		l.collector.mu.Lock()
		defer l.collector.mu.Unlock()
		return len(l.collector.named("idp token")) > 5 && len(l.collector.named(getToken)) > 20
	})
	places := l.places()
	searched := 0
	for what, texts := range l.secrets {
		for _, text := range texts {
			searched++
			if found := places.Of(text); found != nil {
				t.Errorf("%s is in %v: %.40q", what, found, around(places[found[0]], text))
			}
		}
	}
	t.Logf("searched for %d texts of %d kinds in %d places of %d bytes", searched, len(l.secrets), len(places), places.Size())
	if len(l.secrets) < 25 || searched < 100 {
		t.Errorf("only %d texts of %d kinds", searched, len(l.secrets))
	}

	// Each place is one where something would have been found.
	for place, known := range map[string]string{
		"log": "a fetch crashed", "audit": `"client":"good"`, "metrics": `client="good"`, "spans": "idp introspection", "statuses": "TOKEN_REQUEST_REFUSED", "answers": "insufficient_scope",
		"errors": "never as a literal", "goroutines, debug=1": "goroutine profile", "goroutines, debug=2": "chan receive", "MONITOR": "evalsha", "SLOWLOG": "evalsha",
		"CLIENT LIST": "user=tokenbroker", "keys": "tb1:", "values": ":", "append-only file": "tb1:",
		"status page": "The IdP issues no token to client " + leaksDescription, "checks": "The IdP issues no token to client " + leaksDescription,
	} {
		if !strings.Contains(places[place], known) {
			t.Errorf("%s does not even hold %q", place, known)
		}
	}
	// The status page and the checks are for more eyes than the log: they show neither the
	// names of callers nor texts of IdPs.
	for _, hidden := range []string{"robot", "guest", "gate", "invalid_request"} {
		for _, place := range []string{"status page", "checks"} {
			if strings.Contains(places[place], hidden) {
				t.Errorf("%s contains %q", place, hidden)
			}
		}
	}
	for _, said := range []string{
		"a fetch crashed", "a handler crashed", "introspection panicked", "by mistake",
		"does not give access to the keys", "does not accept the token", "follows no redirect", "contains no bearer token",
	} {
		if !strings.Contains(places["log"], said) {
			t.Errorf("the log does not say %q", said)
		}
	}
}

// around is what stands about a text, without the text.
func around(content, text string) string {
	at := strings.Index(content, text)
	if at < 0 {
		return "in another form"
	}
	return content[max(0, at-40):at]
}
