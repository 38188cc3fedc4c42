package httpapi

import (
	"context"
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
	resourceHeader = "X-Verify-Resource"
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
	asked, inQuery, err := s.needs(r)
	if err != nil {
		return s.say(w, r, gateway.Undecided(err), now)
	}
	request := gateway.Request{
		Authorization: r.Header[gateway.Authorization], Imitation: s.imitates(r.Header, asked.upstream), Query: inQuery, Needs: asked.Request,
		Upstream: asked.upstream, Resource: asked.resource,
	}
	request.Needs.OpaqueIssuer = s.cfg.Callers.OpaqueIssuer(r.Context())
	ctx := r.Context()
	if request.Upstream != nil { // the IdP may have to issue a token
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Deadline)
		defer cancel()
	}
	return s.say(w, r, s.cfg.Judge.Decide(ctx, call.Caller, request), now)
}

// imitates reports whether a request has another spelling of an identity header, or of the
// header of the upstream token. A gateway that sends it here does not remove it from the
// request that it forwards.
func (s *Server) imitates(header http.Header, upstream *gateway.Upstream) bool {
	for name := range header {
		if s.cfg.Judge.Imitates(name, upstream) {
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
		if d.Upstream != nil {
			giveToken(header, &d)
		} else {
			header["Vary"] = varyAuthorization
			if seconds := d.KeepFor(now); seconds > 0 {
				header["Cache-Control"] = []string{"private, max-age=" + strconv.Itoa(seconds)}
			}
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

// giveToken adds the upstream token. The response stays no-store. A gateway that copies
// Authorization from the response sends an empty one in place of that of the request, unless
// the entry keeps it.
func giveToken(header http.Header, d *gateway.Decision) {
	if d.Upstream.Removed() {
		header[gateway.Authorization] = []string{""}
	}
	header[d.Upstream.Header] = []string{d.UpstreamValue.Reveal()}
}

//nolint:gochecknoglobals // a value of a header that is shared by all responses
var varyAuthorization = []string{"Authorization"}

// needs are what a gateway's own configuration says about a request: the requirements for
// its token, the token for the service behind the gateway, and the protected resource.
type needs struct {
	verify.Request

	upstream *gateway.Upstream // nil: none
	resource *gateway.Metadata // nil: none
}

// needs returns the needs of a request, and whether the query holds a token. An error is a
// fault of the gateway.
func (s *Server) needs(r *http.Request) (asked needs, inQuery bool, err error) {
	raw := r.URL.RawQuery
	if cached, ok := s.parsedNeeds.get(raw); ok && !s.cfg.NeedsInHeaders {
		return cached, false, nil
	}
	var values url.Values
	if !s.cfg.NeedsInHeaders || strings.Contains(raw, accessToken) || strings.Contains(raw, "%") {
		values, err = url.ParseQuery(raw)
	}
	if values.Has(accessToken) {
		name := values.Get(resourceParameter)
		if s.cfg.NeedsInHeaders {
			name = r.Header.Get(resourceHeader)
		}
		return needs{resource: s.cfg.Resources.Named(name)}, true, nil
	}
	if s.cfg.NeedsInHeaders {
		asked, err = s.needsInHeaders(r.Header)
		return asked, false, err
	}
	if err != nil {
		return asked, false, misconfigured("its query is not well-formed")
	}
	if asked, err = s.needsInQuery(values); err == nil {
		s.parsedNeeds.put(raw, asked)
	}
	return asked, false, err
}

// maxCachedNeeds is far more than the number of routes of a gateway.
const maxCachedNeeds = 1000

// needsCache caches the parsed requirements of valid queries: gateways repeat a few. Its
// zero value is empty.
type needsCache struct {
	byQuery sync.Map
	count   atomic.Int64
}

func (c *needsCache) get(query string) (needs, bool) {
	value, ok := c.byQuery.Load(query)
	if !ok {
		return needs{}, false
	}
	asked, ok := value.(needs)
	return asked, ok
}

func (c *needsCache) put(query string, asked needs) {
	if c.count.Load() >= maxCachedNeeds {
		return
	}
	if _, loaded := c.byQuery.LoadOrStore(query, asked); !loaded {
		c.count.Add(1)
	}
}

// needsInQuery rejects parameters that the gateway would not send: some gateways forward
// the query of the checked request, and its sender could then choose the requirements
// for its own token.
func (s *Server) needsInQuery(values url.Values) (asked needs, err error) {
	for name, list := range values {
		if name != "audience" && name != "scope" && name != "issuer" && name != "upstream" && name != resourceParameter {
			return asked, misconfigured("its query has a parameter other than audience, scope, issuer, upstream and resource: does the gateway forward the query of the original request?")
		}
		if len(list) > 1 {
			return asked, misconfigured("its query has a parameter more than once: separate values by spaces")
		}
	}
	if asked.resource, err = s.resource(values[resourceParameter]); err != nil {
		return asked, err
	}
	if values.Has("upstream") {
		if asked.upstream = s.cfg.Judge.Upstream(values.Get("upstream")); asked.upstream == nil {
			return asked, misconfigured("its query names an upstream entry that gateways.upstream does not have")
		}
		if asked.upstream.Unverified {
			if len(values) > 1 {
				return asked, misconfigured("its query has requirements for a token, and the upstream entry does not verify requests (verify: none): remove one of them")
			}
			return asked, nil
		}
	}
	asked.Request, err = needsOf(values.Get("audience"), values.Get("scope"), values.Get("issuer"))
	return asked, err
}

// needsInHeaders always requires the audience: if the gateway does not replace it, the
// sender of a request could choose the audience of its own token. If opaque tokens of
// several issuers are configured, it requires the issuer as well: else the sender could
// choose the issuer that checks its token. The scope can only make the check stricter, and
// the resource only changes the challenge for the sender itself.
func (s *Server) needsInHeaders(header http.Header) (asked needs, err error) {
	if strings.TrimSpace(header.Get(audienceHeader)) == "" {
		return asked, misconfigured("the header " + audienceHeader + " is missing: the gateway must set it on every request")
	}
	if s.cfg.Broker.Introspecting() > 1 && header.Get(issuerHeader) == "" {
		return asked, misconfigured("the header " + issuerHeader + " is missing: several issuers have introspection, so the gateway must set it on every request")
	}
	for _, name := range []string{audienceHeader, scopeHeader, issuerHeader, resourceHeader} {
		if len(header[name]) > 1 {
			return asked, misconfigured("the header " + name + " occurs more than once: the gateway must replace the request's own header, and separate values by spaces")
		}
	}
	if asked.resource, err = s.resource(header[resourceHeader]); err != nil {
		return asked, err
	}
	asked.Request, err = needsOf(header.Get(audienceHeader), header.Get(scopeHeader), header.Get(issuerHeader))
	return asked, err
}

func needsOf(audience, scope, issuer string) (verify.Request, error) {
	requirements := verify.Request{Audience: strings.Fields(audience), Scopes: strings.Fields(scope), Issuer: issuer}
	if len(requirements.Audience) == 0 && len(requirements.Scopes) == 0 && issuer == "" {
		return requirements, misconfigured("its query must have audience, scope or issuer, so that the token is not accepted for everything")
	}
	if err := server.CheckVerifyRequest(requirements); err != nil {
		return requirements, err
	}
	return requirements, nil
}

func misconfigured(why string) error {
	return &apierror.Error{
		Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest,
		Message: fmt.Sprintf("refused a request of a gateway at %s: %s", verifyPath, why),
	}
}
