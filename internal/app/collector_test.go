package app_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// receiver is a collector that keeps what it receives, over gRPC or HTTP.
type receiver struct {
	otlp

	mu     sync.Mutex
	paths  []string
	tokens []string // the values of the header x-token
}

func (r *receiver) received(path string, tokens []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paths, r.tokens = append(r.paths, path), append(r.tokens, strings.Join(tokens, " "))
}

func (r *receiver) Export(ctx context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	r.received("grpc", md.Get("x-token"))
	return r.otlp.Export(ctx, req)
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.received(req.Method+" "+req.URL.Path, req.Header.Values("X-Token"))
	body, _ := io.ReadAll(req.Body)
	var export collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(body, &export); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	_, _ = r.otlp.Export(req.Context(), &export)
	w.Header().Set("Content-Type", "application/x-protobuf")
}

// listenGRPC and listenHTTP start it, with TLS unless secure is nil, and return its
// address.
func (r *receiver) listenGRPC(t *testing.T, secure *tls.Config) string {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var options []grpc.ServerOption
	if secure != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(secure)))
	}
	server := grpc.NewServer(options...)
	collector.RegisterTraceServiceServer(server, r)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return listener.Addr().String()
}

func (r *receiver) listenHTTP(t *testing.T, secure *tls.Config) string {
	t.Helper()
	server := httptest.NewUnstartedServer(r)
	if server.TLS = secure; secure != nil {
		server.StartTLS()
	} else {
		server.Start()
	}
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// export runs a broker that gets a token, and stops it. section is a part of the
// configuration.
func export(t *testing.T, section string) {
	t.Helper()
	t.Run("broker", func(t *testing.T) {
		_, c := run(t, parsed(t, sampleText(t, 1)+section), devIDP(t))
		if _, err := c.Token(t.Context(), "client-0"); err != nil {
			t.Error(err)
		}
	})
}

func setenv(t *testing.T, variables map[string]string) {
	t.Helper()
	for name, value := range variables {
		t.Setenv(name, value)
	}
}

func TestCollector_variables(t *testing.T) {
	for name, tt := range map[string]struct {
		http      bool
		variables map[string]string // ADDRESS is the receiver's
		section   string
		paths     string
		token     string
	}{
		"gRPC": {variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS"}, paths: "grpc"},
		"gRPC by name": {
			variables: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://ADDRESS/", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_HEADERS": "X-Token=a%20b, other=1"},
			paths:     "grpc", token: "a b",
		},
		"gRPC without a scheme": {
			variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "ADDRESS", "OTEL_EXPORTER_OTLP_INSECURE": "True", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"},
			paths:     "grpc",
		},
		"HTTP": {
			http:      true,
			variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS/base/", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_HEADERS": "x-token=a"},
			paths:     "POST /base/v1/traces", token: "a",
		},
		"HTTP, for traces": {
			http: true,
			variables: map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://ADDRESS/as/it/is",
				"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
				"OTEL_EXPORTER_OTLP_HEADERS": "x-token=a", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-token=b",
			},
			paths: "POST /as/it/is", token: "b",
		},
		"the file wins": {
			variables: map[string]string{
				"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://127.0.0.1:1", "OTEL_TRACES_SAMPLER": "always_off",
				"OTEL_EXPORTER_OTLP_HEADERS": "x-token=a", "OTEL_EXPORTER_OTLP_INSECURE": "false", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere",
			},
			section: `tracing: {endpoint: "http://ADDRESS", sample: 1}`, paths: "grpc", token: "a",
		},
		"the file over HTTP": {
			http:      true,
			variables: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere"},
			section:   `tracing: {endpoint: "http://ADDRESS"}`, paths: "POST /v1/traces",
		},
		"the file without an endpoint":          {variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS", "OTEL_TRACES_SAMPLER": "always_off"}, section: "tracing: {sample: 1}", paths: "grpc"},
		"empty is absent":                       {variables: map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS", "OTEL_SDK_DISABLED": "", "OTEL_TRACES_EXPORTER": "otlp"}, paths: "grpc"},
		"no endpoint":                           {variables: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}},
		"disabled":                              {variables: map[string]string{"OTEL_SDK_DISABLED": "TRUE"}, section: `tracing: {endpoint: "http://ADDRESS", sample: 1}`},
		"without an exporter":                   {variables: map[string]string{"OTEL_TRACES_EXPORTER": "none"}, section: `tracing: {endpoint: "http://ADDRESS", sample: 1}`},
		"always_off":                            {variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS", "OTEL_TRACES_SAMPLER": "always_off"}},
		"traceidratio 0":                        {variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}},
		"parentbased_traceidratio 1":            {variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "1"}, paths: "grpc"},
		"traceidratio with an invalid argument": {variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "50%"}, paths: "grpc"},
		"the file's sample with callers followed": {
			variables: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://ADDRESS", "OTEL_TRACES_SAMPLER": "parentbased_always_on"}, section: "tracing: {sample: 0}",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &receiver{}
			listen := r.listenGRPC
			if tt.http {
				listen = r.listenHTTP
			}
			address := listen(t, nil)
			t.Setenv("OTEL_TRACES_SAMPLER", "always_on")
			for name, value := range tt.variables {
				t.Setenv(name, strings.ReplaceAll(value, "ADDRESS", address))
			}
			export(t, strings.ReplaceAll(tt.section, "ADDRESS", address)+"\n")
			if got := strings.Join(slices.Compact(r.paths), ", "); got != tt.paths || tt.paths != "" && r.tokens[0] != tt.token {
				t.Errorf("the collector received %q with the tokens %q", got, r.tokens)
			}
			if n := len(r.named(getToken)); tt.paths != "" && n != 1 {
				t.Errorf("%d spans of the call", n)
			}
		})
	}
}

