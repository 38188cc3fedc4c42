// Package idp is the OAuth client of identity providers (IdPs): it requests
// access tokens and introspects presented ones.
//
// Tokens come from the token endpoint, by the client credentials grant (RFC 6749
// section 4.4), the JWT bearer grant (RFC 7523 section 2.1) or a grant type that
// only one IdP defines. Introspection is RFC 7662. The client authenticates with a
// secret, a key, a certificate or an assertion that another party issued: see
// [AuthMethod].
//
// IdPs deviate from the RFCs in many ways. The package accepts every response that
// has one meaning only, bounds its size, and assigns each failure a [Class],
// because the cause decides whether a retry, another secret or another
// configuration helps. It retries a request at most once, and only if the IdP has
// most likely not processed it. It never repeats a refused secret, because IdPs
// lock accounts. It follows no redirect. Its errors contain no text that an IdP
// wrote, because some IdPs repeat the request, including the secret or the token.
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
	// Budget bounds the duration of [Client.Fetch], with its retry.
	Budget = 9 * time.Second
	// AttemptTimeout bounds the duration of one request, including the body of the
	// response.
	AttemptTimeout = 8 * time.Second

	// The pause before the retry is random, so that replicas which failed together
	// do not retry together. Without minAttempt left in the budget, nothing is
	// retried.
	minPause   = 200 * time.Millisecond
	maxPause   = 600 * time.Millisecond
	minAttempt = time.Second

	maxExtras = 16
)

// Config configures a Client.
type Config struct {
	// TokenURL is the token endpoint. If it is empty, the metadata of Issuer must
	// name it.
	TokenURL string
	// IntrospectionURL is the introspection endpoint. If it is empty, the metadata of
	// Issuer must name it.
	IntrospectionURL string
	// AllowHTTP permits plain http for both endpoints on hosts that are not loopback.
	AllowHTTP bool
	// Issuer discovers the endpoints that have no URL here.
	Issuer *discovery.Issuer
	// ClientID is required.
	ClientID string
	// Auth defaults to SecretBasic, and to None with the grant JWTBearer.
	Auth AuthMethod
	// Grant is the grant_type parameter. It defaults to ClientCredentials.
	Grant string
	// Exchange makes the client request tokens on behalf of subjects. Nil: it requests its
	// own tokens only.
	Exchange *Exchange
	// RawBasic omits the form encoding of id and secret that RFC 6749 section 2.3.1
	// requires before base64. Some IdPs do not decode it.
	RawBasic bool
	// Assertion configures the assertions that the client signs.
	Assertion Assertion
	// AssertionFile contains the assertion for FederatedJWT and SpiffeJWT. The client
	// reads it for each request.
	AssertionFile string
	// Certificate is presented with the methods TLS and SelfSignedTLS.
	Certificate CertificateFiles
	// Params are additional form parameters. They must not set a parameter that the
	// client sends itself.
	Params map[string]string
	// Extras names members of the token response that callers receive, such as
	// Salesforce's instance_url. At most 16.
	Extras []string
	// BearerTypes are additional values of token_type that mean bearer at this IdP.
	BearerTypes []string
	// DefaultLifetime applies if the IdP does not declare the lifetime of a token.
	// It defaults to token.DefaultLifetime and is at most token.MaxLifetime.
	DefaultLifetime time.Duration
	// MaxTokenSize bounds access tokens, in bytes. It defaults to 16 KiB.
	MaxTokenSize int
	// HTTP comes from discovery.Network.ClientFor. If it is nil, the Client makes one
	// that connects to private addresses only if TokenURL or Issuer is loopback.
	HTTP *http.Client
	// HTTPWith comes from discovery.Network.ClientWith and replaces HTTP with the
	// methods TLS and SelfSignedTLS. It defaults like HTTP.
	HTTPWith func(tls.Certificate) *http.Client
}

// Client is one OAuth client at one IdP. It holds no secret except the private
// key of its certificate. It is safe for concurrent use.
type Client struct {
	cfg    Config
	mutual certificateSource // for TLS and SelfSignedTLS
}

