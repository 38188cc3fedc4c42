package brokertest_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

// In a test, b := brokertest.New(t) takes the place of Start and Close.
func Example() {
	b, err := brokertest.Start(brokertest.WithClients(brokertest.Client{Name: "orders-api", Scopes: []string{"read"}}))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	ctx := context.Background()

	// The service under test gets this source.
	orders := b.Client().TokenSource("orders-api")
	token, err := orders.Token(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("a real token:", len(token.AccessToken()) > 100, token.Scopes())

	// The source returns the token from memory, even without a broker.
	b.Kill()
	for range 1000 {
		if _, err := orders.Token(ctx); err != nil {
			log.Fatal(err)
		}
	}
	b.Start()
	fmt.Printf("calls of the broker: %d, of the identity provider: %d\n", b.Calls().GetToken+b.Calls().WatchToken, b.IdPRequests())
	// Output:
	// a real token: true [read]
	// calls of the broker: 1, of the identity provider: 1
}

// A token with a text that the test sets.
func ExampleBroker_SetToken() {
	b, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()

	b.SetToken("orders-api", "a-token-of-mine")
	token, err := b.Client().TokenSource("orders-api").Token(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.AccessToken())
	// Output: a-token-of-mine
}

// Valid and invalid tokens to present to a service that verifies them.
func ExampleBroker_Mint() {
	b, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	v := b.Client().Verifier()

	for _, claims := range []brokertest.Claims{
		{Subject: "alice", Scopes: []string{"read"}},
		{Subject: "bob", Lifetime: -time.Minute},
		{Subject: "carol", Audience: []string{"https://else.example.com"}},
	} {
		_, err := v.Verify(context.Background(), b.Mint(claims))
		if rejected, ok := errors.AsType[*client.RejectedError](err); ok {
			fmt.Println(claims.Subject, rejected.Reason)
			continue
		}
		fmt.Println(claims.Subject, err)
	}
	// Output:
	// alice <nil>
	// bob expired
	// carol wrong_audience
}

func ExampleBroker_FailNext() {
	b, err := brokertest.Start()
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	c := b.Client()

	b.FailNext(1, codes.PermissionDenied)
	for range 2 {
		_, err := c.Token(context.Background(), "orders-api")
		fmt.Println(err)
	}
	// Output:
	// rpc error: code = PermissionDenied desc = the test wants this call to fail
	// <nil>
}
