package app

import (
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
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// parts are the broker and what runs beside it.
type parts struct {
	storage  *storage
	broker   *broker.Broker
	verifier *verify.Verifier
	secrets  []*secret.Ring
	clients  []broker.ClientConfig
	issuers  map[issuerKey]*discovery.Issuer
}

// issuerKey: clients and verification share what is known of an issuer, but not
// the leave to speak plain http.
type issuerKey struct {
	issuer    string
	allowHTTP bool
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
	p := &parts{storage: opened, secrets: opened.secrets, issuers: map[issuerKey]*discovery.Issuer{}}
	if err := p.fill(config, opts, registerer); err != nil {
		_ = opened.Close()
		return nil, err
	}
	return p, nil
}

func (p *parts) fill(config *Config, opts Options, registerer prometheus.Registerer) error {
	client := discovery.NewHTTPClient(opts.Transport)
	var problems []error
	for _, name := range slices.Sorted(maps.Keys(config.Clients)) {
		made, err := p.client(name, config.Clients[name], client)
		if err != nil {
			problems = append(problems, fmt.Errorf("clients.%s: %w", name, err))
			continue
		}
		p.clients = append(p.clients, made)
		p.secrets = append(p.secrets, made.Secret)
	}
	if len(problems) > 0 {
		return errors.Join(problems...)
	}
	var err error
	if p.verifier, err = p.newVerifier(config, client, opts.Logger, registerer); err != nil {
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

func (p *parts) issuer(issuer string, allowHTTP bool, client *http.Client) *discovery.Issuer {
	key := issuerKey{issuer, allowHTTP}
	if p.issuers[key] == nil {
		p.issuers[key] = discovery.New(discovery.Config{Issuer: issuer, AllowHTTP: allowHTTP, HTTP: client})
	}
	return p.issuers[key]
}

func (p *parts) client(name string, cfg ClientConfig, client *http.Client) (broker.ClientConfig, error) {
	ring, err := p.storage.open(cfg.Secret)
	if err != nil {
		return broker.ClientConfig{}, fmt.Errorf("secret: %w", err)
	}
	towards := idp.Config{
		TokenURL:        cfg.TokenURL,
		AllowHTTP:       cfg.AllowHTTP,
		ClientID:        cfg.ClientID,
		Auth:            idp.AuthMethod(cfg.Auth),
		RawBasic:        cfg.RawBasic,
		Params:          cfg.Params,
		Extras:          cfg.Extras,
		DefaultLifetime: cfg.DefaultLifetime,
		HTTP:            client,
	}
	if cfg.TokenURL == "" {
		towards.Issuer = p.issuer(cfg.Issuer, cfg.AllowHTTP, client)
	}
	made, err := idp.New(towards)
	return broker.ClientConfig{
		Name:      name,
		IdP:       made,
		Secret:    ring,
		Audience:  cfg.Audience,
		Resources: cfg.Resources,
		Scopes:    cfg.Scopes,
	}, err
}

func (p *parts) newVerifier(config *Config, client *http.Client, log *slog.Logger, registerer prometheus.Registerer) (*verify.Verifier, error) {
	issuers := make([]verify.IssuerConfig, 0, len(config.Issuers))
	for _, cfg := range config.Issuers {
		issuer := verify.IssuerConfig{
			Issuer:          cfg.Issuer,
			JWKSURL:         cfg.JWKSURL,
			AllowHTTP:       cfg.AllowHTTP,
			Audiences:       cfg.Audiences,
			Algorithms:      cfg.Algorithms,
			Types:           cfg.Types,
			ScopeClaim:      cfg.ScopeClaim,
			Leeway:          leeway(cfg.Leeway),
			MaxLifetime:     cfg.MaxLifetime,
			RefreshInterval: cfg.RefreshInterval,
			MaxStale:        cfg.MaxStale,
		}
		if cfg.JWKSURL == "" {
			issuer.Discovery = p.issuer(cfg.Issuer, cfg.AllowHTTP, client)
		}
		issuers = append(issuers, issuer)
	}
	return verify.New(verify.Config{Issuers: issuers, HTTP: client, Logger: log, Registerer: registerer})
}

// leeway translates a leeway of nothing, which the file can ask for, to what
// verify takes for it.
func leeway(configured time.Duration) time.Duration {
	if configured == 0 {
		return -1
	}
	return configured
}
