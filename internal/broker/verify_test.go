package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/verify"
)

func TestVerificationsAreCountedByTheirResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := startJudges(t, 1)
		b := j.all[0]
		good, revoked := j.token("alice", "shop", "1"), j.token("bob", "shop", "2")
		j.revoke(b, revocation.Revocation{Subject: "bob"}, "1")
		foreign := j.idp.Mint(map[string]any{"iss": "https://other.example.com"})
		for token, times := range map[redact.String]int{good: 3, revoked: 2, foreign: 1, redact.New("x"): 4} {
			for range times {
				if _, err := b.Verify(t.Context(), policy.Self(), token, verify.Request{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		j.idp.SetDown(true)
		time.Sleep(3 * time.Hour)
		if _, err := b.Verify(t.Context(), policy.Self(), good, verify.Request{}); err == nil {
			t.Error("a token was decided by keys that are 3 h old")
		}
		for result, want := range map[string]float64{"active": 3, "revoked": 2, "unknown_issuer": 1, "malformed": 4, "undecided": 1, "bad_signature": 0} {
			if got := b.count(t, result); got != want {
				t.Errorf("%s: %v, want %v", result, got, want)
			}
		}
		if n, err := testutil.GatherAndCount(b.metrics, "tokenbroker_verifications_total"); err != nil || n != int(verify.Inactive)+2 {
			t.Errorf("%d series: %v", n, err)
		}
	})
}

// count is how many verifications had a result.
func (j *judge) count(t *testing.T, result string) float64 {
	t.Helper()
	families, err := j.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, series := range family.GetMetric() {
			if family.GetName() == "tokenbroker_verifications_total" && series.GetLabel()[0].GetValue() == result {
				return series.GetCounter().GetValue()
			}
		}
	}
	t.Errorf("nothing is counted as %s", result)
	return 0
}
