package client

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/health" // enables gRPC's health checks of replicas
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
)

// Defaults of the options.
const (
	// DefaultMaxWatches is how many sources of one Client receive changes over a
	// stream from the broker; further sources poll.
	DefaultMaxWatches = 100
	// DefaultPollInterval is how often a source without a stream polls.
	DefaultPollInterval = time.Minute
)

// Bounds for detecting a dead connection and for reconnecting.
const (
	connectTimeout   = 5 * time.Second
	initialReconnect = 250 * time.Millisecond
	maxReconnect     = 5 * time.Second
	pingInterval     = 30 * time.Second // the broker allows one in 20 s
	pingTimeout      = 10 * time.Second
	maxResponse      = 1 << 20
	modulePath       = "github.com/cezzis/tokenbroker"
)

// serviceConfig makes gRPC use all serving replicas in turn, and retry a call
// whose replica is gone. The broker's own "unavailable" is not retried: the
// broker sends gRPC's pushback for that. The last member stops retries when
// most calls fail. There is no hedging: attempts are sequential.
const serviceConfig = `{
	"loadBalancingConfig": [{"` + balancerName + `": {}}],
	"healthCheckConfig": {"serviceName": "tokenbroker.v1.TokenBrokerService"},
	"methodConfig": [{
		"name": [
			{"service": "tokenbroker.v1.TokenBrokerService", "method": "GetToken"},
			{"service": "tokenbroker.v1.TokenBrokerService", "method": "VerifyToken"}
		],
		"retryPolicy": {
			"maxAttempts": 4,
			"initialBackoff": "0.1s",
			"maxBackoff": "1s",
			"backoffMultiplier": 2,
			"retryableStatusCodes": ["UNAVAILABLE"]
		}
	}],
	"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
}`

// Option changes how New and FromEnv connect.
type Option func(*settings)

type settings struct {
	target    string // overrides the argument of New
	plaintext *bool  // nil: not set
	tls       *tls.Config
	files     TLSFiles
	tokenFile string
	// bearerInPlaintext allows the bearer token over an unencrypted network.
	bearerInPlaintext bool
	userAgent         string
	dial              []grpc.DialOption
	log               *slog.Logger
	maxWatches        *int
	pollInterval      time.Duration
}

// WithPlaintext connects without TLS: anyone on the network path can read the
// tokens. Use it for a broker on the same host, or inside a mesh that encrypts.
// Of this option, [WithTLS] and [WithTLSFiles] the last counts.
func WithPlaintext() Option {
	return func(s *settings) { s.plaintext, s.tls, s.files = new(true), nil, TLSFiles{} }
}

// WithTLS connects with TLS and this configuration. If config is nil, it uses
// TLS with the system's roots unless [WithTLSFiles] or the environment of
// [FromEnv] names others.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) { s.plaintext, s.tls = new(false), config }
}

// WithTLSFiles connects with TLS and the certificates in files, which are read
// again for each new connection.
func WithTLSFiles(files TLSFiles) Option {
	return func(s *settings) { s.plaintext, s.tls, s.files = new(false), nil, files }
}

// WithTokenFile presents the bearer token in a file (authorization: Bearer ...)
// with each call, as the caller's credential: a Kubernetes service account's
// projected token, for example. A changed file takes effect within a second;
// New fails if the file cannot be read. In plaintext the token is presented
// only over loopback and Unix sockets, unless [WithTokenInPlaintext] is given.
func WithTokenFile(path string) Option {
	return func(s *settings) { s.tokenFile = path }
}

// WithTokenInPlaintext allows the token of [WithTokenFile] over an unencrypted
// network. Use it only inside a mesh that encrypts.
func WithTokenInPlaintext() Option {
	return func(s *settings) { s.bearerInPlaintext = true }
}

// WithTarget replaces the target of [New] or [FromEnv].
func WithTarget(target string) Option {
	return func(s *settings) { s.target = target }
}

