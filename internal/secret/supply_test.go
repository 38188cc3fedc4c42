package secret_test

import (
	"errors"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

func TestHistorySupply(t *testing.T) {
	now := time.Now()
	version := func(id string) secret.Version { return secret.Version{ID: id, Value: redact.New("value of " + id)} }
	supply := func(h secret.History, id string, drop bool) secret.History {
		t.Helper()
		next, err := h.Supply(version(id), "exec:/bin/x", drop, now)
		if err != nil {
			t.Fatal(err)
		}
		if !next.Descends(h) {
			t.Fatalf("%v does not descend from %v", next, h)
		}
		return next
	}
	activate := func(h secret.History, id string) secret.History {
		t.Helper()
		next, err := h.Activate(id, false, now)
		if err != nil {
			t.Fatal(err)
		}
		return next
	}
	want := func(h secret.History, states map[string]secret.State) {
		t.Helper()
		for id, state := range states {
			record, _ := h.Find(id)
			if record.State != state || record.Value.IsZero() != (state == secret.Retired) {
				t.Errorf("%s is %s, want %s; value: %t", id, record.State, state, !record.Value.IsZero())
			}
		}
	}

	first := supply(secret.History{}, "a", false)
	want(first, map[string]secret.State{"a": secret.Pending})
	if again := supply(first, "a", false); again.ID != first.ID {
		t.Error("the same value changes the history")
	}
	second := activate(supply(activate(first, "a"), "b", false), "b")
	want(second, map[string]secret.State{"a": secret.Previous, "b": secret.Current})
	// A value that returns to an older one is staged again, with its value.
	want(supply(second, "a", false), map[string]secret.State{"a": secret.Pending, "b": secret.Current})
	third := supply(second, "c", false)
	if _, err := third.Supply(version("d"), "by", false, now); !errors.Is(err, secret.ErrAnotherPending) {
		t.Errorf("the pending version was replaced: %v", err)
	}
	want(supply(third, "d", true), map[string]secret.State{"a": secret.Previous, "b": secret.Current, "c": secret.Retired, "d": secret.Pending})
	want(supply(third, "a", true), map[string]secret.State{"a": secret.Pending, "b": secret.Current, "c": secret.Retired})
	want(supply(third, "b", false), map[string]secret.State{"b": secret.Current, "c": secret.Pending})
	want(supply(third, "b", true), map[string]secret.State{"a": secret.Previous, "b": secret.Current, "c": secret.Retired})
	// A retired value can come back.
	want(supply(supply(third, "d", true), "c", true), map[string]secret.State{"c": secret.Pending, "d": secret.Retired})

	// Versions from a file are recorded without their values.
	adopted, err := secret.History{}.Adopt("a", "file:/x", now)
	if err != nil {
		t.Fatal(err)
	}
	want(supply(adopted, "a", false), map[string]secret.State{"a": secret.Current})
}
