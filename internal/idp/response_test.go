package idp_test

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/token"
)

func TestOrdinaryAnswer(t *testing.T) {
	start := time.Now()
	grant := granted(t, idp.Config{}, `{"access_token":"tok","token_type":"Bearer","expires_in":3600,"scope":"write read"}`)
	if grant.RequestedAt.Before(start) || grant.RequestedAt.After(time.Now()) {
		t.Errorf("asked at %v", grant.RequestedAt)
	}
	want := token.Grant{Value: redact.New("tok"), Type: "Bearer", Scopes: []string{"read", "write"}, SecretVersion: "v1", Lifetime: time.Hour}
	same := cmp.Comparer(func(a, b redact.String) bool { return a.Equal(b) })
	if diff := cmp.Diff(want, grant, same, cmpopts.IgnoreFields(token.Grant{}, "RequestedAt")); diff != "" {
		t.Error(diff)
	}
}

func TestExpiresIn(t *testing.T) {
	for name, tt := range map[string]struct {
		member string
		want   time.Duration
	}{
		"a number":                        {`,"expires_in":3599`, 3599 * time.Second},
		"a string":                        {`,"expires_in":"3599"`, 3599 * time.Second},
		"a float":                         {`,"expires_in":3599.0`, 3599 * time.Second},
		"a float with a fraction":         {`,"expires_in":3599.5`, 3599*time.Second + 500*time.Millisecond},
		"a numeric string and a fraction": {`,"expires_in":"3599.5"`, 3599*time.Second + 500*time.Millisecond},
		"a number with an exponent":       {`,"expires_in":3.6e3`, time.Hour},
		"a string with spaces":            {`,"expires_in":" 60 "`, time.Minute},
		"missing":                         {``, token.DefaultLifetime},
		"null":                            {`,"expires_in":null`, token.DefaultLifetime},
		"an empty string":                 {`,"expires_in":""`, token.DefaultLifetime},
		"an array":                        {`,"expires_in":[3600]`, token.DefaultLifetime},
		"an object":                       {`,"expires_in":{"s":3600}`, token.DefaultLifetime},
		"a boolean":                       {`,"expires_in":true`, token.DefaultLifetime},
		"words":                           {`,"expires_in":"one hour"`, token.DefaultLifetime},
		"not a number":                    {`,"expires_in":"NaN"`, token.DefaultLifetime},
		"a name in another case":          {`,"Expires_In":3599`, token.DefaultLifetime},
		"a day and a second":              {`,"expires_in":86401`, token.MaxLifetime},
		"huge":                            {`,"expires_in":9223372036854775807`, token.MaxLifetime},
		"huge, as a string":               {`,"expires_in":"99999999999999999999999"`, token.MaxLifetime},
		"out of a float's range":          {`,"expires_in":1e999`, token.MaxLifetime},
	} {
		t.Run(name, func(t *testing.T) {
			grant := granted(t, idp.Config{}, `{"access_token":"tok","token_type":"Bearer"`+tt.member+`}`)
			if grant.Lifetime != tt.want {
				t.Errorf("the lifetime is %v, want %v", grant.Lifetime, tt.want)
			}
		})
	}
	for name, value := range map[string]string{
		"zero": `0`, "zero, as a string": `"0"`, "negative": `-1`, "negative, as a string": `"-3600"`, "huge and negative": `-1e999`, "less than a clock's tick": `1e-12`,
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, grants(`{"access_token":"tok","expires_in":`+value+`}`), idp.Transient, "has already expired (expires_in is not positive)")
		})
	}
}

func TestDefaultLifetimeIsTheClients(t *testing.T) {
	if grant := granted(t, idp.Config{DefaultLifetime: time.Hour}, `{"access_token":"tok"}`); grant.Lifetime != time.Hour {
		t.Errorf("the lifetime is %v", grant.Lifetime)
	}
}

func jwtOf(payload string) string {
	return "e30." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".sig"
}

