package app_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	brokerclient "github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// rejection is the reason why a token was rejected; empty: it was not.
func rejection(t *testing.T, c *brokerclient.Client, token string, opts ...brokerclient.VerifyOption) string {
	t.Helper()
	_, err := c.Verify(t.Context(), token, opts...)
	if rejected, ok := errors.AsType[*brokerclient.RejectedError](err); ok {
		return fmt.Sprint(rejected.Reason)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ""
}

func TestOpaqueTokensAreVerifiedByIntrospection(t *testing.T) {
	idp := devIDP(t)
	text := strings.Replace(sampleText(t, 1), "issuers:", fmt.Sprintf("  opaque: {issuer: %q, client_id: opaque, secret: \"env:TOKENBROKER_TEST_OPAQUE\"}\nissuers:", idpIssuer), 1)
	t.Setenv("TOKENBROKER_TEST_OPAQUE", "another")
	_, c := run(t, parsed(t, text), idp)
	token, err := c.Token(t.Context(), "opaque")
	if err != nil {
		t.Fatal(err)
	}
	claims, err := c.Verify(t.Context(), token.AccessToken(), brokerclient.RequireScopes("read"))
	if err != nil || claims.Subject != "opaque" || claims.Issuer != idpIssuer {
		t.Fatalf("%+v, %v", claims, err)
	}
	if reason := rejection(t, c, token.AccessToken(), brokerclient.RequireScopes("admin")); !strings.Contains(strings.ToLower(reason), "scope") {
		t.Errorf("another scope: %s", reason)
	}
	idp.Revoke(redact.New(token.AccessToken()))
	for deadline := time.Now().Add(10 * time.Second); ; {
		reason := rejection(t, c, token.AccessToken())
		if strings.Contains(strings.ToLower(reason), "inactive") {
			break
		}
		if reason != "" || time.Now().After(deadline) {
			t.Fatalf("after the revocation: %q", reason)
		}
		<-time.After(100 * time.Millisecond)
	}
}

// everyNameIsThisHost makes DNS say so, as whoever owns a name can. It is not for
// parallel tests.
func everyNameIsThisHost(t *testing.T) {
	t.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp4", conn.LocalAddr().String())
	}}
	t.Cleanup(func() { net.DefaultResolver = before; _ = conn.Close() })
	go func() {
		query := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(query)
			if err != nil {
				return
			}
			// RFC 1035 section 4: the header, the question, and for type A an answer.
			end := 12 + bytes.IndexByte(query[12:n], 0) + 5
			answer := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
			if query[end-3] == 1 {
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1)
			}
			_, _ = conn.WriteTo(answer, from)
		}
	}()
}

// private is an IdP on this host.
func private(t *testing.T) (here string, requests func() int) {
	t.Helper()
	var count atomic.Int64
	server := httptest.NewUnstartedServer(nil)
	here = "http://" + server.Listener.Addr().String()
	idp, err := devidp.New(devidp.Config{Issuer: here, Algorithm: "EdDSA", Clients: []devidp.Client{{ID: "abc", Secrets: []redact.String{redact.New("right")}}}})
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		count.Add(1)
		idp.ServeHTTP(w, r)
	})
	server.Start()
	t.Cleanup(server.Close)
	return here, func() int { return int(count.Load()) }
}

