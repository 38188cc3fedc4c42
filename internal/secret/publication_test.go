package secret_test

import (
	"errors"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// A key keeps its public part when it is retired, because its last assertions may still
// be under way; one that has leaked does not.
func TestPublication_followsItsKey(t *testing.T) {
	h, err := secret.History{}.StageKey(version("a"), "public a", "broker", now)
	if err != nil {
		t.Fatal(err)
	}
	published := func(h secret.History, id string) secret.Publication {
		t.Helper()
		read, err := secret.FromStored(h.Stored())
		if err != nil {
			t.Fatal(err)
		}
		record, _ := read.Find(id)
		return record.Publication
	}
	step := func(next secret.History, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		h = next
	}
	shown := secret.Publication{Key: "public a", ShownAt: now.Add(time.Hour)}
	step(h.Publish("a", shown))
	if got := published(h, "a"); got.Key != shown.Key || !got.ShownAt.Equal(shown.ShownAt) || got.Usable {
		t.Fatalf("read %+v", got)
	}
	if same, err := h.Publish("a", shown); err != nil || same.ID != h.ID {
		t.Errorf("publishing the same twice is a change, or an error: %v", err)
	}
	step(h.Activate("a", false, now))
	if _, err := h.Publish("a", secret.Publication{}); !errors.Is(err, secret.ErrNotStaged) {
		t.Errorf("the publication of the current key changed: %v", err)
	}
	for _, id := range []string{"b", "c"} {
		step(h.StageKey(version(id), "public "+id, "broker", now))
		step(h.Activate(id, false, now))
	}
	if got := published(h, "a"); got.Key != "public a" {
		t.Errorf("the retired key lost its public part: %+v", got)
	}
	if gone := h.Unpublish("a"); published(gone, "a") != (secret.Publication{}) || gone.Unpublish("a").ID != gone.ID {
		t.Error("the retired key is still published")
	}
	if same := h.Unpublish("c"); same.ID != h.ID {
		t.Error("the current key was unpublished")
	}
	step(h.StageKey(version("d"), "public d", "broker", now))
	step(h.Activate("d", true, now))
	for _, id := range []string{"b", "c"} {
		if got := published(h, id); got != (secret.Publication{}) {
			t.Errorf("%s has leaked and is still published: %+v", id, got)
		}
	}
	if got := published(h, "d"); got.Key != "public d" {
		t.Errorf("the current key: %+v", got)
	}
}