func TestMissingExpiresInIsBoundedByTheTokensOwnExp(t *testing.T) {
	now := time.Now().Unix()
	answer := func(value string) string { return fmt.Sprintf(`{"access_token":%q}`, value) }
	for name, tt := range map[string]struct {
		value string
		want  time.Duration
	}{
		"exp in a minute":             {jwtOf(fmt.Sprintf(`{"exp":%d}`, now+60)), time.Minute},
		"exp in a minute, as a float": {jwtOf(fmt.Sprintf(`{"exp":%d.5}`, now+60)), time.Minute},
		"exp in an hour":              {jwtOf(fmt.Sprintf(`{"exp":%d}`, now+3600)), token.DefaultLifetime},
		"no exp":                      {jwtOf(`{"sub":"a"}`), token.DefaultLifetime},
		"exp that is no number":       {jwtOf(`{"exp":{}}`), token.DefaultLifetime},
		"no JSON":                     {jwtOf(`exp`), token.DefaultLifetime},
		"a JSON array":                {jwtOf(`[1]`), token.DefaultLifetime},
		"no base64":                   {"a.%%%.c", token.DefaultLifetime},
		"two parts":                   {"a.b", token.DefaultLifetime},
		"five parts":                  {jwtOf(fmt.Sprintf(`{"exp":%d}`, now+60)) + ".d.e", token.DefaultLifetime},
	} {
		t.Run(name, func(t *testing.T) {
			grant := granted(t, idp.Config{}, answer(tt.value))
			if d := tt.want - grant.Lifetime; d < -time.Second || d > 2*time.Second {
				t.Errorf("the lifetime is %v, want about %v", grant.Lifetime, tt.want)
			}
		})
	}
	t.Run("exp in the past", func(t *testing.T) {
		refused(t, grants(answer(jwtOf(fmt.Sprintf(`{"exp":%d}`, now-1)))), idp.Transient, "already expired")
	})
}

// Both clocks may be wrong, the IdP's and the broker's: the tokens here are of another year.
func TestExpOfTheTokenShortensExpiresIn(t *testing.T) {
	date := time.Date(2001, time.February, 3, 4, 5, 6, 0, time.UTC)
	at := func(d time.Duration) int64 { return date.Add(d).Unix() }
	for name, tt := range map[string]struct {
		payload string
		noDate  bool
		want    time.Duration // zero: refused as expired
	}{
		"earlier by the Date":             {payload: fmt.Sprintf(`{"exp":%d}`, at(time.Minute)), want: time.Minute},
		"later by the Date":               {payload: fmt.Sprintf(`{"exp":%d}`, at(9*time.Hour)), want: time.Hour},
		"earlier by the Date than by iat": {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(-50*time.Minute), at(10*time.Minute)), want: 10 * time.Minute},
		"earlier by iat than by the Date": {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(30*time.Minute), at(50*time.Minute)), want: 20 * time.Minute},
		"earlier by iat, without a Date":  {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(0), at(time.Minute)), noDate: true, want: time.Minute},
		"as a text":                       {payload: fmt.Sprintf(`{"iat":%d,"exp":"%d"}`, at(0), at(time.Minute)), want: time.Minute},
		"a second earlier, which is none": {payload: fmt.Sprintf(`{"exp":%d}`, at(time.Hour-time.Second)), want: time.Hour},
		"two seconds earlier":             {payload: fmt.Sprintf(`{"exp":%d}`, at(time.Hour-2*time.Second)), want: time.Hour - 2*time.Second},
		"without a Date and iat":          {payload: fmt.Sprintf(`{"exp":%d}`, at(time.Minute)), noDate: true, want: time.Hour},
		"zero, for never":                 {payload: `{"exp":0}`, want: time.Hour},
		"null":                            {payload: `{"exp":null}`, want: time.Hour},
		"no time":                         {payload: `{"exp":"soon"}`, want: time.Hour},
		"with an iat that is no time":     {payload: fmt.Sprintf(`{"iat":"now","exp":%d}`, at(time.Minute)), want: time.Minute},
		"repeated at its end":             {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(-time.Hour), at(5*time.Second)), want: 4 * time.Second},
		"new and short":                   {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(0), at(5*time.Second)), want: 5 * time.Second},
		"repeated in its last second":     {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(-time.Hour), at(time.Second))},
		"passed by the Date":              {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(-time.Hour), at(-time.Second))},
		"at the Date":                     {payload: fmt.Sprintf(`{"exp":%d}`, at(0))},
		"before iat, without a Date":      {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(0), at(-time.Second)), noDate: true},
		"in milliseconds, so far away":    {payload: fmt.Sprintf(`{"iat":%d,"exp":%d}`, at(0), at(time.Minute)*1000), want: time.Hour},
		"with a fraction, without a Date": {payload: fmt.Sprintf(`{"iat":%d.25,"exp":%d.75}`, at(0), at(time.Minute)), noDate: true, want: time.Minute + 500*time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			answer := func(w http.ResponseWriter, _ *http.Request) {
				w.Header()["Date"] = []string{date.Format(http.TimeFormat)}
				if tt.noDate {
					w.Header()["Date"] = nil
				}
				fmt.Fprintf(w, `{"access_token":%q,"expires_in":3600}`, jwtOf(tt.payload))
			}
			if tt.want == 0 {
				refused(t, answer, idp.Transient, "has already expired")
				return
			}
			grant, err := fetch(t, idp.Config{}, answer)
			if err != nil || grant.Lifetime != tt.want {
				t.Errorf("the lifetime is %v, want %v: %v", grant.Lifetime, tt.want, err)
			}
		})
	}
}

