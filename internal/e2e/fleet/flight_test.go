package fleet

import (
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
)

// A thousand callers who come at once cost the IdP one request; a caller who
// has left by then changes nothing.
func TestColdCallersCostOneRequest(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	idp.SetDelay(t, time.Second)
	before := idp.TokenRequests(t)

	if res := b.Run(t, "get", "basic", "--timeout", "100ms"); res.Code == 0 {
		t.Errorf("a caller with 100 ms got a token of an IdP that takes 1 s: %v", res)
	}
	var wg sync.WaitGroup
	for range 4 {
		c, err := client.New(b.Grpc, client.WithPlaintext())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		for range 250 {
			wg.Go(func() {
				if _, err := c.Token(t.Context(), "basic"); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if got := idp.TokenRequests(t) - before; got != 1 {
		t.Errorf("the IdP was asked %d times", got)
	}
}
