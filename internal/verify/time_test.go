package verify_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// C2: to the nanosecond.
func TestTimeAtItsBounds(t *testing.T) {
	const tick = time.Nanosecond
	for _, tt := range []struct {
		leeway, configured time.Duration
	}{{30 * time.Second, 0}, {time.Minute, time.Minute}, {time.Second, time.Second}, {0, -1}} {
		synctest.Test(t, func(t *testing.T) {
			key := josetest.New(t, "EdDSA", "k")
			c := configOf(issuerA)
			c.Leeway, c.MaxAge = tt.configured, 5*time.Minute
			v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), c))
			start := time.Now()
			at := func(member string, offset time.Duration, others ...jsonObject) string {
				return key.Token(key.Header(), claims(append(others, jsonObject{member: start.Add(offset).Unix()})...))
			}
			expires, starts, issued := at("exp", 2*time.Minute), at("nbf", 2*time.Minute), at("iat", 2*time.Minute)
			type step struct {
				after time.Duration
				token string
				want  string
			}
			steps := []step{
				{2*time.Minute - tt.leeway - tick, starts, "not_yet_valid"},
				{2*time.Minute - tt.leeway - tick, issued, "not_yet_valid"},
				{2*time.Minute - tt.leeway, starts, "active"},
				{2*time.Minute - tt.leeway, issued, "active"},
				{2*time.Minute - tick, expires, "active"},
				{2*time.Minute + tt.leeway - tick, expires, "active"},
				{2*time.Minute + tt.leeway, expires, "expired"},
				{5*time.Minute + tt.leeway, starts, "active"},
				{5*time.Minute + tt.leeway + tick, starts, "lifetime_too_long"}, // older than the maximal age
			}
			slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.after, b.after) })
			for _, step := range steps {
				time.Sleep(time.Until(start.Add(step.after)))
				if got := outcome(t, v, step.token, verify.Request{}); got != step.want {
					t.Errorf("leeway %v, after %v: %s, want %s", tt.leeway, step.after, got, step.want)
				}
			}
		})
	}
}

func TestLifetimeAtItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := josetest.New(t, "EdDSA", "k")
		c := configOf(issuerA)
		c.MaxLifetime = time.Hour
		v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), c))
		now := time.Now().Unix()
		for _, tt := range []struct {
			iat, exp any
			want     string
		}{
			{now, now + 3600, "active"},
			{now, now + 3601, "lifetime_too_long"},
			{now - 3500, now + 100, "active"},
			{now - 3500, now + 101, "lifetime_too_long"},
			{now + 30, now + 3630, "active"},
			{nil, now + 3600, "active"},
			{nil, now + 3601, "lifetime_too_long"},
			{0, now + 1, "lifetime_too_long"},
		} {
			token := key.Token(key.Header(), claims(jsonObject{"iat": tt.iat, "exp": tt.exp}))
			if got := outcome(t, v, token, verify.Request{}); got != tt.want {
				t.Errorf("iat %v, exp %v, now %d: %s, want %s", tt.iat, tt.exp, now, got, tt.want)
			}
		}
	})
}

// A token is accepted only within its lifetime, for any values and formats of its times.
func TestTime_outsideOfLifetime(t *testing.T) {
	key := josetest.New(t, "EdDSA", "k")
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(t *testing.T) {
			v := load(t, newVerifier(t, serve(josetest.Set(key.JWK())), configOf(issuerA)))
			now := time.Now().Unix()
			draw := func(name string) int64 { return now + rapid.Int64Range(-200_000, 200_000).Draw(rt, name) }
			exp, nbf, iat := draw("exp"), draw("nbf"), draw("iat")
			form := rapid.SampledFrom([]string{"%d", "%d.0", "%d.999999", "%de0"}).Draw(rt, "form")
			payload := fmt.Sprintf(`{"iss":%q,"sub":"alice","aud":%q,"exp":`+form+`,"nbf":`+form+`,"iat":`+form+`}`, issuerA, audience, exp, nbf, iat)
			good := now < exp+30 && now >= nbf-30 && iat <= now+30 && exp-iat <= 24*3600
			if got := outcome(t, v, key.Token(key.Header(), payload), verify.Request{}); (got == "active") != good {
				rt.Fatalf("now %d, %s: %s", now, payload, got)
			}
		})
	})
}
