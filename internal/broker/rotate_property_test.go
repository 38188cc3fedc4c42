package broker_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
)

// happening is one of what may happen to a fleet, with all that it may need.
type happening struct {
	What        string
	Replica     int
	Value       string
	Again       bool // a call is one that was made before
	Compromised bool
	Takes       []string
	Seconds     int
	State       int32
	Deaf        bool
}

var secretValues = []string{"one", "two", "three", "four"}

func drawHappening(t *rapid.T) happening {
	return happening{
		What: rapid.SampledFrom([]string{
			"rotate", "rotate", "stage", "activate", "rollback", "retire", "change the IdP", "ask", "wait", "cut off", "lose the store",
		}).Draw(t, "what"),
		Replica:     rapid.IntRange(0, 2).Draw(t, "replica"),
		Value:       rapid.SampledFrom(secretValues).Draw(t, "value"),
		Again:       rapid.IntRange(0, 4).Draw(t, "again") == 4,
		Compromised: rapid.Bool().Draw(t, "compromised"),
		Takes:       rapid.SliceOfDistinct(rapid.SampledFrom(secretValues), rapid.ID[string]).Draw(t, "takes"),
		Seconds:     rapid.IntRange(1, 100).Draw(t, "seconds"),
		State:       rapid.SampledFrom([]int32{good, good, refused, away}).Draw(t, "state"),
		Deaf:        rapid.Bool().Draw(t, "deaf"),
	}
}

// Whatever operators, the IdP, the store and the network do, in whatever order: the
// replicas come to the same history, nothing that was wiped is used, and once the IdP
// takes the secret in force, tokens are to be had.
func TestReplicasAgreeOnTheSecret(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		happenings := rapid.SliceOfN(rapid.Custom(drawHappening), 1, 25).Draw(rt, "happenings")
		var wrong string
		synctest.Test(t, func(t *testing.T) {
			r := startManaged(t, 3)
			r.rotate(rotationTo("one"))
			w := &whatever{replicas: r}
			for _, one := range happenings {
				w.happens(one)
			}
			wrong = w.settle()
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// whatever is a fleet to which things happen.
type whatever struct {
	*replicas

	calls int
}

func (w *whatever) call(again bool) rotation.Change {
	if w.calls == 0 || !again {
		w.calls++
	}
	return change(fmt.Sprint("call ", w.calls))
}

func (w *whatever) happens(h happening) {
	ctx, r := w.t.Context(), w.all[h.Replica]
	asked := rotation.NewSecret{Secret: redact.New(h.Value), Compromised: h.Compromised}
	switch h.What {
	case "rotate":
		asked.Change = w.call(h.Again)
		_, _ = rotation.New(r, nil).Rotate(ctx, policy.Self(), asked)
	case "stage":
		asked.Change, asked.StageOnly, asked.Compromised = w.call(h.Again), true, false
		_, _ = rotation.New(r, nil).Rotate(ctx, policy.Self(), asked)
	case "activate":
		_, _ = rotation.New(r, nil).Activate(ctx, policy.Self(), "", w.call(h.Again))
	case "rollback":
		_, _ = rotation.New(r, nil).Rollback(ctx, policy.Self(), w.call(h.Again))
	case "retire":
		_, _ = rotation.New(r, nil).Retire(ctx, policy.Self(), idOf(h.Value), w.call(h.Again))
	case "change the IdP":
		w.takes(h.Takes...)
	case "ask":
		_, _ = r.Get(ctx, policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(h.Seconds % 10)})
	case "wait":
		time.Sleep(time.Duration(h.Seconds) * time.Second)
	case "cut off": // or not any more
		r.link.state.Store(h.State)
		r.link.deaf.Store(h.Deaf)
	case "lose the store":
		w.shared = store.NewMemory(store.MemoryConfig{})
		for _, replica := range w.all {
			replica.link.to.Store(w.shared)
		}
	}
}

// settle lets all be well again, and says what is wrong with what has come of it.
func (w *whatever) settle() (wrong string) {
	for _, replica := range w.all {
		replica.link.state.Store(good)
	}
	w.takes()
	time.Sleep(70 * time.Second)
	first := listed(w.all[0])
	for i, replica := range w.all {
		got := listed(replica)
		if got.Generation != first.Generation || secretsOf(w.t, replica) != secretsOf(w.t, w.all[0]) {
			return fmt.Sprintf("replica %d has generation %d, %s; the first one %d, %s", i, got.Generation, secretsOf(w.t, replica), first.Generation, secretsOf(w.t, w.all[0]))
		}
	}
	before := map[string]int{}
	for _, value := range secretValues {
		before[value] = w.refusals(value)
	}
	inForce := slices.IndexFunc(first.Versions, func(v credential.VersionStatus) bool { return v.State == secret.Current })
	if inForce < 0 {
		return "there is no secret in force any more"
	}
	for _, value := range secretValues {
		if idOf(value) == first.Versions[inForce].ID {
			w.takes(value)
		}
	}
	time.Sleep(10*time.Minute + time.Second) // the longest pause
	for i, replica := range w.all {
		if _, err := replica.Get(w.t.Context(), policy.Self(), broker.Ask{Client: "orders", Audience: audienceNo(20 + i)}); err != nil {
			return fmt.Sprintf("replica %d gets no token with the secret in force: %v", i, err)
		}
	}
	for _, v := range first.Versions {
		for _, value := range secretValues {
			if v.ID == idOf(value) && v.State == secret.Retired && (v.Here || w.refusals(value) > before[value]) {
				return value + " is known or was sent although it is wiped"
			}
		}
	}
	return ""
}
