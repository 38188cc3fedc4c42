package app

import (
	"cmp"
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
	"github.com/cezzis/tokenbroker/internal/clientkeys"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/delegate"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/feed"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/storage"
	"github.com/cezzis/tokenbroker/internal/traceexport"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// parts are the broker and the components that a reload does not replace.
type parts struct {
	network *discovery.Network
	storage *storage.Storage
	broker  *broker.Broker
	keys    *clientkeys.Keys
	feeder  *feed.Feeder
	setup   atomic.Pointer[setup]
	observers
}

// observers are the log, metrics, audit and traces. All but log may be nil.
type observers struct {
	log        *slog.Logger
	registerer prometheus.Registerer
	audit      *audit.Log
	traces     *traceexport.Pipeline
}

// ofStorage returns the observers of the store.
func (o *observers) ofStorage() storage.Observers {
	return storage.Observers{Logger: o.log, Tracer: o.traces.Tracer(), Registerer: o.registerer}
}

// close flushes and closes the audit and the traces.
func (o *observers) close() {
	if err := o.audit.Close(); err != nil {
		o.log.Error("not all of the audit is written", "error", err)
	}
	o.traces.Close()
}

// setup is the part of a configuration that can be replaced while the broker runs, and
// the components built from it.
type setup struct {
	config   *config.Config
	applied  time.Time
	verifier *verify.Verifier
	clients  []broker.ClientConfig
	issuers  map[issuerKey]*discovery.Issuer
	// introspections are keyed by issuer.
	introspections map[string]*introspection

	storage *storage.Storage
	network *discovery.Network
	// trusting has a network for each configured file of authorities, by path.
	trusting map[string]*discovery.Network
	broker   func() *broker.Broker
	before   *setup // the setup that this one replaces; nil afterwards
}

// issuerKey identifies an issuer's metadata, which clients and verification share. The
// permissions for plain http and for private addresses are not shared.
type issuerKey struct {
	issuer                  string
	allowHTTP, allowPrivate bool
	ca                      string
}

// assemble builds the parts from the configuration. The error lists every secret that
// cannot be read.
func assemble(config *config.Config, transport http.RoundTripper, observers observers) (*parts, error) {
	opened, err := storage.Open(config, observers.ofStorage())
	if err != nil {
		return nil, err
	}
	p := newParts(opened, transport, observers)
	first, err := p.prepare(config)
	if err == nil {
		err = p.fill(first)
	}
	if err != nil {
		_ = opened.Close()
		return nil, err
	}
	return p, nil
}

func newParts(opened *storage.Storage, transport http.RoundTripper, observers observers) *parts {
	p := &parts{network: discovery.NewNetwork(transport), storage: opened, observers: observers}
	p.network.Observe(observers.traces.Tracer(), countCalls(observers.registerer))
	return p
}

// fill starts the broker with the first setup.
func (p *parts) fill(first *setup) (err error) {
	p.use(first)
	p.registerer.MustRegister(certificateCollector{p})
	p.broker, err = broker.New(broker.Config{
		Setup:      first.forBroker(),
		Store:      p.storage.Store,
		Private:    p.storage.Private(),
		MAC:        p.storage.MAC(),
		Marker:     p.storage.Marker(),
		PutBack:    p.storage.PutBack(),
		Audit:      p.audit,
		Logger:     p.log,
		Registerer: p.registerer,
	})
	if err == nil {
		p.keys = p.makeKeys()
		p.feeder = feed.New(feed.Config{Sets: p.broker.Supplied, Store: p.storage.Store, Logger: p.log, Registerer: p.registerer})
	}
	return err
}

// use replaces the current setup.
func (p *parts) use(next *setup) {
	next.before, next.applied = nil, time.Now()
	p.setup.Store(next)
}

// prepare builds a setup that can replace the current one. It reads secrets and sends no
// requests. Components with an unchanged configuration are reused.
func (p *parts) prepare(cfg *config.Config) (*setup, error) {
	s, problems := p.attempt(cfg)
	if len(problems) > 0 {
		return nil, joinParts(problems)
	}
	return s, nil
}

// attempt is prepare that leaves out the parts that cannot be used.
func (p *parts) attempt(cfg *config.Config) (s *setup, problems []PartError) {
	s = &setup{
		config: cfg, storage: p.storage, network: p.network, before: p.setup.Load(),
		broker:   func() *broker.Broker { return p.broker },
		trusting: map[string]*discovery.Network{},
		issuers:  map[issuerKey]*discovery.Issuer{}, introspections: map[string]*introspection{},
	}
	if s.before == nil {
		s.before = &setup{config: &config.Config{}}
	}
	problems = s.trust(cfg)
	for _, name := range slices.Sorted(maps.Keys(cfg.Clients)) {
		client := cfg.Clients[name]
		if s.networkOf(client.CA()) == nil {
			continue // trust has reported it
		}
		if client.Issuer != "" {
			s.issuer(client.Issuer, client.AllowHTTP, client.AllowPrivate, client.CA())
		}
		configured, err := s.client(name, cfg)
		if err != nil {
			problems = append(problems, PartError{"clients." + name, []any{"clients", name}, err})
			continue
		}
		s.clients = append(s.clients, configured)
	}
	return s, append(problems, s.verify(cfg, p.log, p.registerer)...)
}

// trust opens the configured files of authorities.
func (s *setup) trust(cfg *config.Config) (problems []PartError) {
	open := func(ca, name string, keys ...any) {
		if ca == "" || s.trusting[ca] != nil {
			return
		}
		network, err := s.network.WithAuthorities(ca)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(ca, config.ServiceAccountDir) {
			err = fmt.Errorf("%w: Kubernetes mounts it into a pod unless automountServiceAccountToken is false; outside of a pod name a file with the CA of the cluster", err)
		}
		if err != nil {
			problems = append(problems, PartError{name + ": tls.ca", append(keys, "tls", "ca"), err})
			return
		}
		s.trusting[ca] = network
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Clients)) {
		client := cfg.Clients[name]
		open(client.CA(), "clients."+name, "clients", name)
	}
	for i := range cfg.Issuers {
		open(cfg.Issuers[i].CA(), "issuers: "+cfg.Issuers[i].Issuer, "issuers", i)
	}
	return problems
}

