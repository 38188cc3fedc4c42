package idp_test

import (
	"errors"
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
)

const jsonType = "application/json"

func TestErrorCodesAreClassified(t *testing.T) {
	classes := map[string]idp.Class{
		"invalid_client": idp.CredentialRefused, "unauthorized_client": idp.CredentialRefused,
		"incorrect_client_credentials": idp.CredentialRefused, "bad_client_secret": idp.CredentialRefused, "bad_client_id": idp.CredentialRefused,
		"invalid_client_id": idp.CredentialRefused, "invalid_client_credentials": idp.CredentialRefused,
		"invalid_scope": idp.RequestRefused, "invalid_target": idp.RequestRefused, "invalid_request": idp.RequestRefused,
		"access_denied": idp.RequestRefused, "invalid_grant": idp.RequestRefused, "unsupported_grant_type": idp.RequestRefused,
		"use_dpop_nonce": idp.Misconfigured, "invalid_dpop_proof": idp.Misconfigured,
		"temporarily_unavailable": idp.Transient, "server_error": idp.Transient,
	}
	for code, class := range classes {
		for _, status := range []int{200, 400, 401, 403, 404, 500} {
			if vague := code == "access_denied" || classes[code] == idp.Transient; vague && status == 401 {
				class = idp.CredentialRefused // as Auth0 and ServiceNow refuse a secret
			} else {
				class = classes[code]
			}
			t.Run(fmt.Sprint(code, " with ", status), func(t *testing.T) {
				body := `{"error":"` + code + `","error_description":"canary","error_uri":"https://canary.example"}`
				fault := refused(t, answers(status, jsonType, body), class, fmt.Sprintf("(%s, HTTP %d)", code, status))
				if fault.Code != code || fault.Status != status || fault.RetryAfter != 0 {
					t.Errorf("%+v", fault)
				}
			})
		}
	}
}

func TestErrorsInOddShapes(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	for name, tt := range map[string]struct {
		status            int
		contentType, body string
		class             idp.Class
		code              string
	}{
		"beside a token, with 200":       {200, jsonType, `{"access_token":"tok","error":"invalid_client"}`, idp.CredentialRefused, "invalid_client"},
		"unknown, with 200":              {200, jsonType, `{"error":"canary"}`, idp.RequestRefused, ""},
		"an object, with 200":            {200, jsonType, `{"error":{"message":"canary","code":190}}`, idp.RequestRefused, ""},
		"an empty object beside a token": {200, jsonType, `{"access_token":"tok","error":{}}`, idp.RequestRefused, ""},
		"an object, with 400":            {400, jsonType, `{"error":{"code":"invalid_client"}}`, idp.RequestRefused, ""},
		"an object, with 401":            {401, jsonType, `{"error":{"code":"canary"}}`, idp.CredentialRefused, ""},
		"an array":                       {400, jsonType, `{"error":["invalid_client"]}`, idp.RequestRefused, ""},
		"a number":                       {400, jsonType, `{"error":7}`, idp.RequestRefused, ""},
		"true":                           {200, jsonType, `{"error":true,"access_token":"tok"}`, idp.RequestRefused, ""},
		"a form, with 400":               {400, form, "error=invalid_client&error_description=canary", idp.CredentialRefused, "invalid_client"},
		"a form, with 200":               {200, form, "error=invalid_scope", idp.RequestRefused, "invalid_scope"},
		"in capitals":                    {400, jsonType, `{"error":"INVALID_CLIENT"}`, idp.RequestRefused, ""},
		"described in Latin-1":           {400, jsonType, "{\"error\":\"invalid_client\",\"error_description\":\"ung\xfcltig\"}", idp.CredentialRefused, "invalid_client"},
		"HTML, with 400":                 {400, "text/html", "<p>canary</p>", idp.RequestRefused, ""},
		"HTML, with 401":                 {401, "text/html", "<p>canary</p>", idp.CredentialRefused, ""},
		"HTML, with 403":                 {403, "text/html", "<p>canary</p>", idp.RequestRefused, ""},
		"no body, with 401":              {401, jsonType, "", idp.CredentialRefused, ""},
		"no error member, with 400":      {400, jsonType, `{"message":"canary"}`, idp.RequestRefused, ""},
		"a token, with 400":              {400, jsonType, good, idp.RequestRefused, ""},
		"a token, with 500":              {500, jsonType, good, idp.Transient, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fault := refused(t, answers(tt.status, tt.contentType, tt.body), tt.class, "")
			if fault.Code != tt.code || fault.Status != tt.status {
				t.Errorf("code %q, status %d", fault.Code, fault.Status)
			}
		})
	}
}

