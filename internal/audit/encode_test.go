package audit_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/escape"
)

// line is a line as encoding/json writes and reads it.
type line struct {
	V             int      `json:"v"`
	Replica       string   `json:"replica"`
	Time          string   `json:"time"`
	Event         string   `json:"event"`
	Outcome       string   `json:"outcome,omitempty"`
	Caller        string   `json:"caller,omitempty"`
	Peer          string   `json:"peer,omitempty"`
	Action        string   `json:"action,omitempty"`
	RequestID     string   `json:"request_id,omitempty"`
	Reason        string   `json:"reason,omitempty"`
	Rejection     string   `json:"rejection,omitempty"`
	Detail        string   `json:"detail,omitempty"`
	Comment       string   `json:"comment,omitempty"`
	Client        string   `json:"client,omitempty"`
	Audiences     []string `json:"audiences,omitempty"`
	Resources     []string `json:"resources,omitempty"`
	Scopes        []string `json:"scopes,omitempty"`
	GrantedScopes []string `json:"granted_scopes,omitempty"`
	TokenSHA256   string   `json:"token_sha256,omitempty"`
	ExpiresAt     string   `json:"expires_at,omitempty"`
	IssuedBefore  string   `json:"issued_before,omitempty"`
	Origin        string   `json:"origin,omitempty"`
	Degraded      bool     `json:"degraded,omitempty"`
	Issuer        string   `json:"issuer,omitempty"`
	Subject       string   `json:"subject,omitempty"`
	SubjectType   string   `json:"subject_type,omitempty"`
	Actors        []string `json:"actors,omitempty"`
	ClientID      string   `json:"client_id,omitempty"`
	TokenID       string   `json:"token_id,omitempty"`
	Revocation    string   `json:"revocation,omitempty"`

	SecretVersion string `json:"secret_version,omitempty"`
	Step          string `json:"step,omitempty"`
	Version       string `json:"version,omitempty"`
	ConfigSHA256  string `json:"config_sha256,omitempty"`
	Count         uint64 `json:"count,omitempty"`
	Since         string `json:"since,omitempty"`
}

// expected is the line of an event by encoding/json.
func expected(t testing.TB, replica string, e *audit.Event, now time.Time) string {
	t.Helper()
	at := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format("2006-01-02T15:04:05.000000Z")
	}
	digest := func(d [32]byte) string {
		if d == [32]byte{} {
			return ""
		}
		return hex.EncodeToString(d[:])
	}
	when := e.Time
	if when.IsZero() {
		when = now
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(line{
		V: 1, Replica: replica, Time: at(when), Event: string(e.Event), Outcome: string(e.Outcome),
		Caller: e.Caller, Peer: e.Peer, Action: e.Action, RequestID: e.RequestID,
		Reason: e.Reason, Rejection: e.Rejection, Detail: e.Detail, Comment: e.Comment,
		Client: e.Client, Audiences: e.Audiences, Resources: e.Resources, Scopes: e.Scopes, GrantedScopes: e.GrantedScopes,
		TokenSHA256: digest(e.TokenSHA256), ExpiresAt: at(e.ExpiresAt), IssuedBefore: at(e.IssuedBefore),
		Origin: e.Origin, Degraded: e.Degraded, Issuer: e.Issuer, Subject: e.Subject, SubjectType: e.SubjectType, Actors: e.Actors, ClientID: e.ClientID, TokenID: e.TokenID,
		Revocation: e.Revocation, SecretVersion: e.SecretVersion, Step: e.Step, Version: e.Version, ConfigSHA256: digest(e.ConfigSHA256),
		Count: e.Count, Since: at(e.Since),
	})
	if err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	if _, err := escape.NewWriter(&shown).Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	return shown.String()
}

// everything has a value in each field.
func everything() *audit.Event {
	at := time.Date(2026, 11, 25, 21, 49, 5, 123456789, time.FixedZone("", 3600))
	return &audit.Event{
		Event: audit.Token, Outcome: audit.OK, Time: at, Caller: "checkout", Peer: "10.1.2.3:4567", Action: "purge_tokens",
		RequestID: "4b1e", Reason: "NOT_ENTITLED", Rejection: "wrong_audience", Detail: "because", Comment: "ticket 123", Client: "orders-api", Audiences: []string{"https://orders.example.com"},
		Resources: []string{"a", "b"}, Scopes: []string{"read"}, GrantedScopes: []string{"read", "write"}, TokenSHA256: [32]byte{1, 2, 255},
		ExpiresAt: at.Add(time.Hour), IssuedBefore: at.Add(-time.Hour), Origin: "memory", Degraded: true, Issuer: "https://login.example.com",
		Subject: "248289761001", SubjectType: "client_id", Actors: []string{"web", "mobile"}, ClientID: "s6BhdRkqt3", TokenID: "5f2c", Revocation: "abc", SecretVersion: "1a2b3c4d", Step: "activate",
		Version: "v1.2.3", ConfigSHA256: [32]byte{9}, Count: 42, Since: at.Add(-time.Minute),
	}
}

