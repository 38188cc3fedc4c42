// Command httpservice is an example of a small HTTP service that uses package client. It
// requires a valid token from its callers, and calls another API with its own token. It
// has no secret and does not connect to an identity provider.
//
// Try it beside "broker dev":
//
//	go run ./examples/httpservice
//	curl -H "Authorization: Bearer $(go run ./cmd/broker get orders-api)" http://127.0.0.1:8080/orders
package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cezzis/tokenbroker/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		slog.Default().Error("the service ended", "error", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run(ctx context.Context) error {
	broker, err := client.FromEnv(client.WithUserAgent("httpservice/1.0"), client.WithLogger(slog.Default()))
	if err != nil {
		return err
	}
	defer func() { _ = broker.Close() }()
	server := &http.Server{
		Addr:              "127.0.0.1:8080",
		Handler:           newHandler(broker, os.Getenv("BILLING_URL")),
		ReadHeaderTimeout: 5 * time.Second,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// newHandler returns the service: it lists orders for authorized callers, and gets the
// bill from another API.
func newHandler(broker *client.Client, billingURL string) http.Handler {
	// Authenticates callers: every route requires a token for this service.
	verified := client.HTTPMiddleware(broker.Verifier(
		client.RequireAudience("https://orders.example.com"), client.WithRealm("orders"), client.WithCacheMaxAge(time.Minute)))

	// Authenticates us to the billing API. The source is made once, and returns tokens from
	// memory.
	billing := broker.TokenSource("billing-api", client.WithScopes("invoices:read")).HTTPClient()
	billing.Timeout = 10 * time.Second

	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders", listOrders)
	mux.Handle("GET /bill", client.ScopesMiddleware("read")(bill(billing, billingURL)))
	return verified(mux)
}

func listOrders(w http.ResponseWriter, r *http.Request) {
	caller, _ := client.ClaimsFromContext(r.Context())
	if caller.SubjectType == client.SubjectClientID {
		// The token has no user. A user with the client's name may exist, and the orders
		// belong to that user.
		http.Error(w, "a client has no orders", http.StatusForbidden)
		return
	}
	_, _ = io.WriteString(w, "the orders of "+caller.Subject+"\n")
}

// bill forwards the response of the billing API.
func bill(billing *http.Client, url string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, http.NoBody) //nolint:gosec // the URL is the operator's, not the caller's
		if err != nil {
			http.Error(w, "the URL of the billing API is invalid", http.StatusInternalServerError)
			return
		}
		resp, err := billing.Do(req) //nolint:gosec // as above
		if err != nil {
			slog.Default().WarnContext(r.Context(), "the billing API does not respond", "error", err)
			http.Error(w, "the billing API does not respond", http.StatusBadGateway)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	})
}
