package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

const (
	issuer  = "https://idp.example"
	oidc    = "/.well-known/openid-configuration"
	rfc8414 = "/.well-known/oauth-authorization-server"
)

func documentOf(issuer string) string {
	return fmt.Sprintf(`{"issuer":%q,"token_endpoint":"https://idp.example/token","jwks_uri":"https://idp.example/keys",
		"introspection_endpoint":"https://idp.example/introspect","response_types_supported":["code"],"x":{"y":[1,null]}}`, issuer)
}

// site is an issuer's web site as a transport: what it answers by path.
type site struct {
	status  int
	delay   time.Duration
	failure error
	pages   map[string]string

	mu        sync.Mutex
	requested []string
}

func (s *site) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.requested = append(s.requested, r.URL.String())
	status, delay, failure, page, metadata := s.status, s.delay, s.failure, s.pages[r.URL.EscapedPath()], s.pages[r.URL.EscapedPath()] != ""
	s.mu.Unlock()
	select {
	case <-time.After(delay):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if failure != nil {
		return nil, failure
	}
	answer := httptest.NewRecorder()
	switch {
	case status != 0:
		answer.WriteHeader(status)
	case !metadata:
		answer.WriteHeader(http.StatusNotFound)
	}
	_, _ = answer.WriteString(page)
	return answer.Result(), nil
}

func (s *site) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *site) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.requested...)
}

func (s *site) issuer(name string) *discovery.Issuer {
	return discovery.New(discovery.Config{Issuer: name, HTTP: discovery.NewHTTPClient(s)})
}

func faultOf(t *testing.T, err error) *discovery.Error {
	t.Helper()
	var fault *discovery.Error
	if !errors.As(err, &fault) {
		t.Fatalf("the error is a %T: %v", err, err)
	}
	return fault
}

func endpointsOf(m discovery.Metadata) map[string]discovery.Endpoint {
	return map[string]discovery.Endpoint{
		"token": m.TokenEndpoint, "keys": m.JWKSURI, "introspection": m.IntrospectionEndpoint,
		"token, mTLS": m.MTLS.Token, "introspection, mTLS": m.MTLS.Introspection,
	}
}

// urlsOf returns the URL of each endpoint: "refused" where there is an error.
func urlsOf(m discovery.Metadata) map[string]string {
	urls := map[string]string{}
	for name, endpoint := range endpointsOf(m) {
		url, err := endpoint.URL()
		if err != nil {
			url = "refused"
		}
		urls[name] = url
	}
	return urls
}

