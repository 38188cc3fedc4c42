package devidp

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"maps"
	"math"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Ways of authentication in Client and TokenRequest.
const (
	AuthBasic         = "basic"           // client_secret_basic
	AuthPost          = "post"            // client_secret_post
	AuthSecretJWT     = "secret_jwt"      // client_secret_jwt
	AuthPrivateKeyJWT = "private_key_jwt" // private_key_jwt
	AuthNone          = "none"            // only the client_id
)

const (
	maxForm = 64 << 10 // bytes
	bearer  = "Bearer"

	clientCredentials = "client_credentials"
	jwtBearer         = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

// form is a parsed request. err describes an invalid one, so that it can be recorded
// before the error response.
type form struct {
	url.Values
	clientID string
	secret   redact.String
	auth     string
	// client is the assertion that authenticates the client, and grant the assertion that
	// is exchanged for a token. They may be nil.
	client, grant *assertion
	err           *oauthError
}

// scope returns the requested scopes, which are in the grant assertion if there is one.
func (f *form) scope() string {
	if f.grant != nil {
		return f.grant.scope
	}
	return f.Get("scope")
}

// oauthError is an error response (RFC 6749 section 5.2).
type oauthError struct {
	status            int
	code, description string
	challenge         bool // add WWW-Authenticate
}

func badRequest(code, description string) *oauthError {
	return &oauthError{status: http.StatusBadRequest, code: code, description: description}
}

// unauthorized returns the error for failed authentication. RFC 6749 permits 401 in all
// cases and requires the challenge if the client used the Authorization header.
func unauthorized(auth, description string) *oauthError {
	return &oauthError{http.StatusUnauthorized, "invalid_client", description, auth == AuthBasic}
}

func (s *Server) serveToken(w http.ResponseWriter, r *http.Request) {
	f := readAuthenticated(w, r)
	entry := s.journal.add(f)
	current := s.current()
	if !wait(r, current.delay) {
		return
	}
	if current.answer != nil && current.answer(w, r) {
		return
	}
	if failure, ok := s.nextFailure(); ok {
		failure.write(w)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	members, err := s.grant(f)
	if err != nil {
		s.refuse(w, err)
		return
	}
	if s.deviations.adjust != nil {
		s.deviations.adjust(members)
	}
	s.journal.succeeded(entry)
	writeJSON(w, http.StatusOK, members)
}

func (e *oauthError) write(w http.ResponseWriter) {
	if e.challenge {
		w.Header().Set("WWW-Authenticate", `Basic realm="token"`)
	}
	writeJSON(w, e.status, map[string]string{"error": e.code, "error_description": e.description})
}

// refuse writes an error response in the format of the imitated IdP.
func (s *Server) refuse(w http.ResponseWriter, err *oauthError) {
	if s.deviations.refuse == nil {
		err.write(w)
		return
	}
	status, members := s.deviations.refuse(err)
	writeJSON(w, status, members)
}

// wait waits for d and reports whether the request is still open.
func wait(r *http.Request, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.Context().Done():
		return false
	}
}

// readAuthenticated parses a form with the credentials of a client (RFC 6749 sections
// 2.3.1 and 3.2).
func readAuthenticated(w http.ResponseWriter, r *http.Request) form {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return form{err: badRequest("invalid_request", "the body must be application/x-www-form-urlencoded")}
	}
	if err := r.ParseForm(); err != nil {
		return form{err: badRequest("invalid_request", "the body is not a form of at most 64 KiB")}
	}
	f := form{Values: r.PostForm}
	f.err = f.readCredentials(r)
	switch {
	case f.err != nil:
	case r.URL.RawQuery != "":
		f.err = badRequest("invalid_request", "parameters belong in the body, not in the URL")
	default:
		f.err = f.checkParameters()
	}
	return f
}