func TestLineMatchesEncodingJSON(t *testing.T) {
	now := time.Now()
	for _, e := range []*audit.Event{{}, {Event: audit.Start}, everything()} {
		if got, want := audit.Line("host/abc", e, now), expected(t, "host/abc", e, now); got != want {
			t.Errorf("line:\n%swant:\n%s", got, want)
		}
	}
}

// The event of the test above has a value in each field, of whatever is added to
// it later too.
func TestEachFieldIsTested(t *testing.T) {
	e := reflect.ValueOf(everything()).Elem()
	for i := range e.NumField() {
		if e.Field(i).IsZero() {
			t.Errorf("%s has no value in this test", e.Type().Field(i).Name)
		}
	}
	if events, lines := e.NumField(), reflect.TypeFor[line]().NumField(); lines != events+2 { // v and replica
		t.Errorf("an event has %d fields, a line %d", events, lines)
	}
}

func FuzzLine(f *testing.F) {
	for _, text := range []string{
		"plain", "", "\"quoted\\\"", "\x00\x01\x1f\x7f", "\b\f\n\r\t", "\u2028\u2029\u202a", "a\u202eb\u200bc\U000e0041", "<script>&", "ä€\U0001F600", "\xff\xfe", "a\xc3", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\ufffd",
	} {
		f.Add(text, text, uint64(7))
	}
	f.Fuzz(func(t *testing.T, a, b string, n uint64) {
		now := time.Unix(int64(n%250e9), int64(n%1e9))
		e := &audit.Event{Event: audit.Name(a), Outcome: audit.Outcome(b), Caller: a, Detail: b, Comment: a, RequestID: b, Scopes: []string{a, b, ""}, TokenSHA256: [32]byte{byte(n)}, Count: n}
		got, want := audit.Line(b, e, now), expected(t, b, e, now)
		if got != want {
			t.Errorf("line:\n%swant:\n%s", got, want)
		}
		if strings.IndexByte(got, '\n') != len(got)-1 {
			t.Errorf("a line of several lines: %q", got)
		}
		if strings.ContainsFunc(got[:len(got)-1], escape.Hidden) {
			t.Errorf("a line with characters that nobody sees: %q", got)
		}
	})
}

// fields are those of a line, in its order.
func fields() (names []string) {
	for field := range reflect.TypeFor[line]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

func TestDocumentationNamesEveryField(t *testing.T) {
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "## The fields")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\|").FindAllStringSubmatch(section, -1) {
		documented = append(documented, row[1])
	}
	if !slices.Equal(documented, fields()) {
		t.Errorf("docs/audit.md has the fields\n%v\nwant\n%v", documented, fields())
	}
}

func TestSchemaMatchesTheFields(t *testing.T) {
	schema := schema(t)
	var properties []string
	for name := range schema.Properties {
		properties = append(properties, name)
	}
	want := fields()
	slices.Sort(want)
	slices.Sort(properties)
	if !slices.Equal(properties, want) {
		t.Errorf("docs/audit.schema.json has the properties\n%v\nwant\n%v", properties, want)
	}
	valid(t, schema, audit.Line("host/abc", everything(), time.Now()))
	// Later versions add events, outcomes, origins, steps and fields.
	valid(t, schema, `{"v":1,"replica":"a","time":"2026-11-25T21:49:05.123456Z","event":"exchange","outcome":"deferred","origin":"exchanged","subject_type":"device","step":"sign","actor":"checkout"}`)
	for _, wrong := range []string{
		`{}`, `{"v":2,"replica":"a","time":"2026-11-25T21:49:05.123456Z","event":"start"}`, `{"v":1,"replica":"a","time":"yesterday","event":"start"}`,
		`{"v":1,"replica":"a","time":"2026-11-25T21:49:05.123456Z","event":"start","count":0}`,
	} {
		if schema.Validate(decoded(t, wrong)) == nil {
			t.Errorf("the schema accepts %s", wrong)
		}
	}
}

// The lines that the documentation shows are lines of the format.
func TestDocumentedLinesMatchTheSchema(t *testing.T) {
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile(`(?m)^\{"v":.*$`).FindAllString(string(text), -1)
	if len(lines) < 3 {
		t.Errorf("only %d lines", len(lines))
	}
	schema := schema(t)
	for _, one := range lines {
		valid(t, schema, one)
		decoder := json.NewDecoder(strings.NewReader(one))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(new(line)); err != nil {
			t.Errorf("%v: %s", err, one)
		}
	}
}

func schema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	compiled, err := jsonschema.NewCompiler().Compile("../../docs/audit.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func decoded(t *testing.T, text string) any {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return value
}

func valid(t *testing.T, schema *jsonschema.Schema, line string) {
	t.Helper()
	if err := schema.Validate(decoded(t, line)); err != nil {
		t.Errorf("%v: %s", err, line)
	}
}

func BenchmarkLine(b *testing.B) {
	l, err := audit.Open(audit.Config{File: "/dev/null"})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	e := everything()
	e.Time = time.Time{}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l.Record(e)
		}
	})
}