// networkOf returns the network for a file of authorities that trust opened, or nil.
func (s *setup) networkOf(ca string) *discovery.Network {
	if ca == "" {
		return s.network
	}
	return s.trusting[ca]
}

func (s *setup) forBroker() broker.Setup {
	return broker.Setup{Clients: s.clients, Verifier: s.verifier, Policy: policy.New(s.config.PolicyConfig())}
}

// named returns the client with this name from the setup.
func (s *setup) named(name string) (broker.ClientConfig, bool) {
	at, found := slices.BinarySearchFunc(s.clients, name, func(c broker.ClientConfig, name string) int { return cmp.Compare(c.Name, name) })
	if !found {
		return broker.ClientConfig{}, false
	}
	return s.clients[at], true
}

// close releases everything but the observers. The parts must no longer be in use.
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
	if before := s.before.config.Clients[name]; existed && reflect.DeepEqual(before, cfg) && s.before.config.IssuesAssertions(name) == config.IssuesAssertions(name) {
		if cfg.Issuer != "" { // it keeps the cached metadata of its issuer
			s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
		}
		return old, nil
	}
	atIdP, err := idp.New(s.idpConfig(config, name))
	if err != nil {
		return broker.ClientConfig{}, err
	}
	client := broker.ClientConfig{
		Name: name,
		IdP:  atIdP,
		About: broker.About{
			ClientID: cfg.ClientID, Issuer: cfg.Issuer, TokenURL: discovery.Printable(cfg.TokenURL), Auth: cfg.Auth, Secret: secretOf(&cfg),
		},
		CheckSecret: atIdP.CheckSecret,
		Audience:    cfg.Audience,
		Resources:   cfg.Resources,
		Scopes:      cfg.Scopes,
	}
	if e := cfg.Exchange; e != nil {
		client.Exchange = delegate.Config{
			SelfActor: e.Actor == "client", ActorFile: e.ActorFile(), AssertionFrom: e.AssertionFrom, ProvesByUse: e.Prove == "next_exchange",
		}
	}
	if !cfg.NeedsSecret() {
		return client, nil
	}
	if cfg.Secret.Supplied() {
		client.Managed = true
		client.Supplied, err = s.supplied(name, &cfg, old.Supplied)
		return client, err
	}
	if cfg.Key != nil {
		client.Made = s.made(config, name)
	}
	if client.Managed = cfg.Managed(); client.Managed {
		return client, nil
	}
	if client.Secret = old.Secret; client.Secret == nil || client.Secret.Ref() != cfg.Secret.Ref {
		if client.Secret, err = s.storage.OpenSecret(cfg.Secret.Ref); err != nil {
			return broker.ClientConfig{}, fmt.Errorf("secret: %w", err)
		}
	}
	if err := atIdP.CheckSecret(client.Secret.Current().Value); err != nil {
		return broker.ClientConfig{}, fmt.Errorf("secret: %s cannot be used: %w", cfg.Secret, err)
	}
	return client, nil
}

// idpConfig returns the configuration of a client's requests to its IdP.
func (s *setup) idpConfig(config *config.Config, name string) idp.Config {
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
	if cfg.Key != nil { // a preset may have set these
		c.Assertion.Algorithm, c.Assertion.KeyID, c.Assertion.CertificateFile = "", "", ""
	}
	if cfg.Exchange != nil {
		c.Exchange = exchangeOf(config, name)
	}
	if c.Auth.Mutual() && cfg.TLS != nil {
		c.Certificate = idp.CertificateFiles{Cert: cfg.TLS.Cert, Key: cfg.TLS.Key}
	}
	if cfg.TokenURL == "" {
		c.Issuer = s.issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA())
	}
	return c
}

// exchangeOf returns how a client exchanges tokens at its IdP.
func exchangeOf(config *config.Config, name string) *idp.Exchange {
	e := config.Clients[name].Exchange
	exchange := &idp.Exchange{RequestedTokenType: idp.TokenTypeOf(e.RequestedTokenType), Assertions: config.IssuesAssertions(name)}
	for _, kind := range e.SubjectTypes {
		exchange.SubjectTypes = append(exchange.SubjectTypes, idp.TokenTypeOf(kind))
	}
	if e.Actor != "none" {
		exchange.Actor = e.Actor
	}
	return exchange
}

// with returns a function that makes HTTP clients with a client certificate.
func (s *setup) with(home string, allowPrivate bool, ca string) func(tls.Certificate) *http.Client {
	network := s.networkOf(ca) // a client may outlive the setup that it was made for
	return func(certificate tls.Certificate) *http.Client {
		return network.ClientWith(home, allowPrivate, certificate)
	}
}