func TestRefusalsThatMayMeanTheSecretAreUnclear(t *testing.T) {
	for name, tt := range map[string]struct {
		answer  http.HandlerFunc
		unclear bool
	}{
		"an empty 403":            {answers(403, "", ""), true},
		"an empty 400":            {answers(400, "", ""), true},
		"HTML, with 403":          {answers(403, "text/html", "<p>canary</p>"), true},
		"a code of its own":       {answers(400, jsonType, `{"error":"canary"}`), true},
		"a code of its own, 200":  {answers(200, jsonType, `{"ok":false,"error":"canary"}`), true},
		"a message, with 200":     {answers(200, jsonType, `{"status":"failed","message":"canary"}`), true},
		"no token, with 200":      {answers(200, jsonType, `{"access_token":null,"message":"canary"}`), true},
		"access_denied, with 403": {answers(403, jsonType, `{"error":"access_denied"}`), true},
		"invalid_request":         {answers(400, jsonType, `{"error":"invalid_request"}`), true},
		"invalid_grant":           {answers(400, jsonType, `{"error":"invalid_grant"}`), true},
		"invalid_scope":           {answers(400, jsonType, `{"error":"invalid_scope"}`), false},
		"invalid_target":          {answers(403, jsonType, `{"error":"invalid_target"}`), false},
		"unsupported_grant_type":  {answers(400, jsonType, `{"error":"unsupported_grant_type"}`), false},
		"invalid_client":          {answers(401, jsonType, `{"error":"invalid_client"}`), false},
		"an empty 401":            {answers(401, "", ""), false},
		"an empty 500":            {answers(500, "", ""), false},
		"an empty 404":            {answers(404, "", ""), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := fetch(t, idp.Config{}, tt.answer)
			var fault *idp.Error
			if !errors.As(err, &fault) || fault.Unclear() != tt.unclear {
				t.Fatalf("%v", err)
			}
			if tt.unclear {
				isFault(t, err, idp.RequestRefused, "the cause may also be the client's credential")
			}
		})
	}
}

func TestErrorMembersThatSayNothingAreNoErrors(t *testing.T) {
	for _, value := range []string{`null`, `""`, `false`} {
		granted(t, idp.Config{}, `{"access_token":"tok","error":`+value+`,"error_description":null}`)
	}
}

func TestStatuses(t *testing.T) {
	for status, class := range map[int]idp.Class{
		408: idp.Transient, 500: idp.Transient, 501: idp.Transient, 505: idp.Transient, 520: idp.Transient,
		301: idp.Misconfigured, 302: idp.Misconfigured, 303: idp.Misconfigured, 307: idp.Misconfigured, 308: idp.Misconfigured, 304: idp.Misconfigured,
		404: idp.Misconfigured, 405: idp.Misconfigured, 410: idp.Misconfigured,
		401: idp.CredentialRefused,
		400: idp.RequestRefused, 403: idp.RequestRefused, 406: idp.RequestRefused, 415: idp.RequestRefused, 422: idp.RequestRefused,
		429: idp.Throttled,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			fault := refused(t, answers(status, "text/html", ""), class, fmt.Sprintf("(HTTP %d)", status))
			if fault.Status != status || fault.Code != "" {
				t.Errorf("%+v", fault)
			}
		})
	}
}

func TestRedirectIsNotFollowed(t *testing.T) {
	for _, status := range []int{301, 302, 303, 307, 308} {
		elsewhere, requests := idpServer(t, grants(good))
		fault := refused(t, answers(status, jsonType, good, "Location", elsewhere), idp.Misconfigured, "redirect")
		if n := len(requests()); n > 0 || fault.Status != status {
			t.Errorf("%d: the redirect was followed, %d requests", status, n)
		}
	}
}

