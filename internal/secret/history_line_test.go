package secret_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// inForce is a history of a line of its own, with versions that came in force one after
// the other.
func inForce(t *testing.T, ids ...string) secret.History {
	t.Helper()
	var h secret.History
	for _, id := range ids {
		next, err := h.Stage(version(id), "alice", now)
		if err == nil {
			next, err = next.Activate(id, false, now)
		}
		if err != nil {
			t.Fatal(err)
		}
		h = next
	}
	return h
}

// A store that lost its data may come to hold a history of another line. However high its
// generation is, it does not descend from the one that is known, and so does not simply
// replace it: what was in force here is kept.
func TestUnrelatedHistoryDoesNotDescend(t *testing.T) {
	known, foreign := inForce(t, "a"), inForce(t, "x", "y", "z")
	if foreign.Generation <= known.Generation {
		t.Fatal("the test does not test what it should")
	}
	if foreign.Descends(known) || known.Descends(foreign) {
		t.Error("histories of two lines descend from each other")
	}
	sibling := known.Advance()
	if other := known.Advance().Advance(); other.Descends(sibling) || sibling.Descends(other) {
		t.Error("two histories that were made from one descend from each other")
	}
	if !sibling.Descends(known) || !sibling.Descends(sibling) || known.Descends(sibling) {
		t.Error("a history must descend from itself and from the one that it was made from, and not the other way round")
	}
	if !known.Descends(secret.History{}) || (secret.History{}).Descends(known) {
		t.Error("all histories descend from the empty one, and it from no other")
	}
	merged := known.Merge(foreign)
	if record, there := merged.Find("a"); !there || record.Value.IsZero() {
		t.Errorf("the secret that was in force here is lost: %s", states(merged))
	}
}

// Two histories of one generation: the one with the higher ID counts, whichever replica
// merges them. Otherwise two replicas would put each other's secret out of force for ever.
func TestMergeOfTheSameGenerationGoesByID(t *testing.T) {
	base := inForce(t, "a")
	for range 50 {
		one, err := base.Adopt("one", "alice", now)
		if err != nil {
			t.Fatal(err)
		}
		two, err := base.Adopt("two", "bob", now)
		if err != nil {
			t.Fatal(err)
		}
		if one.Generation != two.Generation {
			t.Fatal("the test does not test what it should")
		}
		want := "one"
		if strings.Compare(two.ID, one.ID) > 0 {
			want = "two"
		}
		if a, b := one.Merge(two).CurrentID(), two.Merge(one).CurrentID(); a != want || b != want {
			t.Fatalf("merged by one replica %q, by the other %q; want %q", a, b, want)
		}
	}
}
