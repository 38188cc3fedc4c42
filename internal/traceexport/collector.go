package traceexport

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	// defaultSample is the fraction of calls that is traced unless the configuration or
	// the environment gives another.
	defaultSample = 0.01
	// defaultExportTimeout bounds one request to the collector.
	defaultExportTimeout = 2 * time.Second
	// tracesPath is the path of OTLP over HTTP below a base URL.
	tracesPath = "/v1/traces"
)

// collector describes where spans are sent and how. A key of the configuration file wins
// over the variable of OpenTelemetry for the same thing.
//
// OpenTelemetry's exporters read the variables too, but drop bad ones with a log line that
// quotes the value, and let OTEL_EXPORTER_OTLP_INSECURE turn off TLS for an https
// endpoint. So this type holds every setting that decides where spans go, and replaces those
// that the exporters read.
type collector struct {
	overHTTP bool
	endpoint *url.URL    // http or https
	tls      *tls.Config // nil for http
	headers  map[string]redact.String
	timeout  time.Duration
}

// tracingIsOff reports whether the environment turns tracing off, or neither the
// configuration nor the environment turns it on.
func tracingIsOff(config *config.Tracing, log *slog.Logger) bool {
	if isTrue("OTEL_SDK_DISABLED", log) {
		return true
	}
	switch exporter := variable("OTEL_TRACES_EXPORTER"); exporter {
	case "none":
		return true
	case "", "otlp":
	default:
		warnOfVariable(log, "OTEL_TRACES_EXPORTER", "it supports otlp and none")
	}
	_, endpoint := exporterVariable("ENDPOINT")
	return config == nil && endpoint == ""
}

// readCollector reads the configuration and the environment.
func readCollector(config *config.Tracing, log *slog.Logger) (*collector, error) {
	c := &collector{timeout: exportTimeout(log)}
	var err error
	if c.overHTTP, err = isOverHTTP(); err != nil {
		return nil, err
	}
	if c.endpoint, err = c.readEndpoint(config.Endpoint, log); err != nil {
		return nil, err
	}
	if c.headers, err = readHeaders(); err != nil {
		return nil, err
	}
	if c.endpoint.Scheme == "https" {
		c.tls, err = collectorTLS(config.CA)
	}
	return c, err
}

func isOverHTTP() (bool, error) {
	switch name, protocol := exporterVariable("PROTOCOL"); strings.ToLower(protocol) {
	case "", "grpc":
		return false, nil
	case "http/protobuf":
		return true, nil
	default:
		return false, fmt.Errorf("%s: use grpc or http/protobuf", name)
	}
}

// readEndpoint returns the URL to which spans are sent. The errors quote no URL, which
// may contain a password.
func (c *collector) readEndpoint(configured string, log *slog.Logger) (*url.URL, error) {
	name, text := "tracing.endpoint", configured
	if text == "" {
		if name, text = exporterVariable("ENDPOINT"); text == "" {
			return nil, errors.New("tracing.endpoint is missing: set it, or the environment variable OTEL_EXPORTER_OTLP_ENDPOINT")
		}
	}
	if !strings.Contains(text, "://") && !c.overHTTP {
		scheme := "https"
		if insecure, _ := exporterVariable("INSECURE"); isTrue(insecure, log) {
			scheme = "http"
		}
		text = scheme + "://" + text
	}
	endpoint, err := url.Parse(text)
	if err != nil || endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.Hostname() == "" || endpoint.User != nil || endpoint.RawQuery != "" || endpoint.Fragment != "" {
		return nil, fmt.Errorf("%s: expected a URL such as https://collector.example.com:4317, without a password, a query and a fragment", name)
	}
	switch {
	case c.overHTTP && name != "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT":
		return endpoint.JoinPath(tracesPath), nil
	case !c.overHTTP && strings.Trim(endpoint.Path, "/") != "":
		return nil, fmt.Errorf("%s: OTLP over gRPC uses no path: remove it, or set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf", name)
	}
	return endpoint, nil
}

// readHeaders returns the headers of each request to the collector, which may hold a
// token: the errors quote none of them.
func readHeaders() (map[string]redact.String, error) {
	variable, text := exporterVariable("HEADERS")
	headers := map[string]redact.String{}
	for i, header := range strings.Split(text, ",") {
		if strings.TrimSpace(header) == "" {
			continue
		}
		name, escaped, ok := strings.Cut(header, "=")
		value, err := url.PathUnescape(strings.TrimSpace(escaped))
		name = strings.ToLower(strings.TrimSpace(name))
		if !ok || err != nil || name == "" || strings.ContainsFunc(name, isNotHeaderName) || strings.ContainsFunc(value, isNotPrintable) {
			return nil, fmt.Errorf("%s: header %d is not NAME=VALUE with a valid name and a percent-encoded printable value", variable, i+1)
		}
		headers[name] = redact.New(value)
	}
	return headers, nil
}

// isNotHeaderName holds for characters that gRPC does not send in names.
func isNotHeaderName(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("-_.", r)
}

func isNotPrintable(r rune) bool { return r < ' ' || r > '~' }

// collectorTLS returns the TLS configuration for an https endpoint. A file that cannot be
// used is an error: without it the broker would trust other authorities.
func collectorTLS(configured string) (*tls.Config, error) {
	secure := &tls.Config{MinVersion: tls.VersionTLS12}
	name, file := exporterVariable("CERTIFICATE")
	if configured != "" {
		name, file = "tracing.ca", configured
	}
	var err error
	if file != "" {
		if secure.RootCAs, err = certs.Pool(name, file); err != nil {
			return nil, err
		}
	}
	certVariable, cert := exporterVariable("CLIENT_CERTIFICATE")
	keyVariable, key := exporterVariable("CLIENT_KEY")
	switch {
	case cert == "" && key == "":
		return secure, nil
	case cert == "" || key == "":
		return nil, fmt.Errorf("%s: the client certificate needs both a certificate and a key", cmp.Or(certVariable, keyVariable))
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certVariable, err)
	}
	secure.Certificates = []tls.Certificate{pair}
	return secure, nil
}

