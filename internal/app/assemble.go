package app

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// parts are the broker and what stays while it runs.
type parts struct {
	network *discovery.Network
	storage *storage
	broker  *broker.Broker
	setup   atomic.Pointer[setup]
	observers
}

// observers are who is told of what the broker does. All but log may be nil.
type observers struct {
	log        *slog.Logger
	registerer prometheus.Registerer
	audit      *audit.Log
	traces     *traces
}

// close ends what is told, when there is nothing more to tell.
func (o *observers) close() {
	if err := o.audit.Close(); err != nil {
		o.log.Error("not all of the audit is written", "error", err)
	}
	o.traces.close()
}

// setup is the part of a configuration that can be replaced while the broker
// runs, and what was made of it.
type setup struct {
	config   *config.Config
	verifier *verify.Verifier
	clients  []broker.ClientConfig
	issuers  map[issuerKey]*discovery.Issuer
	// introspections are by issuer.
	introspections map[string]introspection

	storage *storage
	network *discovery.Network
	// trusting are the networks of those that have authorities of their own, by file.
	trusting map[string]*discovery.Network
	broker   func() *broker.Broker
	before   *setup // what it takes the place of; nil once it has
}

// issuerKey: clients and verification share what is known of an issuer, but not
// the leave to speak plain http, or to private addresses.
type issuerKey struct {
	issuer                  string
	allowHTTP, allowPrivate bool
	ca                      string
}

// assemble makes the parts of what the configuration says. All secrets that
// cannot be read are in the error.
func assemble(config *config.Config, transport http.RoundTripper, told observers) (*parts, error) {
	opened, err := openStore(config, &told)
	if err != nil {
		return nil, err
	}
	p := &parts{network: discovery.NewNetwork(transport), storage: opened, observers: told}
	p.network.Trace(told.traces.tracer())
	if err := p.fill(config); err != nil {
		_ = opened.Close()
		return nil, err
	}
	return p, nil
}

func (p *parts) fill(config *config.Config) error {
	made, err := p.prepare(config)
	if err != nil {
		return err
	}
	p.use(made)
	p.registerer.MustRegister(certificateCollector{p})
	p.broker, err = broker.New(broker.Config{
		Setup:      made.forBroker(),
		Store:      p.storage.Store,
		MAC:        p.storage.mac(),
		Marker:     p.storage.marker(),
		PutBack:    p.storage.putBack(),
		Rings:      p.storage.rings,
		Audit:      p.audit,
		Logger:     p.log,
		Registerer: p.registerer,
	})
	return err
}

// use puts a setup in the place of the one there is.
func (p *parts) use(next *setup) {
	next.before = nil
	p.setup.Store(next)
}

// prepare makes a setup that can take the place of the one there is. It reads
// secrets, and asks nobody anything. What is configured as before is kept as it is.
func (p *parts) prepare(cfg *config.Config) (*setup, error) {
	s := &setup{
		config: cfg, storage: p.storage, network: p.network, before: p.setup.Load(),
		broker:   func() *broker.Broker { return p.broker },
		trusting: map[string]*discovery.Network{},
		issuers:  map[issuerKey]*discovery.Issuer{}, introspections: map[string]introspection{},
	}
	if s.before == nil {
		s.before = &setup{config: &config.Config{}}
	}
	problems := s.trust(cfg)
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Clients)) {
		made, err := s.client(name, cfg)
		if err != nil {
			problems = append(problems, fmt.Errorf("clients.%s: %w", name, err))
			continue
		}
		s.clients = append(s.clients, made)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	var err error
	if s.verifier, err = s.newVerifier(cfg, p.log, p.registerer); err != nil {
		return nil, fmt.Errorf("issuers: %w", err)
	}
	return s, nil
}

// trust opens the files of authorities.
func (s *setup) trust(cfg *config.Config) (problems []error) {
	open := func(key, ca string) {
		if ca == "" || s.trusting[ca] != nil {
			return
		}
		network, err := s.network.WithAuthorities(ca)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(ca, config.ServiceAccountDir) {
			err = fmt.Errorf("%w: Kubernetes mounts it into a pod unless automountServiceAccountToken is false; outside of a pod name a file with the CA of the cluster", err)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: tls.ca: %w", key, err))
			return
		}
		s.trusting[ca] = network
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Clients)) {
		client := cfg.Clients[name]
		open("clients."+name, client.CA())
	}
	for i := range cfg.Issuers {
		open("issuers: "+cfg.Issuers[i].Issuer, cfg.Issuers[i].CA())
	}
	return problems
}

