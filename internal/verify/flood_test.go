package verify_test

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

const (
	floodLasts = 10 * time.Second
	fetchTakes = 200 * time.Millisecond
	pulse      = 10 * time.Millisecond
)

// flooded is an issuer under a flood of forged tokens.
type flooded struct {
	v   *verify.Verifier
	web *site
	key *josetest.Signer
}

func newFlooded(t *testing.T, fetch func(set []byte) func(*http.Request) (*http.Response, error)) *flooded {
	f := &flooded{key: josetest.New(t, "EdDSA", "k"), web: new(site)}
	c := configOf(issuerA)
	c.Keys.RefreshInterval = 15 * time.Minute // no regular fetch within the test
	f.web.set(fetch(josetest.Set(f.key.JWK())))
	f.v = newVerifier(t, f.web, c)
	run(t, f.v)
	time.Sleep(30 * time.Second)
	return f
}

func slowly(set []byte) func(*http.Request) (*http.Response, error) {
	return after(fetchTakes, respond(http.StatusOK, set, nil))
}

// flood presents thousands of bad tokens a second, each once and in its own goroutine, and
// also good tokens, cold and warm, which must not wait. It returns how many bad tokens
// waited, in total and at a time.
func (f *flooded) flood(t *testing.T, want string, longest time.Duration, token func(n int) string) (waited, atOnce int) {
	warm := forever(f.key, issuerA)
	rate := long(2000, 5)
	start, n := time.Now(), 0
	var waits, waiting atomic.Int64
	for time.Since(start) < floodLasts {
		for range rate * int(pulse/time.Millisecond) / 1000 {
			bad := token(n)
			n++
			waiting.Add(1)
			go func() {
				defer waiting.Add(-1)
				got, elapsed := timed(t, f.v, bad)
				crowded := got == "unavailable" && elapsed == 0
				if !crowded && (got != want || elapsed > longest) {
					t.Errorf("%s in %v", got, elapsed)
				}
				if elapsed > 0 {
					waits.Add(1)
				}
			}()
		}
		cold := f.key.Token(f.key.Header(), claims(jsonObject{"jti": fmt.Sprint(n)}))
		for _, good := range []string{warm, cold} {
			if got, elapsed := timed(t, f.v, good); got != "active" || elapsed != 0 {
				t.Fatalf("a good token: %s in %v", got, elapsed)
			}
		}
		synctest.Wait()
		atOnce = max(atOnce, int(waiting.Load()))
		time.Sleep(pulse)
	}
	time.Sleep(2 * time.Second)
	if n < rate*int(floodLasts/time.Second) {
		t.Errorf("only %d tokens were presented", n)
	}
	return int(waits.Load()), atOnce
}

// stranger returns a token with an invented kid. Its signature is never checked.
func unknownKeyToken(n int) string {
	return josetest.Base64(fmt.Appendf(nil, `{"alg":"EdDSA","kid":"stranger-%d"}`, n)) + "." + josetest.Base64([]byte(`{"iss":"`+issuerA+`"}`)) + ".AAAA"
}

// D5 K7.
func TestFloodOfUnknownKeysCausesTwoFetchesAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlooded(t, slowly)
		before := f.web.fetches()
		waited, atOnce := f.flood(t, "unknown_key", fetchTakes, unknownKeyToken)
		fetches := f.web.fetches() - before
		if fetches < 1 || fetches > 2 {
			t.Errorf("%d fetches", fetches)
		}
		if waited < fetches*100 || waited > fetches*150 || atOnce > 125 {
			t.Errorf("%d tokens waited for %d fetches, %d at a time", waited, fetches, atOnce)
		}
	})
}

// D5 K7: no token waits longer than the bound, and few wait at a time, because other calls
// use the same connections.
func TestFloodOfUnknownKeys_hangingIssuer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlooded(t, slowly)
		f.web.set(hang)
		before := f.web.fetches()
		waited, atOnce := f.flood(t, "unavailable", time.Second, unknownKeyToken)
		if n := f.web.fetches() - before; n > 4 { // one fails after 5 s and is tried again soon
			t.Errorf("%d fetches", n)
		}
		if waited < 700 || waited > 1700 || atOnce > 125 {
			t.Errorf("%d tokens waited, %d at a time", waited, atOnce)
		}
	})
}

func TestRotation_duringAFloodOfUnknownKeys(t *testing.T) {
	for into := range long(1, 5) {
		into := time.Duration(into+1) * 1900 * time.Millisecond
		synctest.Test(t, func(t *testing.T) {
			f := newFlooded(t, slowly)
			fresh := josetest.New(t, "EdDSA", "fresh")
			token := forever(fresh, issuerA)
			var pickedUp atomic.Bool
			go func() {
				time.Sleep(into)
				f.web.set(slowly(josetest.Set(f.key.JWK(), fresh.JWK())))
				start := time.Now()
				for outcome(t, f.v, token, verify.Request{}) != "active" {
					time.Sleep(pulse)
				}
				if lag := time.Since(start); lag > 10*time.Second+fetchTakes+pulse {
					t.Errorf("a rotation %v after the flood began was picked up after %v", into, lag)
				}
				pickedUp.Store(true)
			}()
			f.flood(t, "unknown_key", fetchTakes, unknownKeyToken)
			if !pickedUp.Load() {
				t.Errorf("a rotation %v after the flood began was not picked up", into)
			}
		})
	}
}

// D6 K8.
func TestFloodOfBadSignaturesCausesNoFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFlooded(t, slowly)
		before := f.web.fetches()
		header := josetest.Base64(josetest.Marshal(f.key.Header()))
		f.flood(t, "bad_signature", 0, func(n int) string {
			payload := josetest.Base64(fmt.Appendf(nil, `{"iss":%q,"jti":"%d"}`, issuerA, n))
			return header + "." + payload + "." + josetest.Base64(make([]byte, 63)) // too short to cost anything
		})
		if n := f.web.fetches() - before; n != 0 {
			t.Errorf("%d fetches", n)
		}
	})
}
