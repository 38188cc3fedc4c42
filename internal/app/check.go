package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/storage"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
	"github.com/cezzis/tokenbroker/internal/token"
)

// Probe tries the parts of a configuration one by one, without serving. It is safe for
// concurrent use.
type Probe struct {
	parts  *parts
	config *config.Config
	aside  *storage.Storage // Redis, if it can be tried although the store cannot be opened
	// alone is assembled over a store of its own. Its requests for tokens reach the IdP
	// although the fleet has tokens, and leave nothing in the fleet's store.
	alone   *parts
	sources sourceReads
	// Unusable are the parts of the configuration that cannot be assembled. The rest can
	// be tried.
	Unusable []PartError
}

// PartError is the reason why a part of a configuration cannot be used.
type PartError struct {
	// Part is the name of the part, and Keys lead to it in the configuration.
	Part string
	Keys []any
	Err  error
}

func (e PartError) Error() string { return e.Part + ": " + e.Err.Error() }
func (e PartError) Unwrap() error { return e.Err }

func joinParts(problems []PartError) error {
	all := make([]error, len(problems))
	for i, problem := range problems {
		all[i] = problem
	}
	return errors.Join(all...)
}

// OpenProbe assembles the configuration, as far as possible. It reads secrets and sends no
// requests. An error means that nothing can be tried. Close the probe after use.
func OpenProbe(cfg *config.Config, opts Options) (*Probe, error) {
	observers := observers{log: cmp.Or(opts.Logger, slog.Default()), registerer: prometheus.NewRegistry()}
	p := &Probe{config: cfg}
	opened, err := storage.Open(cfg, observers.ofStorage())
	if err != nil {
		p.Unusable = append(p.Unusable, PartError{"store", []any{"store"}, err})
		p.openAside(observers.ofStorage(), err)
		if opened, err = storage.Open(new(config.Config), observers.ofStorage()); err != nil {
			return nil, err
		}
	}
	parts, problems, err := assembleProbe(cfg, opened, opts.Transport, observers)
	if err != nil {
		if p.aside != nil {
			_ = p.aside.Close()
		}
		return nil, err
	}
	p.parts = parts
	p.Unusable = append(p.Unusable, problems...)
	if p.alone, err = assembleAlone(cfg, opts.Transport, observers.log); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// assembleProbe assembles the parts that can be used, and returns the problems of the
// others. It closes the storage if it fails.
func assembleProbe(cfg *config.Config, opened *storage.Storage, transport http.RoundTripper, observers observers) (p *parts, problems []PartError, err error) {
	p = newParts(opened, transport, observers)
	setup, problems := p.attempt(cfg)
	if setup.verifier == nil {
		err = joinParts(problems)
	} else {
		err = p.fill(setup)
	}
	if err != nil {
		_ = opened.Close()
		return nil, nil, err
	}
	return p, problems, nil
}

// assembleAlone assembles the parts over an empty store in memory.
func assembleAlone(cfg *config.Config, transport http.RoundTripper, log *slog.Logger) (*parts, error) {
	observers := observers{log: log, registerer: prometheus.NewRegistry()}
	opened, err := storage.Open(new(config.Config), observers.ofStorage())
	if err != nil {
		return nil, err
	}
	p, _, err := assembleProbe(cfg, opened, transport, observers)
	return p, err
}

// openAside opens Redis if the store cannot be opened for another reason, such as its
// sealing keys.
func (p *Probe) openAside(observers storage.Observers, reason error) {
	if p.config.Store.Redis == nil {
		return
	}
	switch aside, err := storage.OpenRedis(p.config, observers); {
	case err == nil:
		p.aside = aside
	case err.Error() != reason.Error():
		p.Unusable = append(p.Unusable, PartError{"store", []any{"store", "redis"}, err})
	}
}

// Close releases the parts.
func (p *Probe) Close() {
	p.parts.close()
	if p.alone != nil {
		p.alone.close()
	}
	if p.aside != nil {
		_ = p.aside.Close()
	}
}

// Redis returns the store, or nil if it is of another kind or cannot be opened.
func (p *Probe) Redis() *redisstore.Store {
	if p.aside != nil {
		return p.aside.Redis
	}
	return p.parts.storage.Redis
}

// HasRing reports whether there are sealing keys to compare with the store.
func (p *Probe) HasRing() bool { return p.parts.storage.Rings != nil }

// Ring compares the ring of sealing keys with the store.
func (p *Probe) Ring(ctx context.Context) error { return p.parts.storage.CheckRing(ctx) }

// Listener returns the certificate and the authorities of the listeners.
func (p *Probe) Listener(ctx context.Context) (certs.Status, error) {
	opened, err := openTLS(ctx, p.config.Listen.TLS)
	if err != nil {
		return certs.Status{}, err
	}
	return opened.Status(), nil
}

// Clients returns the names of the clients whose IdPs can be tried.
func (p *Probe) Clients() (names []string) {
	for _, name := range slices.Sorted(maps.Keys(p.config.Clients)) {
		if client := p.config.Clients[name]; p.parts.setup.Load().networkOf(client.CA()) != nil {
			names = append(names, name)
		}
	}
	return names
}

// HasClient reports whether the client with this name can be used. A managed secret needs
// the store.
func (p *Probe) HasClient(name string) bool {
	client, ok := p.parts.setup.Load().named(name)
	return ok && (!client.Managed || client.Supplied != nil || p.parts.storage.KeepsSecrets)
}

// Issuers returns the indexes in the configuration of the issuers that can be tried.
func (p *Probe) Issuers() (indexes []int) {
	usable := map[string]bool{}
	for _, status := range p.parts.setup.Load().verifier.Status() {
		usable[status.Issuer] = true
	}
	for i := range p.config.Issuers {
		if usable[p.config.Issuers[i].Issuer] {
			indexes = append(indexes, i)
		}
	}
	return indexes
}

// DoubtfulSecrets returns warnings, by client, about secrets that are probably a mistake.
func (p *Probe) DoubtfulSecrets() map[string]string { return p.parts.setup.Load().doubtfulSecrets() }

// TokenEndpoint returns the token endpoint of a client that the metadata of its issuer
// names.
func (p *Probe) TokenEndpoint(ctx context.Context, client string) (string, error) {
	cfg := p.config.Clients[client]
	metadata, err := p.parts.setup.Load().issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA()).Metadata(ctx)
	if err != nil {
		return "", err
	}
	named := metadata.TokenEndpoint
	if idp.AuthMethod(cfg.Auth).Mutual() {
		named = metadata.MTLS.Token
	}
	endpoint, err := named.URL()
	if err == nil && endpoint == "" {
		err = fmt.Errorf("the metadata of %s names no token_endpoint; set token_url", cfg.Issuer)
	}
	return endpoint, err
}

