// Package idp is what the broker asks of identity providers as their client:
// access tokens by the client credentials grant (RFC 6749 section 4.4), and what
// they say of a token that somebody else presents (RFC 7662).
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

// AuthMethod is how the client proves its identity (RFC 6749 section 2.3.1).
type AuthMethod string

// The methods.
const (
	SecretBasic AuthMethod = "client_secret_basic" // in the Authorization header
	SecretPost  AuthMethod = "client_secret_post"  // in the form
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
	// Auth is SecretBasic if empty.
	Auth AuthMethod
	// RawBasic leaves out the form encoding of id and secret that RFC 6749
	// section 2.3.1 wants before base64, for IdPs that do not decode it.
	RawBasic bool
	// Params are further form parameters. They may replace grant_type, and none
	// of the others that the client sends itself.
	Params map[string]string
	// Extras name members of the IdP's answer that are passed on to callers,
	// such as Salesforce's instance_url. At most 16.
	Extras []string
	// DefaultLifetime is assumed where the IdP does not say how long a token
	// lives. Zero: token.DefaultLifetime.
	DefaultLifetime time.Duration
	// HTTP is made by discovery.Network.ClientFor. Nil: a client of its own,
	// which connects to private addresses only where TokenURL or the Issuer is
	// loopback.
	HTTP *http.Client
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

// Client asks one IdP for tokens as one OAuth client. It holds no secret and is
// safe for concurrent use.
type Client struct{ cfg Config }

// New returns a Client, or says what is wrong with its configuration. It sends
// nothing.
func New(cfg Config) (*Client, error) {
	if cfg.Auth == "" {
		cfg.Auth = SecretBasic
	}
	if cfg.DefaultLifetime == 0 {
		cfg.DefaultLifetime = token.DefaultLifetime
	}
	if err := errors.Join(cfg.checkEndpoint(), cfg.checkAuth(), cfg.checkNames(), cfg.checkLifetime()); err != nil {
		return nil, err
	}
	if cfg.HTTP == nil {
		cfg.HTTP = discovery.NewNetwork(nil).ClientFor(cfg.home(), false)
	}
	cfg.Params, cfg.Extras = maps.Clone(cfg.Params), slices.Clone(cfg.Extras)
	return &Client{cfg}, nil
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

func (c Config) checkAuth() error {
	switch {
	case c.ClientID == "":
		return errors.New("client_id is missing")
	case c.Auth != SecretBasic && c.Auth != SecretPost:
		return fmt.Errorf("auth %q is not known: it is %s or %s", string(c.Auth), SecretBasic, SecretPost)
	case c.RawBasic && c.Auth != SecretBasic:
		return fmt.Errorf("raw_basic goes with %s only", SecretBasic)
	case c.RawBasic && strings.Contains(c.ClientID, ":"):
		return errors.New("a client_id with a colon cannot be sent with raw_basic: what follows the colon would be taken for the secret (RFC 7617)")
	default:
		return nil
	}
}

func (c Config) checkNames() error {
	for name := range c.Params {
		switch name {
		case "":
			return errors.New("params has a parameter without a name")
		case "client_id", "client_secret", "scope", "audience", "resource":
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
	if metadata.TokenEndpoint == "" {
		return "", &Error{Class: Misconfigured, text: "the metadata of the issuer " + discovery.Printable(metadata.Issuer) + " names no token_endpoint: configure token_url"}
	}
	return metadata.TokenEndpoint, nil
}

// attempt sends the request once.
func (c *Client) attempt(ctx context.Context, endpoint string, with secret.Version, ask Request) (token.Grant, *Error) {
	askedAt := time.Now()
	answer, fault := c.post(tracing.Named(ctx, tracing.Token), endpoint, with, c.form(ask))
	if fault != nil {
		return token.Grant{}, fault
	}
	grant, fault := c.grant(answer, ask, askedAt)
	grant.SecretVersion = with.ID
	return grant, fault
}

// post sends a form once, as the client, and returns an answer that refuses
// nothing.
func (c *Client) post(ctx context.Context, endpoint string, with secret.Version, form url.Values) (answer, *Error) {
	ctx, cancel := context.WithTimeout(ctx, AttemptTimeout)
	defer cancel()
	var delivered atomic.Bool
	request, err := c.request(watch(ctx, &delivered), endpoint, with, form)
	if err != nil {
		return answer{}, &Error{Class: Misconfigured, text: "has a URL that cannot be requested"}
	}
	response, err := c.cfg.HTTP.Do(request)
	if err != nil {
		fault := unanswered(err)
		fault.again = fault.Class == Transient && !delivered.Load() // after a timeout pause finds no time left
		return answer{}, fault
	}
	defer func() { _ = response.Body.Close() }()
	a, err := readAnswer(response)
	if err != nil {
		return answer{}, unanswered(err)
	}
	return a, a.refusal(time.Now())
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
