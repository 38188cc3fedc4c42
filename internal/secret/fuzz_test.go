package secret_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// What is stored may be of another version, or damaged: it is read as what it was,
// or refused with an error that shows nothing of it.
func FuzzFromStored(f *testing.F) {
	h, err := secret.History{}.Stage(version("a"), "alice", now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(h.Stored())
	if h, err = h.Activate("a", false, now); err != nil {
		f.Fatal(err)
	}
	f.Add(h.With(secret.Request{ID: "1", Version: "a", Done: true}).Stored())
	f.Add([]byte(`{"v":1,"generation":1,"id":"x","versions":[{"id":"a","state":4,"value":"canary"}]}`))
	f.Add([]byte(`{"v":2}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		read, err := secret.FromStored(data)
		if err != nil {
			if strings.Contains(err.Error(), "canary") {
				t.Error("the error shows what was stored")
			}
			return
		}
		again, err := secret.FromStored(read.Stored())
		if err != nil || again.Generation != read.Generation || again.ID != read.ID || len(again.Versions) != len(read.Versions) {
			t.Errorf("read again: %+v, %v; was %+v", again, err, read)
		}
	})
}
