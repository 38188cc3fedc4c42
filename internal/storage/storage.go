// Package storage opens the store that a configuration names, with its sealing keys and the
// passwords of its connection, checks it, and reads the files again when they change.
package storage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/boltstore"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

// checkTimeout bounds the requests to Redis at startup.
const checkTimeout = 5 * time.Second

// Storage is the store and the resources that it needs. It is safe for concurrent use; its
// fields do not change.
type Storage struct {
	store.Store
	io.Closer // of the store, as opened

	Kind string // memory, bolt or redis
	// KeepsSecrets: the store has the only copy of managed clients' secrets.
	KeepsSecrets bool

	Redis *redisstore.Store // nil: another kind
	Rings *sealed.RingFile  // nil: nothing is sealed
	// Secrets authenticate the connection and may be rotated.
	Secrets []*secret.Source
	sealed  *sealed.Store // nil: nothing is sealed
	// kept is how Redis keeps its data; nil: not known yet, or another kind.
	kept atomic.Pointer[redisstore.Keeping]
}

// Observers are the log, the traces and the metrics of a storage. Tracer may be nil.
type Observers struct {
	Logger     *slog.Logger
	Tracer     *tracing.Tracer
	Registerer prometheus.Registerer
}

// Open opens the store. It does not wait for Redis.
func Open(all *config.Config, observers Observers) (*Storage, error) {
	config := &all.Store
	if config.Bolt == "" && config.Redis == nil {
		memory := store.NewMemory(store.MemoryConfig{})
		return &Storage{Store: memory, Closer: memory, Kind: "memory"}, nil
	}
	rings, err := sealed.OpenRing(config.SealingKeys.Name())
	if err != nil {
		return nil, fmt.Errorf("store.sealing_keys: %w", err)
	}
	opened := &Storage{Rings: rings, KeepsSecrets: all.Managed() != ""}
	if config.Redis != nil {
		err = opened.openRedis(config.Redis, observers)
	} else {
		err = opened.openBolt(config.Bolt)
	}
	if err != nil {
		return nil, err
	}
	opened.sealed = sealed.New(opened.Store, rings)
	opened.Store = opened.sealed
	observers.Registerer.MustRegister(collector{opened.sealed, opened.Redis})
	if warning := rings.Warning(); warning != "" {
		observers.Logger.Warn(warning)
	}
	return opened, nil
}

func (s *Storage) openBolt(path string) error {
	opened, err := boltstore.Open(boltstore.Config{Path: path})
	if err != nil {
		return fmt.Errorf("store.bolt: %w", err)
	}
	s.Store, s.Closer, s.Kind = opened, opened, "bolt"
	return nil
}

// OpenRedis opens Redis without the sealing keys, to try it. The configuration must have
// a Redis.
func OpenRedis(all *config.Config, observers Observers) (*Storage, error) {
	opened := &Storage{KeepsSecrets: all.Managed() != ""}
	return opened, opened.openRedis(all.Store.Redis, observers)
}

func (s *Storage) openRedis(config *config.RedisStore, observers Observers) error {
	to := redisstore.Config{
		Addresses:        config.Addresses,
		Cluster:          config.Cluster,
		SentinelMaster:   config.SentinelMaster,
		Username:         config.Username,
		SentinelUsername: config.SentinelUsername,
		DB:               config.DB,
		Prefix:           config.Prefix,
		KeepsSecrets:     s.KeepsSecrets,
		Logger:           observers.Logger,
		Tracer:           observers.Tracer,
	}
	var errs [3]error
	to.Password, errs[0] = s.secret("password", config.Password)
	to.SentinelPassword, errs[1] = s.secret("sentinel_password", config.SentinelPassword)
	to.TLS, errs[2] = redisTLS(config.TLS)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	opened, err := redisstore.New(to)
	if err != nil {
		return fmt.Errorf("store.redis: %w", err)
	}
	s.Store, s.Closer, s.Kind, s.Redis = opened, opened, "redis", opened
	return nil
}

// secret opens a secret of the connection. It returns nil if the reference is empty.
func (s *Storage) secret(key string, ref secret.Ref) (*secret.Source, error) {
	if ref == (secret.Ref{}) {
		return nil, nil //nolint:nilnil // there is none, and none is needed
	}
	source, err := secret.Open(ref)
	if err != nil {
		return nil, fmt.Errorf("store.redis.%s: %w", key, err)
	}
	s.Secrets = append(s.Secrets, source)
	return source, nil
}

func redisTLS(config *config.RedisTLS) (*tls.Config, error) {
	if config == nil {
		return nil, nil //nolint:nilnil // plaintext
	}
	secure := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: config.ServerName}
	if config.CA != "" {
		var err error
		if secure.RootCAs, err = certs.Pool("store.redis.tls.ca", config.CA); err != nil {
			return nil, err
		}
	}
	if config.Cert != "" {
		if _, err := tls.LoadX509KeyPair(config.Cert, config.Key); err != nil {
			return nil, fmt.Errorf("store.redis.tls: the client certificate: %w", err)
		}
		secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(config.Cert, config.Key) // it may have been renewed
			return &pair, err
		}
	}
	return secure, nil
}

// Private reports whether no other replica uses the store and its content ends with the
// process.
func (s *Storage) Private() bool { return s.Kind == "memory" }

// MAC returns the keyed hash that replicas share, or nil if the store is not shared.
func (s *Storage) MAC() func([]byte) [32]byte {
	if s.Rings == nil {
		return nil
	}
	return func(data []byte) [32]byte { return s.Rings.Current().MAC(data) }
}