func exportTimeout(log *slog.Logger) time.Duration {
	name, text := exporterVariable("TIMEOUT")
	if text == "" {
		return defaultExportTimeout
	}
	milliseconds, err := strconv.Atoi(text)
	if err != nil || milliseconds <= 0 {
		warnOfVariable(log, name, "expected a number of milliseconds")
		return defaultExportTimeout
	}
	return time.Duration(milliseconds) * time.Millisecond
}

// open returns an exporter to the collector, which does not connect before it sends. Spans
// that cannot be sent are dropped without a retry: they are worth neither the memory nor a
// delayed shutdown. Call closeIdle after the exporter's shutdown.
func (c *collector) open() (exporter *otlptrace.Exporter, closeIdle func(), err error) {
	headers := map[string]string{}
	for name, value := range c.headers {
		headers[name] = value.Reveal()
	}
	if !c.overHTTP {
		secure := insecure.NewCredentials()
		if c.tls != nil {
			secure = credentials.NewTLS(c.tls)
		}
		exporter, err = otlptracegrpc.New(context.Background(),
			otlptracegrpc.WithEndpoint(hostPort(c.endpoint)), otlptracegrpc.WithTLSCredentials(secure), otlptracegrpc.WithHeaders(headers),
			otlptracegrpc.WithTimeout(c.timeout), otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}))
		return exporter, func() {}, err
	}
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: c.tls, ForceAttemptHTTP2: true}
	exporter, err = otlptracehttp.New(context.Background(),
		otlptracehttp.WithEndpointURL(c.endpoint.String()), otlptracehttp.WithTLSClientConfig(nil), otlptracehttp.WithHeaders(headers),
		otlptracehttp.WithHTTPClient(&http.Client{Transport: successOnly{transport}, Timeout: c.timeout}),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: false}))
	return exporter, transport.CloseIdleConnections, err
}

// hostPort returns the host of a URL with its port, or the default port of its scheme.
func hostPort(u *url.URL) string {
	port := map[string]string{"http": "80", "https": "443"}[u.Scheme]
	return net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), port))
}

// successOnly makes an error of each response that is not a success. So headers, which
// may hold a token, do not follow a redirect, and no error quotes a response.
type successOnly struct{ http.RoundTripper }

// statusError is the status of a response that is not a success.
type statusError int

func (s statusError) Error() string { return "HTTP status " + strconv.Itoa(int(s)) }

// RoundTrip implements http.RoundTripper.
func (s successOnly) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := s.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if response.StatusCode < 200 || response.StatusCode > 299 {
		_ = response.Body.Close()
		return nil, statusError(response.StatusCode)
	}
	return response, nil
}

// sampler returns the sampler of the configuration and of OTEL_TRACES_SAMPLER.
func sampler(config *config.Tracing, log *slog.Logger) trace.Sampler {
	ratio, follow := defaultSample, false
	if name := strings.ToLower(variable("OTEL_TRACES_SAMPLER")); name != "" {
		var base string
		base, follow = strings.CutPrefix(name, "parentbased_")
		switch base {
		case "always_on":
			ratio = 1
		case "always_off":
			ratio = 0
		case "traceidratio":
			ratio = samplerRatio(log)
		default:
			follow = false
			warnOfVariable(log, "OTEL_TRACES_SAMPLER", "it supports always_on, always_off and traceidratio, each also with the prefix parentbased_")
		}
	}
	if config.Sample != nil {
		ratio = *config.Sample
	}
	if config.FollowCallers != nil {
		follow = *config.FollowCallers
	}
	if follow {
		return trace.ParentBased(trace.TraceIDRatioBased(ratio))
	}
	return trace.TraceIDRatioBased(ratio)
}

// samplerRatio returns OTEL_TRACES_SAMPLER_ARG. If it is invalid, the specification
// demands that it counts as absent, which is 1.
func samplerRatio(log *slog.Logger) float64 {
	const name = "OTEL_TRACES_SAMPLER_ARG"
	text := variable(name)
	if text == "" {
		return 1
	}
	ratio, err := strconv.ParseFloat(text, 64)
	if err != nil || !(ratio >= 0 && ratio <= 1) { // NaN is invalid too
		warnOfVariable(log, name, "expected a number from 0 to 1")
		return 1
	}
	return ratio
}

// exporterVariable returns the name and the value of the variable for traces, or else of
// that for all signals. Both are empty if neither is set.
func exporterVariable(name string) (string, string) {
	for _, prefix := range []string{"OTEL_EXPORTER_OTLP_TRACES_", "OTEL_EXPORTER_OTLP_"} {
		if value := variable(prefix + name); value != "" {
			return prefix + name, value
		}
	}
	return "", ""
}

// variable returns a variable of the environment. The specification does not distinguish
// empty from absent.
func variable(name string) string { return strings.TrimSpace(os.Getenv(name)) }

func isTrue(name string, log *slog.Logger) bool {
	switch strings.ToLower(variable(name)) {
	case "true":
		return true
	case "", "false":
	default:
		warnOfVariable(log, name, "expected true or false")
	}
	return false
}

// warnOfVariable reports an ignored variable, without its value.
func warnOfVariable(log *slog.Logger, name, problem string) {
	log.Warn("a variable of OpenTelemetry is ignored: "+problem, "variable", name)
}
