// Package extauthz implements Envoy's external authorization API, the gRPC service
// envoy.service.auth.v3.Authorization.
//
// Envoy replaces or removes the headers that a response names. Every response that
// permits a request therefore names all identity headers.
package extauthz

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Method is the full name of the service's only method.
const Method = authv3.Authorization_Check_FullMethodName

// Config configures the service.
type Config struct {
	// Judge decides about requests. Required.
	Judge *gateway.Judge
	// Rules are the requirements on tokens. The first rule that matches a request
	// counts, and a request that matches none is denied. Without rules, a token must
	// have one of its issuer's configured audiences.
	Rules []gateway.Rule
	// Resources are the protected resources, whose metadata the service serves at their own
	// hosts. Nil: none.
	Resources *gateway.Resources
	// Undecided is the kind of response if no decision is possible.
	Undecided gateway.UndecidedAs
	// Claims are the names of claims in Envoy's dynamic metadata, in addition to the
	// standard ones.
	Claims []string
}

// Register registers the service at a server before the server starts.
func Register(registrar grpc.ServiceRegistrar, cfg Config) {
	cfg.Rules = gateway.PrepareRules(cfg.Rules)
	s := &service{cfg: cfg}
	for _, name := range cfg.Judge.Names() {
		s.names = append(s.names, strings.ToLower(name)) // HTTP/2 uses lower case
	}
	authv3.RegisterAuthorizationServer(registrar, s)
}

type service struct {
	authv3.UnimplementedAuthorizationServer

	cfg   Config
	names []string // of the identity headers, in lower case
}

// Context extensions with which the configuration of a route sets the requirements on
// tokens. A request with any of them does not use the rules.
const (
	audienceExtension = "audience"
	scopeExtension    = "scope"
	issuerExtension   = "issuer"
	// upstreamExtension is refused: a route that relies on it would forward the token of the
	// request.
	upstreamExtension = "upstream"
)

// resourceExtension is the context extension with which the configuration of a route
// names its protected resource. It sets no requirement, and takes precedence over a rule.
const resourceExtension = "resource"

const authorizationKey = "authorization"

// Check implements the service.
func (s *service) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	httpRequest := req.GetAttributes().GetRequest().GetHttp()
	if httpRequest == nil {
		return nil, server.StatusOf(misconfigured("it contains no HTTP request: the filter must be envoy.filters.http.ext_authz"))
	}
	if metadata := s.metadata(httpRequest); metadata != nil {
		return metadata, nil
	}
	request, ok, err := s.needs(req.GetAttributes().GetContextExtensions(), httpRequest)
	switch {
	case err != nil:
		return s.undecided(gateway.Undecided(err))
	case !ok:
		return denied(s.cfg.Judge.Forbid("No rule of the token broker covers this request, or its host or path can be read in more than one way"), httpRequest), nil
	}
	request.Needs.OpaqueIssuer = caller.OpaqueIssuer(ctx)
	request.Query, request.Authorization = tokenInQuery(httpRequest.GetPath()), authorization(httpRequest)
	decision := s.cfg.Judge.Decide(ctx, server.CallerOf(ctx), request)
	switch decision.Status {
	case http.StatusOK:
		return s.permitted(&decision, httpRequest), nil
	case http.StatusServiceUnavailable:
		return s.undecided(decision)
	default:
		return denied(decision, httpRequest), nil
	}
}

// metadata returns the response to a request for the metadata of a protected resource, or
// nil. A response that is formally a denial is the only one that the service can write
// itself. A request for metadata carries no token and is never forwarded.
func (s *service) metadata(httpRequest *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	if httpRequest.GetMethod() != http.MethodGet && httpRequest.GetMethod() != http.MethodHead {
		return nil
	}
	resource := s.cfg.Resources.AtHost(httpRequest.GetHost(), httpRequest.GetPath())
	if resource == nil {
		return nil
	}
	return &authv3.CheckResponse{
		Status: &statuspb.Status{Code: int32(codes.PermissionDenied)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status: &typev3.HttpStatus{Code: typev3.StatusCode_OK},
			Headers: []*corev3.HeaderValueOption{
				overwrite("content-type", "application/json"), overwrite("cache-control", gateway.ResourceCacheControl), overwrite("access-control-allow-origin", "*"),
			},
			Body: string(resource.Document),
		}},
	}
}

