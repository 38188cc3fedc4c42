package idp_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
)

const leaky = "canary secret+%"

// canaries are the forms in which the secret, and what else must not be shown,
// may come back.
var canaries = []string{
	"canary", url.QueryEscape(leaky), base64.StdEncoding.EncodeToString([]byte(leaky)),
	base64.StdEncoding.EncodeToString([]byte(clientID + ":" + url.QueryEscape(leaky))),
}

// echo is all of a request, as an IdP may quote it in an answer.
func echo(r *http.Request) string {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(err)
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		panic(err)
	}
	id, password, _ := r.BasicAuth()
	text := strings.Join([]string{r.RequestURI, string(body), fmt.Sprint(form), r.Header.Get("Authorization"), id, password, leaky}, " ")
	return strings.NewReplacer(`"`, "", `\`, "").Replace(text)
}

// echoes are IdPs that put the request into their answer wherever there is
// room for text.
func echoes() map[string]func(http.ResponseWriter, string) {
	body := func(status int, contentType, format string) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, echo string) {
			answers(status, contentType, fmt.Sprintf(format, echo))(w, nil)
		}
	}
	header := func(status int, name, format string) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, echo string) {
			answers(status, jsonType, "", name, fmt.Sprintf(format, echo))(w, nil)
		}
	}
	raw := func(format string) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, echo string) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			_, _ = fmt.Fprintf(conn, format, echo)
			_ = conn.Close()
		}
	}
	return map[string]func(http.ResponseWriter, string){
		"error":                          body(400, jsonType, `{"error":"%s"}`),
		"error with 200":                 body(200, jsonType, `{"error":"%s"}`),
		"error object":                   body(400, jsonType, `{"error":{"message":"%s"}}`),
		"error description":              body(401, jsonType, `{"error":"invalid_client","error_description":"%s"}`),
		"error in a form":                body(400, "text/plain", `error=invalid_client&error_description=%s`),
		"form":                           body(200, "text/plain", `error=%s`),
		"HTML with 200":                  body(200, "text/html", `<html>%s`),
		"HTML with 401":                  body(401, "text/html", `<html>%s`),
		"HTML with 404":                  body(404, "text/html", `<html>%s`),
		"HTML with 500":                  body(500, "text/html", `<html>%s`),
		"HTML with 503":                  body(503, "text/html", `<html>%s`),
		"text":                           body(200, "text/plain", `%s`),
		"broken JSON":                    body(200, jsonType, `{"%s"`),
		"JSON with a member twice":       body(200, jsonType, `{"%[1]s":1,"%[1]s":2}`),
		"JSON string":                    body(200, jsonType, `"%s"`),
		"content type":                   header(200, "Content-Type", `text/%s`),
		"no token":                       body(200, jsonType, `{"%s":1}`),
		"token with a bad character":     body(200, jsonType, `{"access_token":"%s\n"}`),
		"token that is an object":        body(200, jsonType, `{"access_token":{"a":"%s"}}`),
		"token type":                     body(200, jsonType, `{"access_token":"tok","token_type":"%s"}`),
		"expired token with extra words": body(200, jsonType, `{"access_token":"tok","expires_in":0,"x":"%s"}`),
		"Location":                       header(302, "Location", `https://idp.example/?%s`),
		"Location that is no URL":        header(302, "Location", `%%zz%s`),
		"Retry-After":                    header(429, "Retry-After", `%s`),
		"X-RateLimit-Reset":              header(429, "X-RateLimit-Reset", `%s`),
		"WWW-Authenticate":               header(401, "WWW-Authenticate", `Basic realm="%s"`),
		"no HTTP":                        raw("%s\r\n\r\n"),
		"protocol version":               raw("HTTP/%s 200 OK\r\n\r\n"),
		"status code":                    raw("HTTP/1.1 %s\r\n\r\n"),
		"reason phrase":                  raw("HTTP/1.1 500 %s\r\n\r\n"),
		"header without a colon":         raw("HTTP/1.1 200 OK\r\n%s\r\n\r\n"),
		"content length":                 raw("HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n"),
		"transfer encoding":              raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n"),
		"chunk":                          raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n"),
		"trailer":                        raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n%s\r\n\r\n"),
		"body that breaks off":           raw("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n%s"),
	}
}

// leakyMethod is a way to authenticate, and what must not be shown of it.
type leakyMethod struct {
	cfg    idp.Config
	secret string
	canary []string
}

func leakyMethods(t *testing.T) map[string]leakyMethod {
	t.Helper()
	const hmacSecret = "canary-" + leaky + leaky
	key := pemKey(t, newKey(t, "ES256"))
	inKey := strings.Split(key, "\n")[1][20:50]
	file := write(t, filepath.Join(t.TempDir(), "assertion"), jwtOf(`{"sub":"federated-canary"}`))
	inFile := strings.Split(jwtOf(`{"sub":"federated-canary"}`), ".")[1]
	return map[string]leakyMethod{
		"basic":      {idp.Config{Auth: idp.SecretBasic}, leaky, nil},
		"post":       {idp.Config{Auth: idp.SecretPost}, leaky, nil},
		"secret_jwt": {idp.Config{Auth: idp.SecretJWT}, hmacSecret, []string{url.QueryEscape(hmacSecret)}},
		"key":        {idp.Config{Auth: idp.PrivateKeyJWT}, key, []string{inKey}},
		"jwt-bearer": {idp.Config{Grant: idp.JWTBearer}, key, []string{inKey}},
		"federated":  {idp.Config{Auth: idp.FederatedJWT, AssertionFile: file}, "", []string{inFile}},
		"nothing":    {idp.Config{Auth: idp.None}, "", nil},
	}
}

