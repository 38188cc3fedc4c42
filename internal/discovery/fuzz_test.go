package discovery_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

// FuzzDecode searches for data that decodes to more than the limit.
func FuzzDecode(f *testing.F) {
	for _, coding := range []string{"", "gzip", "deflate", "br", "gzip, gzip"} {
		for _, data := range []string{"", `{"a":1}`, mark + "{}", gzipped(`{"a":1}`), zlibbed(mark), deflated("x"), gzipped(string(make([]byte, 5000)))} {
			f.Add([]byte(data), coding)
		}
	}
	const limit = 1000
	f.Fuzz(func(t *testing.T, data []byte, coding string) {
		got, err := discovery.Decode(data, coding, limit)
		if len(got) > max(limit+1, len(data)) || err != nil && got != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// FuzzMetadata adds a member to a valid document: endpoints of other names stay usable, and
// every returned URL passes CheckURL.
func FuzzMetadata(f *testing.F) {
	for _, name := range []string{"issuer", "token_endpoint", "jwks_uri", "introspection_endpoint", "mtls_endpoint_aliases", "x", "Issuer"} {
		for _, value := range []string{`null`, `false`, `"http://idp.example/x"`, `"/x"`, `"https://10.0.0.1/"`, `{"token_endpoint":5,"introspection_endpoint":"https://x.example/"}`, `[{"a":1,"a":2}]`, "\"\xff\""} {
			f.Add(name, value, true)
			f.Add(name, value, false)
		}
	}
	read := map[string][]string{
		"issuer": nil, "token_endpoint": {"token", "token, mTLS"}, "jwks_uri": {"keys"}, "introspection_endpoint": {"introspection", "introspection, mTLS"},
		"mtls_endpoint_aliases": {"token, mTLS", "introspection, mTLS"},
	}
	f.Fuzz(func(t *testing.T, name, value string, instead bool) {
		quoted, err := json.Marshal(name)
		if err != nil || !json.Valid([]byte(value)) {
			return
		}
		_ = json.Unmarshal(quoted, &name) // as it is read, in sound Unicode
		without := ""
		if instead {
			without = name
		}
		s := &site{pages: map[string]string{oidc: fmt.Sprintf("{%s:%s%s", quoted, value, rest(without, "aliases"))}}
		metadata, err := s.issuer(issuer).Metadata(t.Context())
		if err != nil {
			if name != "issuer" && json.Valid([]byte(value)) && len(value) < 1000 {
				t.Errorf("a member %s costs the whole document: %v", quoted, err)
			}
			return
		}
		if metadata.Issuer != issuer {
			t.Errorf("issuer %q", metadata.Issuer)
		}
		good := map[string]string{
			"token": "https://idp.example/token", "keys": "https://idp.example/keys", "introspection": "https://idp.example/introspect",
			"token, mTLS": "https://idp.example/token", "introspection, mTLS": "https://idp.example/introspect",
		}
		for endpoint, url := range urlsOf(metadata) {
			switch {
			case !slices.Contains(read[name], endpoint) && url != good[endpoint]:
				t.Errorf("a member %s makes %s %q", quoted, endpoint, url)
			case url != "" && url != "refused" && (discovery.CheckURL(url, false) != nil || discovery.CheckHost(url, false) != nil):
				t.Errorf("%s at %q is accepted", endpoint, url)
			}
		}
	})
}
