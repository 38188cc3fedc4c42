package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/gateway"
)

const (
	clientCredentials = "client_credentials"

	formType      = "application/x-www-form-urlencoded"
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
)

// The errors of RFC 6749 section 5.2 and RFC 8707 section 2, and of RFC 6749 section
// 4.1.2.1 for failures of the server.
const (
	invalidRequest         = "invalid_request"
	invalidClient          = "invalid_client"
	invalidScope           = "invalid_scope"
	invalidTarget          = "invalid_target"
	unauthorizedClient     = "unauthorized_client"
	unsupportedGrantType   = "unsupported_grant_type"
	accessDenied           = "access_denied"
	serverError            = "server_error"
	temporarilyUnavailable = "temporarily_unavailable"
)

// problem is a response of RFC 6749 section 5.2.
type problem struct {
	status      int
	code        string
	description string
	retryAfter  time.Duration
	claims      string // the claims challenge of the IdP; empty: none
	cause       error  // for the log; nil: not logged
}

func bad(code, description string) *problem {
	return &problem{status: http.StatusBadRequest, code: code, description: description}
}

// oauthRequest is a request to an OAuth endpoint: its form and the call of its caller.
type oauthRequest struct {
	form   url.Values
	client string // client_id; may be empty
	call   caller.Call
}

// readRequest reads a request and identifies its caller.
func (s *Server) readRequest(w http.ResponseWriter, r *http.Request) (*oauthRequest, *problem) {
	if fromBrowser(r.Header) {
		return nil, bad(invalidRequest, "The request comes from a page in a browser, which cannot be a caller")
	}
	end, err := s.cfg.Callers.Begin(r.Context(), r.TLS)
	if err != nil {
		w.Header()["Connection"] = closing // the rest of the request is not read
		return nil, problemOf(err)
	}
	form, p := s.readForm(w, r)
	end()
	if p != nil {
		return nil, p
	}
	client, authorization, p := credentials(r.Header["Authorization"], form)
	if p != nil {
		return nil, p
	}
	call, err := s.cfg.Callers.Caller(r.Context(), r.TLS, authorization, r.URL.Path, time.Now())
	if err != nil {
		return nil, problemOf(err)
	}
	return &oauthRequest{form, client, call}, nil
}

// fromBrowser reports whether a page in a browser makes a request. A page of any site
// could make the browser call a broker on loopback with the permissions that all local
// processes share, and could read the response through a DNS name that it rebinds to
// 127.0.0.1. Browsers send the origin with each POST; other clients do not.
func fromBrowser(header http.Header) bool {
	return len(header["Origin"]) > 0 || len(header["Sec-Fetch-Site"]) > 0
}

// readForm reads the form. Only the parameter resource may be repeated (RFC 6749 section
// 3.2), and a parameter without a value counts as absent (section 3.1).
func (s *Server) readForm(w http.ResponseWriter, r *http.Request) (url.Values, *problem) {
	if r.URL.RawQuery != "" {
		return nil, bad(invalidRequest, "Parameters belong in the body, not in the query")
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != formType || len(r.Header["Content-Type"]) > 1 {
		return nil, bad(invalidRequest, "The body must be "+formType)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(s.cfg.MessageSize)))
	if err != nil {
		return nil, bad(invalidRequest, "The body is too large or incomplete")
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, bad(invalidRequest, "The body is not well-formed")
	}
	for name, values := range form {
		if len(values) > 1 && name != "resource" {
			return nil, bad(invalidRequest, "A parameter occurs more than once")
		}
		if name == accessToken {
			return nil, bad(invalidRequest, "The body has the parameter access_token, which does not authenticate a caller: use the Authorization header")
		}
	}
	return form, nil
}

