package chart

import (
	"strings"
	"testing"
)

// Values that contradict each other fail with a sentence that names the value to change.
func TestContradictionsAreRefused(t *testing.T) {
	for name, test := range map[string]struct {
		file, path string
		value      any
		want       string
	}{
		"no Redis":                       {"redis", "store.redis.addresses", []any{}, "store.redis.addresses: "},
		"replicas with Bolt":             {"bolt", "replicas", 2, "replicas: "},
		"replicas in memory":             {"redis", "store.kind", "memory", "replicas: "},
		"no TLS":                         {"redis", "tls.source", "none", "grpc.plaintext: true"},
		"no TLS for the HTTP API":        {"mesh", "http.plaintext", false, "http.plaintext: true"},
		"TLS that is not used":           {"redis", "grpc.plaintext", true, "grpc.plaintext: "},
		"no issuer":                      {"cert-manager", "tls.certManager.issuer.name", "", "tls.certManager.issuer.name: "},
		"two places of authorities":      {"cert-manager", "tls.callersCA.secret", "ca", "tls.callersCA: "},
		"two places of Redis's":          {"redis", "store.redis.tls.ca.secret", "ca", "store.redis.tls.ca: "},
		"authorities beside SPIFFE":      {"spiffe", "tls.callersCA.secret", "ca", "tls.callersCA: "},
		"metrics on loopback":            {"redis", "serviceMonitor.enabled", true, "ops.plaintext"},
		"profiles beyond loopback":       {"mesh", "config.server.pprof", true, "config.server.pprof: "},
		"traces without TLS":             {"mesh", "tracing.plaintext", false, "tracing.plaintext: true"},
		"audit on a read-only file":      {"redis", "config.audit.file", "/var/log/audit.jsonl", "config.audit.file: "},
		"secret that is not mounted":     {"redis", "mounts.secrets", []any{"other"}, "config.clients.orders-api.secret: "},
		"nobody may connect":             {"redis", "networkPolicy.enabled", true, "networkPolicy.callers: "},
		"servers behind sentinels":       {"production", "networkPolicy.extraPorts", []any{}, "networkPolicy.extraPorts: "},
		"Prometheus is kept out":         {"production", "networkPolicy.prometheus", []any{}, "networkPolicy.prometheus: "},
		"callers of no cluster":          {"redis", "kubernetes.enabled", false, "kubernetes.callers: "},
		"the chart's own keys":           {"redis", "config.listen", values{}, "listen"},
		"the chart's own keys of server": {"redis", "config.server.drain_delay", "1s", "drain_delay"},
	} {
		t.Run(name, func(t *testing.T) {
			given := parse(t, string(read(t, examplesDir+"/"+test.file+".yaml")))
			_, _, err := render("tokenbroker", "identity", with(t, given, test.path, test.value))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// All problems are reported at once.
func TestContradictionsAreRefused_together(t *testing.T) {
	_, _, err := render("tokenbroker", "identity", values{"tls": values{"source": "none"}})
	for _, want := range []string{"store.redis.addresses: ", "tls.source: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not contain %q", err, want)
		}
	}
}