// WithUserAgent puts the name of the program, such as "checkout/1.4", before
// that of this package in the user agent that the broker's operators see.
func WithUserAgent(name string) Option {
	return func(s *settings) { s.userAgent = name }
}

// WithStatsHandler registers handler for gRPC's events of each call. With
// OpenTelemetry's otelgrpc.NewClientHandler() the calls become spans and
// metrics; this package does not import it, so that other programs do not link
// it.
func WithStatsHandler(handler stats.Handler) Option {
	return WithDialOptions(grpc.WithStatsHandler(handler))
}

// WithDialOptions adds gRPC dial options that this package does not offer. They
// are applied after its own options and take precedence over them.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, opts...) }
}

// WithLogger sets the logger for failures in the background, such as a failed
// refresh while the old token is still valid. Without it nothing is logged.
func WithLogger(log *slog.Logger) Option {
	return func(s *settings) { s.log = log }
}

// WithMaxWatches bounds how many sources receive changes from the broker, each
// over its own stream; further sources poll. Zero makes all sources poll. The
// default is [DefaultMaxWatches].
func WithMaxWatches(n int) Option {
	return func(s *settings) { s.maxWatches = &n }
}

// WithPollInterval sets how often a source without a stream polls the broker,
// varied by up to a tenth; the minimum is 1 s. The default is
// [DefaultPollInterval].
func WithPollInterval(d time.Duration) Option {
	return func(s *settings) { s.pollInterval = max(d, time.Second) }
}

func (s *settings) withDefaults() settings {
	if s.maxWatches == nil {
		s.maxWatches = new(DefaultMaxWatches)
	}
	if s.pollInterval == 0 {
		s.pollInterval = DefaultPollInterval
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return *s
}

// dialOptions returns gRPC's options for target, and the target in gRPC's form.
func (s *settings) dialOptions(target string) (grpcTarget string, options []grpc.DialOption, err error) {
	transport, plaintext, err := s.transport(target)
	if err != nil {
		return "", nil, err
	}
	options = []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent(userAgent(s.userAgent)),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(), // ignores the configuration in a name's TXT record
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponse)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: initialReconnect, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxReconnect},
			MinConnectTimeout: connectTimeout,
		}),
	}
	if s.tokenFile != "" {
		if plaintext && !s.bearerInPlaintext && !isLocal(target) {
			return "", nil, errors.New("the token in " + s.tokenFile + " would cross the network in plaintext: connect with TLS, or allow it with WithTokenInPlaintext")
		}
		bearer, err := newBearerFile(s.tokenFile, !plaintext)
		if err != nil {
			return "", nil, err
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer))
	}
	grpcTarget = target
	if addresses := addressList(target); len(addresses) > 1 {
		grpcTarget = listScheme + ":///brokers"
		options = append(options, grpc.WithResolvers(listBuilder(addresses)))
	}
	return grpcTarget, append(options, s.dial...), nil
}

func (s *settings) transport(target string) (creds credentials.TransportCredentials, plaintext bool, err error) {
	switch {
	case s.plaintext != nil && *s.plaintext:
		if s.files != (TLSFiles{}) {
			return nil, false, errors.New("both TLS files and plaintext are configured: remove one of them")
		}
		return insecure.NewCredentials(), true, nil
	case s.tls != nil:
		return credentials.NewTLS(s.tls), false, nil
	case s.files != (TLSFiles{}):
		creds, err = newReloadedTLS(s.files)
		return creds, false, err
	case s.plaintext == nil && isUnixSocket(target):
		return insecure.NewCredentials(), true, nil
	default:
		return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), false, nil
	}
}

func userAgent(program string) string {
	agent := "tokenbroker-go"
	if version := moduleVersion(); version != "" {
		agent += "/" + version
	}
	if program != "" {
		return program + " " + agent
	}
	return agent
}

// moduleVersion returns the version of this module in the program, or "" if it
// is unknown.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, module := range info.Deps {
		if module.Path == modulePath {
			return module.Version
		}
	}
	return ""
}
