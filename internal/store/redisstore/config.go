package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// DefaultPrefix is the default prefix of all names in Redis.
const DefaultPrefix = "tb1:"

// Config is the address, login and use of Redis.
type Config struct {
	// Addresses are host:port: of the single server; with Cluster, of some of its nodes;
	// with SentinelMaster, of sentinels.
	Addresses []string
	// Cluster means that the addresses belong to a Redis Cluster.
	Cluster bool
	// SentinelMaster is the sentinels' name for the master. Empty: no sentinels.
	SentinelMaster string
	// Username is an ACL user. Empty: the default user.
	Username string
	// Password is read at each new connection, so that a rotated one needs no restart.
	// Nil: no password.
	Password *secret.Source
	// SentinelUsername and SentinelPassword are for the sentinels themselves.
	// The password is read once.
	SentinelUsername string
	SentinelPassword *secret.Source
	// TLS is for servers and sentinels. Nil: plaintext.
	TLS *tls.Config
	// DB is the number of the database; a Cluster has only 0.
	DB int
	// Prefix begins all names. Empty: DefaultPrefix. Fleets that share a Redis need
	// different prefixes, even in different databases, because all databases share their
	// channels.
	Prefix string
	// KeepsSecrets means that the store holds irreplaceable data: Check then refuses a
	// Redis that may evict it.
	KeepsSecrets bool
	// Logger logs when Redis goes away and comes back. Nil: no log.
	Logger *slog.Logger
	// Tracer makes spans of trips. Nil: no spans.
	Tracer *tracing.Tracer
}

// prefixForm excludes characters with a meaning in hash tags and in patterns of
// ACLs.
var prefixForm = regexp.MustCompile(`^[A-Za-z0-9:._/-]{1,64}$`)

func (c Config) check() error {
	for _, address := range c.Addresses {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return fmt.Errorf("the Redis address %q is not host:port", address)
		}
	}
	switch {
	case len(c.Addresses) == 0:
		return errors.New("Redis has no address")
	case c.Cluster && c.SentinelMaster != "":
		return errors.New("Redis is either a cluster or watched by sentinels, not both")
	case len(c.Addresses) > 1 && !c.Cluster && c.SentinelMaster == "":
		return errors.New("Redis has several addresses: say that it is a cluster, or name the master that the sentinels at these addresses watch")
	case c.DB < 0 || c.Cluster && c.DB != 0:
		return fmt.Errorf("the Redis database %d: it must be 0 or more, in a cluster 0", c.DB)
	case c.Username != "" && c.Password == nil, c.SentinelUsername != "" && c.SentinelPassword == nil:
		return errors.New("a Redis user without a password cannot log in: give one")
	case !prefixForm.MatchString(c.Prefix):
		return fmt.Errorf("the Redis prefix %q: it may have up to 64 letters, digits and any of : . _ / -", c.Prefix)
	}
	return nil
}

// options are the settings of the client. By default it ignores contexts while reading,
// and repeats a call for up to ten seconds.
func (c Config) options(limits limits) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs:                      slices.Clone(c.Addresses),
		MasterName:                 c.SentinelMaster,
		DB:                         c.DB,
		CredentialsProviderContext: c.credentials,
		SentinelUsername:           c.SentinelUsername,
		SentinelPassword:           currentPassword(c.SentinelPassword),
		TLSConfig:                  c.TLS,

		Protocol:              3,
		ContextTimeoutEnabled: true,
		MaxRetries:            -1, // the caller decides whether to retry
		DialTimeout:           limits.dial,
		DialerRetries:         1,
		ReadTimeout:           limits.wire,
		WriteTimeout:          limits.wire,
		PoolTimeout:           limits.wait,
		PoolSize:              32,
		PipelinePoolSize:      -1, // pipelines take their connections from the pool
		MinIdleConns:          4,
		ConnMaxIdleTime:       5 * time.Minute,
		ConnMaxLifetime:       30 * time.Minute,
		ConnMaxLifetimeJitter: 5 * time.Minute,
		DisableIdentity:       true, // it needs one more permission and is of no use
		// This feature uses a command of Redis Enterprise only.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

func (c Config) credentials(context.Context) (username, password string, err error) {
	return c.Username, currentPassword(c.Password), nil
}

func currentPassword(source *secret.Source) string {
	if source == nil {
		return ""
	}
	return source.Current().Value.Reveal()
}

func connect(config Config, options *redis.UniversalOptions) redis.UniversalClient {
	switch {
	case config.Cluster:
		cluster := options.Cluster()
		// MaxRetries is about calls that failed. A redirection is a response: the key
		// has moved, and the client learns the new node. But the same number allows this
		// client to repeat failed calls: see unrepeated.
		cluster.MaxRedirects = 3
		cluster.DisableRoutingPolicies = true // each call names its keys, or a node
		return redis.NewClusterClient(cluster)
	case config.SentinelMaster != "":
		return redis.NewFailoverClient(options.Failover())
	default:
		return redis.NewClient(options.Simple())
	}
}
