package secret_test

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// now is an instant without a monotonic clock, as one that was stored.
var now = time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)

func version(id string) secret.Version {
	return secret.Version{ID: id, Value: redact.New("value of " + id)}
}

// states is a history in short, newest first, such as "b:current a:previous".
func states(h secret.History) string {
	text := ""
	for _, r := range h.Versions {
		text += r.ID + ":" + r.State.String() + " "
	}
	return text
}

func TestVersionsGoThroughTheirStates(t *testing.T) {
	h := secret.History{}
	step := func(want string, change func() (secret.History, error)) {
		t.Helper()
		before := h.Generation
		next, err := change()
		if err != nil || states(next) != want {
			t.Fatalf("%q, %v; want %q", states(next), err, want)
		}
		if next.Generation != before+1 || !next.Descends(h) || h.Descends(next) {
			t.Errorf("generation %d after %d", next.Generation, before)
		}
		h = next
	}
	stage := func(id string) func() (secret.History, error) {
		return func() (secret.History, error) { return h.Stage(version(id), "alice", now) }
	}
	activate := func(id string, drop bool) func() (secret.History, error) {
		return func() (secret.History, error) { return h.Activate(id, drop, now) }
	}
	step("a:pending ", stage("a"))
	step("a:current ", activate("a", false))
	step("b:pending a:current ", stage("b"))
	step("b:current a:previous ", activate("b", false))
	step("b:previous a:current ", activate("a", false)) // a rollback
	step("c:pending b:previous a:current ", stage("c"))
	step("c:current b:retired a:previous ", activate("c", false))
	step("b:pending c:current a:previous ", stage("b")) // again
	step("b:current c:retired a:retired ", activate("b", true))
	step("d:pending b:current c:retired a:retired ", stage("d"))
	step("d:retired b:current c:retired a:retired ", func() (secret.History, error) { return h.Retire("d", now) })
	for _, r := range h.Versions {
		if r.Value.IsZero() != (r.State == secret.Retired) {
			t.Errorf("%s, %v: has its value: %v", r.ID, r.State, !r.Value.IsZero())
		}
	}
}