// networkOf is the network that trusts the authorities of a file that trust opened.
func (s *setup) networkOf(ca string) *discovery.Network {
	if ca == "" {
		return s.network
	}
	return s.trusting[ca]
}

func (s *setup) forBroker() broker.Setup {
	return broker.Setup{Clients: s.clients, Verifier: s.verifier, Policy: policy.New(s.config.PolicyConfig())}
}

// named returns the client of that name, which the setup has or had.
func (s *setup) named(name string) (broker.ClientConfig, bool) {
	at, found := slices.BinarySearchFunc(s.clients, name, func(c broker.ClientConfig, name string) int { return cmp.Compare(c.Name, name) })
	if !found {
		return broker.ClientConfig{}, false
	}
	return s.clients[at], true
}

// close lets go of everything but the observers. Nothing must be using it.
func (p *parts) close() {
	p.broker.Close()
	_ = p.storage.Close()
}

func (s *setup) issuer(issuer string, allowHTTP, allowPrivate bool, ca string) *discovery.Issuer {
	key := issuerKey{issuer, allowHTTP, allowPrivate, ca}
	if s.issuers[key] == nil {
		s.issuers[key] = s.before.issuers[key]
	}
	if s.issuers[key] == nil {
		s.issuers[key] = discovery.New(discovery.Config{
			Issuer: issuer, AllowHTTP: allowHTTP, AllowPrivate: allowPrivate, HTTP: s.networkOf(ca).ClientFor(issuer, allowPrivate),
		})
	}
	return s.issuers[key]
}

func (s *setup) client(name string, config *config.Config) (broker.ClientConfig, error) {
	cfg := config.Clients[name]
	old, existed := s.before.named(name)
	if before := s.before.config.Clients[name]; existed && reflect.DeepEqual(before, cfg) {
		if cfg.Issuer != "" { // it goes on asking the issuer that it knows
			s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
		}
		return old, nil
	}
	made, err := idp.New(s.towards(config, name))
	if err != nil {
		return broker.ClientConfig{}, err
	}
	client := broker.ClientConfig{
		Name: name,
		IdP:  made,
		About: broker.About{
			ClientID: cfg.ClientID, Issuer: cfg.Issuer, TokenURL: discovery.Printable(cfg.TokenURL), Auth: cfg.Auth, Secret: cfg.Secret.String(),
		},
		CheckSecret: made.CheckSecret,
		Audience:    cfg.Audience,
		Resources:   cfg.Resources,
		Scopes:      cfg.Scopes,
	}
	if !idp.NeedsSecret(idp.AuthMethod(cfg.Auth), cfg.GrantType) {
		return client, nil
	}
	if client.Managed = cfg.Secret.Managed(); client.Managed {
		return client, nil
	}
	if client.Secret = old.Secret; client.Secret == nil || client.Secret.Ref() != cfg.Secret {
		if client.Secret, err = s.storage.open(cfg.Secret); err != nil {
			return broker.ClientConfig{}, fmt.Errorf("secret: %w", err)
		}
	}
	if err := made.CheckSecret(client.Secret.Current().Value); err != nil {
		return broker.ClientConfig{}, fmt.Errorf("secret: %s cannot be used: %w", cfg.Secret, err)
	}
	return client, nil
}

// towards says which client to be at its IdP.
func (s *setup) towards(config *config.Config, name string) idp.Config {
	cfg := config.Clients[name]
	home := cmp.Or(cfg.TokenURL, cfg.Issuer)
	c := idp.Config{
		TokenURL:  cfg.TokenURL,
		AllowHTTP: cfg.AllowHTTP,
		ClientID:  cfg.ClientID,
		Auth:      idp.AuthMethod(cfg.Auth),
		Grant:     cfg.GrantType,
		RawBasic:  cfg.RawBasic,
		Assertion: idp.Assertion{
			Audience:        cfg.Assertion.Audience,
			Algorithm:       cfg.Assertion.Algorithm,
			KeyID:           cfg.Assertion.Kid,
			Type:            cfg.Assertion.Typ,
			CertificateFile: cfg.Assertion.Certificate,
			Subject:         cfg.Assertion.Subject,
		},
		AssertionFile:   cfg.Assertion.File,
		Params:          cfg.Params,
		Extras:          cfg.Extras,
		BearerTypes:     cfg.BearerTypes,
		DefaultLifetime: cfg.DefaultLifetime,
		MaxTokenSize:    config.Limits.TokenSize(),
		HTTP:            s.networkOf(cfg.CA()).ClientFor(home, cfg.AllowPrivate),
		HTTPWith:        s.with(home, cfg.AllowPrivate, cfg.CA()),
	}
	if c.Auth.Mutual() && cfg.TLS != nil {
		c.Certificate = idp.CertificateFiles{Cert: cfg.TLS.Cert, Key: cfg.TLS.Key}
	}
	if cfg.TokenURL == "" {
		c.Issuer = s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
	}
	return c
}

