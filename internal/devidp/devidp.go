// Package devidp is a small OAuth server for "broker dev" and for tests. It supports the
// client credentials grant (RFC 6749 section 4.4), the JWT bearer grant (RFC 7523), token
// exchange (RFC 8693) of tokens that it issued itself, and arbitrary other grant types.
// Clients authenticate with a secret or an assertion. Access tokens are JWTs (RFC 9068),
// or opaque with introspection (RFC 7662). The server publishes its metadata and keys by
// OIDC discovery and RFC 8414.
//
// It enforces the RFCs strictly, so that a client that works with it is likely to work
// with other IdPs. A test can make it slow, unavailable or failing, rotate its keys, or
// make it imitate the documented behaviour of a well-known IdP. It has no users, consent
// or storage, and its keys are lost with the process. It is not for production.
package devidp

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// Paths of the endpoints below the issuer. The path of RFC 8414 metadata is an exception:
// it precedes the path of the issuer.
const (
	TokenPath         = "/token"
	JWKSPath          = "/jwks"
	IntrospectionPath = "/introspect"
	oidcPath          = "/.well-known/openid-configuration"
	oauthPath         = "/.well-known/oauth-authorization-server"
)

const defaultLifetime = time.Hour

// Config configures a Server.
type Config struct {
	// Issuer is the issuer identifier, an absolute http or https URL without query and
	// fragment. Required.
	Issuer string
	// Clients are the registered clients.
	Clients []Client
	// Lifetime of tokens, in whole seconds. It defaults to 1 h.
	Lifetime time.Duration
	// Algorithm of the signing key: "RS256", "ES256" or "EdDSA". It defaults to RS256.
	Algorithm string
	// Imitate is one of Imitations, or empty. The Server then has the token endpoint,
	// the requirements and the responses of that IdP.
	Imitate string
}

// Client is a registered client.
type Client struct {
	// ID is the client_id. Required.
	ID string
	// Secrets are all valid. Without any, the client cannot authenticate with a secret
	// until SetSecrets.
	Secrets []redact.String
	// Keys are the public keys of assertions, a JWK set (RFC 7517). They may be nil.
	Keys []byte
	// KeysAt reads the public keys of assertions at the client's jwks_uri (RFC 7591 section
	// 2), in place of Keys. Nil: the client has no jwks_uri.
	KeysAt func() (set []byte, err error)
	// KeysFor is how long the Server uses the keys that it read, whatever kid an assertion
	// names. Zero: it reads them for each assertion.
	KeysFor time.Duration
	// Auth is the only accepted way of authentication, one of the Auth constants. Empty
	// means AuthBasic or AuthPost.
	Auth string
	// Grant is the only accepted grant_type. It defaults to client_credentials.
	Grant string
	// Params are additional parameters that the client must send with these values.
	Params map[string]string
	// Scopes are the scopes that the client may request. A request without scopes gets
	// all of them.
	Scopes []string
	// Audiences are the values that the client may send as audience or resource. A
	// request without any gets the first. Audiences defaults to the issuer.
	Audiences []string
	// Exchange lets the client exchange tokens. Grant is then the grant type of the
	// exchange, which defaults to token-exchange. Nil: the client exchanges none.
	Exchange *Exchange
	// Opaque makes the client's tokens opaque. They can be introspected (RFC 7662).
	Opaque bool
}

// Server is the OAuth server. It and its controls are safe for concurrent use.
type Server struct {
	issuer     string
	endpoint   string // the URL of the token endpoint
	deviations deviations
	algorithm  string
	replays    replays
	clients    map[string]Client // by ID; their Secrets are in behaviour
	routes     map[string]route  // by path
	journal    journal
	attempts   attempts
	opaque     opaqueTokens
	readKeys   readKeys
	keys       atomic.Pointer[[]key] // all are published, and the first signs

	mu        sync.Mutex
	behaviour behaviour // use current and change
}

type route struct {
	method string
	serve  http.HandlerFunc
}

// New returns a Server for cfg with a new signing key.
func New(cfg Config) (*Server, error) {
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil || issuer.Host == "" || (issuer.Scheme != "http" && issuer.Scheme != "https") ||
		strings.ContainsAny(cfg.Issuer, "?#") {
		return nil, fmt.Errorf("the issuer %q is not an absolute http or https URL without query and fragment", cfg.Issuer)
	}
	switch cfg.Algorithm {
	case "RS256", "ES256", "EdDSA":
	case "":
		cfg.Algorithm = "RS256"
	default:
		return nil, fmt.Errorf("the algorithm %q is not one of RS256, ES256, EdDSA", cfg.Algorithm)
	}
	s := &Server{
		issuer:    cfg.Issuer,
		endpoint:  strings.TrimSuffix(cfg.Issuer, "/") + TokenPath,
		algorithm: cfg.Algorithm,
		clients:   make(map[string]Client, len(cfg.Clients)),
		behaviour: behaviour{
			lifetime: defaultLifetime,
			secrets:  make(map[string]credentials, len(cfg.Clients)),
		},
	}
	if cfg.Imitate != "" {
		var ok bool
		if s.deviations, ok = imitations()[cfg.Imitate]; !ok {
			return nil, fmt.Errorf("there is no imitation of %q", cfg.Imitate)
		}
		s.endpoint = s.deviations.endpoint(cfg.Issuer)
	}
	if cfg.Lifetime != 0 {
		s.behaviour.lifetime = cfg.Lifetime
	}
	for _, client := range cfg.Clients {
		if err := s.register(client); err != nil {
			return nil, err
		}
	}
	s.keys.Store(&[]key{newKey(s.algorithm)})
	s.routes = s.routesUnder(strings.TrimSuffix(issuer.Path, "/"))
	return s, nil
}