func TestChangesThatAreRefusedChangeNothing(t *testing.T) {
	h := secret.History{}
	for _, change := range []func() (secret.History, error){
		func() (secret.History, error) { return h.Stage(version("a"), "", now) },
		func() (secret.History, error) { return h.Activate("a", false, now) },
		func() (secret.History, error) { return h.Stage(version("b"), "", now) },
		func() (secret.History, error) { return h.Activate("b", false, now) },
		func() (secret.History, error) { return h.Stage(version("c"), "", now) },
	} {
		h, _ = change()
	}
	for name, tt := range map[string]struct {
		change func() (secret.History, error)
		want   error
	}{
		"staging another":        {func() (secret.History, error) { return h.Stage(version("d"), "", now) }, secret.ErrAnotherPending},
		"staging it again":       {func() (secret.History, error) { return h.Stage(version("c"), "", now) }, nil},
		"activating the current": {func() (secret.History, error) { return h.Activate("b", false, now) }, nil},
		"activating a stranger":  {func() (secret.History, error) { return h.Activate("x", false, now) }, secret.ErrUnknown},
		"retiring the current":   {func() (secret.History, error) { return h.Retire("b", now) }, secret.ErrInUse},
		"retiring a stranger":    {func() (secret.History, error) { return h.Retire("x", now) }, secret.ErrUnknown},
	} {
		got, err := tt.change()
		if !errors.Is(err, tt.want) || got.Generation != h.Generation || got.ID != h.ID {
			t.Errorf("%s: %v, generation %d", name, err, got.Generation)
		}
	}
	retired, err := h.Retire("c", now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := retired.Activate("c", false, now); !errors.Is(err, secret.ErrNotStaged) {
		t.Errorf("activating what was wiped: %v", err)
	}
	if _, err := retired.Stage(version("b"), "", now); !errors.Is(err, secret.ErrInUse) {
		t.Errorf("staging the current: %v", err)
	}
}

func TestAdoptedVersionsAreNames(t *testing.T) {
	h, err := secret.History{}.Adopt("a", "file:x", now)
	if err != nil || states(h) != "a:current " || h.Generation != 1 || !h.Versions[0].Value.IsZero() || h.Versions[0].CreatedBy != "file:x" {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, tt := range []struct{ id, want string }{
		{"b", "b:current a:previous "}, {"c", "c:current b:previous a:retired "}, {"b", "c:previous b:current a:retired "},
		{"a", "a:current c:retired b:previous "},
	} {
		generation := h.Generation
		if h, err = h.Adopt(tt.id, "file:x", now); err != nil || states(h) != tt.want || h.Generation != generation+1 {
			t.Errorf("%q, %v, want %q", states(h), err, tt.want)
		}
	}
}

func TestRequestsAreRememberedForAWhile(t *testing.T) {
	h := secret.History{Generation: 1}
	for i := range secret.MaxRequests + 5 {
		h = h.With(secret.Request{ID: strconv.Itoa(i), Version: "a"})
	}
	h = h.With(secret.Request{ID: "20", Version: "a", Done: true})
	if _, there := h.Request("4"); there || len(h.Requests) != secret.MaxRequests {
		t.Errorf("%d requests", len(h.Requests))
	}
	if r, there := h.Request("20"); !there || !r.Done || h.Generation != 1 {
		t.Errorf("%+v, %v", r, there)
	}
}

// Two replicas went on from one history without knowing of each other. Nothing that
// may be needed is lost, whichever of them holds.
func TestMergeLosesNothing(t *testing.T) {
	base, _ := secret.History{}.Stage(version("a"), "alice", now)
	base, _ = base.Activate("a", false, now)
	rotated := func(h secret.History, id string) secret.History {
		h, err := h.Stage(version(id), "alice", now)
		if err == nil {
			h, err = h.Activate(id, false, now)
		}
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	staged := func(h secret.History, id string) secret.History {
		h, err := h.Stage(version(id), "bob", now)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	refused := func(h secret.History, id string) secret.History {
		h, err := staged(h, id).Retire(id, now)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	for name, tt := range map[string]struct {
		winner, loser secret.History
		want          string
	}{
		"another rotation":    {rotated(rotated(base, "b"), "c"), rotated(base, "d"), "c:current b:previous a:retired d:pending "},
		"a staged one":        {rotated(base, "b"), staged(base, "d"), "b:current a:previous d:pending "},
		"one from nothing":    {staged(rotated(staged(secret.History{}, "x"), "x"), "y"), rotated(secret.History{}, "a"), "y:pending x:current a:previous "},
		"nothing but a stage": {staged(secret.History{}, "x").Advance().Advance().Advance().Advance(), rotated(base, "d"), "x:pending d:current a:previous "},
		"one staged there":    {staged(refused(refused(secret.History{}, "x"), "y"), "d"), rotated(base, "d"), "y:retired x:retired d:current a:previous "},
		"one refused there":   {refused(refused(refused(secret.History{}, "d"), "x"), "y"), rotated(base, "d"), "y:retired x:retired d:current a:previous "},
		"too much":            {staged(rotated(rotated(base, "b"), "c"), "e"), rotated(base, "d"), "e:pending c:current b:previous a:retired d:retired "},
	} {
		for _, merged := range []secret.History{tt.winner.Merge(tt.loser), tt.loser.Merge(tt.winner)} {
			if states(merged) != tt.want || !merged.Descends(tt.winner) || !merged.Descends(tt.loser) {
				t.Errorf("%s: %q, want %q", name, states(merged), tt.want)
			}
			if _, err := secret.FromStored(merged.Stored()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			for _, r := range merged.Versions {
				if r.Value.IsZero() != (r.State == secret.Retired) {
					t.Errorf("%s: %s, %v: has its value: %v", name, r.ID, r.State, !r.Value.IsZero())
				}
			}
		}
	}
}

// Whatever is done, in whatever order: a history has at most one version in
// each state but retired, never loses what is in force but to another version,
// forgets the values of retired ones, and can be stored and read.
func TestHistoriesStaySane(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h, current := secret.History{}, ""
		ids := rapid.SliceOfN(rapid.StringMatching(`[a-f]{1}`), 1, 6)
		if rapid.Bool().Draw(t, "many") { // more than are remembered
			ids = rapid.Map(rapid.SliceOfN(rapid.IntRange(0, 99), 1, 200), func(numbers []int) []string {
				names := make([]string, len(numbers))
				for i, n := range numbers {
					names[i] = strconv.Itoa(n)
				}
				return names
			})
		}
		for _, id := range ids.Draw(t, "ids") {
			kind := rapid.IntRange(0, 4).Draw(t, "kind")
			next, err := h, error(nil)
			switch kind {
			case 0:
				next, err = h.Stage(version(id), "alice", now)
			case 1:
				next, err = h.Activate(id, rapid.Bool().Draw(t, "drop"), now)
			case 2:
				next, err = h.Retire(id, now)
			case 3:
				next, err = h.Adopt(id, "file:x", now)
			case 4:
				next = h.Advance().With(secret.Request{ID: id, Version: id})
			}
			switch {
			case err != nil && (next.Generation != h.Generation || next.ID != h.ID):
				t.Fatalf("a change that failed (%v) changed the history", err)
			case next.ID != h.ID && next.Generation != h.Generation+1, next.ID == h.ID && next.Generation != h.Generation:
				t.Fatalf("from generation %d to %d", h.Generation, next.Generation)
			}
			h = next
			if h.CurrentID() == "" && current != "" {
				t.Fatal("there is no current version any more")
			}
			current = h.CurrentID()
			if h.Generation == 0 {
				continue
			}
			read, err := secret.FromStored(h.Stored())
			if err != nil {
				t.Fatalf("what was stored cannot be read: %v: %s", err, states(h))
			}
			same := func(a, b secret.Record) bool {
				return a.ID == b.ID && a.State == b.State && a.Value.Equal(b.Value) && a.Since.Equal(b.Since) && a.CreatedBy == b.CreatedBy
			}
			if read.Generation != h.Generation || read.ID != h.ID || !slices.EqualFunc(read.Versions, h.Versions, same) || !slices.Equal(read.Requests, h.Requests) {
				t.Fatalf("read %+v, stored %+v", read, h)
			}
			if len(h.Versions) > secret.MaxRecords {
				t.Fatalf("%d versions are remembered", len(h.Versions))
			}
		}
	})
}

func TestInvalidStoredHistoryIsRefused(t *testing.T) {
	h, _ := secret.History{}.Stage(version("a"), "alice", now)
	good := string(h.Stored())
	if _, err := secret.FromStored([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"nothing":                   "",
		"no JSON":                   "{",
		"another form":              `{"v":2,"generation":1,"versions":"of another type"}`,
		"no generation":             `{"v":1,"id":"x"}`,
		"two current":               `{"v":1,"generation":1,"versions":[{"id":"a","state":2},{"id":"b","state":2}]}`,
		"a version twice":           `{"v":1,"generation":1,"versions":[{"id":"a","state":2},{"id":"a","state":3}]}`,
		"an unknown state":          `{"v":1,"generation":1,"versions":[{"id":"a","state":5}]}`,
		"a retired one has a value": `{"v":1,"generation":1,"versions":[{"id":"a","state":4,"value":"aHVudGVyMg=="}]}`,
	} {
		got, err := secret.FromStored([]byte(bad))
		if err == nil {
			t.Errorf("%s: %+v", name, got)
		}
		if later := name == "another form"; err != nil && strings.Contains(err.Error(), "newer version") != later {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Values are bytes of any kind.
func TestStoredValuesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := string(rapid.SliceOfN(rapid.Byte(), 1, 200).Draw(t, "value"))
		h, err := secret.History{}.Stage(secret.Version{ID: "a", Value: redact.New(value)}, "alice", now)
		if err != nil {
			t.Fatal(err)
		}
		read, err := secret.FromStored(h.Stored())
		if err != nil || read.Versions[0].Value.Reveal() != value {
			t.Fatalf("%q, %v", read.Versions[0].Value.Reveal(), err)
		}
	})
}
