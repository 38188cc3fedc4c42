package broker_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
)

// Tokens say in whole seconds when they were issued. A token that was issued in the second
// that issued_before names is not revoked; one that may have been issued before is.
func TestRevocation_issuedBeforeBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		time.Sleep(time.Hour)
		bound := time.Now() // a whole second
		issued := func(at any) redact.String {
			claims := map[string]any{
				"iss": issuer, "sub": "alice", "client_id": "shop", "jti": fmt.Sprint(at), "aud": audience, "scope": "read",
				"exp": bound.Add(time.Hour).Unix(),
			}
			if at != nil {
				claims["iat"] = at
			}
			return j.idp.Mint(claims)
		}
		for _, tt := range []struct {
			before  time.Time
			iat     any
			revoked bool
		}{
			{bound, bound.Unix() - 1, true},
			{bound, bound.Unix(), false},
			{bound, bound.Unix() + 1, false},
			{bound.Add(time.Millisecond), bound.Unix(), true},
			{bound.Add(time.Millisecond), bound.Unix() + 1, false},
			{bound, nil, true}, // it does not say when
		} {
			made := j.revoke(j.all[0], revocation.Revocation{Subject: "alice", IssuedBefore: tt.before}, fmt.Sprint(tt.before, tt.iat))
			if got := !j.good(j.all[0], issued(tt.iat)); got != tt.revoked {
				t.Errorf("issued_before %v, iat %v: revoked %v, want %v", tt.before.Sub(bound), tt.iat, got, tt.revoked)
			}
			if err := j.all[0].Revocations().Delete(t.Context(), policy.Self(), revocation.Deletion{ID: made.ID}); err != nil {
				t.Fatal(err)
			}
		}
	})
}
