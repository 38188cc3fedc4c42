package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/revocation"
)

// gauge returns the value of a gauge without labels.
func (j *judge) gauge(t *testing.T, name string) float64 {
	t.Helper()
	families, err := j.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}

func TestRevocationMetricsShowCountAndAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const count, current = "tokenbroker_revocations", "tokenbroker_revocations_current_timestamp_seconds"
		j := startJudges(t, 2)
		way := &link{}
		way.to.Store(j.all[0].link.to.Load())
		way.state.Store(refused)
		newcomer := j.add(way)
		j.revoke(j.all[0], revocation.Revocation{Subject: "alice"}, "1")
		time.Sleep(10 * time.Second)
		if newcomer.gauge(t, count) != 0 || newcomer.gauge(t, current) != 0 {
			t.Error("a replica that never loaded the revocations does not show it")
		}
		fresh := func(of *judge) bool { return float64(time.Now().Unix())-of.gauge(t, current) < 10 }
		for i, judge := range j.all[:2] {
			if judge.gauge(t, count) != 1 || !fresh(judge) {
				t.Errorf("replica %d shows %v revocations, confirmed at %v", i, judge.gauge(t, count), judge.gauge(t, current))
			}
		}
		j.all[1].link.state.Store(refused)
		time.Sleep(time.Minute)
		if !fresh(j.all[0]) || fresh(j.all[1]) {
			t.Error("only the replica without its store must show an old confirmation")
		}
		way.state.Store(good)
		time.Sleep(10 * time.Second)
		if newcomer.gauge(t, count) != 1 || !fresh(newcomer) {
			t.Error("the newcomer does not show the revocations that it has loaded")
		}
	})
}