func TestTokenType(t *testing.T) {
	for name, member := range map[string]string{
		"canonical": `,"token_type":"Bearer"`, "lower case": `,"token_type":"bearer"`, "upper case": `,"token_type":"BEARER"`,
		"missing": ``, "null": `,"token_type":null`, "empty": `,"token_type":""`, "with a space": `,"token_type":"bearer "`,
	} {
		t.Run(name, func(t *testing.T) {
			if grant := granted(t, idp.Config{}, `{"access_token":"tok","expires_in":60`+member+`}`); grant.Type != "Bearer" {
				t.Errorf("the type is %q", grant.Type)
			}
		})
	}
	for name, tt := range map[string]struct{ value, says string }{
		"DPoP":            {`"DPoP"`, "bound to a key (DPoP)"},
		"dpop":            {`"dpop"`, "bound to a key (DPoP)"},
		"N_A":             {`"N_A"`, "not access tokens"},
		"mac":             {`"mac"`, "the type mac"},
		"unknown":         {`"canary"`, "an unknown type"},
		"a number":        {`1`, "an unknown type"},
		"an array":        {`["Bearer"]`, "an unknown type"},
		"Bearer and more": {`"Bearer canary"`, "an unknown type"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, grants(`{"access_token":"tok","expires_in":60,"token_type":`+tt.value+`}`), idp.Misconfigured, tt.says)
		})
	}
}

func TestBearerTypesAreTakenForBearer(t *testing.T) {
	cfg := idp.Config{BearerTypes: []string{"BearerToken", "urn:ietf:params:oauth:token-type:access_token"}}
	for _, name := range []string{"BearerToken", "bearertoken", "urn:ietf:params:oauth:token-type:access_token", "Bearer"} {
		if grant := granted(t, cfg, `{"access_token":"tok","token_type":"`+name+`"}`); grant.Type != "Bearer" {
			t.Errorf("%s is handed out as %q", name, grant.Type)
		}
	}
	for value, says := range map[string]string{`"jwt"`: "unknown type", `"DPoP"`: "bound to a key", `"N_A"`: "not access tokens", `["BearerToken"]`: "unknown type"} {
		_, err := fetch(t, cfg, grants(`{"access_token":"tok","token_type":`+value+`}`))
		isFault(t, err, idp.Misconfigured, says)
	}
	_, err := fetch(t, cfg, grants(`{"access_token":"tok","token_type":"BearerToken","cnf":{"jkt":"abc"}}`))
	isFault(t, err, idp.Misconfigured, "bound to a certificate or a key")
}

