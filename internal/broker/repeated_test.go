package broker_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// repeating is an IdP that answers with the same token until that ends. It is a
// RoundTripper and no server, because connections stop the clock of a bubble.
type repeating struct {
	life  time.Duration
	delay time.Duration // of each answer
	// expiresIn says how the lifetime is declared; empty: not at all.
	expiresIn func(left time.Duration) string
	jwt       bool

	mu    sync.Mutex
	token string
	ends  map[string]time.Time // of all tokens
	asked []time.Time
}

func (r *repeating) RoundTrip(request *http.Request) (*http.Response, error) {
	time.Sleep(r.delay)
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.asked = append(r.asked, now)
	if !now.Before(r.ends[r.token]) {
		r.issue(now)
	}
	answer := fmt.Sprintf(`{"access_token":%q,"token_type":"Bearer","scope":"read write"`, r.token)
	if r.expiresIn != nil {
		answer += `,"expires_in":` + r.expiresIn(r.ends[r.token].Sub(now))
	}
	return &http.Response{
		StatusCode: http.StatusOK, Request: request, Body: io.NopCloser(strings.NewReader(answer + "}")),
		Header: http.Header{"Content-Type": {"application/json"}, "Date": {now.UTC().Format(http.TimeFormat)}},
	}, nil
}

// issue replaces the token. A JWT ends at a whole second.
func (r *repeating) issue(now time.Time) {
	ends := now.Add(r.life)
	r.token = fmt.Sprintf("token-%d", len(r.ends))
	if r.jwt {
		ends = now.Truncate(time.Second).Add(r.life)
		claims := fmt.Sprintf(`{"jti":"%d","iat":%d,"exp":%d}`, len(r.ends), now.Unix(), ends.Unix())
		r.token = "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	r.ends[r.token] = ends
}

// end is when a token ends; empty: the last one.
func (r *repeating) end(token string) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if token == "" {
		token = r.token
	}
	return r.ends[token]
}

func (r *repeating) requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.asked)
}

// askedWithin is the most requests in any span of that length.
func (r *repeating) askedWithin(span time.Duration) (most int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.asked {
		n := 0
		for _, at := range r.asked[i:] {
			if at.Sub(r.asked[i]) < span {
				n++
			}
		}
		most = max(most, n)
	}
	return most
}

func floor(left time.Duration) string   { return fmt.Sprint(int(left.Seconds())) }
func ceil(left time.Duration) string    { return fmt.Sprint(math.Ceil(left.Seconds())) }
func exactly(left time.Duration) string { return fmt.Sprint(left.Seconds()) }

