// Package idp is what the broker asks of identity providers as their client:
// access tokens, by the client credentials grant (RFC 6749 section 4.4), the JWT
// bearer grant (RFC 7523) or one that an IdP calls by a name of its own; and what
// they say of a token that somebody else presents (RFC 7662). The client proves
// its identity by a secret, a key, a certificate, or an assertion that somebody
// else issued: each [AuthMethod] is what OAuth calls so.
//
// IdPs answer in many ways that the RFC does not foresee. The package takes
// what can be understood without guessing, bounds it, and sorts the rest into
// classes, because what to do next depends on who is at fault. It retries at
// most once, and only what the IdP has most likely not worked on; it never sends
// a refused secret again, because accounts get locked; it follows no redirect; and
// nothing that an IdP wrote appears in its errors, because some echo the
// request with the secret, or a token, in it.
package idp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/tracing"
)

const (
	// Budget is how long a whole [Client.Fetch] takes at most.
	Budget = 9 * time.Second
	// AttemptTimeout is how long one request takes at most, its body included.
	AttemptTimeout = 8 * time.Second

	// The one retry comes after a pause, drawn anew each time so that replicas
	// which failed together do not come back together, and only if the budget
	// leaves it minAttempt.
	minPause   = 200 * time.Millisecond
	maxPause   = 600 * time.Millisecond
	minAttempt = time.Second

	maxExtras = 16
)

// Config says which client to be, and towards whom.
type Config struct {
	// TokenURL is the token endpoint. Empty: Issuer is asked for it.
	TokenURL string
	// IntrospectionURL is the introspection endpoint. Empty: Issuer is asked for
	// it.
	IntrospectionURL string
	// AllowHTTP lets both be plain http on a host that is not loopback.
	AllowHTTP bool
	// Issuer finds the endpoints whose URL is empty.
	Issuer *discovery.Issuer
	// ClientID is required.
	ClientID string
	// Auth is SecretBasic if empty; None with the grant JWTBearer.
	Auth AuthMethod
	// Grant is the grant_type that is asked by. Empty: ClientCredentials.
	Grant string
	// RawBasic leaves out the form encoding of id and secret that RFC 6749
	// section 2.3.1 wants before base64, for IdPs that do not decode it.
	RawBasic bool
	// Assertion says how assertions are made.
	Assertion Assertion
	// AssertionFile holds the assertion of FederatedJWT and SpiffeJWT. It is read
	// for each request.
	AssertionFile string
	// Certificate is what TLS and SelfSignedTLS present.
	Certificate CertificateFiles
	// Params are further form parameters, none of them one that the client sends
	// itself.
	Params map[string]string
	// Extras name members of the IdP's answer that are passed on to callers,
	// such as Salesforce's instance_url. At most 16.
	Extras []string
	// BearerTypes are further values of token_type that mean bearer at this IdP.
	BearerTypes []string
	// DefaultLifetime is assumed where the IdP does not say how long a token
	// lives. Zero: token.DefaultLifetime.
	DefaultLifetime time.Duration
	// MaxTokenSize bounds the length of access tokens, in bytes. Zero: 16 KiB.
	MaxTokenSize int
	// HTTP is made by discovery.Network.ClientFor. Nil: a client of its own,
	// which connects to private addresses only where TokenURL or the Issuer is
	// loopback.
	HTTP *http.Client
	// HTTPWith is made by discovery.Network.ClientWith: it takes the place of HTTP
	// where a certificate is presented. Nil: a client of its own.
	HTTPWith func(tls.Certificate) *http.Client
}

// Request is what to ask for. Empty fields are not sent.
type Request struct {
	Audience string
	// Resources are sent as RFC 8707 resource parameters, in this order.
	Resources []string
	Scopes    []string
	// Once: an IdP that answered is not asked again within one Fetch, because
	// there is a token to go on with.
	Once bool
}

// Client asks one IdP for tokens as one OAuth client. It holds no secret but the
// key of a certificate, and is safe for concurrent use.
type Client struct {
	cfg    Config
	mutual certificates // what TLS and SelfSignedTLS connect with
}

