package app

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// parts are the broker and what runs beside it.
type parts struct {
	network  *discovery.Network
	storage  *storage
	broker   *broker.Broker
	verifier *verify.Verifier
	secrets  []*secret.Ring
	clients  []broker.ClientConfig
	// certified are those whose certificates are read again.
	certified []certified
	issuers   map[issuerKey]*discovery.Issuer
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
	opened, err := openStore(&config.Store, opts.Logger, registerer)
	if err != nil {
		return nil, err
	}
	p := &parts{
		network: discovery.NewNetwork(opts.Transport), storage: opened, secrets: opened.secrets,
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
		if made.Secret != nil {
			p.secrets = append(p.secrets, made.Secret)
		}
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	registerer.MustRegister(certificateCollector{p})
	var err error
	if p.verifier, err = p.newVerifier(config, opts.Logger, registerer); err != nil {
		return fmt.Errorf("issuers: %w", err)
	}
	p.broker, err = broker.New(broker.Config{
		Clients:    p.clients,
		Store:      p.storage.Store,
		MAC:        p.storage.mac(),
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
	made, err := idp.New(p.towards(cfg))
	if err != nil {
		return broker.ClientConfig{}, err
	}
	p.certified = append(p.certified, certified{name, made})
	client := broker.ClientConfig{
		Name:      name,
		IdP:       made,
		Audience:  cfg.Audience,
		Resources: cfg.Resources,
		Scopes:    cfg.Scopes,
	}
	if !idp.NeedsSecret(idp.AuthMethod(cfg.Auth), cfg.GrantType) {
		return client, nil
	}
	if client.Secret, err = p.storage.open(cfg.Secret); err != nil {
		return broker.ClientConfig{}, fmt.Errorf("secret: %w", err)
	}
	if err := made.CheckSecret(client.Secret.Current().Value); err != nil {
		return broker.ClientConfig{}, fmt.Errorf("secret: %s cannot be used: %w", cfg.Secret, err)
	}
	return client, nil
}

// towards says which client to be at its IdP.
func (p *parts) towards(cfg ClientConfig) idp.Config {
	home := cmp.Or(cfg.TokenURL, cfg.Issuer)
	c := idp.Config{
		TokenURL:  cfg.TokenURL,
		AllowHTTP: cfg.AllowHTTP,
		ClientID:  cfg.ClientID,
		Auth:      idp.AuthMethod(cfg.Auth),
		Grant:     cfg.GrantType,
		RawBasic:  cfg.RawBasic,
		Assertion: idp.Assertion{
			Audience:        cfg.AssertionAudience,
			Algorithm:       cfg.AssertionAlgorithm,
			KeyID:           cfg.AssertionKid,
			Type:            cfg.AssertionTyp,
			CertificateFile: cfg.AssertionCertificate,
			Subject:         cfg.AssertionSubject,
		},
		AssertionFile:   cfg.AssertionFile,
		Params:          cfg.Params,
		Extras:          cfg.Extras,
		DefaultLifetime: cfg.DefaultLifetime,
		HTTP:            p.network.ClientFor(home, cfg.AllowPrivate),
		HTTPWith:        p.with(home, cfg.AllowPrivate),
	}
	if cfg.TLS != nil {
		c.Certificate = idp.CertificateFiles{Cert: cfg.TLS.Cert, Key: cfg.TLS.Key}
	}
	if cfg.TokenURL == "" {
		c.Issuer = p.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate)
	}
	return c
}

// with makes clients that present a certificate.
func (p *parts) with(home string, allowPrivate bool) func(tls.Certificate) *http.Client {
	return func(certificate tls.Certificate) *http.Client {
		return p.network.ClientWith(home, allowPrivate, certificate)
	}
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
	secret *secret.Ring // nil: the client has none
}

// Introspect is what verification wants.
func (i introspection) Introspect(ctx context.Context, token redact.String) (active bool, members []byte, err error) {
	with := i.client.Credential()
	if i.secret != nil {
		with = i.secret.Current()
	}
	found, err := i.client.Introspect(ctx, with, token)
	return found.Active, found.Members, err
}

func (p *parts) introspection(config *Config, cfg *IssuerConfig) (introspection, error) {
	name, endpoint := cfg.Introspection.Client, cfg.Introspection.Endpoint
	home := cmp.Or(endpoint, cfg.Issuer)
	towards := p.towards(config.Clients[name])
	towards.IntrospectionURL = endpoint
	towards.AllowHTTP = towards.AllowHTTP || cfg.AllowHTTP
	towards.HTTP, towards.HTTPWith = p.network.ClientFor(home, cfg.AllowPrivate), p.with(home, cfg.AllowPrivate)
	if endpoint == "" {
		towards.Issuer = p.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate)
	}
	client, err := idp.New(towards)
	if err != nil {
		return introspection{}, err
	}
	p.certified = append(p.certified, certified{name, client})
	at := slices.IndexFunc(p.clients, func(c broker.ClientConfig) bool { return c.Name == name })
	return introspection{client, p.clients[at].Secret}, nil
}

// orNone translates what the file can ask for, none, to what verify takes for
// it: zero is its default.
func orNone[N time.Duration | int64](configured N) N {
	if configured == 0 {
		return -1
	}
	return configured
}
