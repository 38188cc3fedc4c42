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
)

// Check implements the service.
func (s *service) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	httpRequest := req.GetAttributes().GetRequest().GetHttp()
	if httpRequest == nil {
		return nil, server.StatusOf(misconfigured("it contains no HTTP request: the filter must be envoy.filters.http.ext_authz"))
	}
	needs, ok, err := s.needs(req.GetAttributes().GetContextExtensions(), httpRequest)
	switch {
	case err != nil:
		return s.undecided(gateway.Undecided(err))
	case !ok:
		return denied(s.cfg.Judge.Forbid("No rule of the token broker covers this request, or its host or path can be read in more than one way"), httpRequest), nil
	}
	needs.OpaqueIssuer = caller.OpaqueIssuer(ctx)
	decision := s.cfg.Judge.Decide(ctx, server.CallerOf(ctx), gateway.Request{
		Needs: needs, Query: tokenInQuery(httpRequest.GetPath()), Authorization: authorization(httpRequest),
	})
	switch decision.Status {
	case http.StatusOK:
		return s.permitted(&decision, httpRequest), nil
	case http.StatusServiceUnavailable:
		return s.undecided(decision)
	default:
		return denied(decision, httpRequest), nil
	}
}

// needs returns the requirements on the token of a request. ok is false if no rule
// matches.
func (s *service) needs(extensions map[string]string, httpRequest *authv3.AttributeContext_HttpRequest) (needs verify.Request, ok bool, err error) {
	needs = verify.Request{
		Audience: strings.Fields(extensions[audienceExtension]), Scopes: strings.Fields(extensions[scopeExtension]), Issuer: extensions[issuerExtension],
	}
	if len(needs.Audience) > 0 || len(needs.Scopes) > 0 || needs.Issuer != "" {
		if err := server.CheckVerifyRequest(needs); err != nil {
			return needs, false, err
		}
		return needs, true, nil
	}
	if len(s.cfg.Rules) == 0 {
		return needs, true, nil
	}
	rule := gateway.MatchRule(s.cfg.Rules, httpRequest.GetHost(), httpRequest.GetPath())
	if rule == nil {
		return needs, false, nil
	}
	return rule.Needs, true, nil
}

// authorization returns the values of the Authorization header. Depending on its
// configuration, Envoy sends several values separately, or joined with commas, which no
// token contains.
func authorization(httpRequest *authv3.AttributeContext_HttpRequest) (values []string) {
	for _, header := range httpRequest.GetHeaderMap().GetHeaders() {
		if strings.EqualFold(header.GetKey(), "authorization") {
			value := header.GetValue()
			if raw := header.GetRawValue(); len(raw) > 0 {
				value = string(raw)
			}
			values = append(values, value)
		}
	}
	if value, ok := httpRequest.GetHeaders()["authorization"]; ok {
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

// permitted makes Envoy forward the request with the identity headers of the token. Envoy
// removes the requester's own values and other spellings of the headers.
func (s *service) permitted(d *gateway.Decision, httpRequest *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{Headers: make([]*corev3.HeaderValueOption, 0, len(s.names))}
	for i, value := range d.Identity() {
		if value == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, s.names[i])
			continue
		}
		ok.Headers = append(ok.Headers, overwrite(s.names[i], value))
	}
	ok.HeadersToRemove = append(ok.HeadersToRemove, s.imitations(httpRequest)...)
	return &authv3.CheckResponse{
		Status:          &statuspb.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: s.metadata(d.Result.Facts),
	}
}

// imitations returns the names of headers that imitate identity headers.
func (s *service) imitations(httpRequest *authv3.AttributeContext_HttpRequest) (names []string) {
	for name := range httpRequest.GetHeaders() {
		if s.cfg.Judge.Imitates(name) {
			names = append(names, name)
		}
	}
	for _, header := range httpRequest.GetHeaderMap().GetHeaders() {
		if s.cfg.Judge.Imitates(header.GetKey()) {
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

// metadata returns the dynamic metadata, which Envoy's access log and other filters find
// under the name of the filter.
func (s *service) metadata(f *verify.Facts) *structpb.Struct {
	fields := map[string]*structpb.Value{
		"iss": structpb.NewStringValue(f.Issuer), "subject_type": structpb.NewStringValue(f.SubjectType.String()),
		"scope": structpb.NewStringValue(strings.Join(f.Scopes, " ")), "exp": structpb.NewNumberValue(float64(f.ExpiresAt.Unix())),
	}
	if f.SubjectType == verify.SubjectSub { // a client may have the name of a user
		fields["sub"] = structpb.NewStringValue(f.Subject)
	}
	if f.ClientID != "" {
		fields["client_id"] = structpb.NewStringValue(f.ClientID)
	}
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
	return &structpb.Struct{Fields: fields}
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
