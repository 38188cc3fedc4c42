package idp_test

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/token"
)

// FuzzAnswer feeds bodies to a Client: whatever comes, it is a bounded grant or
// a classified error that shows nothing of it.
func FuzzAnswer(f *testing.F) {
	seeds := []struct {
		contentType, body string
	}{
		{jsonType, good},
		{jsonType, `{"access_token":"tok","expires_in":"3599.5","refresh_in":1800,"scope":["b","a"],"token_type":"bearer","instance_url":"https://x.example"}`},
		{jsonType, `{"access_token":"` + jwtOf(`{"exp":4102444800}`) + `"}`},
		{jsonType, `{"access_token":"tok","expires_in":1e999}`},
		{jsonType, `{"access_token":"tok","expires_in":-0}`},
		{jsonType, `{"access_token":"t\u0000k"}`},
		{jsonType, `{"access_token":"tok","access_token":"tok"}`},
		{jsonType, `{"access_token":"tok","token_type":"DPoP"}`},
		{jsonType, `{"error":"invalid_client","error_description":"` + strings.Repeat("words ", 20) + `"}`},
		{jsonType, `{"error":{"code":1}}`},
		{jsonType, `[{}]`},
		{jsonType, `{"access_token":`},
		{"application/x-www-form-urlencoded", `access_token=tok&expires_in=60&scope=a+b`},
		{"text/plain", `error=invalid_scope`},
		{"text/plain;;", `access_token=%zz`},
		{"text/html", `<html>`},
		{"", ``},
		{"", "\xff\xfe{\x00"},
	}
	for _, seed := range seeds {
		for _, status := range []int{200, 400, 401, 429} {
			f.Add(status, seed.contentType, seed.body)
		}
	}
	f.Fuzz(func(t *testing.T, status int, contentType, body string) {
		if status < 200 || status > 501 {
			t.Skip("no status of an answer, or one that is tried again after a pause")
		}
		c := client(t, idp.Config{TokenURL: "https://idp.example/token", Extras: []string{"instance_url", "scope"},
			HTTP: discovery.NewHTTPClient(transport(func(*http.Request) (*http.Response, error) {
				header := http.Header{"Content-Type": {contentType}}
				return &http.Response{StatusCode: status, Header: header, Body: io.NopCloser(strings.NewReader(body))}, nil
			}))})
		grant, err := c.Fetch(t.Context(), version, idp.Request{Scopes: []string{"b", "a"}})
		if err != nil {
			checkFault(t, err, body)
			return
		}
		checkGrant(t, grant)
		if status >= 300 {
			t.Errorf("a token came with HTTP %d", status)
		}
	})
}

func checkFault(t *testing.T, err error, body string) {
	t.Helper()
	fault := isFault(t, err, idp.ClassOf(err), "the token endpoint https://idp.example/token ")
	const longestCode = 32
	if len(body) > longestCode && strings.Contains(printed(err), body) {
		t.Errorf("the error shows the body: %v", err)
	}
	if (fault.Class == idp.Throttled) != (fault.Status == http.StatusTooManyRequests) || fault.RetryAfter > 5*time.Minute {
		t.Errorf("%+v", fault)
	}
}

func checkGrant(t *testing.T, grant token.Grant) {
	t.Helper()
	value := grant.Value.Reveal()
	if value == "" || len(value) > 16<<10 || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) {
		t.Errorf("token %q", value)
	}
	if grant.Type != "Bearer" || grant.Lifetime <= 0 || grant.Lifetime > token.MaxLifetime || grant.RefreshIn < 0 || grant.RefreshIn > token.MaxLifetime {
		t.Errorf("%+v", grant)
	}
	if !slices.IsSorted(grant.Scopes) || len(slices.Compact(slices.Clone(grant.Scopes))) != len(grant.Scopes) {
		t.Errorf("scopes %q", grant.Scopes)
	}
	for name, text := range grant.Extras {
		if len(text) > 1<<10 || name != "instance_url" && name != "scope" {
			t.Errorf("extra %q: %d bytes", name, len(text))
		}
	}
}

// FuzzAnswerMember adds a member to a good answer: one that the broker does not read
// costs nothing, and one that it reads never changes the token.
func FuzzAnswerMember(f *testing.F) {
	for _, name := range []string{"x", "access_token", "token_type", "expires_in", "scope", "cnf", "error", "instance_url", "Access_Token"} {
		for _, value := range []string{`null`, `""`, `false`, `1`, `"DPoP"`, `{"jkt":"x"}`, `[{"a":1,"a":2}]`, "\"\xff\""} {
			f.Add(name, value)
		}
	}
	read := []string{"access_token", "token_type", "expires_in", "refresh_in", "scope", "cnf", "error", "active", "exp", "iat"}
	f.Fuzz(func(t *testing.T, name, value string) {
		quoted, err := json.Marshal(name)
		if err != nil || !json.Valid([]byte(value)) || len(value) > 10_000 {
			return
		}
		_ = json.Unmarshal(quoted, &name) // as it is read, in sound Unicode
		body := good[:len(good)-1] + "," + string(quoted) + ":" + value + "}"
		c := client(t, idp.Config{TokenURL: "https://idp.example/token", HTTP: discovery.NewHTTPClient(transport(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {jsonType}}, Body: io.NopCloser(strings.NewReader(body))}, nil
		}))})
		grant, err := c.Fetch(t.Context(), version, idp.Request{})
		switch {
		case err != nil && !slices.Contains(read, name):
			t.Errorf("%s: %v", body, err)
		case err == nil && grant.Value.Reveal() != "tok":
			t.Errorf("%s: another token is taken", body)
		case err == nil && name == "cnf" && value != "null":
			t.Errorf("%s: a bound token is taken", body)
		}
	})
}