// TLS with the authorities and the client certificate of the variables, over both
// protocols. The file's ca wins over that of the variables.
func TestCollector_mutualTLS(t *testing.T) {
	files, others := redistest.NewCertificates(t), redistest.NewCertificates(t)
	pair, err := tls.LoadX509KeyPair(files.ServerCert, files.ServerKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"grpc", "http/protobuf"} {
		for name, tt := range map[string]struct {
			ca, cert, key, section string
			want                   int
		}{
			"all":                      {ca: files.CA, cert: files.ClientCert, key: files.ClientKey, want: 1},
			"the file's authorities":   {ca: others.CA, cert: files.ClientCert, key: files.ClientKey, section: fmt.Sprintf("tracing: {ca: %q}\n", files.CA), want: 1},
			"other authorities":        {ca: others.CA, cert: files.ClientCert, key: files.ClientKey},
			"no client certificate":    {ca: files.CA},
			"another's client":         {ca: files.CA, cert: others.ClientCert, key: others.ClientKey},
			"the system's authorities": {cert: files.ClientCert, key: files.ClientKey},
		} {
			t.Run(protocol+", "+name, func(t *testing.T) {
				r := &receiver{}
				secure := &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: files.Client(t).RootCAs, MinVersion: tls.VersionTLS12}
				listen := r.listenGRPC
				if protocol != "grpc" {
					listen = r.listenHTTP
				}
				setenv(t, map[string]string{
					"OTEL_EXPORTER_OTLP_ENDPOINT": "https://" + listen(t, secure), "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_TRACES_SAMPLER": "always_on",
					"OTEL_EXPORTER_OTLP_CERTIFICATE": tt.ca, "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE": tt.cert, "OTEL_EXPORTER_OTLP_CLIENT_KEY": tt.key,
					"OTEL_EXPORTER_OTLP_INSECURE": "true", // it does not turn off TLS for https
				})
				export(t, tt.section)
				if got := len(r.named(getToken)); got != tt.want {
					t.Errorf("%d spans, want %d", got, tt.want)
				}
			})
		}
	}
}

