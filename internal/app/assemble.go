package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// parts are the broker and what runs beside it.
type parts struct {
	network  *discovery.Network
	storage  *storage
	broker   *broker.Broker
	verifier *verify.Verifier
	clients  []broker.ClientConfig
	issuers  map[issuerKey]*discovery.Issuer
	// introspections are by issuer.
	introspections map[string]introspection
}

// issuerKey: clients and verification share what is known of an issuer, but not
// the leave to speak plain http, or to private addresses.
type issuerKey struct {
	issuer                  string
	allowHTTP, allowPrivate bool
}

// assemble makes the parts of what the configuration says. All secrets that
// cannot be read are in the error.
func assemble(config *Config, opts Options, registerer prometheus.Registerer) (*parts, error) {
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	opened, err := openStore(config, opts.Logger, registerer)
	if err != nil {
		return nil, err
	}
	p := &parts{
		network: discovery.NewNetwork(opts.Transport), storage: opened,
		issuers: map[issuerKey]*discovery.Issuer{}, introspections: map[string]introspection{},
	}
	if err := p.fill(config, opts, registerer); err != nil {
		_ = opened.Close()
		return nil, err
	}
	return p, nil
}

func (p *parts) fill(config *Config, opts Options, registerer prometheus.Registerer) error {
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(config.Clients)) {
		made, err := p.client(name, config.Clients[name])
		if err != nil {
			problems = append(problems, fmt.Errorf("clients.%s: %w", name, err))
			continue
		}
		p.clients = append(p.clients, made)
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	var err error
	if p.verifier, err = p.newVerifier(config, opts.Logger, registerer); err != nil {
		return fmt.Errorf("issuers: %w", err)
	}
	p.broker, err = broker.New(broker.Config{
		Clients:    p.clients,
		Store:      p.storage.Store,
		MAC:        p.storage.mac(),
		Rings:      p.storage.rings,
		Verifier:   p.verifier,
		Logger:     opts.Logger,
		Registerer: registerer,
	})
	return err
}

// close lets go of everything. Nothing must be using it.
func (p *parts) close() {
	p.broker.Close()
	_ = p.storage.Close()
}

func (p *parts) issuer(issuer string, allowHTTP, allowPrivate bool) *discovery.Issuer {
	key := issuerKey{issuer, allowHTTP, allowPrivate}
	if p.issuers[key] == nil {
		p.issuers[key] = discovery.New(discovery.Config{
			Issuer: issuer, AllowHTTP: allowHTTP, AllowPrivate: allowPrivate, HTTP: p.network.ClientFor(issuer, allowPrivate),
		})
	}
	return p.issuers[key]
}

func (p *parts) client(name string, cfg ClientConfig) (broker.ClientConfig, error) {
	ring, err := p.storage.open(cfg.Secret)
	if err != nil {
		return broker.ClientConfig{}, fmt.Errorf("secret: %w", err)
	}
	made, err := idp.New(p.towards(cfg))
	return broker.ClientConfig{
		Name:    name,
		IdP:     made,
		Secret:  ring,
		Managed: cfg.Secret.Managed(),
		About: broker.About{
			ClientID: cfg.ClientID, Issuer: cfg.Issuer, TokenURL: cfg.TokenURL, Auth: cfg.Auth, Secret: cfg.Secret.String(),
		},
		Audience:  cfg.Audience,
		Resources: cfg.Resources,
		Scopes:    cfg.Scopes,
	}, err
}

// towards says which client to be at its IdP.
func (p *parts) towards(cfg ClientConfig) idp.Config {
	c := idp.Config{
		TokenURL:        cfg.TokenURL,
		AllowHTTP:       cfg.AllowHTTP,
		ClientID:        cfg.ClientID,
		Auth:            idp.AuthMethod(cfg.Auth),
		RawBasic:        cfg.RawBasic,
		Params:          cfg.Params,
		Extras:          cfg.Extras,
		DefaultLifetime: cfg.DefaultLifetime,
		HTTP:            p.network.ClientFor(cmp.Or(cfg.TokenURL, cfg.Issuer), cfg.AllowPrivate),
	}
	if cfg.TokenURL == "" {
		c.Issuer = p.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate)
	}
	return c
}

