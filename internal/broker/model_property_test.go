package broker_test

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// transition is one transition of the model internal/model/lease.pml.
type transition struct {
	What    string
	Replica int
	Wait    time.Duration
}

func drawTransition(t *rapid.T) transition {
	return transition{
		What: rapid.SampledFrom([]string{
			"get", "get", "get", "wait", "wait", "purge", "cut", "connect", "crash", "lose the store", "slow IdP", "fast IdP",
		}).Draw(t, "what"),
		Replica: rapid.IntRange(0, 2).Draw(t, "replica"),
		Wait:    time.Duration(rapid.SampledFrom([]int{1, 30, 300, 3500, 6000, 80_000}).Draw(t, "milliseconds")) * time.Millisecond,
	}
}

// The real code keeps the properties of the model of the lease in random sequences of its
// transitions.
func TestFleetKeepsThePropertiesOfTheModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		transitions := rapid.SliceOfN(rapid.Custom(drawTransition), 1, 30).Draw(rt, "transitions")
		var wrong []string
		synctest.Test(t, func(t *testing.T) {
			m := startModeled(t)
			for _, one := range transitions {
				m.apply(one)
			}
			wrong = m.settle()
		})
		if len(wrong) > 0 {
			rt.Fatal(wrong)
		}
	})
}

// modeled is a fleet that records what the properties need.
type modeled struct {
	*replicas

	calls    sync.WaitGroup
	fetching atomic.Int32
	faults   atomic.Int32
	restarts bool // since the last purge

	mu     sync.Mutex
	seen   map[[32]byte]bool // tokens
	purged map[[32]byte]bool // those from before an acknowledged purge
	fences map[*replica]uint64
	wrong  []string
}

func startModeled(t *testing.T) *modeled {
	m := &modeled{replicas: startReplicas(t, 0), seen: map[[32]byte]bool{}, purged: map[[32]byte]bool{}, fences: map[*replica]uint64{}}
	inner := m.idp.RoundTripper()
	m.towards = roundTrip(func(r *http.Request) (*http.Response, error) {
		if n := m.fetching.Add(1); n > 1 && m.faults.Load() == 0 {
			m.reportf("%d fetches at once although the store responds", n)
		}
		defer m.fetching.Add(-1)
		return inner.RoundTrip(r)
	})
	for range 3 {
		m.add("right")
	}
	return m
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (m *modeled) reportf(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wrong = append(m.wrong, fmt.Sprintf(format, args...))
}

func (m *modeled) apply(one transition) {
	at := m.all[one.Replica]
	switch one.What {
	case "get":
		m.calls.Go(func() { _, _ = m.get(at) })
	case "wait":
		time.Sleep(one.Wait)
	case "purge":
		m.purgeAt(at)
	case "cut":
		m.faults.Add(1)
		at.link.state.Store(away)
	case "connect":
		at.link.state.Store(good)
	case "crash":
		m.faults.Add(1)
		m.restarts = true
		at.link.state.Store(away) // its lease is not released
		at.stop()
		started := m.add("right")
		m.all = m.all[:3]
		m.all[one.Replica] = started
	case "lose the store":
		m.faults.Add(1)
		m.loses()
		m.mu.Lock()
		clear(m.fences)
		if m.restarts { // each replica that knew the purge may have ended
			clear(m.purged)
		}
		m.mu.Unlock()
	case "slow IdP":
		m.idp.SetDelay(5 * time.Second)
	case "fast IdP":
		m.idp.SetDelay(20 * time.Millisecond)
	}
}

// get checks that a replica never goes back to an older token.
func (m *modeled) get(at *replica) (broker.Answer, error) {
	m.mu.Lock()
	before := m.fences[at]
	m.mu.Unlock()
	answer, err := at.Get(m.t.Context(), policy.Self(), orders())
	if err != nil {
		return answer, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen[answer.Token.SHA256] = true
	if answer.Token.Fence < min(before, m.fences[at]) {
		m.wrong = append(m.wrong, fmt.Sprintf("a token with fence %d after one with fence %d", answer.Token.Fence, before))
	}
	m.fences[at] = max(m.fences[at], answer.Token.Fence)
	return answer, nil
}

// purgeAt purges. What was seen before is purged if the purge is acknowledged.
func (m *modeled) purgeAt(at *replica) {
	m.mu.Lock()
	before := make([][32]byte, 0, len(m.seen))
	for token := range m.seen {
		before = append(before, token)
	}
	m.mu.Unlock()
	if at.Purge(m.t.Context(), policy.Self(), purgeOf("orders")) != nil {
		return
	}
	m.restarts = false
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, token := range before {
		m.purged[token] = true
	}
}

// settle ends all faults and reports what is wrong.
func (m *modeled) settle() []string {
	m.idp.SetDelay(20 * time.Millisecond)
	for _, at := range m.all {
		at.link.state.Store(good)
	}
	m.calls.Wait()
	time.Sleep(11 * time.Second) // two polls
	for i, at := range m.all {
		answer, err := m.get(at)
		switch {
		case err != nil:
			m.reportf("replica %d: %v", i, err)
		case m.purged[answer.Token.SHA256]:
			m.reportf("replica %d returns a token from before an acknowledged purge", i)
		}
	}
	return m.wrong
}