// with makes clients that present a certificate.
func (s *setup) with(home string, allowPrivate bool, ca string) func(tls.Certificate) *http.Client {
	network := s.networkOf(ca) // a client outlives the setup that it was made for
	return func(certificate tls.Certificate) *http.Client {
		return network.ClientWith(home, allowPrivate, certificate)
	}
}

func (s *setup) newVerifier(config *config.Config, log *slog.Logger, registerer prometheus.Registerer) (*verify.Verifier, error) {
	issuers := make([]verify.IssuerConfig, 0, len(config.Issuers))
	for i := range config.Issuers {
		issuer, err := s.verified(config, &config.Issuers[i])
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

		MaxTokenSize: config.Limits.TokenSize(),
	}, s.before.verifier)
}

// verified says which tokens of an issuer are good.
func (s *setup) verified(config *config.Config, cfg *config.Issuer) (verify.IssuerConfig, error) {
	issuer := verify.IssuerConfig{
		Issuer:          cfg.Issuer,
		JWKSURL:         cfg.JWKSURL,
		JWKSTokenFile:   cfg.JWKSTokenFile,
		JWKSFile:        cfg.JWKSFile,
		AllowHTTP:       cfg.AllowHTTP,
		HTTP:            s.networkOf(cfg.CA()).ClientFor(cmp.Or(cfg.JWKSURL, cfg.Issuer), cfg.AllowPrivate),
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
		RefreshInterval: cfg.RefreshInterval,
		MaxStale:        cfg.MaxStale,
	}
	issuer.AccessTokenClaims = cfg.AccessTokenClaims
	if cfg.MissingAud != nil {
		issuer.MissingAudience = verify.MissingAudience(*cfg.MissingAud)
	}
	if cfg.JWKSURL == "" && cfg.JWKSFile == "" {
		issuer.Discovery = s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
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

// introspection asks an issuer about tokens, as one of the clients and with the
// secret that the client has then.
type introspection struct {
	client *idp.Client
	name   string
	// broker has the secret; it is made later.
	broker func() *broker.Broker
}

// Introspect is what verification wants.
func (i introspection) Introspect(ctx context.Context, token redact.String) (active bool, members []byte, err error) {
	with, err := i.broker().SecretForIntrospection(ctx, i.name)
	if err != nil {
		return false, nil, err
	}
	found, err := i.client.Introspect(ctx, with, token)
	i.broker().Introspected(i.name, with.ID, err)
	return found.Active, found.Members, err
}

func (s *setup) introspection(config *config.Config, cfg *config.Issuer) (introspection, error) {
	name, endpoint := cfg.Introspection.Client, cfg.Introspection.Endpoint
	if old, existed := s.before.introspections[cfg.Issuer]; existed && s.sameIntrospection(cfg) {
		return old, nil
	}
	towards := s.towards(config, name)
	towards.IntrospectionURL = endpoint
	towards.AllowHTTP = towards.AllowHTTP || cfg.AllowHTTP
	home := cmp.Or(endpoint, cfg.Issuer)
	towards.HTTP, towards.HTTPWith = s.networkOf(cfg.CA()).ClientFor(home, cfg.AllowPrivate), s.with(home, cfg.AllowPrivate, cfg.CA())
	if endpoint == "" {
		towards.Issuer = s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
	}
	client, err := idp.New(towards)
	return introspection{client, name, s.broker}, err
}

// sameIntrospection reports whether an issuer was asked about opaque tokens in the
// same way before.
func (s *setup) sameIntrospection(cfg *config.Issuer) bool {
	at := slices.IndexFunc(s.before.config.Issuers, func(c config.Issuer) bool { return c.Issuer == cfg.Issuer })
	if at < 0 || !reflect.DeepEqual(s.before.config.Issuers[at], *cfg) {
		return false
	}
	name := cfg.Introspection.Client
	return reflect.DeepEqual(s.before.config.Clients[name], s.config.Clients[name])
}

// orNone translates what the file can ask for, none, to what verify takes for
// it: zero is its default.
func orNone[N time.Duration | int64](configured N) N {
	if configured == 0 {
		return -1
	}
	return configured
}