// needs returns the requirements on the token of a request, its protected resource, and the
// upstream token. ok is false if no rule matches.
func (s *service) needs(extensions map[string]string, httpRequest *authv3.AttributeContext_HttpRequest) (request gateway.Request, ok bool, err error) {
	if _, ok := extensions[upstreamExtension]; ok {
		return request, false, misconfigured("the context extension upstream does not exist: name the upstream entry in a rule of the broker")
	}
	if name, given := extensions[resourceExtension]; given {
		if request.Resource = s.cfg.Resources.Named(name); request.Resource == nil {
			return request, false, misconfigured("the context extension resource names no entry of gateways.resources")
		}
	}
	needs := verify.Request{
		Audience: strings.Fields(extensions[audienceExtension]), Scopes: strings.Fields(extensions[scopeExtension]), Issuer: extensions[issuerExtension],
	}
	if len(needs.Audience) > 0 || len(needs.Scopes) > 0 || needs.Issuer != "" {
		if err := server.CheckVerifyRequest(needs); err != nil {
			return request, false, err
		}
		request.Needs = needs
		return request, true, nil
	}
	if len(s.cfg.Rules) == 0 {
		return request, true, nil
	}
	rule := gateway.MatchRule(s.cfg.Rules, httpRequest.GetHost(), httpRequest.GetPath())
	if rule == nil {
		return request, false, nil
	}
	if rule.Upstream != "" {
		if request.Upstream = s.cfg.Judge.Upstream(rule.Upstream); request.Upstream == nil {
			return request, false, misconfigured("its rule names an upstream entry that does not exist")
		}
	}
	if request.Resource == nil {
		request.Resource = rule.Resource
	}
	request.Needs = rule.Needs
	return request, true, nil
}

// authorization returns the values of the Authorization header. Depending on its
// configuration, Envoy sends several values separately, or joined with commas, which no
// token contains.
func authorization(httpRequest *authv3.AttributeContext_HttpRequest) (values []string) {
	for _, header := range httpRequest.GetHeaderMap().GetHeaders() {
		if strings.EqualFold(header.GetKey(), authorizationKey) {
			value := header.GetValue()
			if raw := header.GetRawValue(); len(raw) > 0 {
				value = string(raw)
			}
			values = append(values, value)
		}
	}
	if value, ok := httpRequest.GetHeaders()[authorizationKey]; ok {
		values = append(values, value)
	}
	return values
}

func misconfigured(reason string) error {
	return &apierror.Error{Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Message: "Envoy's request is not valid: " + reason}
}

// undecided returns the configured kind of response.
func (s *service) undecided(d gateway.Decision) (*authv3.CheckResponse, error) {
	if s.cfg.Undecided == gateway.AsError {
		return nil, server.StatusOf(d.Err)
	}
	unavailable := &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		Headers: []*corev3.HeaderValueOption{
			overwrite("content-type", "application/json"), overwrite("cache-control", "no-store"),
			overwrite("retry-after", gateway.Seconds(d.RetryAfter)),
		},
		Body: string(d.JSON()),
	}
	resp := &authv3.CheckResponse{Status: &statuspb.Status{Code: int32(codes.Unavailable)}}
	if s.cfg.Undecided == gateway.AsErrorResponse {
		resp.HttpResponse = &authv3.CheckResponse_ErrorResponse{ErrorResponse: unavailable}
	} else {
		resp.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: unavailable}
	}
	return resp, nil
}

func denied(d gateway.Decision, httpRequest *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	code, status := codes.Unauthenticated, typev3.StatusCode_Unauthorized
	if d.Status == http.StatusForbidden {
		code, status = codes.PermissionDenied, typev3.StatusCode_Forbidden
	}
	contentType, body := "application/json", string(d.JSON())
	if !gateway.WantsJSON(httpRequest.GetHeaders()["accept"]) {
		contentType, body = "text/plain; charset=utf-8", d.Description+"\n"
	}
	return &authv3.CheckResponse{
		Status: &statuspb.Status{Code: int32(code)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: status},
			Headers: []*corev3.HeaderValueOption{overwrite("www-authenticate", d.Challenge), overwrite("content-type", contentType), overwrite("cache-control", "no-store")},
			Body:    body,
		}},
	}
}