func (s *Server) register(client Client) error {
	if client.ID == "" {
		return errors.New("a client has no ID")
	}
	if _, ok := s.clients[client.ID]; ok {
		return fmt.Errorf("there are two clients with the ID %q", client.ID)
	}
	if methods := []string{"", AuthBasic, AuthPost, AuthSecretJWT, AuthPrivateKeyJWT, AuthNone}; !slices.Contains(methods, client.Auth) {
		return fmt.Errorf("client %q: the authentication %q is not one of%s", client.ID, client.Auth, strings.Join(methods, " "))
	}
	keys, err := keysOf(client.Keys)
	if err != nil {
		return fmt.Errorf("client %q: %w", client.ID, err)
	}
	c := credentials{keys: keys}
	for _, value := range client.Secrets {
		c.secrets = append(c.secrets, datedSecret{value: value})
	}
	s.behaviour.secrets[client.ID] = c
	client.Secrets, client.Keys = nil, nil
	switch {
	case client.Exchange == nil:
		client.Grant = cmp.Or(client.Grant, clientCredentials)
	case client.Grant == "":
		client.Grant = tokenExchange
	case client.Grant != tokenExchange && client.Grant != jwtBearer:
		return fmt.Errorf("client %q: an exchange has the grant type %s or %s", client.ID, tokenExchange, jwtBearer)
	}
	client.Params = maps.Clone(client.Params)
	client.Scopes = slices.Clone(client.Scopes)
	client.Audiences = slices.Clone(client.Audiences)
	if len(client.Audiences) == 0 {
		client.Audiences = []string{s.issuer}
	}
	s.clients[client.ID] = client
	return nil
}

func (s *Server) routesUnder(path string) map[string]route {
	metadata := route{http.MethodGet, s.serveMetadata}
	return map[string]route{
		path + oidcPath:          metadata,
		oauthPath + path:         metadata,
		path + JWKSPath:          {http.MethodGet, s.serveJWKS},
		s.tokenPath():            {http.MethodPost, s.serveToken},
		path + IntrospectionPath: {http.MethodPost, s.serveIntrospection},
	}
}

// tokenPath returns the path of the token endpoint.
func (s *Server) tokenPath() string {
	endpoint, err := url.Parse(s.endpoint)
	if err != nil {
		panic(fmt.Sprintf("devidp: %v", err)) // cannot happen: New parsed the issuer
	}
	return endpoint.Path
}

// TokenEndpoint returns the URL of the token endpoint.
func (s *Server) TokenEndpoint() string { return s.endpoint }

// Issuer returns the issuer identifier.
func (s *Server) Issuer() string { return s.issuer }

// ServeHTTP serves the metadata, the keys and the endpoints.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.journal.count(r.URL.Path)
	route, ok := s.routes[r.URL.Path]
	switch {
	case s.current().down:
		panic(http.ErrAbortHandler)
	case !ok:
		http.NotFound(w, r)
	case r.Method != route.method:
		w.Header().Set("Allow", route.method)
		http.Error(w, "this endpoint requires "+route.method, http.StatusMethodNotAllowed)
	default:
		route.serve(w, r)
	}
}

// serveMetadata serves the members that RFC 8414 and OIDC discovery require of an IdP
// without authorization endpoint and ID tokens.
func (s *Server) serveMetadata(w http.ResponseWriter, _ *http.Request) {
	base := strings.TrimSuffix(s.issuer, "/")
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                s.issuer,
		"token_endpoint":                        s.endpoint,
		"jwks_uri":                              base + JWKSPath,
		"introspection_endpoint":                base + IntrospectionPath,
		"grant_types_supported":                 []string{clientCredentials, jwtBearer, tokenExchange},
		"token_endpoint_auth_methods_supported": []string{"client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt", "none"},
		"token_endpoint_auth_signing_alg_values_supported": jose.SigningAlgorithms(),
		"response_types_supported":                         []string{},
		"subject_types_supported":                          []string{"public"},
		"id_token_signing_alg_values_supported":            []string{s.algorithm},
		"scopes_supported":                                 s.scopes(),
	})
}

func (s *Server) scopes() []string {
	all := map[string]bool{}
	for _, client := range s.clients {
		for _, scope := range client.Scopes {
			all[scope] = true
		}
	}
	names := slices.AppendSeq([]string{}, maps.Keys(all)) // never null in JSON
	slices.Sort(names)
	return names
}

func (s *Server) serveJWKS(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/jwk-set+json")
	writeJSON(w, http.StatusOK, map[string]any{"keys": s.published()})
}

// published returns the public keys.
func (s *Server) published() []map[string]string {
	published := []map[string]string{}
	for _, key := range *s.keys.Load() {
		published = append(published, key.public)
	}
	return published
}

// writeJSON writes a response. It ignores errors: value consists of strings, numbers and
// lists, and a client that has disconnected needs no response.
func writeJSON(w http.ResponseWriter, status int, value any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}