// Token requests a token from the IdP. If scopes is empty, the client's own are requested.
// The store has the secrets of managed clients, so for these it acts as a replica of the
// fleet: fetched is false if the fleet has the token, so that the IdP was not called.
func (p *Probe) Token(ctx context.Context, client string, scopes []string) (tok *token.Token, fetched bool, err error) {
	parts := p.alone
	if p.HasSource(client) {
		if _, err := p.ReadSource(ctx, client); err != nil {
			return nil, false, err
		}
	}
	if configured := p.config.Clients[client]; configured.Managed() {
		parts = p.parts
	}
	answer, err := parts.broker.Get(ctx, policy.Self(), broker.Ask{Client: client, Scopes: scopes})
	return answer.Token, answer.Origin == broker.OriginFetched, err
}

// Keys fetches the keys of an issuer and returns how many are usable.
func (p *Probe) Keys(ctx context.Context, issuer string) (usable int, err error) {
	verifier := p.parts.setup.Load().verifier
	if err := verifier.Refresh(ctx, issuer); err != nil {
		return 0, err
	}
	for _, status := range verifier.Status() {
		if status.Issuer == issuer {
			usable = status.Keys
		}
	}
	return usable, nil
}

// HasIntrospection reports whether the introspection of an issuer can be used.
func (p *Probe) HasIntrospection(issuer string) bool {
	introspection, ok := p.parts.setup.Load().introspections[issuer]
	return ok && p.HasClient(introspection.name)
}

// Introspection introspects a token that was never issued.
func (p *Probe) Introspection(ctx context.Context, issuer string) error {
	active, _, err := p.parts.setup.Load().introspections[issuer].Introspect(ctx, redact.New(rand.Text()))
	if err == nil && active {
		err = errors.New("it reports a made-up token as active: every token would be accepted")
	}
	return err
}

// Place is a server of an IdP, and how it may be reached.
type Place struct {
	URL          string
	AllowPrivate bool
	CA           string
}

// ErrNoDate is the error of Clock for a server that does not state the time.
var ErrNoDate = errors.New("its response has no usable Date header")

// Clock returns how far the clock that now reads is ahead of that of a server, and how
// exact that is. It sends one HEAD request without credentials.
func (p *Probe) Clock(ctx context.Context, place Place, now func() time.Time) (ahead, exact time.Duration, err error) {
	network := p.parts.setup.Load().networkOf(place.CA)
	if network == nil {
		return 0, 0, errors.New("its CA file cannot be used")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, place.URL, http.NoBody)
	if err != nil {
		return 0, 0, ErrNoDate // the URL, which may have a secret, is not repeated
	}
	before := now()
	response, err := network.ClientFor(place.URL, place.AllowPrivate).Do(request)
	if err != nil {
		return 0, 0, err
	}
	took := now().Sub(before)
	_ = response.Body.Close()
	date, err := http.ParseTime(response.Header.Get("Date"))
	if err != nil {
		return 0, 0, ErrNoDate
	}
	if age, err := strconv.Atoi(response.Header.Get("Age")); err == nil { // from a cache
		date = date.Add(time.Duration(age) * time.Second)
	}
	const half = 500 * time.Millisecond // Date has whole seconds
	return before.Add(took / 2).Sub(date.Add(half)), half + took/2, nil
}