// assertionsIn are the parts of the assertions in a request that nobody else may
// see: who has them could use them.
func assertionsIn(r *http.Request) []string {
	var parts []string
	for _, name := range []string{"client_assertion", "assertion"} {
		if value := r.PostFormValue(name); value != "" {
			parts = append(parts, strings.Split(value, ".")[1:]...)
		}
	}
	return parts
}

func TestErrorsShowNoTextOfTheIdP(t *testing.T) {
	cases := 0
	for method, m := range leakyMethods(t) {
		for name, answer := range echoes() {
			cases++
			t.Run(name+" "+method, func(t *testing.T) {
				echoed, sent := "", []string(nil)
				tokenURL, _ := idpServer(t, func(w http.ResponseWriter, r *http.Request) {
					echoed = echo(r)
					r.Body = io.NopCloser(strings.NewReader(strings.Split(echoed, " ")[1]))
					sent = assertionsIn(r)
					answer(w, echoed)
				})
				cfg := m.cfg
				cfg.TokenURL = tokenURL + "?key=canary"
				_, err := client(t, cfg).Fetch(t.Context(), secretOf(m.secret), idp.Request{Audience: "canary"})
				if err == nil || !strings.Contains(echoed, leaky) {
					t.Fatalf("the case tests nothing: %v", err)
				}
				if asserts := method == "secret_jwt" || method == "key" || method == "jwt-bearer" || method == "federated"; asserts != (len(sent) == 2) {
					t.Fatalf("%d parts of assertions were sent", len(sent))
				}
				if shown := printed(err); containsAny(shown, slices.Concat(canaries, m.canary, sent)) {
					t.Errorf("the error shows it: %s", shown)
				}
			})
		}
	}
	if cases < 240 {
		t.Errorf("only %d cases", cases)
	}
}

// TestNothingPrintsASecret prints everything that the package has to do with, in
// every way of printing.
func TestNothingPrintsASecret(t *testing.T) {
	files := certFiles(t)
	_, _, certKey := pair(t, files, time.Hour)
	server := newMutualServer(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert})
	methods := leakyMethods(t)
	methods["certificate"] = leakyMethod{idp.Config{Auth: idp.TLS, Certificate: files, HTTPWith: server.with}, "", nil}
	for method, m := range methods {
		cfg := m.cfg
		tokenURL, _ := idpServer(t, grants(`{"access_token":"canary-token","refresh_token":"canary"}`))
		if cfg.TokenURL = tokenURL; method == "certificate" {
			cfg.TokenURL = server.URL
		}
		c := client(t, cfg)
		grant, err := c.Fetch(t.Context(), secretOf(m.secret), idp.Request{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.ReloadCertificate(); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		wrapped := struct {
			Client *idp.Client
			inner  any
			config idp.Config
			grant  any
		}{c, c, cfg, grant}
		for _, value := range []any{c, cfg, &cfg, secretOf(m.secret), grant, wrapped, &wrapped, c.Credential()} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
			if text, err := json.Marshal(value); err == nil {
				out.Write(text)
			}
			slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "value", value)
			slog.New(slog.NewTextHandler(&out, nil)).Info("x", "value", value)
		}
		secrets := slices.Concat(m.canary, []string{"canary-token"})
		for _, text := range []string{m.secret, certKey} {
			if middle := len(text) / 2; middle > 10 { // a key's ends are the same in each
				part := []byte(text)[middle : middle+10]
				secrets = append(secrets, string(part), fmt.Sprintf("%x", part), strings.Trim(fmt.Sprint(part), "[]"), base64.StdEncoding.EncodeToString(part)[:12])
			}
		}
		if shown := out.String(); containsAny(shown, secrets) || len(shown) < 1000 {
			t.Errorf("%s: something shows it, of %q", method, secrets)
		}
	}
}

func TestNoErrorShowsTheURLsQueryWhenNothingAnswers(t *testing.T) {
	plain, _ := idpServer(t, nil)
	closed := httptest.NewServer(nil)
	closed.Close()
	for _, bad := range []string{strings.Replace(plain, "http:", "https:", 1) + "?key=canary", closed.URL + "?key=canary"} {
		_, err := client(t, idp.Config{TokenURL: bad}).Fetch(t.Context(), secret.Version{Value: redact.New(leaky)}, idp.Request{})
		isFault(t, err, idp.Transient, "did not respond")
		if shown := printed(err); containsAny(shown, canaries) {
			t.Errorf("the error shows it: %s", shown)
		}
	}
}

// printed is an error and all its causes in every way of printing them.
func printed(err error) string {
	var out strings.Builder
	for ; err != nil; err = errors.Unwrap(err) {
		fmt.Fprintf(&out, "%v %+v %#v %q\n", err, err, err, err)
		slog.New(slog.NewJSONHandler(&out, nil)).Error("failed", "error", err)
	}
	return out.String()
}

func containsAny(text string, parts []string) bool {
	for _, part := range parts {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}
