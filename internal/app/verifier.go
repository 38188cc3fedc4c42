package app

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

// verify builds the verifier.
func (s *setup) verify(cfg *config.Config, log *slog.Logger, registerer prometheus.Registerer) (problems []PartError) {
	issuers := make([]verify.IssuerConfig, 0, len(cfg.Issuers))
	for i := range cfg.Issuers {
		one := cfg.Issuers[i]
		if s.networkOf(one.CA()) == nil {
			continue // trust has reported it
		}
		if one.Introspection != nil {
			if _, ok := s.named(one.Introspection.Client); !ok {
				one.Introspection = nil // the client is reported
			}
		}
		issuer, err := s.verified(cfg, &one)
		if err != nil {
			problems = append(problems, PartError{"issuers", []any{"issuers", i}, err})
			continue
		}
		issuers = append(issuers, issuer)
	}
	var err error
	if s.verifier, err = s.newVerifier(cfg, issuers, log, registerer); err == nil {
		return problems
	}
	problems = append(problems, PartError{"issuers", []any{"issuers"}, err})
	if s.verifier, err = s.newVerifier(cfg, nil, log, registerer); err != nil {
		problems = append(problems, PartError{"verification", []any{"verification"}, err})
	}
	return problems
}

func (s *setup) newVerifier(config *config.Config, issuers []verify.IssuerConfig, log *slog.Logger, registerer prometheus.Registerer) (*verify.Verifier, error) {
	return verify.New(verify.Config{
		Issuers:     issuers,
		Logger:      log,
		Registerer:  registerer,
		CacheBytes:  orNone(int64(config.Verification.CacheMiB) << 20),
		MaxValidity: config.Verification.MaxValidity,

		MaxTokenSize: config.Limits.TokenSize(),
	}, s.before.verifier)
}

// verified returns the rules for the tokens of an issuer.
func (s *setup) verified(config *config.Config, cfg *config.Issuer) (verify.IssuerConfig, error) {
	issuer := verify.IssuerConfig{
		Issuer: cfg.Issuer,
		Keys: jwks.Config{
			URL:             cfg.JWKSURL,
			TokenFile:       cfg.JWKSTokenFile,
			File:            cfg.JWKSFile,
			AllowHTTP:       cfg.AllowHTTP,
			HTTP:            s.networkOf(cfg.CA()).ClientFor(cmp.Or(cfg.JWKSURL, cfg.Issuer), cfg.AllowPrivate),
			RefreshInterval: cfg.RefreshInterval,
			MaxStale:        cfg.MaxStale,
		},
		Audiences:       cfg.Audiences,
		Algorithms:      cfg.Algorithms,
		Types:           cfg.Types,
		ScopeClaim:      cfg.ScopeClaim,
		AllowNullClaims: cfg.AllowNullClaims,
		MissingSubject:  cfg.MissingSub == "client_id",
		IDTokenClaims:   cfg.IDTokenClaims,
		Leeway:          orNone(cfg.Leeway),
		MaxLifetime:     cfg.MaxLifetime,
		MaxAge:          cfg.MaxAge,
	}
	issuer.AccessTokenClaims = cfg.AccessTokenClaims
	if cfg.MissingAud != nil {
		issuer.MissingAudience = verify.MissingAudience(*cfg.MissingAud)
	}
	if cfg.JWKSURL == "" && cfg.JWKSFile == "" {
		issuer.Keys.Discovery = s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
	}
	if cfg.Introspection == nil {
		return issuer, nil
	}
	endpoint, err := s.introspection(config, cfg)
	if err != nil {
		return verify.IssuerConfig{}, fmt.Errorf("%s: introspection: %w", cfg.Issuer, err)
	}
	s.introspections[cfg.Issuer] = endpoint
	issuer.Introspection = &verify.Introspection{
		Endpoint:        endpoint,
		Cache:           orNone(cfg.Introspection.Cache),
		DefaultLifetime: cfg.Introspection.DefaultLifetime,
	}
	return issuer, nil
}

// introspection sends introspection requests to an issuer as one of the clients, with the
// client's current secret. A pointer to it is its identity, by which verification
// recognizes an unchanged configuration.
type introspection struct {
	client *idp.Client
	name   string
	// broker returns the holder of the secret, which is created later.
	broker func() *broker.Broker
}

// Introspect implements the interface that verification calls.
func (i *introspection) Introspect(ctx context.Context, token redact.String) (active bool, members []byte, err error) {
	secrets := i.broker().Secrets(i.name)
	if secrets == nil {
		return false, nil, apierror.Fault(fmt.Errorf("there is no client %q", i.name)) // a reload has removed it
	}
	with, err := secrets.ForIntrospection(ctx)
	if err != nil {
		return false, nil, err
	}
	response, err := i.client.Introspect(ctx, with, token)
	secrets.Introspected(with.ID, err)
	return response.Active, response.Members, err
}

func (s *setup) introspection(config *config.Config, cfg *config.Issuer) (*introspection, error) {
	name, endpoint := cfg.Introspection.Client, cfg.Introspection.Endpoint
	if old, existed := s.before.introspections[cfg.Issuer]; existed && s.sameIntrospection(cfg) {
		return old, nil
	}
	requests := s.idpConfig(config, name)
	requests.IntrospectionURL = endpoint
	requests.AllowHTTP = requests.AllowHTTP || cfg.AllowHTTP
	home := cmp.Or(endpoint, cfg.Issuer)
	requests.HTTP, requests.HTTPWith = s.networkOf(cfg.CA()).ClientFor(home, cfg.AllowPrivate), s.with(home, cfg.AllowPrivate, cfg.CA())
	if endpoint == "" {
		requests.Issuer = s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
	}
	client, err := idp.New(requests)
	return &introspection{client, name, s.broker}, err
}

// sameIntrospection reports whether the previous setup has the same introspection for
// this issuer.
func (s *setup) sameIntrospection(cfg *config.Issuer) bool {
	at := slices.IndexFunc(s.before.config.Issuers, func(c config.Issuer) bool { return c.Issuer == cfg.Issuer })
	if at < 0 || !reflect.DeepEqual(s.before.config.Issuers[at], *cfg) {
		return false
	}
	name := cfg.Introspection.Client
	return reflect.DeepEqual(s.before.config.Clients[name], s.config.Clients[name])
}

// orNone translates the file's zero, which means off, to the value that verify takes for
// it: zero is its default.
func orNone[N time.Duration | int64](configured N) N {
	if configured == 0 {
		return -1
	}
	return configured
}