func (p *parts) newVerifier(config *Config, log *slog.Logger, registerer prometheus.Registerer) (*verify.Verifier, error) {
	issuers := make([]verify.IssuerConfig, 0, len(config.Issuers))
	for i := range config.Issuers {
		issuer, err := p.verified(config, &config.Issuers[i])
		if err != nil {
			return nil, err
		}
		issuers = append(issuers, issuer)
	}
	return verify.New(verify.Config{
		Issuers:     issuers,
		Logger:      log,
		Registerer:  registerer,
		CacheBytes:  orNone(int64(config.Verification.CacheMiB) << 20),
		MaxValidity: config.Verification.MaxValidity,
	})
}

// verified says which tokens of an issuer are good.
func (p *parts) verified(config *Config, cfg *IssuerConfig) (verify.IssuerConfig, error) {
	issuer := verify.IssuerConfig{
		Issuer:          cfg.Issuer,
		JWKSURL:         cfg.JWKSURL,
		JWKSFile:        cfg.JWKSFile,
		AllowHTTP:       cfg.AllowHTTP,
		HTTP:            p.network.ClientFor(cmp.Or(cfg.JWKSURL, cfg.Issuer), cfg.AllowPrivate),
		Audiences:       cfg.Audiences,
		Algorithms:      cfg.Algorithms,
		Types:           cfg.Types,
		ScopeClaim:      cfg.ScopeClaim,
		Leeway:          orNone(cfg.Leeway),
		MaxLifetime:     cfg.MaxLifetime,
		MaxAge:          cfg.MaxAge,
		RefreshInterval: cfg.RefreshInterval,
		MaxStale:        cfg.MaxStale,
	}
	if cfg.JWKSURL == "" && cfg.JWKSFile == "" {
		issuer.Discovery = p.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate)
	}
	if cfg.Introspection == nil {
		return issuer, nil
	}
	endpoint, err := p.introspection(config, cfg)
	if err != nil {
		return verify.IssuerConfig{}, fmt.Errorf("%s: introspection: %w", cfg.Issuer, err)
	}
	p.introspections[cfg.Issuer] = endpoint
	issuer.Introspection = &verify.Introspection{
		Endpoint:        endpoint,
		Cache:           orNone(cfg.Introspection.Cache),
		DefaultLifetime: cfg.Introspection.DefaultLifetime,
	}
	return issuer, nil
}

// introspection asks an issuer about tokens, as one of the clients and with the
// secret that the client has then.
type introspection struct {
	client *idp.Client
	name   string
	parts  *parts // whose broker, made later, has the secret
}

// Introspect is what verification wants.
func (i introspection) Introspect(ctx context.Context, token redact.String) (active bool, members []byte, err error) {
	with, err := i.parts.broker.SecretInUse(ctx, i.name)
	if err != nil {
		return false, nil, err
	}
	found, err := i.client.Introspect(ctx, with, token)
	return found.Active, found.Members, err
}

func (p *parts) introspection(config *Config, cfg *IssuerConfig) (introspection, error) {
	name, endpoint := cfg.Introspection.Client, cfg.Introspection.Endpoint
	towards := p.towards(config.Clients[name])
	towards.IntrospectionURL = endpoint
	towards.AllowHTTP = towards.AllowHTTP || cfg.AllowHTTP
	towards.HTTP = p.network.ClientFor(cmp.Or(endpoint, cfg.Issuer), cfg.AllowPrivate)
	if endpoint == "" {
		towards.Issuer = p.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate)
	}
	client, err := idp.New(towards)
	return introspection{client, name, p}, err
}

// orNone translates what the file can ask for, none, to what verify takes for
// it: zero is its default.
func orNone[N time.Duration | int64](configured N) N {
	if configured == 0 {
		return -1
	}
	return configured
}