func TestCollector_badVariables(t *testing.T) {
	const prefix = "OTEL_EXPORTER_OTLP_"
	for name, tt := range map[string]struct {
		variables map[string]string
		section   string
		says      string
	}{
		"protocol":            {variables: map[string]string{prefix + "PROTOCOL": "http/json"}, says: prefix + "PROTOCOL: use grpc or http/protobuf"},
		"endpoint":            {variables: map[string]string{prefix + "ENDPOINT": "ftp://canary:4317"}, says: prefix + "ENDPOINT: expected a URL"},
		"endpoint, password":  {variables: map[string]string{prefix + "TRACES_ENDPOINT": "https://a:canary@collector:4317"}, says: prefix + "TRACES_ENDPOINT: expected a URL"},
		"endpoint, no URL":    {variables: map[string]string{prefix + "ENDPOINT": "http://canary:%zz"}, says: prefix + "ENDPOINT: expected a URL"},
		"endpoint, no scheme": {variables: map[string]string{prefix + "ENDPOINT": "canary:4318", prefix + "PROTOCOL": "http/protobuf"}, says: prefix + "ENDPOINT: expected a URL"},
		"endpoint, path":      {variables: map[string]string{prefix + "ENDPOINT": "http://canary:4318/v1/traces"}, says: "set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf"},
		"header":              {variables: map[string]string{prefix + "HEADERS": "a=b,Bearer canary"}, says: prefix + "HEADERS: header 2 is not NAME=VALUE"},
		"header name":         {variables: map[string]string{prefix + "HEADERS": "canary name=b"}, says: prefix + "HEADERS: header 1 is"},
		"header escape":       {variables: map[string]string{prefix + "TRACES_HEADERS": "a=canary%zz"}, says: prefix + "TRACES_HEADERS: header 1 is"},
		"header line break":   {variables: map[string]string{prefix + "HEADERS": "a=canary%0d%0a"}, says: prefix + "HEADERS: header 1 is"},
		"authorities":         {variables: map[string]string{prefix + "CERTIFICATE": "/nowhere/ca.crt"}, says: prefix + "CERTIFICATE: open /nowhere/ca.crt"},
		"client certificate":  {variables: map[string]string{prefix + "CLIENT_CERTIFICATE": "/nowhere/a", prefix + "CLIENT_KEY": "/nowhere/b"}, says: prefix + "CLIENT_CERTIFICATE: open /nowhere/a"},
		"no client key":       {variables: map[string]string{prefix + "CLIENT_CERTIFICATE": "/nowhere/a"}, says: prefix + "CLIENT_CERTIFICATE: the client certificate needs both"},
		"nothing":             {variables: map[string]string{prefix + "ENDPOINT": ""}, section: "tracing: {sample: 1}\n", says: "tracing.endpoint is missing: set it, or the environment variable OTEL_EXPORTER_OTLP_ENDPOINT"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(prefix+"ENDPOINT", "https://collector.example.com:4317")
			setenv(t, tt.variables)
			_, err := app.New(parsed(t, sampleText(t, 1)+tt.section), app.Options{Logger: quiet()})
			if err == nil || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "canary") {
				t.Errorf("New: %v", err)
			}
		})
	}
}

// A variable that the specification tells to ignore has a warning without its value.
func TestCollector_ignoredVariables(t *testing.T) {
	r := &receiver{}
	setenv(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + r.listenGRPC(t, nil), "OTEL_EXPORTER_OTLP_TIMEOUT": "canary", "OTEL_TRACES_SAMPLER": "canary",
		"OTEL_SDK_DISABLED": "canary", "OTEL_TRACES_EXPORTER": "canary", "OTEL_RESOURCE_ATTRIBUTES": "canary",
	})
	log := &testkit.Log{}
	broker, err := app.New(parsed(t, sampleText(t, 1)), app.Options{Logger: slog.New(slog.NewTextHandler(log, nil)), Transport: devIDP(t).RoundTripper()})
	if err != nil {
		t.Fatal(err)
	}
	broker.Close()
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_RESOURCE_ATTRIBUTES"} {
		if !log.Contains(name) {
			t.Errorf("no warning about %s", name)
		}
	}
	if log.Contains("canary") {
		t.Errorf("the log has a value: %s", log)
	}
}

// headerCanary runs in a process of its own, because OpenTelemetry writes to the standard
// error of the process.
const headerCanary = "TOKENBROKER_TEST_HEADER_CANARY"