// OpenSecret opens the secret of a client; its version names are the same on all replicas. It
// returns nil for a managed secret.
func (s *Storage) OpenSecret(ref secret.Ref) (*secret.Source, error) {
	if ref.Managed() {
		return nil, nil //nolint:nilnil // it is in the store
	}
	if s.Rings == nil {
		return secret.Open(ref)
	}
	return secret.OpenKeyed(ref, s.MAC())
}

// Check verifies that the store is usable. It returns an error if an operator must act.
// An unreachable Redis is not an error: the broker can run without it for a while.
func (s *Storage) Check(ctx context.Context, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if s.Redis != nil {
		if err := s.checkRedis(ctx, log); err != nil {
			return err
		}
	}
	if err := s.CheckRing(ctx); errors.Is(err, sealed.ErrAnotherRing) {
		return err
	}
	return nil // an unreachable store is compared later: see revocation.Marker
}

func (s *Storage) checkRedis(ctx context.Context, log *slog.Logger) error {
	warnings, err := s.Redis.Check(ctx)
	for _, warning := range warnings {
		log.Warn("store.redis: " + warning)
	}
	if errors.Is(err, store.ErrNoWrites) {
		log.Warn("the store refuses writes; the broker starts, fetches tokens for itself and retries", "error", err)
		return nil
	}
	if errors.Is(err, store.ErrAway) {
		log.Warn("the store does not respond; the broker starts without it and retries", "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("store.redis: %w", err)
	}
	return nil
}

// CheckRing compares the ring with the marker in the store.
func (s *Storage) CheckRing(ctx context.Context) error {
	if s.sealed == nil {
		return nil
	}
	if _, err := s.sealed.Marked(ctx); err != nil {
		return fmt.Errorf("store.sealing_keys: %w", err)
	}
	return nil
}

// Marker returns the marker of the ring in the store, or nil if nothing is sealed.
func (s *Storage) Marker() revocation.Marker {
	if s.sealed == nil {
		return nil
	}
	return s.sealed
}

// PutBack returns the time that other replicas have to restore entries that the store has
// lost. Only Redis is shared.
func (s *Storage) PutBack() time.Duration {
	if s.Redis == nil {
		return 0
	}
	return revocation.DefaultPutBack
}

// Times between two readings of how Redis keeps its data. Redis logs each command that is
// not permitted, so the second one is longer.
const (
	keepingInterval     = time.Minute
	keepingNotPermitted = time.Hour
)

// PollKeeping reads how Redis keeps its data until ctx ends. The last answer stays while
// Redis is away.
func (s *Storage) PollKeeping(ctx context.Context) {
	for {
		wait := keepingInterval
		kept, err := s.Redis.Keeping(ctx)
		switch {
		case errors.Is(err, redisstore.ErrNoInfo):
			s.kept.Store(nil)
			wait = keepingNotPermitted
		case err == nil:
			s.kept.Store(&kept)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// Keeping reports whether the store keeps its data on disk, and whether it may drop data
// that must stay.
func (s *Storage) Keeping() (durable, evicts fleet.Answer) {
	answers := map[bool]fleet.Answer{true: fleet.Yes, false: fleet.No}
	kept := s.kept.Load()
	switch {
	case s.Redis == nil:
		return answers[s.Kind == "bolt"], fleet.No
	case kept == nil:
		return fleet.NotKnown, fleet.NotKnown
	default:
		return answers[kept.Durable], answers[kept.Evicts]
	}
}

// PollSecrets reads the passwords of the connection again until ctx ends.
func (s *Storage) PollSecrets(ctx context.Context, log *slog.Logger) {
	secret.Poll(ctx, func() []*secret.Source { return s.Secrets }, func(source *secret.Source, err error) {
		if err != nil {
			log.Error("a password of Redis cannot be reloaded; the previous one stays active", "secret", source.Ref().String(), "error", err)
			return
		}
		log.Info("a new password of Redis is active", "secret", source.Ref().String(), "version", source.Current().ID)
	})
}

// PollRing reads the ring of sealing keys again until ctx ends.
func (s *Storage) PollRing(ctx context.Context, log *slog.Logger) {
	if s.Rings == nil {
		return
	}
	secret.Every(ctx, func() {
		switch changed, err := s.Rings.Reload(); {
		case err != nil:
			log.Error("the sealing keys cannot be reloaded; the previous ones stay active", "error", err)
		case changed:
			ring := s.Rings.Current()
			log.Info("new sealing keys are active", "primary", ring.Primary(), "keys", ring.IDs())
		}
	})
}

// collector exports the state of the store at collection time.
type collector struct {
	sealed *sealed.Store
	redis  *redisstore.Store // nil: another kind
}

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	unopenedDesc = prometheus.NewDesc("tokenbroker_store_unopened_total",
		"Values in the store that were not used, by cause: not_sealed, unknown_key, refused (altered or moved) or outlived (after their sealed end).", []string{"cause"}, nil)
	tripsDesc = prometheus.NewDesc("tokenbroker_redis_trips_total", "Round trips to Redis, without the probes of its health.", nil, nil)
)

func (c collector) Describe(out chan<- *prometheus.Desc) {
	out <- unopenedDesc
	out <- tripsDesc
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	unopened := c.sealed.Unopened()
	for cause, count := range map[string]uint64{
		"not_sealed": unopened.NotSealed, "unknown_key": unopened.UnknownKey, "refused": unopened.Refused, "outlived": unopened.Outlived,
	} {
		out <- prometheus.MustNewConstMetric(unopenedDesc, prometheus.CounterValue, float64(count), cause)
	}
	if c.redis == nil {
		return
	}
	out <- prometheus.MustNewConstMetric(tripsDesc, prometheus.CounterValue, float64(c.redis.Trips()))
}