func (f *form) readCredentials(r *http.Request) *oauthError {
	header := r.Header.Values("Authorization")
	inHeader, inBody, asserted := len(header) > 0, f.Get("client_secret") != "", f.Get("client_assertion") != ""
	f.clientID = f.Get("client_id")
	if f.Get("grant_type") == jwtBearer && f.Get("requested_token_use") == "" {
		if f.grant = readAssertion(f.Get("assertion")); f.clientID == "" && !inHeader {
			f.clientID = f.grant.issuer
		}
	}
	switch {
	case inHeader && inBody, inHeader && asserted, inBody && asserted:
		return badRequest("invalid_request", "the client authenticates in two ways at once")
	case inBody:
		f.auth, f.secret = AuthPost, redact.New(f.Get("client_secret"))
	case inHeader:
		f.auth = AuthBasic
		return f.readBasic(header)
	case asserted:
		return f.readClientAssertion()
	case f.clientID != "":
		f.auth = AuthNone
	}
	return nil
}

func (f *form) readBasic(header []string) *oauthError {
	id, secret, err := parseBasic(header)
	if err != nil {
		return unauthorized(AuthBasic, err.Error())
	}
	if f.clientID != "" && f.clientID != id {
		return badRequest("invalid_request", "client_id differs from that in the Authorization header")
	}
	f.clientID, f.secret = id, secret
	return nil
}

// parseBasic parses the Authorization header. It requires both parts to be form-urlencoded
// (RFC 6749 section 2.3.1), which many clients omit.
func parseBasic(header []string) (id string, secret redact.String, err error) {
	scheme, credentials, _ := strings.Cut(header[0], " ")
	if len(header) > 1 || !strings.EqualFold(scheme, "Basic") {
		return "", redact.String{}, errors.New("the Authorization header is not Basic")
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimLeft(credentials, " ")) // RFC 9110 section 11.4: 1*SP
	if err != nil {
		return "", redact.String{}, errors.New("the Authorization header is not base64")
	}
	user, password, ok := strings.Cut(string(decoded), ":")
	if !ok || strings.Contains(password, ":") {
		return "", redact.String{}, errors.New("the credentials are not form-urlencoded and joined by one colon")
	}
	id, errID := url.QueryUnescape(user)
	plain, errSecret := url.QueryUnescape(password)
	if errID != nil || errSecret != nil {
		return "", redact.String{}, errors.New("the credentials are not form-urlencoded")
	}
	return id, redact.New(plain), nil
}

func (f *form) checkParameters() *oauthError {
	for name, values := range f.Values {
		if len(values) > 1 && name != "resource" {
			return badRequest("invalid_request", "a parameter is repeated") // RFC 8707 permits it for resource
		}
	}
	return nil
}

// grant checks the request and returns the members of the response.
func (s *Server) grant(f form) (members map[string]any, err *oauthError) {
	if f.err == nil && f.Get("grant_type") == "" {
		f.err = badRequest("invalid_request", "grant_type is missing")
	}
	if f.err != nil {
		return nil, f.err
	}
	err = s.authenticate(f)
	s.attempts.add(f, err == nil)
	if err != nil {
		return nil, err
	}
	client := s.clients[f.clientID]
	if err := s.checkGrant(client, f); err != nil {
		return nil, err
	}
	if client.exchanges(f) {
		return s.exchange(client, f)
	}
	scopes, err := client.scopesFor(f.scope())
	if err != nil {
		return nil, err
	}
	audience, err := client.audienceFor(f.Get("audience"), f.Values["resource"])
	if err != nil {
		return nil, err
	}
	return s.issue(client.ID, audience, strings.Join(scopes, " "), nil, math.MaxInt64), nil
}

func (s *Server) checkGrant(client Client, f form) *oauthError {
	own := client.Exchange != nil && !client.Exchange.Only && f.Get("grant_type") == clientCredentials
	if f.Get("grant_type") != client.Grant && !own {
		return badRequest("unsupported_grant_type", "the grant_type is unknown, or the client may not use it")
	}
	for name, value := range client.Params {
		if f.Get(name) != value {
			return badRequest("invalid_request", "a parameter is missing or wrong")
		}
	}
	if client.Grant == jwtBearer && client.Exchange == nil && f.grant == nil {
		return badRequest("invalid_request", "the client exchanges no tokens")
	}
	if f.grant != nil && client.Exchange == nil {
		if problem := s.checkAssertion(f.grant, s.current().secrets[client.ID], s.deviations.grantTypes()); problem != "" {
			return badRequest("invalid_grant", problem)
		}
		if f.Get("scope") != "" {
			return badRequest("invalid_request", "the scopes belong in the assertion")
		}
	}
	if s.deviations.check != nil {
		return s.deviations.check(f)
	}
	return nil
}