// credentials returns the client that a request names, and the value of Authorization
// that would authenticate the caller to any other API: RFC 6749 section 2.3 allows one
// method at a time. A client secret is the caller's own JWT, for callers that can send
// it in no other way; a caller that authenticates by a certificate sends no secret.
func credentials(values []string, form url.Values) (client string, authorization []string, _ *problem) {
	client = form.Get("client_id")
	ways := 0
	bearer := func(jwt string) {
		ways++
		authorization = []string{"Bearer " + jwt}
	}
	if assertion := form.Get("client_assertion"); assertion != "" {
		if form.Get("client_assertion_type") != assertionType {
			return "", nil, bad(invalidRequest, "client_assertion_type must be "+assertionType)
		}
		bearer(assertion)
	}
	if secret := form.Get("client_secret"); secret != "" {
		bearer(secret)
	}
	if len(values) > 1 {
		return "", nil, bad(invalidRequest, "The request has more than one Authorization header")
	}
	if len(values) == 1 {
		scheme, text, _ := strings.Cut(values[0], " ")
		switch {
		case strings.EqualFold(scheme, "bearer"):
			ways++
			authorization = values
		case strings.EqualFold(scheme, "basic"):
			named, secret, ok := basic(strings.TrimLeft(text, " ")) // RFC 9110 section 11.4: 1*SP
			if !ok {
				return "", nil, bad(invalidRequest, "The Authorization header is not Basic of RFC 6749 section 2.3.1")
			}
			if client != "" && client != named {
				return "", nil, bad(invalidRequest, "client_id differs from that in the Authorization header")
			}
			client = named
			if secret != "" {
				bearer(secret)
			}
		default:
			return "", nil, &problem{status: http.StatusUnauthorized, code: invalidClient, description: "The Authorization header is neither Bearer nor Basic"}
		}
	}
	if ways > 1 {
		return "", nil, bad(invalidRequest, "The request authenticates the caller in more than one way: use one")
	}
	return client, authorization, nil
}

// basic reads client_id and client_secret (RFC 6749 section 2.3.1).
func basic(text string) (id, secret string, ok bool) {
	plain, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return "", "", false
	}
	first, second, ok := strings.Cut(string(plain), ":")
	if !ok {
		return "", "", false
	}
	id, errID := url.QueryUnescape(first)
	secret, errSecret := url.QueryUnescape(second)
	return id, secret, errID == nil && errSecret == nil
}

// problemOf is the one table from the broker's errors to the errors of OAuth.
func problemOf(err error) *problem {
	failure, ok := errors.AsType[*apierror.Error](err)
	if !ok {
		failure = apierror.Fault(err)
	}
	p := &problem{description: failure.Message, retryAfter: failure.RetryAfter, cause: failure}
	switch failure.Code {
	case apierror.InvalidArgument:
		p.status, p.code = http.StatusBadRequest, codeOfField(failure.Field)
	case apierror.Unauthenticated:
		p.status, p.code = http.StatusUnauthorized, invalidClient
	case apierror.PermissionDenied, apierror.NotFound:
		p.status, p.code = http.StatusBadRequest, unauthorizedClient
	case apierror.FailedPrecondition:
		p.status, p.code = http.StatusBadGateway, serverError
		if code := failure.Metadata["oauth_error"]; code == invalidScope || code == invalidTarget {
			p.status, p.code = http.StatusBadRequest, code
		}
	case apierror.ResourceExhausted:
		p.status, p.code = http.StatusTooManyRequests, temporarilyUnavailable
	case apierror.Unavailable, apierror.DeadlineExceeded, apierror.Canceled:
		p.status, p.code = http.StatusServiceUnavailable, temporarilyUnavailable
	case apierror.Internal:
		fallthrough
	default:
		p.status, p.code = http.StatusInternalServerError, serverError
	}
	return p
}

func codeOfField(field string) string {
	switch field {
	case "scopes":
		return invalidScope
	case "audience", "resources":
		return invalidTarget
	default:
		return invalidRequest
	}
}

// refuse responds with a problem.
func refuse(w http.ResponseWriter, r *http.Request, p *problem) (int, error) {
	header := w.Header()
	if p.status == http.StatusUnauthorized {
		scheme := "Bearer"
		if values := r.Header["Authorization"]; len(values) > 0 && len(values[0]) >= 5 && strings.EqualFold(values[0][:5], "basic") {
			scheme = "Basic"
		}
		header.Set("WWW-Authenticate", scheme+` realm="tokenbroker"`)
	}
	if p.retryAfter > 0 {
		header.Set("Retry-After", gateway.Seconds(p.retryAfter))
	}
	body := map[string]string{"error": p.code, "error_description": described(p.description)}
	if p.claims != "" {
		body["claims"] = p.claims
	}
	return p.status, errors.Join(p.cause, writeJSON(w, p.status, body))
}

// described replaces characters that an error_description may not hold (RFC 6749 section
// 5.2).
func described(text string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '"':
			return '\''
		case c < ' ' || c > '~' || c == '\\':
			return '?'
		default:
			return c
		}
	}, text)
}

func writeJSON(w http.ResponseWriter, status int, value any) error {
	body, err := json.Marshal(value)
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Pragma", "no-cache") // RFC 6749 section 5.1
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n')) // an error means that the client has disconnected
	return nil
}

// values returns the values of a parameter that may be repeated.
func values(form url.Values, name string) []string {
	return slices.DeleteFunc(slices.Clone(form[name]), func(value string) bool { return value == "" })
}
