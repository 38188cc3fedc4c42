package audit_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/audit"
)

// readAll returns the entries and the messages about bad lines.
func readAll(t *testing.T, text string) (entries []audit.Entry, bad []string) {
	t.Helper()
	r, err := audit.NewReader(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for {
		entry, err := r.Next()
		lineErr, isBad := errors.AsType[*audit.LineError](err)
		switch {
		case errors.Is(err, io.EOF):
			return entries, bad
		case isBad:
			bad = append(bad, lineErr.Error())
		case err != nil:
			t.Fatal(err)
		default:
			entries = append(entries, entry)
		}
	}
}

func TestReaderReadsWhatTheLogWrites(t *testing.T) {
	at := time.Date(2026, 11, 25, 21, 49, 5, 123456000, time.UTC)
	e := audit.Event{
		Event: audit.Token, Outcome: audit.Denied, Caller: "a\u202eb\"\n", Action: "x", Reason: "NOT_ENTITLED", Client: "orders", Issuer: "https://i",
		Audiences: []string{"a"}, Resources: []string{"r1", "r2"}, Scopes: []string{"s"}, GrantedScopes: []string{"g"}, Subject: "user",
		ConfigSHA256: [32]byte{1}, Count: 7,
	}
	text := audit.Line("replica", &e, at)
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := io.WriteString(zip, text); err != nil || zip.Close() != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"plain": text, "no line end": strings.TrimSuffix(text, "\n"), "gzip": packed.String()} {
		t.Run(name, func(t *testing.T) {
			entries, bad := readAll(t, text)
			if len(bad) > 0 || len(entries) != 1 {
				t.Fatalf("%d entries, bad: %q", len(entries), bad)
			}
			got := entries[0]
			if !got.Current() || got.Times() != 7 || !got.Time.Equal(at) || got.Event != e.Event || got.Outcome != e.Outcome || got.Caller != e.Caller ||
				got.Action != e.Action || got.Reason != e.Reason || got.Client != e.Client || got.Issuer != e.Issuer || !strings.HasPrefix(got.ConfigSHA256, "0100") ||
				!slices.Equal(got.Audiences, e.Audiences) || !slices.Equal(got.Resources, e.Resources) || !slices.Equal(got.Scopes, e.Scopes) || !slices.Equal(got.GrantedScopes, e.GrantedScopes) {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestReaderReportsBadLinesAndContinues(t *testing.T) {
	good := audit.Line("r", &audit.Event{Event: audit.Start}, time.Now())
	for name, test := range map[string]struct{ line, want string }{
		"cut off":         {good[:40] + "\n", "not a JSON object"},
		"empty":           {"\n", "not a JSON object"},
		"a list":          {"[]\n", "not a JSON object"},
		"zeros":           {"\x00\x00\x00\n", "not a JSON object"},
		"another program": {`{"time":"2026-11-25T21:49:05.123456Z","level":"INFO"}` + "\n", `"v" is missing`},
		"no event":        {`{"v":1,"time":"2026-11-25T21:49:05.123456Z"}` + "\n", `"event" or "time" is missing`},
		"a wrong type":    {`{"v":1,"time":"2026-11-25T21:49:05.123456Z","event":"token","scopes":"read"}` + "\n", `"scopes" has the wrong type`},
		"no time":         {`{"v":1,"time":"yesterday","event":"token"}` + "\n", `"time" is not a time`},
		"too long":        {strings.Repeat("x", 5<<20) + "\n", "longer than 4 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			entries, bad := readAll(t, good+test.line+good)
			if len(entries) != 2 || len(bad) != 1 || !strings.HasPrefix(bad[0], "line 2: ") || !strings.Contains(bad[0], test.want) {
				t.Errorf("%d entries, bad: %q", len(entries), bad)
			}
		})
	}
	if entries, bad := readAll(t, good+good[:40]); len(entries) != 1 || len(bad) != 1 || !strings.HasPrefix(bad[0], "line 2: ") {
		t.Errorf("the last line is cut off: %d entries, bad: %q", len(entries), bad)
	}
}

func TestReaderKnowsOtherFormats(t *testing.T) {
	const head = `,"replica":"r","time":"2026-11-25T21:49:05.123456Z","event":"token","outcome":"ok"`
	for _, line := range []string{`{"v":2` + head + `}`, `{"v":1` + head + `,"audience":["a"]}`, `{"v":1` + head + `,"granted":["s"]}`, `{"v":1` + head + `,"source":"memory"}`} {
		if entries, bad := readAll(t, line); len(bad) > 0 || len(entries) != 1 || entries[0].Current() {
			t.Errorf("%s: %+v, bad: %q", line, entries, bad)
		}
	}
}
