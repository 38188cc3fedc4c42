package clientkeys_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/clientkeys"
	"github.com/cezzis/tokenbroker/internal/credential"
)

// quick rotates a key about every two seconds.
var quick = credential.Made{Algorithm: "ES256", RotateEvery: 1400 * time.Millisecond, PublishBefore: 500 * time.Millisecond}

// cached is how long the IdP caches the keys: less than they are published before use.
const cached = 200 * time.Millisecond

func TestKeysRotateUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, quick, cached)
		w.idp.SetDelay(20 * time.Millisecond)
		for range 3 {
			w.start()
		}
		w.ready()
		before := w.all[0].history().Generation
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
		defer cancel()
		w.load(ctx)
		w.check()
		if n := len(w.signed); n < 21 {
			t.Errorf("%d keys signed in 50 s, want 20 rotations; %d changes", n, w.all[0].history().Generation-before)
		}
		t.Logf("%d calls, %d keys, %d requests for tokens", w.calls, len(w.signed), w.idp.Requests("/token"))

		// Then rotation rests, and the old keys must go.
		w.made.RotateEvery = time.Hour
		for _, r := range w.all {
			r.stop()
		}
		w.all = nil
		for range 3 {
			w.start()
		}
		time.Sleep(clientkeys.Linger + 10*time.Second)
		for i, r := range w.all {
			if kids := kidsOf(t, r.serve()); len(kids) != 1 {
				t.Errorf("replica %d publishes %d keys, want the one in use", i, len(kids))
			}
		}
	})
}