// Callers get a token at each end of one that the IdP repeats: no error, no token that
// has ended, and no flood of requests for the IdP.
func TestRepeatedToken_untilItExpires(t *testing.T) {
	for name, idp := range map[string]*repeating{
		"whole seconds, cut":           {expiresIn: floor},
		"whole seconds, rounded up":    {expiresIn: ceil},
		"fractions":                    {expiresIn: exactly},
		"a JWT, cut":                   {expiresIn: floor, jwt: true},
		"a JWT, rounded up":            {expiresIn: ceil, jwt: true},
		"a JWT of a constant lifetime": {expiresIn: func(time.Duration) string { return "600" }, jwt: true},
		"a JWT that says it itself":    {jwt: true},
		"a slow IdP":                   {expiresIn: floor, delay: 300 * time.Millisecond},
	} {
		for _, every := range []time.Duration{100 * time.Millisecond, 7 * time.Second} {
			t.Run(fmt.Sprintf("%s, asked every %v", name, every), func(t *testing.T) {
				inBubble(t, func(t *testing.T) {
					idp := &repeating{life: 10 * time.Minute, delay: idp.delay, expiresIn: idp.expiresIn, jwt: idp.jwt, ends: map[string]time.Time{}}
					time.Sleep(437 * time.Millisecond) // not at a whole second
					f := startWith(t, func(http.RoundTripper) http.RoundTripper { return idp }, 0)
					const lives = 20
					begun, longest, seen := time.Now(), time.Duration(0), map[string]bool{}
					for time.Since(begun) < lives*idp.life {
						asked := time.Now()
						answer, err := f.Get(t.Context(), policy.Self(), orders())
						if err != nil {
							t.Fatalf("after %v: %v", time.Since(begun), err)
						}
						token := answer.Token.Value.Reveal()
						if seen[token] = true; !time.Now().Before(idp.end(token)) {
							t.Fatalf("after %v: a token that ended %v ago", time.Since(begun), time.Since(idp.end(token)))
						}
						if answer.Degraded {
							t.Errorf("after %v: degraded", time.Since(begun))
						}
						longest = max(longest, time.Since(asked))
						time.Sleep(every)
					}
					if longest > 2*time.Second+3*idp.delay {
						t.Errorf("a caller waited for %v", longest)
					}
					if n := idp.requests(); n > lives*14 || len(seen) < lives-1 {
						t.Errorf("the IdP was asked %d times for %d tokens", n, len(seen))
					}
					if second, minute := idp.askedWithin(time.Second), idp.askedWithin(time.Minute); second > 3 || minute > 12 {
						t.Errorf("the IdP was asked %d times within a second and %d times within a minute", second, minute)
					}
				})
			})
		}
	}
}

// An IdP whose tokens have always ended, or seem so by a wrong clock, fails as before:
// it is not asked more often with each further try.
func TestRepeatedToken_expiredBacksOff(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		idp := &repeating{life: time.Hour, expiresIn: func(time.Duration) string { return "0" }, ends: map[string]time.Time{}}
		f := startWith(t, func(http.RoundTripper) http.RoundTripper { return idp }, 0)
		begun := time.Now()
		for time.Since(begun) < 10*time.Minute {
			_, err := f.Get(t.Context(), policy.Self(), orders())
			wantError(t, err, apierror.Unavailable, apierror.ReasonIdPUnavailable)
			time.Sleep(100 * time.Millisecond)
		}
		if n := idp.requests(); n < 15 || n > 60 {
			t.Errorf("the IdP was asked %d times", n)
		}
	})
}

// A caller with min_ttl is refused near the end of a repeated token, for the IdP has no
// other one, and is answered again after the end.
func TestRepeatedToken_minTTL(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		idp := &repeating{life: 10 * time.Minute, expiresIn: floor, ends: map[string]time.Time{}}
		f := startWith(t, func(http.RoundTripper) http.RoundTripper { return idp }, 0)
		const minTTL = 30 * time.Second
		begun, refused := time.Now(), 0
		for time.Since(begun) < time.Hour {
			_, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", MinTTL: minTTL})
			if left := time.Until(idp.end("")); err != nil && left > minTTL+time.Second {
				t.Fatalf("after %v, %v before the token ends: %v", time.Since(begun), left, err)
			}
			if err != nil {
				refused++
			}
			time.Sleep(time.Second)
		}
		if refused > 6*33 {
			t.Errorf("%d calls were refused", refused)
		}
		if n := idp.requests(); n > 6*14 {
			t.Errorf("the IdP was asked %d times", n)
		}
	})
}

// Replicas share the wait.
func TestRepeatedToken_sharedExpiry(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		idp := &repeating{life: 10 * time.Minute, expiresIn: floor, ends: map[string]time.Time{}}
		time.Sleep(437 * time.Millisecond)
		r := startReplicas(t, 0)
		r.towards = idp
		for range 3 {
			r.add("right")
		}
		begun := time.Now()
		const lives = 5
		for time.Since(begun) < lives*idp.life {
			r.everybody(2, orders())
			time.Sleep(time.Second)
		}
		if n := idp.requests(); n > lives*14 {
			t.Errorf("the IdP was asked %d times", n)
		}
	})
}
