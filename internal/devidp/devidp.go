// Package devidp is a small real OAuth server in-process: an IdP for `broker
// dev` and for tests. It knows client_credentials (RFC 6749, section 4.4), the
// JWT bearer grant (RFC 7523) and grants that are no more than a name; clients
// authenticate by a secret or by an assertion. It issues access tokens that are
// JWTs (RFC 9068) or opaque, with introspection (RFC 7662); it publishes its
// metadata and keys as OIDC discovery and RFC 8414 say.
//
// It is as strict as an IdP may be, so that what works with it is likely to
// work elsewhere, and it misbehaves on demand: slow, down, failing, with other
// keys; or it answers as one of the well-known IdPs is documented to. It refuses to be more: it has no users, no consent, no storage, and
// its keys live as long as the process. It is not for production.
package devidp

import (
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

// Paths of the endpoints below the issuer. The metadata of RFC 8414 differs:
// its well-known part stands before the issuer's own path.
const (
	TokenPath         = "/token"
	JWKSPath          = "/jwks"
	IntrospectionPath = "/introspect"
	oidcPath          = "/.well-known/openid-configuration"
	oauthPath         = "/.well-known/oauth-authorization-server"
)

const defaultLifetime = time.Hour

// Config is what a Server is made of.
type Config struct {
	// Issuer is the issuer identifier, an absolute http or https URL without
	// query and fragment. Required. The endpoints are under it.
	Issuer string
	// Clients are those that may ask for tokens. None: nobody may.
	Clients []Client
	// Lifetime is that of the tokens, in whole seconds. Zero: 1 h.
	Lifetime time.Duration
	// Algorithm is that of the signing key: "RS256", "ES256" or "EdDSA". Empty:
	// RS256.
	Algorithm string
	// Imitate is one of Imitations: the Server has that IdP's token endpoint, is as
	// particular, and answers in the same way. Empty: it is nobody but itself.
	Imitate string
}

// Client is a confidential client that is registered at the Server.
type Client struct {
	// ID is the client_id. Required.
	ID string
	// Secrets are the client's, any of which is good. None: the client cannot
	// authenticate until SetSecrets.
	Secrets []redact.String
	// Keys are the public keys of assertions, a JWK set (RFC 7517). Nil: none.
	Keys []byte
	// Auth is the one way of authentication that is accepted: one of the Auth
	// constants. Empty: basic or post.
	Auth string
	// Grant is the one grant_type that the client may use. Empty:
	// client_credentials.
	Grant string
	// Params are further parameters that the client must send, exactly so.
	Params map[string]string
	// Scopes are those that the client may ask for, and what it gets if it asks
	// for none.
	Scopes []string
	// Audiences are the values that the client may send as audience or
	// resource; the first is what it gets if it sends neither. None: its tokens
	// are for the issuer itself.
	Audiences []string
	// Opaque: the client's tokens are no JWTs; what they are good for is known by
	// introspection (RFC 7662).
	Opaque bool
}

// Server is the OAuth server. It is safe for concurrent use, and so are the
// controls.
type Server struct {
	issuer    string
	endpoint  string // where tokens are to be had
	manners   manners
	algorithm string
	replays   replays
	clients   map[string]Client // by ID; their Secrets are in behaviour
	routes    map[string]route  // by path
	journal   journal
	attempts  attempts
	opaque    opaqueTokens
	keys      atomic.Pointer[[]key] // the first signs, all are published

	mu        sync.Mutex
	behaviour behaviour // read through current, changed through change
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
			secrets:  make(map[string]registered, len(cfg.Clients)),
		},
	}
	if cfg.Imitate != "" {
		var known bool
		if s.manners, known = imitations()[cfg.Imitate]; !known {
			return nil, fmt.Errorf("there is no imitation of %q", cfg.Imitate)
		}
		s.endpoint = s.manners.endpoint(cfg.Issuer)
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
	if _, found := s.clients[client.ID]; found {
		return fmt.Errorf("there are two clients with the ID %q", client.ID)
	}
	if ways := []string{"", AuthBasic, AuthPost, AuthSecretJWT, AuthPrivateKeyJWT, AuthNone}; !slices.Contains(ways, client.Auth) {
		return fmt.Errorf("client %q: the authentication %q is not one of%s", client.ID, client.Auth, strings.Join(ways, " "))
	}
	keys, err := keysOf(client.Keys)
	if err != nil {
		return fmt.Errorf("client %q: %w", client.ID, err)
	}
	known := registered{keys: keys}
	for _, value := range client.Secrets {
		known.secrets = append(known.secrets, dated{value: value})
	}
	s.behaviour.secrets[client.ID] = known
	client.Secrets, client.Keys = nil, nil
	if client.Grant == "" {
		client.Grant = clientCredentials
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

// tokenPath is the path of the token endpoint, whichever host that has.
func (s *Server) tokenPath() string {
	endpoint, err := url.Parse(s.endpoint)
	if err != nil {
		panic(fmt.Sprintf("devidp: %v", err)) // it was made of an issuer that was parsed
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
	route, found := s.routes[r.URL.Path]
	switch {
	case s.current().down:
		panic(http.ErrAbortHandler)
	case !found:
		http.NotFound(w, r)
	case r.Method != route.method:
		w.Header().Set("Allow", route.method)
		http.Error(w, "this endpoint takes "+route.method, http.StatusMethodNotAllowed)
	default:
		route.serve(w, r)
	}
}

// serveMetadata answers with what RFC 8414 and OIDC discovery require of an
// IdP that has neither an authorization endpoint nor ID tokens.
func (s *Server) serveMetadata(w http.ResponseWriter, _ *http.Request) {
	base := strings.TrimSuffix(s.issuer, "/")
	writeJSON(w, http.StatusOK, map[string]any{
		"issuer":                                s.issuer,
		"token_endpoint":                        s.endpoint,
		"jwks_uri":                              base + JWKSPath,
		"introspection_endpoint":                base + IntrospectionPath,
		"grant_types_supported":                 []string{clientCredentials, jwtBearer},
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
	published := []map[string]string{}
	for _, key := range *s.keys.Load() {
		published = append(published, key.public)
	}
	w.Header().Set("Content-Type", "application/jwk-set+json")
	writeJSON(w, http.StatusOK, map[string]any{"keys": published})
}

// writeJSON writes an answer of strings, numbers and lists, which cannot fail to
// encode; a caller who is gone is nobody to tell.
func writeJSON(w http.ResponseWriter, status int, value any) {
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "application/json")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}