func TestBearerTypesMustNotNameOtherKindsOfTokens(t *testing.T) {
	for _, name := range []string{"DPoP", "dpop ", "MAC", "pop", "n_a"} {
		if _, err := idp.New(idp.Config{ClientID: "a", TokenURL: "https://login.example.com", BearerTypes: []string{name}}); err == nil {
			t.Errorf("%q is accepted", name)
		}
	}
}

func TestAccessToken(t *testing.T) {
	longest := strings.Repeat("t", 16<<10)
	for name, tt := range map[string]struct{ member, want string }{
		"all characters that it may have": {`"access_token":" !\"#$%&'()*+,-./:;<=>?@[\\]^_{|}~"`, ` !"#$%&'()*+,-./:;<=>?@[\]^_{|}~`},
		"escaped":                         {`"access_token":"\u0074ok"`, "tok"},
		"of the greatest length":          {`"access_token":"` + longest + `"`, longest},
	} {
		t.Run(name, func(t *testing.T) {
			if grant := granted(t, idp.Config{}, `{`+tt.member+`,"expires_in":60}`); grant.Value.Reveal() != tt.want {
				t.Error("the token is another")
			}
		})
	}
	for name, tt := range map[string]struct {
		member, says string
		class        idp.Class
	}{
		"missing":             {`"x":1`, "without an access_token", idp.RequestRefused},
		"null":                {`"access_token":null`, "without an access_token", idp.RequestRefused},
		"in another case":     {`"Access_Token":"tok"`, "without an access_token", idp.RequestRefused},
		"empty":               {`"access_token":""`, "without an access_token", idp.RequestRefused},
		"a number":            {`"access_token":5`, "not a string", idp.Transient},
		"an array":            {`"access_token":["tok"]`, "not a string", idp.Transient},
		"an object":           {`"access_token":{"value":"tok"}`, "not a string", idp.Transient},
		"with a line end":     {`"access_token":"tok\r\nX-Header: canary"`, "characters that are not allowed", idp.Transient},
		"with a NUL":          {`"access_token":"tok\u0000"`, "characters that are not allowed", idp.Transient},
		"with DEL":            {`"access_token":"tok\u007f"`, "characters that are not allowed", idp.Transient},
		"beyond ASCII":        {`"access_token":"tök"`, "characters that are not allowed", idp.Transient},
		"that is not UTF-8":   {"\"access_token\":\"t\xffk\"", "characters that are not allowed", idp.Transient},
		"longer than allowed": {`"access_token":"` + longest + `t"`, "more than 16384 bytes", idp.Misconfigured},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, grants(`{`+tt.member+`,"expires_in":60}`), tt.class, tt.says)
		})
	}
}