// D1, D2: what may be connected to is the leave of each client and issuer.
func TestAllowPrivate_perClientAndIssuer(t *testing.T) {
	everyNameIsThisHost(t)
	secret := filepath.Join(t.TempDir(), "secret")
	testkit.WriteFile(t, secret, "right")
	here, requests := private(t)
	check := func(text string) (passed, failed map[string]string) {
		t.Helper()
		return live(t, parsed(t, text), nil, true)
	}
	client := func(name, url, more string) string {
		return fmt.Sprintf("  %s: {token_url: %q, client_id: abc, secret: \"file:%s\"%s}\n", name, url, secret, more)
	}

	// The loopback host that is configured needs no leave.
	passed, failed := check("clients:\n" + client("plain", here+devidp.TokenPath, "") + fmt.Sprintf("issuers: [{issuer: %q, audiences: [a], introspection: {client: plain}}]\n", here))
	if len(passed) != 4 || len(failed) != 0 {
		t.Errorf("passed %v, failed %v", passed, failed)
	}
	before := requests()
	elsewhere := strings.Replace(here, "127.0.0.1", "idp.example", 1)
	passed, failed = check("clients:\n" + client("without", elsewhere+devidp.TokenPath, ", allow_http: true") + client("with", elsewhere+devidp.TokenPath, ", allow_http: true, allow_private: true") +
		fmt.Sprintf("issuers: [{issuer: %q, jwks_url: %q, audiences: [a], allow_http: true, introspection: {client: with, endpoint: %q}}]\nroles: {r: {get: [{client: with}]}}\n", elsewhere, elsewhere+devidp.JWKSPath, elsewhere+devidp.IntrospectionPath))
	for what, refused := range map[string]bool{
		"clients.without: token": true, "clients.with: token": false, "issuers " + elsewhere + ": keys": true, "issuers " + elsewhere + ": introspection": true,
	} {
		_, ok := passed[what]
		if ok == refused || refused && !strings.Contains(failed[what], "allow_private") {
			t.Errorf("%s: passed is %v: %v", what, ok, failed[what])
		}
	}
	if n := requests() - before; n != 2 {
		t.Errorf("%d requests, want the token and the clock of the one client that may", n)
	}
}

// A client that may ask about tokens and not obtain any goes on asking, whoever
// wants a token of it; and a caller that may only verify learns neither its name
// nor the address of its IdP.
func TestRefusedGrantDoesNotStopIntrospection(t *testing.T) {
	idp := devIDP(t)
	_, c := run(t, parsed(t, sampleText(t, 1)), idp)
	var tokens []string
	for i := range 4 {
		tokens = append(tokens, idp.MintOpaque(map[string]any{
			"sub": fmt.Sprint("user-", i), "aud": "https://orders.example.com", "token_type": "Bearer", "exp": time.Now().Add(time.Hour).Unix(),
		}).Reveal())
	}
	idp.SetAnswer(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"error":"unauthorized_client"}`))
		return true
	})
	verified := func(token string) error {
		_, err := c.Verify(t.Context(), token, brokerclient.RequireAudience("https://orders.example.com"))
		return err
	}
	// Whether or not introspection has taken the secret before the refusal.
	if _, err := c.Token(t.Context(), "client-0"); err == nil {
		t.Fatal("the client obtained a token")
	}
	for _, token := range tokens[:2] {
		if err := verified(token); err != nil {
			t.Errorf("after a refused grant: %v", err)
		}
	}
	idp.SetIntrospection(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"error":"invalid_client"}`))
		return true
	})
	for _, token := range tokens[2:] {
		err := verified(token)
		if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "client-0") || strings.Contains(err.Error(), "/introspect") {
			t.Errorf("a refused secret: %v", err)
		}
	}
	if n := idp.Requests(devidp.IntrospectionPath); n != 3 {
		t.Errorf("%d questions, want those about two good tokens and one that was refused", n)
	}
}

// A client that has no secret yet is the operators' business: a caller that may
// only verify learns neither its name nor what it lacks.
func TestVerifierLearnsNothingOfTheClient(t *testing.T) {
	idp := devIDP(t)
	text := regexp.MustCompile(`secret: "file:[^"]*"`).ReplaceAllString(sampleText(t, 1), "secret: managed")
	dir := t.TempDir()
	ring := filepath.Join(dir, "ring.json")
	if err := sealed.WriteRing(ring, sealed.GenerateRing()); err != nil {
		t.Fatal(err)
	}
	text += fmt.Sprintf("store: {bolt: %q, sealing_keys: %q}\n", filepath.Join(dir, "broker.db"), "file:"+ring)
	_, c := run(t, parsed(t, text), idp)
	_, err := c.Verify(t.Context(), "opaque-token")
	if status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "client-0") || !strings.Contains(err.Error(), "opaque tokens") {
		t.Error(err)
	}
}

func TestReload_issuerWithIntrospection(t *testing.T) {
	broker, _ := run(t, sample(t, 1), devIDP(t))
	same := sampleText(t, 1)
	for _, text := range []string{same, same, strings.ReplaceAll(same, "client-0", "renamed")} {
		if err := broker.Reload(parsed(t, text)); err != nil {
			t.Error(err)
		}
	}
}