// permission is a response that permits a request, with all its parts: every cache hit gets
// here, and some thirty allocations would cost it more than the decision.
type permission struct {
	response authv3.CheckResponse
	status   statuspb.Status
	result   authv3.CheckResponse_OkResponse
	ok       authv3.OkHttpResponse
	headers  [gateway.IdentityHeaders]struct {
		option corev3.HeaderValueOption
		header corev3.HeaderValue
	}
	list [gateway.IdentityHeaders]*corev3.HeaderValueOption

	metadata structpb.Struct
	texts    [maxTexts]struct {
		value structpb.Value
		kind  structpb.Value_StringValue
	}
	expiry     structpb.Value
	expiryKind structpb.Value_NumberValue
}

// maxTexts is the number of texts in the metadata, without configured claims.
const maxTexts = 5

// permitted makes Envoy forward the request with the identity headers of the token, and with
// the upstream token. Envoy removes the requester's own values and other spellings of the
// headers. It removes headers after it has set others, so a header is in one of the lists.
func (s *service) permitted(d *gateway.Decision, httpRequest *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	p := &permission{}
	p.status.Code = int32(codes.OK)
	p.ok.Headers = p.list[:0]
	for i, value := range d.Identity() {
		if value == "" {
			p.ok.HeadersToRemove = append(p.ok.HeadersToRemove, s.names[i])
			continue
		}
		h := &p.headers[i]
		h.header.Key, h.header.Value = s.names[i], value
		h.option.Header, h.option.AppendAction = &h.header, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
		p.ok.Headers = append(p.ok.Headers, &h.option)
	}
	if d.Upstream != nil {
		p.ok.Headers = append(p.ok.Headers, overwrite(strings.ToLower(d.Upstream.Header), d.UpstreamValue.Reveal()))
		if d.Upstream.Removed() {
			p.ok.HeadersToRemove = append(p.ok.HeadersToRemove, authorizationKey)
		}
	}
	p.ok.HeadersToRemove = append(p.ok.HeadersToRemove, s.imitations(httpRequest, d.Upstream)...)
	p.result.OkResponse = &p.ok
	p.response.Status, p.response.HttpResponse = &p.status, &p.result
	if d.Result.Facts != nil {
		s.setMetadata(p, d.Result.Facts)
		p.response.DynamicMetadata = &p.metadata
	}
	return &p.response
}

// imitations returns the names of headers that imitate identity headers, or that of the
// upstream token.
func (s *service) imitations(httpRequest *authv3.AttributeContext_HttpRequest, upstream *gateway.Upstream) (names []string) {
	for name := range httpRequest.GetHeaders() {
		if s.cfg.Judge.Imitates(name, upstream) {
			names = append(names, name)
		}
	}
	for _, header := range httpRequest.GetHeaderMap().GetHeaders() {
		if s.cfg.Judge.Imitates(header.GetKey(), upstream) {
			names = append(names, header.GetKey())
		}
	}
	return names
}

// overwrite replaces all headers with a name.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// setMetadata sets the dynamic metadata, which Envoy's access log and other filters find
// under the name of the filter.
func (s *service) setMetadata(p *permission, f *verify.Facts) {
	fields := make(map[string]*structpb.Value, maxTexts+1+len(s.cfg.Claims))
	set := func(i int, name, text string) {
		t := &p.texts[i]
		t.kind.StringValue = text
		t.value.Kind = &t.kind
		fields[name] = &t.value
	}
	set(0, "iss", f.Issuer)
	set(1, "subject_type", f.SubjectType.String())
	set(2, "scope", strings.Join(f.Scopes, " "))
	if f.SubjectType == verify.SubjectSub { // a client may have the name of a user
		set(3, "sub", f.Subject)
	}
	if f.ClientID != "" {
		set(4, "client_id", f.ClientID)
	}
	p.expiryKind.NumberValue = float64(f.ExpiresAt.Unix())
	p.expiry.Kind = &p.expiryKind
	fields["exp"] = &p.expiry
	if len(s.cfg.Claims) > 0 {
		all := &structpb.Struct{}
		if err := all.UnmarshalJSON(f.Claims); err == nil {
			for _, name := range s.cfg.Claims {
				if value, ok := all.GetFields()[name]; ok {
					fields[name] = value
				}
			}
		}
	}
	p.metadata.Fields = fields
}

// tokenInQuery reports whether the query of a target contains an access token.
func tokenInQuery(target string) bool {
	_, raw, hasQuery := strings.Cut(target, "?")
	if !hasQuery || !strings.Contains(raw, "access_token") && !strings.Contains(raw, "%") {
		return false
	}
	values, _ := url.ParseQuery(raw) // returns the well-formed parameters
	return values.Has("access_token")
}