func TestBodiesThatAreNoJSONObject(t *testing.T) {
	const form, text, html, jsonType = "application/x-www-form-urlencoded", "text/plain; charset=utf-8", "text/html", "application/json"
	const inForm = "access_token=tok&token_type=bearer&expires_in=60&scope=read+write"
	for name, tt := range map[string]struct{ contentType, body string }{
		"form":                             {form, inForm},
		"form, declared as text":           {text, inForm},
		"form, undeclared":                 {"", inForm},
		"form, oddly declared":             {"application/x-www-form-urlencoded;;", inForm},
		"JSON, declared as text":           {text, good},
		"JSON, declared as HTML":           {html, good},
		"JSON, declared as form":           {form, good},
		"JSON among white space":           {jsonType, "\r\n\t " + good + " \n"},
		"JSON after a byte order mark":     {jsonType, "\ufeff" + good},
		"a form after a byte order mark":   {form, "\ufeff" + inForm},
		"JSON that repeats what is unread": {jsonType, good[:len(good)-1] + `,"x":1,"x":{"y":1,"y":2}}`},
		"JSON, with text that's no UTF-8":  {jsonType, "{\"access_token\":\"tok\",\"x\":\"\xff\"}"},
	} {
		t.Run(name, func(t *testing.T) {
			grant, err := fetch(t, idp.Config{}, answers(200, tt.contentType, tt.body))
			if err != nil || grant.Value.Reveal() != "tok" || grant.Type != "Bearer" {
				t.Fatalf("%v %v", grant.Type, err)
			}
			if diff := cmp.Diff([]string{"read", "write"}, grant.Scopes); diff != "" {
				t.Error(diff)
			}
			if strings.HasPrefix(name, "form") && grant.Lifetime != time.Minute {
				t.Errorf("the lifetime is %v", grant.Lifetime)
			}
		})
	}
	for name, tt := range map[string]struct{ contentType, body, says string }{
		"a login page":            {html, "<html>canary</html>", "neither"},
		"a login page as text":    {text, "<html>canary=1&x</html>", "neither"},
		"a form declared as HTML": {html, inForm, "neither"},
		"a form declared as JSON": {jsonType, inForm, "neither"},
		"a token alone":           {text, "canary", "neither"},
		"a form that is broken":   {form, "access_token=%zz", "neither"},
		"a form member twice":     {form, inForm + "&access_token=canary", "neither"},
		"nothing":                 {jsonType, "", "is empty"},
		"white space":             {jsonType, " \r\n", "is empty"},
		"an array":                {jsonType, "[" + good + "]", "neither"},
		"a string":                {jsonType, `"tok"`, "neither"},
		"null":                    {jsonType, `null`, "neither"},
		"truncated JSON":          {jsonType, good[:len(good)-5], "not valid JSON"},
		"JSON and more":           {jsonType, good + "canary", "not valid JSON"},
		"a member twice":          {jsonType, `{"access_token":"tok","access_token":"canary"}`, "repeats a member"},
		"a type twice":            {jsonType, good[:len(good)-1] + `,"token_type":"DPoP"}`, "repeats a member"},
		"a binding twice":         {jsonType, good[:len(good)-1] + `,"cnf":{"jkt":"x"},"cnf":null}`, "repeats a member"},
		"an empty object":         {jsonType, `{}`, "no access_token"},
		"larger than the cap":     {jsonType, good + strings.Repeat(" ", 256<<10), "larger than"},
		"deeply nested":           {jsonType, `{"x":` + strings.Repeat("[", 100_000), "not valid JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, answers(200, tt.contentType, tt.body), idp.Transient, tt.says)
		})
	}
	t.Run("no content", func(t *testing.T) {
		refused(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, idp.Transient, "is empty")
	})
	t.Run("as large as the cap", func(t *testing.T) {
		granted(t, idp.Config{}, good+strings.Repeat(" ", 256<<10-len(good)))
	})
	t.Run("created", func(t *testing.T) {
		if _, err := fetch(t, idp.Config{}, answers(http.StatusCreated, jsonType, good)); err != nil {
			t.Error(err)
		}
	})
}