func TestMetadataIsFoundInEitherPlace(t *testing.T) {
	for _, tt := range []struct {
		issuer, page string
		requested    []string
	}{
		{"https://idp.example", oidc, []string{"https://idp.example" + oidc}},
		{"https://idp.example/", oidc, []string{"https://idp.example" + oidc}},
		{"https://idp.example/realms/a", "/realms/a" + oidc, []string{"https://idp.example/realms/a" + oidc}},
		{"https://idp.example/realms/a/", "/realms/a" + oidc, []string{"https://idp.example/realms/a" + oidc}},
		{"https://idp.example", rfc8414, []string{"https://idp.example" + oidc, "https://idp.example" + rfc8414}},
		{"https://idp.example/", rfc8414, []string{"https://idp.example" + oidc, "https://idp.example" + rfc8414}},
		{"https://idp.example:8443/a/b", rfc8414 + "/a/b", []string{"https://idp.example:8443/a/b" + oidc, "https://idp.example:8443" + rfc8414 + "/a/b"}},
		{"https://idp.example/a%2Fb/", rfc8414 + "/a%2Fb", []string{"https://idp.example/a%2Fb" + oidc, "https://idp.example" + rfc8414 + "/a%2Fb"}},
	} {
		t.Run(tt.issuer+" at "+tt.page, func(t *testing.T) {
			s := &site{pages: map[string]string{tt.page: documentOf(tt.issuer)}}
			got, err := s.issuer(tt.issuer).Metadata(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"token": "https://idp.example/token", "keys": "https://idp.example/keys", "introspection": "https://idp.example/introspect",
				"token, mTLS": "https://idp.example/token", "introspection, mTLS": "https://idp.example/introspect",
			}
			if diff := cmp.Diff(want, urlsOf(got)); diff != "" || got.Issuer != tt.issuer {
				t.Errorf("issuer %q: %s", got.Issuer, diff)
			}
			if diff := cmp.Diff(tt.requested, s.requests()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestMetadata_secondURL(t *testing.T) {
	for status, unreachable := range map[int]bool{
		301: false, 302: false, 307: false, 400: false, 401: false, 403: false, 404: false, 405: false, 410: false,
		408: true, 429: true, 500: true, 502: true, 503: true, 504: true,
	} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			s := &site{status: status}
			_, err := s.issuer(issuer).Metadata(t.Context())
			fault := faultOf(t, err)
			if fault.Unreachable != unreachable || fault.Status != status {
				t.Errorf("unreachable = %v, status %d: %v", fault.Unreachable, fault.Status, err)
			}
			want := 2
			if unreachable {
				want = 1
			}
			if n := len(s.requests()); n != want {
				t.Errorf("%d places were asked, want %d", n, want)
			}
		})
	}
	s := &site{failure: errors.New("no route to canary")}
	_, err := s.issuer(issuer).Metadata(t.Context())
	if !faultOf(t, err).Unreachable || len(s.requests()) != 1 || strings.Contains(err.Error(), "canary") {
		t.Errorf("after a failed connection: %d requests, %v", len(s.requests()), err)
	}
}

func TestDocumentIsRefused(t *testing.T) {
	for name, tt := range map[string]struct{ document, says string }{
		"no JSON":                         {`<html>canary</html>`, "not a JSON object"},
		"an array":                        {`[]`, "not a JSON object"},
		"null":                            {`null`, "not a JSON object"},
		"empty":                           {` `, "not a JSON object"},
		"truncated":                       {documentOf(issuer)[:40], "not a JSON object"},
		"two documents":                   {documentOf(issuer) + documentOf(issuer), "not a JSON object"},
		"a member twice":                  {`{"issuer":"https://idp.example","issuer":"https://canary.example"}`, "its issuer more than once"},
		"the issuer, a list":              {`{"issuer":["https://idp.example"]}`, "names no issuer"},
		"no issuer":                       {`{"token_endpoint":"https://idp.example/token"}`, "names no issuer"},
		"issuer in another case":          {`{"Issuer":"https://idp.example"}`, "names no issuer"},
		"another issuer":                  {documentOf("https://canary.example"), "another issuer"},
		"the issuer in capitals":          {documentOf("https://IDP.example"), "another issuer"},
		"the issuer's prefix":             {documentOf("https://idp.exampl"), "another issuer"},
		"the issuer with a slash":         {documentOf(issuer + "/"), "slash"},
		"a document that is beyond limit": {documentOf(issuer) + strings.Repeat(" ", 512<<10), "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &site{pages: map[string]string{oidc: tt.document, rfc8414: documentOf(issuer)}}
			got, err := s.issuer(issuer).Metadata(t.Context())
			if err == nil {
				t.Fatalf("accepted: %+v", got)
			}
			if faultOf(t, err).Unreachable {
				t.Errorf("a wrong document counts as unreachable: %v", err)
			}
			if !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("the message is %q, want one of %q and nothing of the document", err, tt.says)
			}
		})
	}
}