func TestThrottling(t *testing.T) {
	now := time.Date(2000, time.January, 1, 0, 0, 0, 0, time.UTC) // when bubbles begin
	epoch := func(d time.Duration) string { return fmt.Sprint(now.Add(d).Unix()) }
	date := func(d time.Duration) string { return now.Add(d).UTC().Format(http.TimeFormat) }
	for name, tt := range map[string]struct {
		status int
		header []string
		want   time.Duration
	}{
		"429 without a word":               {429, nil, time.Minute},
		"Retry-After in seconds":           {429, []string{"Retry-After", "90"}, 90 * time.Second},
		"Retry-After as a date":            {429, []string{"Retry-After", date(90 * time.Second)}, 90 * time.Second},
		"Retry-After of zero":              {429, []string{"Retry-After", "0"}, time.Second},
		"Retry-After below zero":           {429, []string{"Retry-After", "-30"}, time.Second},
		"Retry-After in the past":          {429, []string{"Retry-After", date(-time.Hour)}, time.Second},
		"Retry-After, huge":                {429, []string{"Retry-After", "99999999999999999999"}, 5 * time.Minute},
		"Retry-After in a far year":        {429, []string{"Retry-After", date(100 * 365 * 24 * time.Hour)}, 5 * time.Minute},
		"Retry-After, garbage":             {429, []string{"Retry-After", "soon, canary"}, time.Minute},
		"Retry-After, not a number":        {429, []string{"Retry-After", "NaN"}, time.Minute},
		"X-RateLimit-Reset":                {429, []string{"X-RateLimit-Reset", epoch(2 * time.Minute)}, 2 * time.Minute},
		"X-Rate-Limit-Reset":               {429, []string{"X-Rate-Limit-Reset", epoch(2 * time.Minute)}, 2 * time.Minute},
		"X-Rate-Limit-Reset in the past":   {429, []string{"X-Rate-Limit-Reset", epoch(-time.Minute)}, time.Second},
		"X-Rate-Limit-Reset far off":       {429, []string{"X-Rate-Limit-Reset", epoch(time.Hour)}, 5 * time.Minute},
		"X-RateLimit-Reset in seconds":     {429, []string{"X-RateLimit-Reset", "30"}, 30 * time.Second},
		"X-RateLimit-Reset, garbage":       {429, []string{"X-RateLimit-Reset", "canary"}, time.Minute},
		"Retry-After before the reset":     {429, []string{"Retry-After", "5", "X-RateLimit-Reset", epoch(time.Minute)}, 5 * time.Second},
		"garbage, then a reset":            {429, []string{"Retry-After", "canary", "X-RateLimit-Reset", epoch(2 * time.Minute)}, 2 * time.Minute},
		"503 with Retry-After":             {503, []string{"Retry-After", "7"}, 7 * time.Second},
		"503 with garbage for Retry-After": {503, []string{"Retry-After", "canary"}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := script{answers(tt.status, jsonType, `{"error":"temporarily_unavailable"}`, tt.header...)}
				_, requests, err := s.fetch(t)
				fault := isFault(t, err, idp.Throttled, "throttles")
				if fault.RetryAfter != tt.want || requests != 1 || time.Since(now) != 0 {
					t.Errorf("retry after %v, want %v; %d requests", fault.RetryAfter, tt.want, requests)
				}
			})
		})
	}
}

func TestThrottlingIsStrongerThanACode(t *testing.T) {
	fault := refused(t, answers(429, jsonType, `{"error":"invalid_client"}`), idp.Throttled, "throttles")
	if fault.Code != "invalid_client" {
		t.Errorf("the code is %q", fault.Code)
	}
}

func TestOtherErrorsHaveRetryAfter(t *testing.T) {
	for _, status := range []int{500, 502, 504, 408} {
		fault := refused(t, answers(status, jsonType, "", "Retry-After", "20"), idp.Transient, "")
		if fault.RetryAfter != 20*time.Second {
			t.Errorf("%d: retry after %v", status, fault.RetryAfter)
		}
	}
	fault := refused(t, answers(400, jsonType, "", "X-RateLimit-Reset", "20"), idp.RequestRefused, "")
	if fault.RetryAfter != 0 {
		t.Errorf("a rate limit that is not reached counts: retry after %v", fault.RetryAfter)
	}
}

func TestClassOfForeignErrorsIsTransient(t *testing.T) {
	if got := idp.ClassOf(fmt.Errorf("wrapped: %w", &idp.Error{Class: idp.Throttled})); got != idp.Throttled {
		t.Errorf("ClassOf a wrapped error = %v", got)
	}
	if got := idp.ClassOf(http.ErrBodyNotAllowed); got != idp.Transient {
		t.Errorf("ClassOf a foreign error = %v", got)
	}
	if got := (&idp.Error{Class: idp.Throttled}).Error(); got != "the request to the IdP failed (throttled)" {
		t.Errorf("an error without a text says %q", got)
	}
}

func TestClassesHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for _, class := range []idp.Class{idp.Transient, idp.Throttled, idp.CredentialRefused, idp.RequestRefused, idp.Misconfigured, 99} {
		seen[class.String()] = true
	}
	if len(seen) != 6 {
		t.Errorf("%v", seen)
	}
}
