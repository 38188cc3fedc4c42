package idp_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

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

func TestNoErrorShowsWhatTheIdPWroteOrTheURLsQuery(t *testing.T) {
	cases := 0
	for name, answer := range echoes() {
		for _, auth := range []idp.AuthMethod{idp.SecretBasic, idp.SecretPost} {
			cases++
			t.Run(name+" "+string(auth), func(t *testing.T) {
				echoed := ""
				tokenURL, _ := idpServer(t, func(w http.ResponseWriter, r *http.Request) {
					echoed = echo(r)
					answer(w, echoed)
				})
				c := client(t, idp.Config{TokenURL: tokenURL + "?key=canary", Auth: auth})
				_, err := c.Fetch(t.Context(), secret.Version{ID: "v1", Value: redact.New(leaky)}, idp.Request{Audience: "canary"})
				if err == nil || !strings.Contains(echoed, leaky) {
					t.Fatalf("the case tests nothing: %v", err)
				}
				if shown := printed(err); containsAny(shown, canaries) {
					t.Errorf("the error shows it: %s", shown)
				}
			})
		}
	}
	if cases < 70 {
		t.Errorf("only %d cases", cases)
	}
}

func TestNoErrorShowsTheURLsQueryWhenNothingAnswers(t *testing.T) {
	plain, _ := idpServer(t, nil)
	gone := httptest.NewServer(nil)
	gone.Close()
	for _, bad := range []string{strings.Replace(plain, "http:", "https:", 1) + "?key=canary", gone.URL + "?key=canary"} {
		_, err := client(t, idp.Config{TokenURL: bad}).Fetch(t.Context(), secret.Version{Value: redact.New(leaky)}, idp.Request{})
		isFault(t, err, idp.Transient, "no answer")
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
