package client_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/client/brokertest"
)

// An identity provider may repeat a token until it ends. A source then answers with it,
// and at its end with the next one, without an error and without asking the broker in a
// loop.
func TestSource_repeatedToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const life, lives = 10 * time.Minute, 4
		b := brokertest.New(t)
		var mu sync.Mutex
		ends := map[string]time.Time{}
		issue := func() {
			token := b.Mint(brokertest.Claims{Subject: name, Lifetime: life})
			mu.Lock()
			ends[token] = time.Now().Add(life)
			mu.Unlock()
			b.SetToken(name, token)
		}
		endOf := func(token string) time.Time {
			mu.Lock()
			defer mu.Unlock()
			return ends[token]
		}
		issue()
		for i := range lives {
			timer := time.AfterFunc(time.Duration(i+1)*life, issue)
			defer timer.Stop()
		}
		source := b.Client().TokenSource(name)
		for begun := time.Now(); time.Since(begun) < lives*life; time.Sleep(50 * time.Millisecond) {
			asked := time.Now()
			token, err := source.Token(t.Context())
			if err != nil {
				t.Fatalf("after %v: %v", time.Since(begun), err)
			}
			if ended := time.Since(endOf(token.AccessToken())); ended >= 0 {
				t.Fatalf("after %v: a token that ended %v ago", time.Since(begun), ended)
			}
			if waited := time.Since(asked); waited > 3*time.Second {
				t.Errorf("after %v: waited for %v", time.Since(begun), waited)
			}
		}
		if calls := b.Calls(); calls.GetToken > lives*40 || calls.WatchToken > lives*3 {
			t.Errorf("the broker was asked in %d lives: %+v", lives, calls)
		}
		if n := b.IdPRequests(); n > lives*14 {
			t.Errorf("the IdP was asked %d times", n)
		}
	})
}