func (s *Server) authenticate(f form) *oauthError {
	client, ok := s.clients[f.clientID]
	registered := s.current().secrets[f.clientID]
	switch {
	case f.auth == "":
		return unauthorized("", "the client does not authenticate")
	case !ok:
		return unauthorized(f.auth, unknownClient)
	case !client.mayUse(f.auth):
		return unauthorized(f.auth, "the client is not registered for this way of authentication")
	case f.auth == AuthNone:
		return nil
	case f.client != nil:
		if client.KeysAt != nil {
			registered.keys = s.readKeys.of(client)
		}
		if problem := s.checkAssertion(f.client, registered, s.deviations.clientTypes()); problem != "" {
			return unauthorized(f.auth, problem)
		}
		return nil
	case !registered.has(f.secret.Equal):
		return unauthorized(f.auth, "wrong secret")
	}
	return nil
}

const unknownClient = "no such client"

// mayUse reports whether the client may authenticate in this way.
func (c Client) mayUse(auth string) bool {
	if c.Auth == "" {
		return auth == AuthBasic || auth == AuthPost
	}
	return c.Auth == auth
}

// scopesFor returns the scopes to grant.
func (c Client) scopesFor(requested string) ([]string, *oauthError) {
	if requested == "" {
		return c.Scopes, nil
	}
	scopes := strings.Split(requested, " ")
	for _, scope := range scopes {
		if !slices.Contains(c.Scopes, scope) {
			return nil, badRequest("invalid_scope", "the client may not have all of these scopes")
		}
	}
	slices.Sort(scopes)
	return slices.Compact(scopes), nil
}

// audienceFor returns the audience of the token for a request.
func (c Client) audienceFor(audience string, resources []string) ([]string, *oauthError) {
	var requested []string
	for _, value := range append([]string{audience}, resources...) {
		if value != "" && !slices.Contains(requested, value) {
			requested = append(requested, value)
		}
	}
	for _, value := range resources {
		if target, err := url.Parse(value); err != nil || value != "" && (!target.IsAbs() || strings.Contains(value, "#")) {
			return nil, badRequest("invalid_target", "a resource is an absolute URI without fragment")
		}
	}
	for _, value := range requested {
		if !slices.Contains(c.Audiences, value) {
			return nil, badRequest("invalid_target", "the client may not have a token for this audience or resource")
		}
	}
	if len(requested) == 0 {
		return c.Audiences[:1], nil
	}
	return requested, nil
}

func (s *Server) mint(claims map[string]any) redact.String {
	if !s.clients[claims["client_id"].(string)].Opaque { //nolint:forcetypeassert // issue sets it
		return s.Mint(claims)
	}
	claims["token_type"] = bearer
	return s.MintOpaque(claims)
}

// issue mints a token (RFC 9068 section 2) with further claims, which ends at latest (in
// Unix seconds), and returns the members of the response.
func (s *Server) issue(clientID string, audience []string, scope string, further map[string]any, latest int64) map[string]any {
	now := time.Now().Unix()
	seconds := min(int64(s.current().lifetime/time.Second), latest-now)
	claims := map[string]any{
		"iss":       s.issuer,
		"sub":       clientID,
		"client_id": clientID,
		"aud":       audience,
		"iat":       now,
		"exp":       now + seconds,
		"jti":       rand.Text(),
	}
	if len(audience) == 1 {
		claims["aud"] = audience[0]
	}
	maps.Copy(claims, further)
	members := map[string]any{"token_type": bearer, "expires_in": seconds}
	if scope != "" {
		claims["scope"], members["scope"] = scope, scope
	}
	members["access_token"] = s.mint(claims).Reveal() // the response is the only place for a token
	return members
}
