package config

import (
	"net"
	"net/url"

	"github.com/cezzis/tokenbroker/internal/audit"
)

// Audit says where it is written down who was given what, and who was
// refused.
type Audit struct {
	// The file that lines are appended to, created with mode 0600 if there is none. "stdout": the
	// standard output.
	File string `yaml:"file" jsonschema:"required,minLength=1"`
	// When a token that is given has a line: the first time that a caller is given it, with further
	// times counted and told once a minute, or every time.
	Tokens string `yaml:"tokens" jsonschema:"default=first,enum=first,enum=every"`
	// Which verifications have a line. Those that a caller may not ask for have one in any case.
	Verifications string `yaml:"verifications" jsonschema:"default=rejected,values=verifications"`
	// What happens while lines cannot be written: those that find no room in the buffer are dropped
	// and counted, or what they would tell of is refused with UNAVAILABLE.
	WhenFull string `yaml:"when_full" jsonschema:"default=drop,enum=drop,enum=refuse"`
}

// Tracing says where OpenTelemetry spans go.
type Tracing struct {
	// The collector, which speaks OTLP over gRPC: https://HOST:PORT, or http://HOST:PORT for
	// plaintext. The port is usually 4317.
	Endpoint string `yaml:"endpoint" jsonschema:"required,minLength=1,maxLength=512"`
	// The part of all calls that is traced, from 0 to 1.
	Sample float64 `yaml:"sample" jsonschema:"default=0.01,minimum=0,maximum=1"`
	// Trace a call if, and only if, its caller traces it, and sample only those of which the caller
	// says nothing. Whoever can connect can then have each of its calls traced.
	FollowCallers bool `yaml:"follow_callers" jsonschema:"default=false"`
	// The file with the certificates of the authorities that are trusted for https. Absent: those of
	// the system.
	CA string `yaml:"ca" jsonschema:"minLength=1"`
}

func checkTracing(c *Tracing, found *findings) {
	const endpoint = "tracing.endpoint"
	u, err := url.Parse(c.Endpoint)
	if c.Endpoint == "" {
		return
	}
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		found.addAtf(endpoint, "expected https://HOST:PORT or http://HOST:PORT and nothing more, such as https://collector.example.com:4317")
		return
	}
	if host, port, err := net.SplitHostPort(u.Host); err != nil || host == "" || !isPort(port) {
		found.addAtf(endpoint, "the port is missing: OTLP over gRPC is usually at 4317")
	}
	if c.CA != "" && u.Scheme != "https" {
		found.addAtf("tracing.ca", "nothing is encrypted over http: use https, or remove it")
	}
}

// Verifications maps the values of audit.verifications.
func Verifications() map[string]audit.Verifications {
	return map[string]audit.Verifications{"none": audit.NoVerifications, "rejected": audit.RejectedVerifications, "all": audit.AllVerifications}
}
