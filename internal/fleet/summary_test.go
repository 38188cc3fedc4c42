package fleet_test

import (
	"errors"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

func TestSummaryShowsTheWorstOfAllReplicas(t *testing.T) {
	w := healthy()
	w.b().Clients[0].State, w.b().Clients[0].Failed, w.b().Clients[0].Failure = fleet.ClientRefused, ago(time.Minute), fleet.SecretRefused
	w.b().Clients[0].Generation = 1
	w.b().Clients[1].Pending = ago(time.Hour)
	w.self.Clients[1].Pending = ago(time.Minute)
	w.b().Issuers[0].Loaded, w.b().Issuers[0].Failure = ago(20*time.Minute), fleet.Unreachable
	w.b().Store.Servers[1].Writes, w.b().Store.Servers[1].WritesSince, w.b().Store.Servers[1].Cause = false, ago(time.Minute), fleet.OutOfMemory
	w.b().Certificates[0].Ends = now.Add(10 * 24 * time.Hour)
	w.b().Omitted = 7
	s := fleet.Summarize(w.view, w.self, now)
	if len(s.Clients) != 3 || s.Clients[0].Name != "billing" || !s.Clients[0].Pending.Equal(ago(time.Hour)) {
		t.Fatalf("clients: %+v", s.Clients)
	}
	orders := s.Clients[1]
	if orders.State != fleet.ClientRefused || orders.Failure != fleet.SecretRefused || !orders.Differs || orders.Generation != 2 || !orders.Success.Equal(ago(5*time.Minute)) {
		t.Errorf("orders: %+v", orders)
	}
	if i := s.Issuers[0]; len(s.Issuers) != 1 || !i.Loaded.Equal(ago(20*time.Minute)) || i.Failure != fleet.Unreachable {
		t.Errorf("issuers: %+v", s.Issuers)
	}
	if one := s.Store.Servers[1]; len(s.Store.Servers) != 2 || one.Writes || !one.Reads || one.Cause != fleet.OutOfMemory || !one.WritesSince.Equal(ago(time.Minute)) {
		t.Errorf("servers: %+v", s.Store.Servers)
	}
	if c := s.Certificates; len(c) != 2 || c[0].Use != fleet.ClientUse || !c[1].Ends.Equal(now.Add(10*24*time.Hour)) {
		t.Errorf("certificates: %+v", c)
	}
	if len(s.Replicas) != 3 || s.Replicas[0].Replica.ID != "a" || s.Omitted != 7 || s.Incomplete || len(s.Findings) == 0 {
		t.Errorf("%d replicas, %d omitted, incomplete %v", len(s.Replicas), s.Omitted, s.Incomplete)
	}
}

// What a replica says about a secret is outdated until it can have read the next one.
func TestSummaryShowsTheStateOfTheLatestSecret(t *testing.T) {
	for _, replica := range []int{0, 1} {
		w := healthy()
		w.everywhere(func(r *fleet.Record) { r.Clients[2].Generation, r.Clients[2].Changed = 1, ago(time.Second) })
		old := &w.view.Members[replica].Record.Clients[2]
		old.State, old.Generation, old.Changed = fleet.ClientNoSecret, 0, time.Time{}
		if c := fleet.Summarize(w.view, w.self, now).Clients[2]; c.State != fleet.ClientIdle || !c.Differs {
			t.Errorf("after a second: %+v", c)
		}
		w.self.Clients[2].Changed = ago(2 * fleet.SecretsSettle)
		w.view.Members[1-replica].Record.Clients[2].Changed = ago(2 * fleet.SecretsSettle)
		if c := fleet.Summarize(w.view, w.self, now).Clients[2]; c.State != fleet.ClientNoSecret {
			t.Errorf("after %v: %+v", 2*fleet.SecretsSettle, c)
		}
	}
}

func TestSummaryWithoutTheStoreIsOfThisReplica(t *testing.T) {
	s := fleet.Summarize(fleet.View{Err: errors.New("away")}, record("a"), now)
	if !s.Incomplete || len(s.Replicas) != 1 || len(s.Clients) != 3 || len(s.Findings) != 1 {
		t.Errorf("%+v", s)
	}
}
