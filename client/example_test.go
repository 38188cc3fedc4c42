package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

// startExample starts a broker, which the environment names, and an API that requires a
// token.
func startExample() (broker *brokertest.Broker, apiURL string, end func()) {
	broker, err := brokertest.Start(brokertest.OnLoopback())
	if err != nil {
		log.Fatal(err)
	}
	if err := os.Setenv("TOKENBROKER_ADDR", broker.Addr()); err != nil {
		log.Fatal(err)
	}
	api := httptest.NewServer(client.HTTPMiddleware(broker.Client().Verifier())(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "3 orders")
	})))
	return broker, api.URL, func() {
		http.DefaultClient.CloseIdleConnections()
		api.Close()
		broker.Close()
	}
}

// A service that calls an API: the source returns the token from memory, and replaces it
// in the background.
func Example() {
	_, ordersURL, end := startExample()
	defer end()

	c, err := client.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()

	orders := c.TokenSource("orders-api", client.WithScopes("read"))
	resp, err := orders.HTTPClient().Get(ordersURL)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	fmt.Printf("%s: %s\n", resp.Status, body)
	// Output: 200 OK: 3 orders
}

// Without an adapter: get the token from the source for each request, and report it if
// the API refused it.
func Example_callByHand() {
	_, ordersURL, end := startExample()
	defer end()
	c, err := client.FromEnv()
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	orders := c.TokenSource("orders-api")
	ctx := context.Background()

	token, err := orders.Token(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for range 2 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, ordersURL, nil)
		if err != nil {
			log.Fatal(err)
		}
		req.Header.Set("Authorization", token.Authorization())
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			log.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			fmt.Println(resp.Status)
			break
		}
		if token, err = orders.Rejected(ctx, token); err != nil {
			log.Fatal(err)
		}
	}
	// Output: 200 OK
}

// A service that calls a gRPC API. Use UnaryClientInterceptor instead of
// PerRPCCredentials to repeat calls that fail with UNAUTHENTICATED.
func Example_callOverGRPC() {
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	c := broker.Client() // client.FromEnv() in a program

	orders := c.TokenSource("orders-api", client.WithScopes("read"))
	conn, err := grpc.NewClient("orders.example.com:443",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // credentials.NewTLS(nil), where no mesh encrypts
		grpc.WithPerRPCCredentials(orders.PerRPCCredentials(client.AllowPlaintext())))
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// Output:
}

// A service that requires a valid token, with scopes that differ by route.
func Example_protectHTTP() {
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	c := broker.Client() // client.FromEnv() in a program

	list := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := client.ClaimsFromContext(r.Context())
		_, _ = fmt.Fprintf(w, "the orders of %s", claims.Subject)
	})
	v := c.Verifier(client.RequireAudience("https://orders-api.example.com"), client.WithRealm("orders"))
	mux := http.NewServeMux()
	mux.Handle("GET /orders", client.HTTPMiddleware(v, client.RequireScopes("orders:read"))(list))
	mux.Handle("POST /orders", client.HTTPMiddleware(v, client.RequireScopes("orders:write"))(list))

	token := broker.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"orders:read"}})
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		r, w := httptest.NewRequest(method, "/orders", nil), httptest.NewRecorder()
		r.Header.Set("Authorization", "Bearer "+token)
		mux.ServeHTTP(w, r)
		fmt.Println(w.Code, strings.TrimSpace(w.Body.String()))
	}
	// Output:
	// 200 the orders of alice
	// 403 the token lacks one of these scopes: orders:write
}

// The same for gRPC.
func Example_protectOverGRPC() {
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	c := broker.Client() // client.FromEnv() in a program

	v := c.Verifier(client.RequireAudience("https://orders-api.example.com"))
	rules := []client.InterceptorOption{
		client.PublicMethods("/grpc.health.v1.Health/"),
		client.MethodScopes("/shop.v1.Orders/Create", "orders:write"),
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(client.UnaryServerInterceptor(v, rules...)),
		grpc.ChainStreamInterceptor(client.StreamServerInterceptor(v, rules...)))
	server.Stop()
	// Output:
}

// With the stats handler of OpenTelemetry, calls of the broker are spans.
// Tokens from memory need no call.
func Example_tracing() {
	recorder := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(recorder)) // otel.GetTracerProvider() in a program
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	c := broker.Client(client.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(provider))))

	if _, err := c.Token(context.Background(), "orders-api"); err != nil {
		log.Fatal(err)
	}
	for _, span := range recorder.GetSpans() {
		fmt.Println(span.Name)
	}
	// Output: tokenbroker.v1.TokenBrokerService/GetToken
}

