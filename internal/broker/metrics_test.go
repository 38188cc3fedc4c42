package broker_test

import (
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// counters returns the counts of a metric with one label.
func counters(t *testing.T, registry *prometheus.Registry, name string) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, family := range families {
		for _, series := range family.GetMetric() {
			if family.GetName() == name {
				counts[series.GetLabel()[0].GetValue()] = series.GetCounter().GetValue()
			}
		}
	}
	return counts
}

// Each request for a token that needs no call to the IdP is counted once, by the reason.
func TestMetrics_avoidedCalls(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		registry, other := prometheus.NewRegistry(), prometheus.NewRegistry()
		shared, mac := store.NewMemory(store.MemoryConfig{}), secret.NewMAC()
		with := func(registry *prometheus.Registry) func(*broker.Config) {
			return func(cfg *broker.Config) { cfg.Store, cfg.MAC, cfg.Registerer = shared, mac, registry }
		}
		f := startAs(t, nil, with(registry))
		if got := counters(t, registry, "tokenbroker_idp_calls_avoided_total"); len(got) != 4 || got["memory"]+got["shared"]+got["joined"]+got["backoff"] != 0 {
			t.Errorf("at the start: %v", got)
		}
		f.idp.SetDelay(time.Second)
		var cold sync.WaitGroup
		for range 20 {
			cold.Go(func() { _, _ = f.Get(t.Context(), policy.Self(), orders()) })
		}
		cold.Wait()
		f.idp.SetDelay(0)
		f.mustGet(t, orders())
		f.idp.SetDown(true)
		for range 3 {
			if _, err := f.Get(t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(1)}); err == nil {
				t.Error("a token from an IdP that is down")
			}
		}
		if got := counters(t, registry, "tokenbroker_idp_calls_avoided_total"); got["joined"] != 19 || got["memory"] != 1 || got["backoff"] != 2 || got["shared"] != 0 {
			t.Errorf("avoided: %v", got)
		}
		if got := counters(t, registry, "tokenbroker_token_requests_total"); got["fetched"] != 20 || got["memory"] != 1 || got["failed"] != 3 {
			t.Errorf("requests: %v", got)
		}
		second := startAs(t, nil, with(other))
		second.mustGet(t, orders())
		if got := counters(t, other, "tokenbroker_idp_calls_avoided_total"); got["shared"] != 1 || second.fetches() != 0 {
			t.Errorf("the second replica avoided %v and fetched %d times", got, second.fetches())
		}
	})
}
