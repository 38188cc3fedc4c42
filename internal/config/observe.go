package config

import (
	"net"
	"net/url"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Audit defines the audit log of issued tokens and refused requests.
type Audit struct {
	// The file to which lines are appended, created with mode 0600 if it is absent. "stdout": the
	// standard output.
	File string `yaml:"file" jsonschema:"required,minLength=1"`
	// When an issued token has a line: the first time that a caller receives it, with further times
	// counted and reported once a minute (first), or every time (every).
	Tokens string `yaml:"tokens" jsonschema:"default=first,enum=first,enum=every"`
	// Which verifications have a line. A verification that the caller may not request always has a
	// line.
	Verifications string `yaml:"verifications" jsonschema:"default=rejected,values=verifications"`
	// The behavior while lines cannot be written: lines that do not fit into the buffer are dropped
	// and counted (drop), or the actions that they would record are refused with UNAVAILABLE
	// (refuse).
	WhenFull string `yaml:"when_full" jsonschema:"default=drop,enum=drop,enum=refuse"`
}

// Tracing defines the destination of OpenTelemetry spans.
type Tracing struct {
	// The collector, which speaks OTLP: https://HOST:PORT, or http://HOST:PORT for plaintext. The
	// port is usually 4317 for gRPC and 4318 for HTTP. Absent: OTEL_EXPORTER_OTLP_ENDPOINT.
	Endpoint string `yaml:"endpoint" jsonschema:"minLength=1,maxLength=512"`
	// The fraction of all calls that is traced, from 0 to 1. Absent: that of OTEL_TRACES_SAMPLER,
	// or else 0.01.
	Sample *float64 `yaml:"sample" jsonschema:"minimum=0,maximum=1"`
	// Trace a call if, and only if, its caller traces it, and sample only calls without a decision
	// of the caller. Any client that can connect can then have each of its calls traced. Absent:
	// as OTEL_TRACES_SAMPLER says, or else false.
	FollowCallers *bool `yaml:"follow_callers"`
	// The file with the certificates of the trusted authorities for https. Absent: that of
	// OTEL_EXPORTER_OTLP_CERTIFICATE, or else the system's authorities.
	CA string `yaml:"ca" jsonschema:"minLength=1"`
}

func checkTracing(c *Tracing, findings *yamlconf.Findings) {
	const endpoint = "tracing.endpoint"
	u, err := url.Parse(c.Endpoint)
	if c.Endpoint == "" {
		return
	}
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		findings.Addf(endpoint, "expected https://HOST:PORT or http://HOST:PORT without a path, such as https://collector.example.com:4317")
		return
	}
	if host, port, err := net.SplitHostPort(u.Host); err != nil || host == "" || !isPort(port) {
		findings.Addf(endpoint, "the port is missing: OTLP is usually at 4317 over gRPC and at 4318 over HTTP")
	}
	if c.CA != "" && u.Scheme != "https" {
		findings.Addf("tracing.ca", "http:// does not use TLS: use https://, or remove it")
	}
}

// Verifications maps the values of audit.verifications.
func Verifications() map[string]audit.Verifications {
	return map[string]audit.Verifications{"none": audit.NoVerifications, "rejected": audit.RejectedVerifications, "all": audit.AllVerifications}
}