// An endpoint's error appears when it is used, and affects no other endpoint.
func TestMetadata_invalidEndpointAffectsNoOther(t *testing.T) {
	good := map[string]string{
		"token": "https://idp.example/token", "keys": "https://idp.example/keys", "introspection": "https://idp.example/introspect",
		"token, mTLS": "https://mtls.idp.example/token", "introspection, mTLS": "https://mtls.idp.example/introspect",
	}
	documents := map[string]func(string) string{ // by the endpoint that is bad in it
		"token": func(bad string) string { return `{"token_endpoint":` + bad + rest("token_endpoint", "") },
		"keys":  func(bad string) string { return `{"jwks_uri":` + bad + rest("jwks_uri", "") },
		"introspection": func(bad string) string {
			return `{"introspection_endpoint":` + bad + rest("introspection_endpoint", "")
		},
		"token, mTLS": func(bad string) string {
			return `{"mtls_endpoint_aliases":{"token_endpoint":` + bad + `,"introspection_endpoint":"https://mtls.idp.example/introspect"}` + rest("", "aliases")
		},
		"introspection, mTLS": func(bad string) string {
			return `{"mtls_endpoint_aliases":{"introspection_endpoint":` + bad + `,"token_endpoint":"https://mtls.idp.example/token"}` + rest("", "aliases")
		},
	}
	for name, tt := range map[string]struct{ bad, says string }{
		"plain http":      {`"http://idp.example/x"`, ": the URL must be https"},
		"our loopback":    {`"http://127.0.0.1:1/canary"`, "plain http"},
		"a private host":  {`"https://10.0.0.1/canary"`, "private"},
		"a relative URL":  {`"/canary"`, "absolute"},
		"no URL to ask":   {`"file:///canary"`, "absolute"},
		"a password":      {`"https://u:canary@idp.example/"`, "password"},
		"a fragment":      {`"https://idp.example/#canary"`, "fragment"},
		"false":           {`false`, "not a string"},
		"a number":        {`5`, "not a string"},
		"an object":       {`{"canary":1,"canary":2}`, "not a string"},
		"invalid Unicode": {"\"https://idp.example/\xffcanary\"", "not a string"},
		"a lone half":     {`"https://idp.example/\ud800canary"`, "not a string"},
	} {
		for endpoint, document := range documents {
			t.Run(endpoint+", "+name, func(t *testing.T) {
				s := &site{pages: map[string]string{oidc: document(tt.bad)}}
				got, err := s.issuer(issuer).Metadata(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				want := maps.Clone(good)
				want[endpoint] = "refused"
				if diff := cmp.Diff(want, urlsOf(got)); diff != "" {
					t.Error(diff)
				}
				_, err = endpointsOf(got)[endpoint].URL()
				if faultOf(t, err).Unreachable || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
					t.Errorf("the message is %q, want one of %q and nothing of the document", err, tt.says)
				}
			})
		}
	}
	for name, tt := range map[string]struct {
		document string
		refused  []string
	}{
		"null is absent":              {documents["token, mTLS"]("null"), nil},
		"an unread member twice":      {`{"x":1,"x":{"y":1,"y":2}` + rest("", ""), nil},
		"an unread text in Latin-1":   {"{\"x\":\"\xe9\"" + rest("", ""), nil},
		"an endpoint twice":           {`{"jwks_uri":"https://idp.example/keys"` + rest("", ""), []string{"keys"}},
		"aliases twice":               {`{"mtls_endpoint_aliases":{}` + rest("", ""), []string{"token, mTLS", "introspection, mTLS"}},
		"aliases that are a list":     {`{"mtls_endpoint_aliases":[]` + rest("", "aliases"), []string{"token, mTLS", "introspection, mTLS"}},
		"an alias twice":              {`{"mtls_endpoint_aliases":{"token_endpoint":"https://mtls.idp.example/token","token_endpoint":"https://x.example","introspection_endpoint":"https://mtls.idp.example/introspect"}` + rest("", "aliases"), []string{"token, mTLS"}},
		"a name that differs in case": {`{"Token_Endpoint":"http://x","JWKS_URI":5` + rest("", ""), nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := &site{pages: map[string]string{oidc: tt.document}}
			got, err := s.issuer(issuer).Metadata(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(good)
			if name == "null is absent" {
				want["token, mTLS"] = good["token"]
			}
			for _, endpoint := range tt.refused {
				want[endpoint] = "refused"
			}
			if diff := cmp.Diff(want, urlsOf(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// rest is a good document without its opening brace, and without one member.
func rest(without, aliases string) string {
	var text strings.Builder
	for name, value := range map[string]string{"issuer": issuer, "token_endpoint": "https://idp.example/token", "jwks_uri": "https://idp.example/keys", "introspection_endpoint": "https://idp.example/introspect"} {
		if name != without {
			fmt.Fprintf(&text, ",%q:%q", name, value)
		}
	}
	if aliases == "" {
		text.WriteString(`,"mtls_endpoint_aliases":{"token_endpoint":"https://mtls.idp.example/token","introspection_endpoint":"https://mtls.idp.example/introspect"}`)
	}
	return text.String() + "}"
}

// An invalid document leaves the current metadata unchanged. An invalid endpoint leaves the
// current endpoint unchanged, and the document is fetched again after a minute.
func TestMetadata_endpointBecomesInvalid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{pages: map[string]string{oidc: documentOf(issuer)}}
		i := s.issuer(issuer)
		urls := func() map[string]string {
			t.Helper()
			_, _ = i.Metadata(t.Context())
			synctest.Wait()
			metadata, err := i.Metadata(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return urlsOf(metadata)
		}
		before := urls()
		s.set(func() {
			s.pages[oidc] = `{"issuer":"https://idp.example","token_endpoint":false,"jwks_uri":"https://new.example/keys","introspection_endpoint":"/x"}`
		})
		time.Sleep(time.Hour)
		want := maps.Clone(before)
		want["keys"] = "https://new.example/keys"
		if diff := cmp.Diff(want, urls()); diff != "" {
			t.Error(diff)
		}
		s.set(func() {
			s.pages[oidc] = `{"issuer":"https://idp.example","token_endpoint":"https://new.example/token"}`
		})
		time.Sleep(time.Minute)
		if got := urls(); got["token"] != "https://new.example/token" || got["keys"] != "" {
			t.Errorf("a minute after the document is good again: %v", got)
		}
	})
}

func TestDocumentAtTheLimitIsRead(t *testing.T) {
	document := documentOf(issuer)
	s := &site{pages: map[string]string{oidc: document + strings.Repeat(" ", 512<<10-len(document))}}
	if _, err := s.issuer(issuer).Metadata(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPlainHTTPIssuers(t *testing.T) {
	fetch := func(issuer string, allow bool) error {
		page := fmt.Sprintf(`{"issuer":%q,"token_endpoint":%q}`, issuer, issuer+"/token")
		_, err := discovery.New(discovery.Config{
			Issuer: issuer, AllowHTTP: allow,
			HTTP: discovery.NewHTTPClient(&site{pages: map[string]string{oidc: page}}),
		}).Metadata(t.Context())
		return err
	}
	if err := fetch("http://127.0.0.1:8080", false); err != nil {
		t.Errorf("a loopback issuer is refused: %v", err)
	}
	if err := fetch("http://idp.example", true); err != nil {
		t.Errorf("an issuer in http is refused although it is allowed: %v", err)
	}
	if err := fetch("http://idp.example", false); err == nil {
		t.Error("an issuer in http is accepted")
	}
}

func TestInvalidIssuerGetsNoRequest(t *testing.T) {
	for _, bad := range []string{"", "idp.example", "http://idp.example", "https://idp.example?canary=1", "https://idp.example?", "https://u:canary@idp.example", "https://idp.example/#canary"} {
		s := &site{}
		_, err := s.issuer(bad).Metadata(t.Context())
		if err == nil || faultOf(t, err).Unreachable || len(s.requests()) > 0 || strings.Contains(err.Error(), "canary") {
			t.Errorf("issuer %q: %d requests, %v", bad, len(s.requests()), err)
		}
	}
}

func TestMetadata_sharedSearch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{delay: 3 * time.Second, pages: map[string]string{oidc: documentOf(issuer)}}
		i := s.issuer(issuer)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var callers sync.WaitGroup
		callers.Go(func() { // the first, who starts the search
			_, err := i.Metadata(ctx)
			if !errors.Is(err, context.DeadlineExceeded) || !faultOf(t, err).Unreachable {
				t.Errorf("the caller who left was told %v", err)
			}
			if waited := time.Since(start); waited != time.Second {
				t.Errorf("the caller who left waited %v", waited)
			}
		})
		synctest.Wait()
		var served atomic.Int32
		for range 100 {
			callers.Go(func() {
				if _, err := i.Metadata(t.Context()); err != nil {
					t.Errorf("a caller who stayed was told %v", err)
				} else {
					served.Add(1)
				}
			})
		}
		callers.Wait()
		if served.Load() != 100 || len(s.requests()) != 1 || time.Since(start) != 3*time.Second {
			t.Errorf("%d callers served by %d requests in %v", served.Load(), len(s.requests()), time.Since(start))
		}
	})
}

func TestSearchTakesNoLongerThanItsTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{delay: 3 * time.Second} // 404 after 3 s, twice
		start := time.Now()
		_, err := s.issuer(issuer).Metadata(t.Context())
		if waited := time.Since(start); waited != discovery.Timeout {
			t.Errorf("the search took %v", waited)
		}
		if !faultOf(t, err).Unreachable || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("told %v", err)
		}
	})
}

