package httpapi

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// The headers in which gateways send the requirements for a token.
const (
	audienceHeader = "X-Verify-Audience"
	scopeHeader    = "X-Verify-Scope"
	issuerHeader   = "X-Verify-Issuer"
)

const accessToken = "access_token"

// verify responds to a gateway with 200, 401, 403 or 503, and with nothing else. A fault
// of the gateway is always 503: the gateway would pass 401 or 403 on to its own client.
func (s *Server) verify(w http.ResponseWriter, r *http.Request) (int, error) {
	now := time.Now()
	if r.ContentLength != 0 {
		// No gateway sends a body. What follows on this connection might be a part of
		// it.
		w.Header().Set("Connection", "close")
	}
	call, err := s.cfg.Callers.Gateway(r.Context(), r.TLS, verifyPath, now)
	if err != nil {
		return s.say(w, r, gateway.Undecided(err), now)
	}
	defer call.Leave()
	request := gateway.Request{Authorization: r.Header["Authorization"], Imitation: s.imitates(r.Header)}
	if request.Needs, request.Query, err = s.needs(r); err != nil {
		return s.say(w, r, gateway.Undecided(err), now)
	}
	request.Needs.OpaqueIssuer = s.cfg.Callers.OpaqueIssuer(r.Context())
	return s.say(w, r, s.cfg.Judge.Decide(r.Context(), call.Caller, request), now)
}

// imitates reports whether a request has another spelling of an identity header. A
// gateway that sends it here does not remove it from the request that it forwards.
func (s *Server) imitates(header http.Header) bool {
	for name := range header {
		if s.cfg.Judge.Imitates(name) {
			return true
		}
	}
	return false
}

// say writes a decision.
func (s *Server) say(w http.ResponseWriter, r *http.Request, d gateway.Decision, now time.Time) (int, error) {
	header := w.Header()
	switch d.Status {
	case http.StatusOK:
		// It protects a body, and this response has none. A map of more than 8 headers would
		// need another form, twice the memory and the time.
		delete(header, "X-Content-Type-Options")
		values := d.Identity()
		for i, name := range s.cfg.Judge.Names() {
			header[name] = values[i : i+1]
		}
		header["Vary"] = varyAuthorization
		if seconds := d.KeepFor(now); seconds > 0 {
			header["Cache-Control"] = []string{"private, max-age=" + strconv.Itoa(seconds)}
		}
		w.WriteHeader(http.StatusOK)
		return d.Status, nil
	case http.StatusServiceUnavailable:
		header.Set("Retry-After", gateway.Seconds(d.RetryAfter))
	default:
		header.Set("WWW-Authenticate", d.Challenge)
	}
	if !gateway.WantsJSON(r.Header.Get("Accept")) {
		header.Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(d.Status)
		_, _ = io.WriteString(w, d.Description+"\n")
		return d.Status, d.Err
	}
	header.Set("Content-Type", "application/json")
	w.WriteHeader(d.Status)
	_, _ = w.Write(d.JSON()) //nolint:gosec // all of it is written here, and nothing of the request
	return d.Status, d.Err
}

//nolint:gochecknoglobals // a value of a header that is shared by all responses
var varyAuthorization = []string{"Authorization"}

// needs returns the requirements of the gateway for the token, and whether the query
// holds a token. An error is a fault of the gateway.
func (s *Server) needs(r *http.Request) (needs verify.Request, inQuery bool, err error) {
	raw := r.URL.RawQuery
	if cached, ok := s.parsedNeeds.get(raw); ok && !s.cfg.NeedsInHeaders {
		return cached, false, nil
	}
	var values url.Values
	if !s.cfg.NeedsInHeaders || strings.Contains(raw, accessToken) || strings.Contains(raw, "%") {
		values, err = url.ParseQuery(raw)
	}
	if _, inQuery = values[accessToken]; inQuery {
		return needs, true, nil
	}
	if s.cfg.NeedsInHeaders {
		return needsInHeaders(r.Header, s.cfg.Broker.Introspecting() > 1)
	}
	if err != nil {
		return needs, false, misconfigured("its query is not well-formed")
	}
	if needs, inQuery, err = needsInQuery(values); err == nil {
		s.parsedNeeds.put(raw, needs)
	}
	return needs, inQuery, err
}

// maxCachedNeeds is far more than the number of routes of a gateway.
const maxCachedNeeds = 1000

// needsCache caches the parsed requirements of valid queries: gateways repeat a few. Its
// zero value is empty.
type needsCache struct {
	byQuery sync.Map
	count   atomic.Int64
}

func (c *needsCache) get(query string) (verify.Request, bool) {
	value, ok := c.byQuery.Load(query)
	if !ok {
		return verify.Request{}, false
	}
	needs, ok := value.(verify.Request)
	return needs, ok
}

func (c *needsCache) put(query string, needs verify.Request) {
	if c.count.Load() >= maxCachedNeeds {
		return
	}
	if _, loaded := c.byQuery.LoadOrStore(query, needs); !loaded {
		c.count.Add(1)
	}
}

// needsInQuery rejects parameters that the gateway would not send: some gateways forward
// the query of the checked request, and its sender could then choose the requirements
// for its own token.
func needsInQuery(values url.Values) (needs verify.Request, _ bool, err error) {
	for name, list := range values {
		if name != "audience" && name != "scope" && name != "issuer" {
			return needs, false, misconfigured("its query has a parameter other than audience, scope and issuer: does the gateway forward the query of the original request?")
		}
		if len(list) > 1 {
			return needs, false, misconfigured("its query has a parameter more than once: separate values by spaces")
		}
	}
	return needsOf(values.Get("audience"), values.Get("scope"), values.Get("issuer"))
}

// needsInHeaders always requires the audience: if the gateway does not replace it, the
// sender of a request could choose the audience of its own token. If opaque tokens of
// several issuers are configured, it requires the issuer as well: else the sender could
// choose the issuer that checks its token. The scope can only make the check stricter.
func needsInHeaders(header http.Header, severalIntrospect bool) (needs verify.Request, _ bool, err error) {
	if strings.TrimSpace(header.Get(audienceHeader)) == "" {
		return needs, false, misconfigured("the header " + audienceHeader + " is missing: the gateway must set it on every request")
	}
	if severalIntrospect && header.Get(issuerHeader) == "" {
		return needs, false, misconfigured("the header " + issuerHeader + " is missing: several issuers have introspection, so the gateway must set it on every request")
	}
	for _, name := range []string{audienceHeader, scopeHeader, issuerHeader} {
		if len(header[name]) > 1 {
			return needs, false, misconfigured("the header " + name + " occurs more than once: the gateway must replace the request's own header, and separate values by spaces")
		}
	}
	return needsOf(header.Get(audienceHeader), header.Get(scopeHeader), header.Get(issuerHeader))
}

func needsOf(audience, scope, issuer string) (verify.Request, bool, error) {
	needs := verify.Request{Audience: strings.Fields(audience), Scopes: strings.Fields(scope), Issuer: issuer}
	if len(needs.Audience) == 0 && len(needs.Scopes) == 0 && issuer == "" {
		return needs, false, misconfigured("its query must have audience, scope or issuer, so that the token is not accepted for everything")
	}
	if err := server.CheckVerifyRequest(needs); err != nil {
		return needs, false, err
	}
	return needs, false, nil
}

func misconfigured(why string) error {
	return &apierror.Error{
		Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest,
		Message: fmt.Sprintf("refused a request of a gateway at %s: %s", verifyPath, why),
	}
}
