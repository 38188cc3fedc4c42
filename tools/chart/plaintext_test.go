package chart

import (
	"net"
	"strings"
	"testing"
)

// switches are the values that let something cross the network unencrypted.
var switches = []string{"grpc.plaintext", "http.plaintext", "ops.plaintext", "store.redis.plaintext", "tracing.plaintext"}

// unencrypted returns the switches that a configuration must have been rendered with.
func unencrypted(r *release) map[string]bool {
	c := r.config
	beyond := func(address string) bool {
		host, _, _ := net.SplitHostPort(address)
		return address != "" && !net.ParseIP(host).IsLoopback()
	}
	found := map[string]bool{
		"grpc.plaintext":        beyond(c.Listen.GRPC.Address) && !c.Listen.Encrypted(),
		"http.plaintext":        beyond(c.Listen.HTTP.Address) && !c.Listen.EncryptedHTTP(),
		"ops.plaintext":         beyond(c.Listen.Ops.Address),
		"store.redis.plaintext": c.Store.Redis != nil && c.Store.Redis.TLS == nil,
		"tracing.plaintext":     c.Tracing != nil && !strings.HasPrefix(c.Tracing.Endpoint, "https://"),
	}
	return found
}

// on reports whether a switch is on.
func on(given values, path string) bool {
	for key := range strings.SplitSeq(path, ".") {
		inner, _ := given[key].(values)
		if inner == nil {
			return given[key] == true
		}
		given = inner
	}
	return false
}

// Nothing is unencrypted beyond loopback unless a value of that name says so: each value
// file is rendered as it is, and without each of the switches.
func TestPlaintextNeedsItsSwitch(t *testing.T) {
	seen := map[string]bool{}
	check := func(t *testing.T, given values) {
		t.Helper()
		r, err := tryInstall(given)
		if err != nil {
			return
		}
		for path, plain := range unencrypted(r) {
			seen[path] = seen[path] || plain
			if plain && !on(given, path) {
				t.Errorf("without %s:\n%s", path, r.text)
			}
		}
	}
	forEachFile(t, func(t *testing.T, given values) {
		check(t, given)
		for _, path := range switches {
			if on(given, path) {
				check(t, with(t, given, path, false))
			}
		}
	})
	for _, path := range switches {
		if !seen[path] {
			t.Errorf("no value file has %s", path)
		}
	}
}

// The broker's own names for it are as explicit.
func TestPlaintextNeedsItsSwitch_idp(t *testing.T) {
	given := parse(t, string(read(t, examplesDir+"/redis.yaml")))
	given = with(t, given, "config.clients.orders-api.issuer", "http://login.example.com")
	if _, err := tryInstall(given); err == nil || !strings.Contains(err.Error(), "allow_http") {
		t.Errorf("an IdP without TLS: %v", err)
	}
	install(t, with(t, given, "config.clients.orders-api.allow_http", true))
}