// Without a cache, each verification calls the broker. It has three kinds of results.
func ExampleClient_Verify() {
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	c := broker.Client() // client.FromEnv() in a program

	verify := func(token string) {
		claims, err := c.Verify(context.Background(), token, client.RequireScopes("read"))
		var rejected *client.RejectedError
		switch {
		case err == nil:
			fmt.Println("good:", claims.Subject)
		case errors.As(err, &rejected):
			fmt.Println("bad:", rejected.Reason)
		default:
			fmt.Println("undecided:", status.Code(err))
		}
	}
	good := broker.Mint(brokertest.Claims{Subject: "alice", Scopes: []string{"read"}})
	verify(good)
	verify(broker.Mint(brokertest.Claims{Subject: "bob"}))
	broker.Stop()
	verify(good)
	// Output:
	// good: alice
	// bad: insufficient_scope
	// undecided: Unavailable
}

func ExampleNew() {
	c, err := client.New("broker.example.com:8443",
		client.WithTokenFile("/var/run/secrets/tokens/broker"), // authenticates this service
		client.WithUserAgent("checkout/1.4"))
	if err != nil {
		fmt.Println("the token file is missing")
		return
	}
	defer func() { _ = c.Close() }()
	// Output: the token file is missing
}

// A request is refused if its token cannot be verified.
func ExampleHTTPMiddleware() {
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	handler := client.HTTPMiddleware(broker.Client().Verifier(client.WithRealm("orders")))(http.NotFoundHandler())

	broker.Stop()
	for _, header := range []string{"", "Bearer abc.def.ghi"} {
		r, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
		r.Header.Set("Authorization", header)
		handler.ServeHTTP(w, r)
		fmt.Printf("%d challenge=%q retry-after=%q\n", w.Code, w.Header().Get("WWW-Authenticate"), w.Header().Get("Retry-After"))
	}
	// Output:
	// 401 challenge="Bearer realm=\"orders\"" retry-after=""
	// 503 challenge="" retry-after="1"
}

// A rejected token is reported once, and every caller gets the replacement.
func ExampleSource_Rejected() {
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	orders := broker.Client().TokenSource("orders-api")
	ctx := context.Background()

	old, err := orders.Token(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for range 100 { // callers with the rejected token
		other, err := orders.Rejected(ctx, old)
		if err != nil || other.AccessToken() == old.AccessToken() {
			log.Fatal("no other token: ", err)
		}
	}
	fmt.Println("tokens fetched:", broker.IdPRequests())
	// Output: tokens fetched: 2
}

func ExampleSource_Token() {
	broker, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	orders := broker.Client().TokenSource("orders-api")

	token, err := orders.Token(context.Background())
	switch {
	case err == nil:
		fmt.Println(token.Type(), token.Scopes(), token) // prints a placeholder
	case status.Code(err) == codes.PermissionDenied:
		fmt.Println("not for us:", err)
	default:
		fmt.Println("not now:", err)
	}
	// Output: Bearer [read write] [redacted]
}

// A service that calls an API for the user of a request: the broker exchanges the token that
// the middleware has verified.
func ExampleOnBehalfOf() {
	broker, err := brokertest.Start(brokertest.WithClients(
		brokertest.Client{Name: "shop", Audiences: []string{"https://shop.example.com"}},
		brokertest.Client{Name: "orders-for-user", Audiences: []string{"https://orders.example.com"}, Exchanges: []string{"https://shop.example.com"}},
	))
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	c := broker.Client()

	list := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token, err := c.Token(r.Context(), "orders-for-user", client.OnBehalfOf(r.Context()))
		if err != nil {
			http.Error(w, "the orders cannot be listed now", http.StatusBadGateway)
			return
		}
		// Call the API of orders with token.Authorization().
		_, _ = fmt.Fprintln(w, token.Type(), token.Scopes())
	})
	shop := httptest.NewServer(client.HTTPMiddleware(c.Verifier())(list))
	defer shop.Close()

	request, err := http.NewRequest(http.MethodGet, shop.URL, http.NoBody)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+broker.Mint(brokertest.Claims{Subject: "alice"}))
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(string(body))
	// Output: Bearer [read write]
}
