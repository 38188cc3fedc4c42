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
	_ "google.golang.org/grpc/health" // has gRPC watch the health of replicas
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/stats"
)

// Defaults of the options.
const (
	// DefaultMaxWatches is how many sources of one Client are told of changes by
	// the broker; those beyond poll.
	DefaultMaxWatches = 100
	// DefaultPollInterval is how often a source asks that is not told.
	DefaultPollInterval = time.Minute
)

// Bounds of what a connection may take to be found dead and to be tried again.
const (
	connectTimeout  = 5 * time.Second
	firstReconnect  = 250 * time.Millisecond
	slowReconnect   = 5 * time.Second
	pingInterval    = 30 * time.Second // the broker bears one in 20 s
	pingTimeout     = 10 * time.Second
	maxAnswer       = 1 << 20
	moduleOfVersion = "github.com/cezzis/tokenbroker"
)

// serviceConfig has gRPC take all replicas in turn, those first that say they serve,
// and make a call again that found its replica gone. The broker's own "unavailable" is not
// repeated: it tells gRPC so. The last member stops repeating where most calls
// fail. There is no hedging: calls are made one after the other.
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
	target    string // instead of the one that New is given
	plaintext *bool  // nil: not said
	tls       *tls.Config
	files     TLSFiles
	tokenFile string
	// bearerInPlaintext: the bearer token may cross a network that is not
	// encrypted here.
	bearerInPlaintext bool
	userAgent         string
	dial              []grpc.DialOption
	log               *slog.Logger
	maxWatches        *int
	pollInterval      time.Duration
}

// WithPlaintext connects without TLS: tokens cross the network readable to
// whoever is on the way. For a broker on the same host, or inside a mesh that
// encrypts. Of this one, [WithTLS] and [WithTLSFiles] the last counts.
func WithPlaintext() Option {
	return func(s *settings) { s.plaintext, s.tls, s.files = new(true), nil, TLSFiles{} }
}

// WithTLS connects with TLS as configured. Nil: with TLS, and the system's roots
// unless [WithTLSFiles] or the environment of [FromEnv] names others.
func WithTLS(config *tls.Config) Option {
	return func(s *settings) { s.plaintext, s.tls = new(false), config }
}

// WithTLSFiles connects with TLS and what is in files, which are read again for
// each new connection.
func WithTLSFiles(files TLSFiles) Option {
	return func(s *settings) { s.plaintext, s.tls, s.files = new(false), nil, files }
}

// WithTokenFile presents the bearer token in a file (authorization: Bearer ...)
// with each call, to be recognised by: a Kubernetes service account's projected
// token, for example. The file is read again within a second of a change; New
// fails if it cannot be read. In plaintext the token is presented only over
// loopback and Unix sockets, unless [WithTokenInPlaintext].
func WithTokenFile(path string) Option {
	return func(s *settings) { s.tokenFile = path }
}

// WithTokenInPlaintext lets the token of [WithTokenFile] cross a network in
// plaintext. For a mesh that encrypts.
func WithTokenInPlaintext() Option {
	return func(s *settings) { s.bearerInPlaintext = true }
}

// WithTarget replaces the target that [New] was given or that [FromEnv] found.
func WithTarget(target string) Option {
	return func(s *settings) { s.target = target }
}

// WithUserAgent puts the name of the program before that of this package in
// what the broker's operators see, such as "checkout/1.4".
func WithUserAgent(name string) Option {
	return func(s *settings) { s.userAgent = name }
}

// WithStatsHandler has gRPC tell handler of each call. With OpenTelemetry's
// otelgrpc.NewClientHandler() the calls become spans and metrics; this package
// does not import it, so that only those who use it have it in their binaries.
func WithStatsHandler(handler stats.Handler) Option {
	return WithDialOptions(grpc.WithStatsHandler(handler))
}

// WithDialOptions adds gRPC's own options for what this package does not offer.
// They come after, and so win over, those that it sets.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(s *settings) { s.dial = append(s.dial, opts...) }
}

// WithLogger is told of what goes wrong in the background, such as a refresh that
// failed while the old token is still good. Without it nothing is logged.
func WithLogger(log *slog.Logger) Option {
	return func(s *settings) { s.log = log }
}

// WithMaxWatches bounds how many sources are told of changes by the broker, each
// over a stream of its own; those beyond poll. Zero: all poll. Without it:
// [DefaultMaxWatches].
func WithMaxWatches(n int) Option {
	return func(s *settings) { s.maxWatches = &n }
}

// WithPollInterval is how often a source asks the broker that is not told of
// changes, give or take a tenth; at least 1 s. Without it: [DefaultPollInterval].
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

// dialOptions are gRPC's for target, and the target as gRPC is told of it.
func (s *settings) dialOptions(target string) (dialed string, options []grpc.DialOption, err error) {
	transport, plaintext, err := s.transport(target)
	if err != nil {
		return "", nil, err
	}
	options = []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent(userAgent(s.userAgent)),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithDisableServiceConfig(), // what a name's TXT record says
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingInterval, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstReconnect, Multiplier: 1.6, Jitter: 0.2, MaxDelay: slowReconnect},
			MinConnectTimeout: connectTimeout,
		}),
	}
	if s.tokenFile != "" {
		if plaintext && !s.bearerInPlaintext && !staysOnHost(target) {
			return "", nil, errors.New("the token in " + s.tokenFile + " would cross the network in plaintext: connect with TLS, or allow it with WithTokenInPlaintext")
		}
		bearer, err := newBearerFile(s.tokenFile, !plaintext)
		if err != nil {
			return "", nil, err
		}
		options = append(options, grpc.WithPerRPCCredentials(bearer))
	}
	dialed = target
	if addresses := addressList(target); len(addresses) > 1 {
		dialed = listScheme + ":///brokers"
		options = append(options, grpc.WithResolvers(listResolver(addresses)))
	}
	return dialed, append(options, s.dial...), nil
}

func (s *settings) transport(target string) (made credentials.TransportCredentials, plaintext bool, err error) {
	switch {
	case s.plaintext != nil && *s.plaintext:
		if s.files != (TLSFiles{}) {
			return nil, false, errors.New("files for TLS are given, and plaintext is asked for: leave out one of the two")
		}
		return insecure.NewCredentials(), true, nil
	case s.tls != nil:
		return credentials.NewTLS(s.tls), false, nil
	case s.files != (TLSFiles{}):
		made, err = newReloadedTLS(s.files)
		return made, false, err
	case s.plaintext == nil && isUnixSocket(target):
		return insecure.NewCredentials(), true, nil
	default:
		return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), false, nil
	}
}

func userAgent(program string) string {
	agent := "tokenbroker-go"
	if version := ownVersion(); version != "" {
		agent += "/" + version
	}
	if program != "" {
		return program + " " + agent
	}
	return agent
}

// ownVersion is that of this module in the program; empty where it is not known.
func ownVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, module := range info.Deps {
		if module.Path == moduleOfVersion {
			return module.Version
		}
	}
	return ""
}
