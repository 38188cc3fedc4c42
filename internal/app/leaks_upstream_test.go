package app_test

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/cezzis/tokenbroker/internal/redact/redacttest"
)

// leaksUpstream is an upstream entry, by the audience of its token, and the status of requests
// for it.
type leaksUpstream struct {
	audience string
	status   int
}

func leaksUpstreams() []leaksUpstream {
	return []leaksUpstream{
		{leaksBehalf, 200}, {leaksJSON, 503}, {leaksDescription, 403}, {leaksHTML, 503}, {leaksBroken, 503}, {leaksRedirect, 503}, {leaksHangUp, 503}, {leaksPanic, 503},
	}
}

// upstreamConfig is the section gateways.
func upstreamConfig() string {
	var entries, rules strings.Builder
	for _, entry := range leaksUpstreams() {
		audience := entry.audience
		fmt.Fprintf(&entries, "%s: {client: %s, audience: %s, on_behalf_of: true}, ", audience, leaksBehalf, audience)
		fmt.Fprintf(&rules, "{host: %s.example.com, audiences: [bff], upstream: %s}, ", audience, audience)
	}
	return fmt.Sprintf("gateways: {upstream: {%s}, ext_authz: {claims: [sub], rules: [%s]}}\n", entries.String(), rules.String())
}

// askUpstream gets upstream tokens, well and badly. Only a response that permits a request has
// a token, and it is the new one.
func (l *leaks) askUpstream() {
	l.t.Helper()
	opaque := l.token("subject token", l.idp.MintOpaque(map[string]any{
		"iss": l.issuer, "sub": "carol", "client_id": "web", "aud": "bff", "token_type": "Bearer", "exp": time.Now().Add(time.Hour).Unix(),
	}).Reveal())
	envoy := authv3.NewAuthorizationClient(l.apis.envoy)
	for _, entry := range leaksUpstreams() {
		audience, want := entry.audience, entry.status
		tokens := []string{l.user(nil)}
		if want == http.StatusOK {
			tokens = append(tokens, opaque)
		}
		for _, token := range tokens {
			status, header := l.askForToken("/verify?audience=bff&upstream="+audience, bearerOf(token))
			if status != want || (header.Get("Authorization") != "") != (want == http.StatusOK) {
				l.t.Errorf("/verify for the upstream token %s: %d, want %d", audience, status, want)
			}
			answer, err := envoy.Check(l.t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
				Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
					Method: "GET", Host: audience + ".example.com", Path: "/", Headers: map[string]string{":path": "/", "authorization": "Bearer " + token},
				}},
			}})
			if (answer.GetOkResponse() != nil) != (want == http.StatusOK) || (err != nil) != (want == http.StatusServiceUnavailable) {
				l.t.Errorf("Check for the upstream token %s: %v", audience, err)
			}
			fmt.Fprintln(&l.statuses, err)
			for _, option := range answer.GetOkResponse().GetHeaders() {
				if option.GetHeader().GetKey() == "authorization" {
					l.token("upstream token", strings.TrimPrefix(option.GetHeader().GetValue(), "Bearer "))
					option.Header.Value = ""
				}
			}
			fmt.Fprintln(&l.answers, prototext.Format(answer))
		}
	}
	for target, want := range map[string]int{
		"/verify?audience=bff&upstream=" + l.secret("canary in the name of an upstream entry"):          503,
		"/verify?audience=bff&upstream=" + leaksBehalf + "&client=" + l.secret("canary in a parameter"): 503,
	} {
		if status, _ := l.askForToken(target, bearerOf(l.user(nil))); status != want {
			l.t.Errorf("/verify: %d, want %d", status, want)
		}
	}
	if status, _ := l.askForToken("/verify?audience=bff&upstream="+leaksBehalf, bearerOf(l.token("subject token", "opaque-"+redacttest.Canary("unknown")))); status != 401 {
		l.t.Errorf("/verify with an unknown token: %d", status)
	}
}

// askForToken is askHTTP for a response that may have a token in a header.
func (l *leaks) askForToken(target string, header http.Header) (status int, answered http.Header) {
	l.t.Helper()
	request, err := http.NewRequestWithContext(l.t.Context(), http.MethodGet, "https://"+l.HTTPAddr()+target, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	request.Header = header
	response, err := l.apis.gate.Do(request)
	if err != nil {
		l.t.Fatal(err)
	}
	if response.Body.Close() != nil {
		l.t.Fatal("the response cannot be closed")
	}
	answered = response.Header.Clone()
	if token, ok := strings.CutPrefix(answered.Get("Authorization"), "Bearer "); ok {
		l.token("upstream token", token)
		response.Header.Del("Authorization")
	}
	fmt.Fprintln(&l.answers, response.Status, response.Header)
	return response.StatusCode, answered
}