// New returns a Client, or says what is wrong with its configuration or its
// certificate. It sends nothing.
func New(cfg Config) (*Client, error) {
	cfg = cfg.filled()
	err := errors.Join(cfg.checkEndpoint(), cfg.checkAuth(), cfg.checkNames(), cfg.checkLifetime(), CheckBearerTypes(cfg.BearerTypes))
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg}
	if cfg.Auth.Mutual() {
		if err := c.mutual.open(cfg.Certificate, cfg.HTTPWith); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// filled has the defaults in place of what is empty.
func (c Config) filled() Config {
	if c.Grant == "" {
		c.Grant = ClientCredentials
	}
	if c.Auth == "" && c.Grant == JWTBearer {
		c.Auth = None
	}
	if c.Auth == "" {
		c.Auth = SecretBasic
	}
	if c.Assertion.Audience == "" && c.TokenURL == "" {
		c.Assertion.Audience = AudienceIssuer
	}
	if c.Assertion.Audience == "" {
		c.Assertion.Audience = AudienceTokenEndpoint
	}
	if c.DefaultLifetime == 0 {
		c.DefaultLifetime = token.DefaultLifetime
	}
	if c.MaxTokenSize == 0 {
		c.MaxTokenSize = defaultMaxTokenSize
	}
	if c.HTTP == nil {
		c.HTTP = discovery.NewNetwork(nil).ClientFor(c.home(), false)
	}
	if home := c.home(); c.HTTPWith == nil {
		c.HTTPWith = func(certificate tls.Certificate) *http.Client {
			return discovery.NewNetwork(nil).ClientWith(home, false, certificate)
		}
	}
	c.Params, c.Extras = maps.Clone(c.Params), slices.Clone(c.Extras)
	return c
}

// home is what the client was told of the IdP's place.
func (c Config) home() string {
	if c.TokenURL == "" && c.Issuer != nil {
		return c.Issuer.URL()
	}
	return c.TokenURL
}

func (c Config) checkEndpoint() error {
	if c.TokenURL == "" && c.Issuer == nil {
		return errors.New("neither token_url nor issuer is given: one of them must say where tokens are to be had")
	}
	for name, url := range map[string]string{"token_url": c.TokenURL, "the introspection endpoint": c.IntrospectionURL} {
		if err := discovery.CheckURL(url, c.AllowHTTP); url != "" && err != nil {
			return fmt.Errorf("%s is not valid: %w", name, err)
		}
	}
	return nil
}

func (c Config) checkNames() error {
	for name := range c.Params {
		switch name {
		case "":
			return errors.New("params has a parameter without a name")
		case "grant_type", "client_id", "client_secret", "client_assertion", "client_assertion_type", "assertion", "scope", "audience", "resource":
			return fmt.Errorf("params must not set %s: it is configured by itself", name)
		}
	}
	if len(c.Extras) > maxExtras {
		return fmt.Errorf("extras names %d members: at most %d are passed on", len(c.Extras), maxExtras)
	}
	for _, name := range c.Extras {
		switch name {
		case "", "access_token", "refresh_token", "id_token":
			return fmt.Errorf("extras must not name %q: tokens are not passed on as extras", name)
		}
	}
	return nil
}

// CheckBearerTypes returns an error for types that say that a token is not a bearer
// token.
func CheckBearerTypes(types []string) error {
	for _, name := range types {
		if slices.ContainsFunc([]string{"DPoP", "mac", "PoP", "N_A"}, func(known string) bool { return strings.EqualFold(strings.TrimSpace(name), known) }) {
			return fmt.Errorf("%s does not mean bearer, and cannot be one of the bearer types: remove it", strings.TrimSpace(name))
		}
	}
	return nil
}

func (c Config) checkLifetime() error {
	if c.DefaultLifetime < 0 || c.DefaultLifetime > token.MaxLifetime {
		return fmt.Errorf("default_lifetime %v is out of bounds: it is at most %v", c.DefaultLifetime, token.MaxLifetime)
	}
	return nil
}

// Fetch asks the IdP for a token, with the secret as it is given. It takes
// [Budget] at most, or until ctx ends. The error is always an [*Error].
func (c *Client) Fetch(ctx context.Context, with secret.Version, ask Request) (token.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, Budget)
	defer cancel()
	endpoint, fault := c.endpoint(ctx)
	if fault != nil {
		return token.Grant{}, fault
	}
	grant, fault := c.attempt(ctx, endpoint, with, ask)
	if fault != nil && fault.again && (!ask.Once || fault.Status == 0) && pause(ctx) {
		grant, fault = c.attempt(ctx, endpoint, with, ask)
	}
	if fault != nil {
		return token.Grant{}, fault.at("token endpoint", endpoint)
	}
	return grant, nil
}