// The headers stay out of all output, whatever the collector answers.
func TestCollector_headersStaySecret(t *testing.T) {
	if os.Getenv(headerCanary) != "" {
		log := slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
		broker, err := app.New(parsed(t, sampleText(t, 1)), app.Options{Logger: log, Transport: devIDP(t).RoundTripper()})
		if err != nil {
			t.Log(err)
			return
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- broker.Run(ctx) }()
		conn := dial(t, broker.GRPCAddr())
		_ = conn.Invoke(t.Context(), "/tokenbroker.v1.TokenBrokerService/GetToken", &collector.ExportTraceServiceRequest{}, &collector.ExportTraceServiceResponse{})
		testkit.Eventually(t, "an export", func() bool {
			return sampleOf(t, broker, `tokenbroker_traces_exported_total{result="failed"}`)+sampleOf(t, broker, `tokenbroker_traces_exported_total{result="ok"}`) > 0
		})
		_, metrics := read(t, "http://"+broker.OpsAddr()+"/metrics")
		t.Log(metrics)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return
	}
	const canary = "canary7f3a"
	var redirected sync.Map
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { redirected.Store("token", r.Header.Get("X-Token")) }))
	defer elsewhere.Close()
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", elsewhere.URL)
		status := http.StatusUnauthorized
		if strings.HasPrefix(r.URL.Path, "/redirect") {
			status = http.StatusTemporaryRedirect
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, r.Header.Get("X-Token"))
	}))
	defer echo.Close()
	good := &receiver{}
	address := good.listenGRPC(t, nil)
	for name, tt := range map[string]struct {
		variables map[string]string
		says      string
	}{
		"gRPC":                    {map[string]string{"ENDPOINT": "http://" + address, "HEADERS": "x-token=" + canary}, `traces_exported_total{result="failed"} 0`},
		"echo":                    {map[string]string{"ENDPOINT": echo.URL, "PROTOCOL": "http/protobuf", "HEADERS": "x-token=" + canary}, `"code":"401"`},
		"redirect":                {map[string]string{"ENDPOINT": echo.URL + "/redirect", "PROTOCOL": "http/protobuf", "HEADERS": "x-token=" + canary}, `"code":"307"`},
		"collector away":          {map[string]string{"ENDPOINT": "http://127.0.0.1:1", "PROTOCOL": "http/protobuf", "HEADERS": "x-token=" + canary}, `"code":"connection"`},
		"gRPC to HTTP":            {map[string]string{"ENDPOINT": echo.URL, "HEADERS": "x-token=" + canary}, `"code":"Un`},
		"malformed":               {map[string]string{"ENDPOINT": "http://" + address, "HEADERS": "Bearer " + canary}, "OTEL_EXPORTER_OTLP_HEADERS: header 1"},
		"malformed and not used":  {map[string]string{"ENDPOINT": "http://" + address, "HEADERS": "Bearer " + canary, "TRACES_HEADERS": "x-token=" + canary}, `result="ok"} 1`},
		"malformed timeout":       {map[string]string{"ENDPOINT": "http://" + address, "TIMEOUT": canary, "TRACES_HEADERS": "x-token=" + canary}, `OTEL_EXPORTER_OTLP_TIMEOUT`},
		"password in an endpoint": {map[string]string{"TRACES_ENDPOINT": "http://" + address, "ENDPOINT": "http://a:" + canary + "@b:%zz"}, `result="ok"} 1`},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCollector_headersStaySecret$", "-test.v")
			cmd.Env = append(os.Environ(), headerCanary+"=1", "OTEL_TRACES_SAMPLER=always_on", "GORACE=atexit_sleep_ms=0")
			for name, value := range tt.variables {
				cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_"+name+"="+value)
			}
			output, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(output), tt.says) {
				t.Errorf("%v: the output lacks %s:\n%.2000s", err, tt.says, output)
			}
			if strings.Contains(string(output), canary) {
				t.Errorf("the output has the token: %s", around(string(output), canary))
			}
		})
	}
	if token, ok := redirected.Load("token"); ok {
		t.Errorf("a redirect was followed with the token %v", token)
	}
}

// The timeout of a request bounds an export; calls do not wait for it.
func TestCollector_timeout(t *testing.T) {
	hanging := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hanging }))
	defer server.Close()
	defer close(hanging)
	setenv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": server.URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_TRACES_SAMPLER": "always_on", "OTEL_EXPORTER_OTLP_TIMEOUT": "50"})
	t.Run("broker", func(t *testing.T) {
		broker, c := run(t, parsed(t, sampleText(t, 1)), devIDP(t))
		if _, err := c.Token(t.Context(), "client-0"); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "failed exports", func() bool { return sampleOf(t, broker, `tokenbroker_traces_exported_total{result="failed"}`) > 0 })
	})
}

// A batch that the collector rejects in part counts as failed, over both protocols.
func TestCollector_partialSuccess(t *testing.T) {
	rejecting := &rejector{}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, rejecting)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	defer func() { server.Stop(); <-done }()
	overHTTP := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		response, _ := rejecting.Export(r.Context(), nil)
		body, _ := proto.Marshal(response)
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, _ = w.Write(body)
	}))
	defer overHTTP.Close()
	for protocol, endpoint := range map[string]string{"grpc": "http://" + listener.Addr().String(), "http/protobuf": overHTTP.URL} {
		t.Run(filepath.Base(protocol), func(t *testing.T) {
			setenv(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_TRACES_SAMPLER": "always_on"})
			broker, c := run(t, parsed(t, sampleText(t, 1)), devIDP(t))
			if _, err := c.Token(t.Context(), "client-0"); err != nil {
				t.Fatal(err)
			}
			testkit.Eventually(t, "failed exports", func() bool { return sampleOf(t, broker, `tokenbroker_traces_exported_total{result="failed"}`) > 0 })
		})
	}
}

type rejector struct {
	collector.UnimplementedTraceServiceServer
}

func (*rejector) Export(context.Context, *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	return &collector.ExportTraceServiceResponse{PartialSuccess: &collector.ExportTracePartialSuccess{RejectedSpans: 1, ErrorMessage: "canary"}}, nil
}
