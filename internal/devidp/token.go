package devidp

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// The ways of authentication, as Client and TokenRequest name them.
const (
	AuthBasic         = "basic"           // client_secret_basic
	AuthPost          = "post"            // client_secret_post
	AuthSecretJWT     = "secret_jwt"      // client_secret_jwt
	AuthPrivateKeyJWT = "private_key_jwt" // private_key_jwt
	AuthNone          = "none"            // the client_id alone
)

const (
	maxForm = 64 << 10
	bearer  = "Bearer"

	clientCredentials = "client_credentials"
	jwtBearer         = "urn:ietf:params:oauth:grant-type:jwt-bearer"
)

// form is a token request as it was sent. What is wrong with it is kept and
// answered later, so that it is on record all the same.
type form struct {
	url.Values
	clientID string
	secret   redact.String
	auth     string
	// client is the assertion by which the client authenticates, grant the one that
	// is exchanged; nil: there is none.
	client, grant *assertion
	wrong         *problem
}

// scope is asked for in the form, or in the assertion that is the grant.
func (f *form) scope() string {
	if f.grant != nil {
		return f.grant.scope
	}
	return f.Get("scope")
}

// problem is an error answer (RFC 6749, section 5.2).
type problem struct {
	status            int
	code, description string
	challenge         bool // add WWW-Authenticate
}

func bad(code, description string) *problem {
	return &problem{status: http.StatusBadRequest, code: code, description: description}
}

// unauthorized answers 401 to all failed authentication, which RFC 6749 allows,
// with the challenge that it demands where Basic was tried.
func unauthorized(auth, description string) *problem {
	return &problem{http.StatusUnauthorized, "invalid_client", description, auth == AuthBasic}
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
	if failure, failing := s.takeFailure(); failing {
		failure.write(w)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Pragma", "no-cache")
	answer, wrong := s.grant(f)
	if wrong != nil {
		s.refuse(w, wrong)
		return
	}
	if s.manners.dress != nil {
		s.manners.dress(answer)
	}
	s.journal.succeeded(entry)
	writeJSON(w, http.StatusOK, answer)
}

func (p *problem) write(w http.ResponseWriter) {
	if p.challenge {
		w.Header().Set("WWW-Authenticate", `Basic realm="token"`)
	}
	writeJSON(w, p.status, map[string]string{"error": p.code, "error_description": p.description})
}

// refuse writes a problem as the IdP that is imitated puts it.
func (s *Server) refuse(w http.ResponseWriter, p *problem) {
	if s.manners.refuse == nil {
		p.write(w)
		return
	}
	status, members := s.manners.refuse(p)
	writeJSON(w, status, members)
}

// wait reports whether the caller is still there after d.
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

// readAuthenticated reads a form of a client as RFC 6749, sections 2.3.1 and 3.2
// say.
func readAuthenticated(w http.ResponseWriter, r *http.Request) form {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/x-www-form-urlencoded" {
		return form{wrong: bad("invalid_request", "the body must be application/x-www-form-urlencoded")}
	}
	if err := r.ParseForm(); err != nil {
		return form{wrong: bad("invalid_request", "the body is not a form of at most 64 KiB")}
	}
	f := form{Values: r.PostForm}
	f.wrong = f.readCredentials(r)
	switch {
	case f.wrong != nil:
	case r.URL.RawQuery != "":
		f.wrong = bad("invalid_request", "parameters belong in the body, not in the URL")
	default:
		f.wrong = f.checkParameters()
	}
	return f
}