func TestOutage_boundedFetches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{status: 503, pages: map[string]string{oidc: documentOf(issuer)}}
		i := s.issuer(issuer)
		for range 600 { // a minute
			if _, err := i.Metadata(t.Context()); err == nil {
				t.Fatal("no error")
			}
			time.Sleep(100 * time.Millisecond)
		}
		// At 0, 1, 3, 7, 15 and 31 s; the next would be at 61 s.
		if n := len(s.requests()); n != 6 {
			t.Errorf("%d requests in a minute of outage, want 6", n)
		}
		s.set(func() { s.status = 0 })
		time.Sleep(30 * time.Second)
		if _, err := i.Metadata(t.Context()); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

func TestMetadata_keptWhileRefreshFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &site{pages: map[string]string{oidc: documentOf(issuer)}}
		i := s.issuer(issuer)
		fetch := func() string {
			t.Helper()
			start := time.Now()
			metadata, err := i.Metadata(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if waited := time.Since(start); waited != 0 {
				t.Fatalf("a caller waited %v", waited)
			}
			url, err := metadata.TokenEndpoint.URL()
			if err != nil {
				t.Fatal(err)
			}
			return url
		}
		fetch()
		time.Sleep(time.Hour - 1)
		if fetch(); len(s.requests()) != 1 {
			t.Fatalf("%d requests within the hour", len(s.requests()))
		}

		s.set(func() { s.delay, s.failure = 4*time.Second, errors.New("down") })
		for range 20 {
			time.Sleep(time.Minute)
			if got := fetch(); got != "https://idp.example/token" {
				t.Fatalf("during the outage the token endpoint is %q", got)
			}
		}
		synctest.Wait()
		if n := len(s.requests()); n != 21 {
			t.Errorf("%d requests, want one a minute", n)
		}

		s.set(func() {
			s.failure = nil
			s.pages[oidc] = `{"issuer":"https://idp.example","token_endpoint":"https://new.example/token"}`
		})
		time.Sleep(time.Minute)
		fetch()
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got := fetch(); got != "https://new.example/token" {
			t.Errorf("after the refresh the token endpoint is %q", got)
		}
	})
}