func TestScopesOfTheAnswer(t *testing.T) {
	// write, read and write again are asked for.
	for name, tt := range map[string]struct {
		member string
		want   []string
	}{
		"a string":                 {`,"scope":"b a"`, []string{"a", "b"}},
		"a string that repeats":    {`,"scope":"b  a\tb "`, []string{"a", "b"}},
		"fewer than asked for":     {`,"scope":"read"`, []string{"read"}},
		"an array":                 {`,"scope":["b","a","b"]`, []string{"a", "b"}},
		"missing":                  {``, []string{"read", "write"}},
		"null":                     {`,"scope":null`, []string{"read", "write"}},
		"empty":                    {`,"scope":""`, []string{"read", "write"}},
		"an empty array":           {`,"scope":[]`, []string{"read", "write"}},
		"an array with a number":   {`,"scope":["a",1]`, []string{"read", "write"}},
		"a number":                 {`,"scope":5`, []string{"read", "write"}},
		"a member of another case": {`,"Scope":"a"`, []string{"read", "write"}},
	} {
		t.Run(name, func(t *testing.T) {
			grant := granted(t, idp.Config{}, `{"access_token":"tok"`+tt.member+`}`)
			if diff := cmp.Diff(tt.want, grant.Scopes); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRequestedScopesAreNotModified(t *testing.T) {
	tokenURL, _ := idpServer(t, grants(`{"access_token":"tok"}`))
	req := idp.Request{Scopes: []string{"b", "a"}}
	grant, err := client(t, idp.Config{TokenURL: tokenURL}).Fetch(t.Context(), version, req)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"b", "a"}, {"a", "b"}}, [][]string{req.Scopes, grant.Scopes}); diff != "" {
		t.Error(diff)
	}
}

func TestExtrasAreTheMembersAllowed(t *testing.T) {
	cfg := idp.Config{Extras: []string{"instance_url", "count", "sandbox", "off", "fits", "long", "list", "object", "none", "absent"}}
	fits := strings.Repeat("é", 512)
	grant := granted(t, cfg, `{"access_token":"tok","refresh_token":"canary","secret_of_theirs":"canary","instance_url":"https://eu1.example",
		"count":1.50,"sandbox":true,"off":false,"fits":"`+fits+`","long":"`+fits+`x","list":["canary"],"object":{"a":"canary"},"none":null}`)
	want := map[string]string{"instance_url": "https://eu1.example", "count": "1.50", "sandbox": "true", "off": "false", "fits": fits}
	if diff := cmp.Diff(want, grant.Extras); diff != "" {
		t.Error(diff)
	}
}

func TestRefreshTokenIsDropped(t *testing.T) {
	grant := granted(t, idp.Config{}, `{"access_token":"tok","refresh_token":"canary","refresh_expires_in":0,"id_token":"canary"}`)
	if grant.Extras != nil || grant.Value.Reveal() != "tok" {
		t.Errorf("%+v", grant)
	}
}

func TestRefreshIn(t *testing.T) {
	for member, want := range map[string]time.Duration{
		``: 0, `,"refresh_in":1800`: 30 * time.Minute, `,"refresh_in":"1800"`: 30 * time.Minute, `,"refresh_in":-5`: 0,
		`,"refresh_in":null`: 0, `,"refresh_in":"soon"`: 0, `,"refresh_in":1e300`: token.MaxLifetime,
	} {
		t.Run(member, func(t *testing.T) {
			if grant := granted(t, idp.Config{}, `{"access_token":"tok","expires_in":3600`+member+`}`); grant.RefreshIn != want {
				t.Errorf("refreshed in %v, want %v", grant.RefreshIn, want)
			}
		})
	}
}

func compressed(text string) string {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return out.String()
}

// encoded is answers with a Content-Encoding.
func encoded(status int, coding, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", coding)
		answers(status, jsonType, body)(w, r)
	}
}

func TestCompressedAnswers(t *testing.T) {
	grant, err := fetch(t, idp.Config{}, encoded(200, "gzip", compressed(good)))
	if err != nil || grant.Value.Reveal() != "tok" {
		t.Errorf("a token: %v", err)
	}
	refused(t, encoded(401, "gzip", compressed(`{"error":"invalid_client"}`)), idp.CredentialRefused, "invalid_client")
	refused(t, encoded(200, "gzip", compressed(good+strings.Repeat(" ", 10<<20))), idp.Transient, "larger than 262144 bytes")
	refused(t, encoded(200, "gzip", good), idp.Transient, "cannot be decompressed")
	refused(t, encoded(200, "br", good), idp.Transient, "unsupported Content-Encoding")
	// The status of a refusal says enough, whatever its body is.
	refused(t, encoded(401, "br", good), idp.CredentialRefused, "HTTP 401")

	result, err := introspect(t, idp.Config{}, encoded(200, "gzip", compressed("\ufeff"+isActive)))
	if err != nil || !result.Active || string(result.Members) != isActive {
		t.Errorf("an introspection: %+v, %v", result, err)
	}
	for coding, says := range map[string]string{"br": "unsupported Content-Encoding", "deflate": "cannot be decompressed"} {
		_, err = introspect(t, idp.Config{}, encoded(200, coding, isActive))
		isFault(t, err, idp.Transient, says)
	}
	bomb := `{"active":true,"x":"` + strings.Repeat("x", 64<<10) + `"}`
	_, err = introspect(t, idp.Config{}, encoded(200, "gzip", compressed(bomb)))
	isFault(t, err, idp.Transient, "larger than 65536 bytes")
}