func (f *form) readCredentials(r *http.Request) *problem {
	header := r.Header.Values("Authorization")
	inHeader, inBody, asserted := len(header) > 0, f.Get("client_secret") != "", f.Get("client_assertion") != ""
	f.clientID = f.Get("client_id")
	if f.Get("grant_type") == jwtBearer {
		if f.grant = readAssertion(f.Get("assertion")); f.clientID == "" {
			f.clientID = f.grant.issuer
		}
	}
	switch {
	case inHeader && inBody, inHeader && asserted, inBody && asserted:
		return bad("invalid_request", "the client authenticates in two ways at once")
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

func (f *form) readBasic(header []string) *problem {
	id, secret, err := parseBasic(header)
	if err != nil {
		return unauthorized(AuthBasic, err.Error())
	}
	if f.clientID != "" && f.clientID != id {
		return bad("invalid_request", "client_id differs from that in the Authorization header")
	}
	f.clientID, f.secret = id, secret
	return nil
}

// parseBasic reads the Authorization header: both parts are form-urlencoded
// before they are joined (RFC 6749, section 2.3.1), which many clients forget.
func parseBasic(header []string) (id string, secret redact.String, err error) {
	scheme, credentials, _ := strings.Cut(header[0], " ")
	if len(header) > 1 || !strings.EqualFold(scheme, "Basic") {
		return "", redact.String{}, errors.New("the Authorization header is not Basic")
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimLeft(credentials, " ")) // RFC 9110 section 11.4: 1*SP
	if err != nil {
		return "", redact.String{}, errors.New("the Authorization header is not base64")
	}
	user, password, found := strings.Cut(string(decoded), ":")
	if !found || strings.Contains(password, ":") {
		return "", redact.String{}, errors.New("the credentials are not form-urlencoded and joined by one colon")
	}
	id, errID := url.QueryUnescape(user)
	plain, errSecret := url.QueryUnescape(password)
	if errID != nil || errSecret != nil {
		return "", redact.String{}, errors.New("the credentials are not form-urlencoded")
	}
	return id, redact.New(plain), nil
}

func (f *form) checkParameters() *problem {
	for name, values := range f.Values {
		if len(values) > 1 && name != "resource" {
			return bad("invalid_request", "a parameter is repeated") // only RFC 8707 allows it
		}
	}
	return nil
}

// grant judges the request and answers it.
func (s *Server) grant(f form) (answer map[string]any, wrong *problem) {
	if f.wrong == nil && f.Get("grant_type") == "" {
		f.wrong = bad("invalid_request", "grant_type is missing")
	}
	if f.wrong != nil {
		return nil, f.wrong
	}
	wrong = s.authenticate(f)
	s.attempts.note(f, wrong == nil)
	if wrong != nil {
		return nil, wrong
	}
	client := s.clients[f.clientID]
	if wrong := s.checkGrant(client, f); wrong != nil {
		return nil, wrong
	}
	scopes, wrong := client.scopesFor(f.scope())
	if wrong != nil {
		return nil, wrong
	}
	audience, wrong := client.audienceFor(f.Get("audience"), f.Values["resource"])
	if wrong != nil {
		return nil, wrong
	}
	return s.issue(client.ID, audience, strings.Join(scopes, " ")), nil
}

func (s *Server) checkGrant(client Client, f form) *problem {
	if f.Get("grant_type") != client.Grant {
		return bad("unsupported_grant_type", "the client may not use this grant_type, or there is no such")
	}
	for name, value := range client.Params {
		if f.Get(name) != value {
			return bad("invalid_request", "a parameter is missing or wrong")
		}
	}
	if f.grant != nil {
		if fault := s.checkAssertion(f.grant, s.current().secrets[client.ID], s.manners.grantTypes()); fault != "" {
			return bad("invalid_grant", fault)
		}
		if f.Get("scope") != "" {
			return bad("invalid_request", "the scopes belong in the assertion")
		}
	}
	if s.manners.demand != nil {
		return s.manners.demand(f)
	}
	return nil
}

func (s *Server) authenticate(f form) *problem {
	client, found := s.clients[f.clientID]
	known := s.current().secrets[f.clientID]
	switch {
	case f.auth == "":
		return unauthorized("", "the client does not authenticate")
	case !found:
		return unauthorized(f.auth, unknownClient)
	case !client.mayUse(f.auth):
		return unauthorized(f.auth, "the client is not registered for this way of authentication")
	case f.auth == AuthNone:
		return nil
	case f.client != nil:
		if fault := s.checkAssertion(f.client, known, s.manners.clientTypes()); fault != "" {
			return unauthorized(f.auth, fault)
		}
		return nil
	case !known.has(f.secret.Equal):
		return unauthorized(f.auth, "wrong secret")
	}
	return nil
}

const unknownClient = "no such client"

// mayUse: a client that is registered for no way may use either of the two that
// send its secret.
func (c Client) mayUse(auth string) bool {
	if c.Auth == "" {
		return auth == AuthBasic || auth == AuthPost
	}
	return c.Auth == auth
}

// scopesFor returns what a request for these scopes gets.
func (c Client) scopesFor(asked string) ([]string, *problem) {
	if asked == "" {
		return c.Scopes, nil
	}
	scopes := strings.Split(asked, " ")
	for _, scope := range scopes {
		if !slices.Contains(c.Scopes, scope) {
			return nil, bad("invalid_scope", "the client may not have all of these scopes")
		}
	}
	slices.Sort(scopes)
	return slices.Compact(scopes), nil
}

// audienceFor returns what a request for this audience and these resources
// gets.
func (c Client) audienceFor(audience string, resources []string) ([]string, *problem) {
	var asked []string
	for _, value := range append([]string{audience}, resources...) {
		if value != "" && !slices.Contains(asked, value) {
			asked = append(asked, value)
		}
	}
	for _, value := range resources {
		if target, err := url.Parse(value); err != nil || value != "" && (!target.IsAbs() || strings.Contains(value, "#")) {
			return nil, bad("invalid_target", "a resource is an absolute URI without fragment")
		}
	}
	for _, value := range asked {
		if !slices.Contains(c.Audiences, value) {
			return nil, bad("invalid_target", "the client may not have a token for this audience or resource")
		}
	}
	if len(asked) == 0 {
		return c.Audiences[:1], nil
	}
	return asked, nil
}

func (s *Server) mint(claims map[string]any) redact.String {
	if !s.clients[claims["client_id"].(string)].Opaque { //nolint:forcetypeassert // issue put it there
		return s.Mint(claims)
	}
	claims["token_type"] = bearer
	return s.MintOpaque(claims)
}

// issue makes a token (RFC 9068, section 2) and the answer that carries it.
func (s *Server) issue(clientID string, audience []string, scope string) map[string]any {
	now, seconds := time.Now().Unix(), int64(s.current().lifetime/time.Second)
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
	answer := map[string]any{"token_type": bearer, "expires_in": seconds}
	if scope != "" {
		claims["scope"], answer["scope"] = scope, scope
	}
	// The answer is the one place where a token is to be seen.
	answer["access_token"] = s.mint(claims).Reveal()
	return answer
}
