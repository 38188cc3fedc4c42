package app

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// Finding is the result of one live check.
type Finding struct {
	// What is the subject of the check, such as "clients.orders-api: token endpoint".
	What string
	// Detail describes the result.
	Detail string
	// Warning: Detail describes a risk, but the check passed.
	Warning bool
	// Err is nil if the check passed.
	Err error
}

// Check tries what the configuration names: certificates, secrets, the store, the token
// endpoints of clients, the keys of issuers, introspection and, if mint is set, a token
// for each client that does not only introspect. It reports each finding as it comes. The
// error means that no check could run.
func Check(ctx context.Context, config *config.Config, opts Options, mint bool, tell func(Finding)) error {
	told := observers{log: cmp.Or(opts.Logger, slog.Default()), registerer: prometheus.NewRegistry()}
	assembled, err := assemble(config, opts.Transport, told)
	if err != nil {
		return err
	}
	defer assembled.close()
	if config.Listen.Encrypted() {
		tell(checkCerts(ctx, &config.Listen))
	}
	tell(assembled.checkStore(ctx))
	for name, doubt := range assembled.setup.Load().doubtfulSecrets() {
		tell(Finding{What: fmt.Sprintf("clients.%s: secret", name), Detail: doubt, Warning: true})
	}
	for _, client := range assembled.setup.Load().clients {
		tell(assembled.checkEndpoint(ctx, client.Name, config.Clients[client.Name]))
		switch {
		case mint && onlyIntrospects(config, client.Name):
			tell(Finding{What: mintOf(client.Name), Detail: "not tried: the client is used for introspection only, and no role names it under get"})
		case mint:
			tell(assembled.checkMint(ctx, client.Name))
		}
	}
	for _, issuer := range config.Issuers {
		tell(assembled.checkKeys(ctx, issuer.Issuer))
		if issuer.Introspection != nil {
			tell(assembled.checkIntrospection(ctx, issuer.Issuer))
		}
	}
	return nil
}

func checkCerts(ctx context.Context, config *config.Listen) Finding {
	found := Finding{What: "listen.tls"}
	opened, err := openTLS(ctx, config.TLS)
	if err != nil {
		found.Err = err
		return found
	}
	status := opened.Status()
	found.Detail = fmt.Sprintf("%s, until %s", status.Name, status.Expires.Format(time.DateOnly))
	for _, authority := range status.Authorities {
		found.Detail += fmt.Sprintf("; callers of %q, until %s", authority.Name, authority.Expires.Format(time.DateOnly))
	}
	for _, warning := range status.Warnings {
		found.Detail += "; " + warning
	}
	return found
}

func (p *parts) checkStore(ctx context.Context) Finding {
	found := Finding{What: "store", Detail: p.storage.kind}
	if p.storage.redis != nil {
		warnings, err := p.storage.redis.Check(ctx)
		for _, warning := range warnings {
			found.Detail += "; " + warning
		}
		if found.Err = err; err != nil {
			return found
		}
	}
	found.Err = p.storage.checkRing(ctx)
	return found
}

func (p *parts) checkEndpoint(ctx context.Context, name string, cfg config.Client) Finding {
	found := Finding{What: fmt.Sprintf("clients.%s: token endpoint", name)}
	if cfg.TokenURL != "" {
		found.Detail = discovery.Printable(cfg.TokenURL) + " (as configured; --mint tries it)"
		return found
	}
	metadata, err := p.setup.Load().issuer(cfg.Issuer, cfg.AllowHTTP, cfg.AllowPrivate, cfg.CA()).Metadata(ctx)
	if err != nil {
		found.Err = err
		return found
	}
	named := metadata.TokenEndpoint
	if idp.AuthMethod(cfg.Auth).Mutual() {
		named = metadata.MTLS.Token
	}
	endpoint, err := named.URL()
	if err == nil && endpoint == "" {
		err = fmt.Errorf("the metadata of %s names no token_endpoint; set token_url", cfg.Issuer)
	}
	found.Detail, found.Err = endpoint, err
	return found
}

// mintOf returns the subject of a Finding about a client's token.
func mintOf(name string) string { return fmt.Sprintf("clients.%s: token", name) }

// onlyIntrospects reports whether the client is configured for introspection and no role
// grants its tokens by name. The IdP would refuse to issue one, and might count that
// against the client.
func onlyIntrospects(c *config.Config, client string) bool {
	asks := slices.ContainsFunc(c.Issuers, func(issuer config.Issuer) bool {
		return issuer.Introspection != nil && issuer.Introspection.Client == client
	})
	for _, role := range c.Roles {
		if slices.ContainsFunc(role.Get, func(grant config.GetGrant) bool { return grant.Client == client }) {
			return false
		}
	}
	return asks
}

func (p *parts) checkMint(ctx context.Context, name string) Finding {
	found := Finding{What: mintOf(name)}
	answer, err := p.broker.Get(ctx, policy.Self(), broker.Ask{Client: name})
	if err != nil {
		found.Err = err
		return found
	}
	found.Detail = fmt.Sprintf("%s, lives %v, scopes %v", answer.Token.Type, answer.Token.Lifetime().Round(time.Second), answer.Token.Scopes)
	return found
}

func (p *parts) checkKeys(ctx context.Context, issuer string) Finding {
	found := Finding{What: fmt.Sprintf("issuers %s: keys", issuer)}
	if found.Err = p.setup.Load().verifier.Refresh(ctx, issuer); found.Err != nil {
		return found
	}
	for _, status := range p.setup.Load().verifier.Status() {
		if status.Issuer == issuer {
			found.Detail = fmt.Sprintf("%d usable", status.Keys)
		}
	}
	return found
}

// checkIntrospection introspects a token that was never issued.
func (p *parts) checkIntrospection(ctx context.Context, issuer string) Finding {
	found := Finding{What: fmt.Sprintf("issuers %s: introspection", issuer)}
	active, _, err := p.setup.Load().introspections[issuer].Introspect(ctx, redact.New(rand.Text()))
	switch {
	case err != nil:
		found.Err = err
	case active:
		found.Err = errors.New("it reports a made-up token as active: every token would be accepted")
	default:
		found.Detail = "responds, and reports a made-up token as not active"
	}
	return found
}
