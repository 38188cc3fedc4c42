package client_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/client/brokertest"
)

// An identity provider may return the same token until it expires. A source then returns
// the next one without an error, and without calling the broker in a loop.
func TestSource_repeatedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life, count = 10 * time.Minute, 4
		b := brokertest.New(t)
		var mu sync.Mutex
		expiries := map[string]time.Time{}
		issue := func() {
			token := b.Mint(brokertest.Claims{Subject: name, Lifetime: life})
			mu.Lock()
			expiries[token] = time.Now().Add(life)
			mu.Unlock()
			b.SetToken(name, token)
		}
		expiryOf := func(token string) time.Time {
			mu.Lock()
			defer mu.Unlock()
			return expiries[token]
		}
		issue()
		for i := range count {
			timer := time.AfterFunc(time.Duration(i+1)*life, issue)
			defer timer.Stop()
		}
		source := b.Client().TokenSource(name)
		for start := time.Now(); time.Since(start) < count*life; time.Sleep(50 * time.Millisecond) {
			callStart := time.Now()
			token, err := source.Token(t.Context())
			if err != nil {
				t.Fatalf("after %v: %v", time.Since(start), err)
			}
			if ended := time.Since(expiryOf(token.AccessToken())); ended >= 0 {
				t.Fatalf("after %v: a token that ended %v ago", time.Since(start), ended)
			}
			if waited := time.Since(callStart); waited > 3*time.Second {
				t.Errorf("after %v: waited for %v", time.Since(start), waited)
			}
		}
		if calls := b.Calls(); calls.GetToken > count*40 || calls.WatchToken > count*3 {
			t.Errorf("calls of the broker in %d lifetimes: %+v", count, calls)
		}
		if n := b.IdPRequests(); n > count*14 {
			t.Errorf("%d calls of the IdP", n)
		}
	})
}