// New returns a Client. It reads the certificate files, if any, and sends nothing.
// The error describes every mistake that it found in cfg.
func New(cfg Config) (*Client, error) {
	cfg = cfg.withDefaults()
	err := errors.Join(cfg.checkEndpoints(), cfg.checkAuth(), cfg.checkNames(), cfg.checkExchange(), cfg.checkLifetime(), CheckBearerTypes(cfg.BearerTypes))
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

// withDefaults returns a copy of c whose maps and slices are its own.
func (c Config) withDefaults() Config {
	if c.Grant == "" {
		c.Grant = ClientCredentials
	}
	if c.Auth == "" && c.signedGrant() != "" {
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
		c.HTTP = discovery.NewNetwork(nil).ClientFor(c.baseURL(), false)
	}
	if base := c.baseURL(); c.HTTPWith == nil {
		c.HTTPWith = func(certificate tls.Certificate) *http.Client {
			return discovery.NewNetwork(nil).ClientWith(base, false, certificate)
		}
	}
	c.Params, c.Extras = maps.Clone(c.Params), slices.Clone(c.Extras)
	return c
}

// baseURL returns the configured URL of the IdP: the issuer if the token endpoint
// is discovered, else the token endpoint.
func (c Config) baseURL() string {
	if c.TokenURL == "" && c.Issuer != nil {
		return c.Issuer.URL()
	}
	return c.TokenURL
}

func (c Config) checkEndpoints() error {
	if c.TokenURL == "" && c.Issuer == nil {
		return errors.New("neither token_url nor issuer is given: configure one of them")
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
			return fmt.Errorf("params must not set %s, which the broker sends itself", name)
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

// CheckBearerTypes returns an error if a type is known to mean something other
// than a bearer token.
func CheckBearerTypes(types []string) error {
	for _, name := range types {
		name = strings.TrimSpace(name)
		if slices.ContainsFunc([]string{"DPoP", "mac", "PoP", "N_A"}, func(other string) bool { return strings.EqualFold(name, other) }) {
			return fmt.Errorf("%s does not mean bearer, and cannot be one of the bearer types: remove it", name)
		}
	}
	return nil
}

func (c Config) checkLifetime() error {
	if c.DefaultLifetime < 0 || c.DefaultLifetime > token.MaxLifetime {
		return fmt.Errorf("default_lifetime %v is out of range: it must be between 0 and %v", c.DefaultLifetime, token.MaxLifetime)
	}
	return nil
}

// Fetch requests a token of the client itself and authenticates with credential. It takes
// at most [Budget], and ends earlier with ctx. The error is always an [*Error]. A client
// that exchanges has such tokens by the client credentials grant; they prove its secret.
func (c *Client) Fetch(ctx context.Context, credential secret.Version, req Request) (token.Grant, error) {
	return c.obtain(ctx, credential, nil, req)
}

func (c *Client) obtain(ctx context.Context, credential secret.Version, behalf *Behalf, req Request) (token.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, Budget)
	defer cancel()
	endpoint, fault := c.tokenEndpoint(ctx)
	if fault != nil {
		return token.Grant{}, fault
	}
	grant, fault := c.fetchOnce(ctx, endpoint, credential, behalf, req)
	if fault != nil && fault.retry && (!req.Once || fault.Status == 0) && waitBeforeRetry(ctx) {
		grant, fault = c.fetchOnce(ctx, endpoint, credential, behalf, req)
	}
	if fault != nil {
		return token.Grant{}, fault.atEndpoint("token endpoint", endpoint)
	}
	return grant, nil
}

func (c *Client) tokenEndpoint(ctx context.Context) (string, *Error) {
	if c.cfg.TokenURL != "" {
		return c.cfg.TokenURL, nil
	}
	metadata, err := c.cfg.Issuer.Metadata(ctx)
	if err != nil {
		return "", discoveryFailed("token endpoint", err)
	}
	discovered := metadata.TokenEndpoint
	if c.cfg.Auth.Mutual() {
		discovered = metadata.MTLS.Token
	}
	endpoint, err := discovered.URL()
	switch {
	case err != nil:
		return "", discoveryFailed("token endpoint", err)
	case endpoint == "":
		return "", &Error{Class: Misconfigured, text: "the metadata of the issuer " + discovery.Printable(metadata.Issuer) + " names no token_endpoint: configure token_url"}
	}
	return endpoint, nil
}

// fetchOnce makes one attempt.
func (c *Client) fetchOnce(ctx context.Context, endpoint string, credential secret.Version, behalf *Behalf, req Request) (token.Grant, *Error) {
	requestedAt := time.Now()
	form, fault := c.tokenForm(ctx, credential, behalf, req)
	if fault != nil {
		return token.Grant{}, fault
	}
	resp, fault := c.post(tracing.Named(ctx, tracing.Token), endpoint, credential, form)
	switch {
	case fault != nil && behalf != nil:
		return token.Grant{}, resp.concernsSubject(fault)
	case fault != nil:
		return token.Grant{}, c.reclassifyInvalidGrant(fault)
	}
	grant, fault := c.grant(resp, req, requestedAt)
	if fault == nil && behalf != nil {
		grant.IssuedType, fault = c.issuedType(resp)
	}
	if fault != nil && behalf != nil {
		return token.Grant{}, resp.concernsSubject(fault)
	}
	if fault != nil && fault.Unclear() {
		c.adviseOnSecret(fault, credential)
	}
	grant.SecretVersion = credential.ID
	return grant, fault
}

// post authenticates the client, sends form once, and returns the response if it
// reports success.
func (c *Client) post(ctx context.Context, endpoint string, credential secret.Version, form url.Values) (response, *Error) {
	ctx, cancel := context.WithTimeout(ctx, AttemptTimeout)
	defer cancel()
	var onNewConnection atomic.Bool
	request, fault := c.request(traceConnection(ctx, &onNewConnection), endpoint, credential, form)
	if fault != nil {
		return response{}, fault
	}
	httpResponse, err := c.http().Do(request)
	if err != nil {
		fault := c.noResponse(err)
		// If no connection was made, or a kept one was closed, the IdP has most likely
		// not processed the request. After a timeout there is no time for a retry.
		fault.retry = fault.Class == Transient && !onNewConnection.Load()
		return response{}, fault
	}
	defer func() { _ = httpResponse.Body.Close() }()
	resp, err := readResponse(httpResponse)
	if err != nil {
		return response{}, c.noResponse(err)
	}
	fault = resp.refusal(time.Now())
	switch {
	case fault == nil:
	case fault.Class == CredentialRefused:
		fault.text += c.authAdvice()
		c.adviseOnSecret(fault, credential)
	case fault.Unclear():
		c.adviseOnSecret(fault, credential)
	}
	return resp, fault
}

// adviseOnSecret adds to fault how the secret may be its cause.
func (c *Client) adviseOnSecret(fault *Error, credential secret.Version) {
	if fault.Unclear() {
		fault.text += "; the cause may also be the client's credential: check client_id, secret and auth"
	}
	if warning := c.SecretWarning(credential.Value); warning != "" {
		fault.text += "; the secret " + warning + ", which is sent as it is"
	}
}

// http returns the HTTP client, with the current certificate if the client
// authenticates with one.
func (c *Client) http() *http.Client {
	if c.cfg.Auth.Mutual() {
		return c.mutual.current().http
	}
	return c.cfg.HTTP
}

// traceConnection stores in onNewConnection whether the request was sent on a
// new connection.
func traceConnection(ctx context.Context, onNewConnection *atomic.Bool) context.Context {
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(conn httptrace.GotConnInfo) { onNewConnection.Store(!conn.Reused) },
	})
}

// waitBeforeRetry waits, or returns false if the budget has no time left for a
// retry.
func waitBeforeRetry(ctx context.Context) bool {
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
