package client_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

// exchanging is a broker with a client that exchanges the tokens of users of a service.
func exchanging(t *testing.T) *brokertest.Broker {
	t.Helper()
	return brokertest.New(t, brokertest.WithClients(
		brokertest.Client{Name: "web", Audiences: []string{"https://bff.example.com"}},
		brokertest.Client{Name: "orders-for-user", Audiences: []string{"https://orders.example.com"}, Exchanges: []string{"https://bff.example.com"}},
	))
}

func TestOnBehalfOf_exchangesTheVerifiedToken(t *testing.T) {
	b := exchanging(t)
	c := b.Client()
	var text string // what is printed of the request's context
	handler := client.HTTPMiddleware(c.Verifier())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text = fmt.Sprintf("%v %+v", r.Context(), r.Context())
		token, err := c.Token(r.Context(), "orders-for-user", client.OnBehalfOf(r.Context()), client.WithScopes("read"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		claims, err := c.Verifier(client.RequireAudience("https://orders.example.com")).Verify(r.Context(), token.AccessToken())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		_, _ = io.WriteString(w, claims.Subject+" "+token.Origin())
	}))
	presented := b.Mint(brokertest.Claims{Subject: "alice"})
	for _, want := range []string{"alice fetched", "alice memory"} {
		response := get(handler, "/", "Bearer "+presented)
		body, _ := io.ReadAll(response.Body)
		if response.StatusCode != http.StatusOK || string(body) != want {
			t.Errorf("%d %s, want %s", response.StatusCode, body, want)
		}
	}
	if text == "" || strings.Contains(text, presented) {
		t.Error("printing the context prints the token")
	}
}

func TestOnBehalfOf_needsAVerifiedToken(t *testing.T) {
	b := exchanging(t)
	before := b.Calls()
	_, err := b.Client().Token(t.Context(), "orders-for-user", client.OnBehalfOf(t.Context()))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "HTTPMiddleware") {
		t.Errorf("without a token: %v", err)
	}
	if b.Calls() != before {
		t.Error("the broker was called")
	}
}