func (c *Client) endpoint(ctx context.Context) (string, *Error) {
	if c.cfg.TokenURL != "" {
		return c.cfg.TokenURL, nil
	}
	metadata, err := c.cfg.Issuer.Metadata(ctx)
	if err != nil {
		return "", undiscovered("token endpoint", err)
	}
	named := metadata.TokenEndpoint
	if c.cfg.Auth.Mutual() {
		named = metadata.MTLS.Token
	}
	endpoint, err := named.URL()
	switch {
	case err != nil:
		return "", undiscovered("token endpoint", err)
	case endpoint == "":
		return "", &Error{Class: Misconfigured, text: "the metadata of the issuer " + discovery.Printable(metadata.Issuer) + " names no token_endpoint: configure token_url"}
	}
	return endpoint, nil
}

// attempt sends the request once.
func (c *Client) attempt(ctx context.Context, endpoint string, with secret.Version, ask Request) (token.Grant, *Error) {
	askedAt := time.Now()
	form, fault := c.form(ctx, with, ask)
	if fault != nil {
		return token.Grant{}, fault
	}
	answer, fault := c.post(tracing.Named(ctx, tracing.Token), endpoint, with, form)
	if fault != nil {
		return token.Grant{}, c.assertionRefused(fault)
	}
	grant, fault := c.grant(answer, ask, askedAt)
	if fault != nil && fault.Unclear() {
		c.doubt(fault, with)
	}
	grant.SecretVersion = with.ID
	return grant, fault
}

// post sends a form once, as the client, and returns an answer that refuses
// nothing.
func (c *Client) post(ctx context.Context, endpoint string, with secret.Version, form url.Values) (answer, *Error) {
	ctx, cancel := context.WithTimeout(ctx, AttemptTimeout)
	defer cancel()
	var delivered atomic.Bool
	request, fault := c.request(watch(ctx, &delivered), endpoint, with, form)
	if fault != nil {
		return answer{}, fault
	}
	response, err := c.http().Do(request)
	if err != nil {
		fault := c.unanswered(err)
		fault.again = fault.Class == Transient && !delivered.Load() // after a timeout pause finds no time left
		return answer{}, fault
	}
	defer func() { _ = response.Body.Close() }()
	a, err := readAnswer(response)
	if err != nil {
		return answer{}, c.unanswered(err)
	}
	fault = a.refusal(time.Now())
	switch {
	case fault == nil:
	case fault.Class == CredentialRefused:
		fault.text += c.hint()
		c.doubt(fault, with)
	case fault.Unclear():
		c.doubt(fault, with)
	}
	return a, fault
}

// doubt adds to a refusal what makes the secret look wrong.
func (c *Client) doubt(fault *Error, with secret.Version) {
	if fault.Unclear() {
		fault.text += "; it may mean the client's credential as well: check client_id, secret and auth"
	}
	if doubt := c.DoubtSecret(with.Value); doubt != "" {
		fault.text += "; the secret " + doubt + ", which is sent as it is"
	}
}

// http returns what requests are sent with.
func (c *Client) http() *http.Client {
	if c.cfg.Auth.Mutual() {
		return c.mutual.current().http
	}
	return c.cfg.HTTP
}

// watch notes whether a request got a connection made for it, so that the IdP
// may be at work on it. A kept connection that fails instead has most likely
// been closed by the IdP meanwhile.
func watch(ctx context.Context, delivered *atomic.Bool) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(conn httptrace.GotConnInfo) { delivered.Store(!conn.Reused) },
	})
}

// pause waits before the retry and reports whether there is time for it.
func pause(ctx context.Context) bool {
	wait := minPause + rand.N(maxPause-minPause)
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < wait+minAttempt {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
