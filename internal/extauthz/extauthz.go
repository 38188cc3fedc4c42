// Package extauthz is the API of the broker for Envoy and what is built on it: the
// service envoy.service.auth.v3.Authorization. It turns what Envoy says of a request
// into a question, and the answer into what Envoy is to do with the request.
//
// Envoy undertakes to set the headers that it is told to, in place of those that the
// request came with: so each answer that lets a request pass names every identity
// header.
package extauthz

import (
	"context"
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/server"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Method is the name of its one method.
const Method = authv3.Authorization_Check_FullMethodName

// Undecided is what Envoy is told where nothing can be decided.
type Undecided int

// What it can be told.
const (
	// AsError: the call fails. Envoy goes by its failure_mode_allow and
	// status_on_error, and counts an error.
	AsError Undecided = iota
	// AsErrorResponse is the same as an answer that Envoy knows from version 1.37 on:
	// with 503 for who makes the request.
	AsErrorResponse
	// AsDenial: the request is denied with 503. Envoy counts a denial.
	AsDenial
)

// Config is what the service is made of.
type Config struct {
	// Judge judges. Required.
	Judge *gateway.Judge
	// Rules say what tokens must be good for; the first that matches a request counts.
	// Empty: a token must be good for its issuer's own audiences. Where there are rules,
	// a request that matches no rule is denied.
	Rules []Rule
	// Undecided is what Envoy is told where nothing can be decided.
	Undecided Undecided
	// Claims are the names of claims that Envoy gets to see in its dynamic metadata,
	// beside those that every token has.
	Claims []string
}

// Register adds the service to a server that does not serve yet.
func Register(to grpc.ServiceRegistrar, cfg Config) {
	cfg.Rules = prepared(cfg.Rules)
	made := &service{cfg: cfg}
	for _, name := range cfg.Judge.Names() {
		made.names = append(made.names, strings.ToLower(name)) // as HTTP/2 has them
	}
	authv3.RegisterAuthorizationServer(to, made)
}

type service struct {
	authv3.UnimplementedAuthorizationServer

	cfg   Config
	names []string // of the identity headers
}

// The context extensions by which a route's configuration says what a token must be
// good for. Where one of them is given, no rule is looked at.
const (
	audienceExtension = "audience"
	scopeExtension    = "scope"
	issuerExtension   = "issuer"
)

// Check implements the service.
func (s *service) Check(ctx context.Context, req *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	about := req.GetAttributes()
	asked := about.GetRequest().GetHttp()
	if asked == nil {
		return nil, server.StatusOf(misconfigured("there is no HTTP request in it: the filter must be envoy.filters.http.ext_authz"))
	}
	needs, found, err := s.needs(about.GetContextExtensions(), asked)
	switch {
	case err != nil:
		return s.undecided(gateway.Undecided(err))
	case !found:
		return denied(s.cfg.Judge.Forbid("No rule of the token broker covers this request, or its host or path can be read in more than one way"), asked), nil
	}
	needs.OpaqueIssuer = server.OpaqueIssuerOf(ctx)
	request := gateway.Request{Needs: needs, Query: tokenInQuery(asked.GetPath())}
	request.Authorization = authorization(asked)
	decision := s.cfg.Judge.Decide(ctx, server.CallerOf(ctx), request)
	switch decision.Status {
	case http.StatusOK:
		return s.passed(&decision, asked), nil
	case http.StatusServiceUnavailable:
		return s.undecided(decision)
	default:
		return denied(decision, asked), nil
	}
}

// needs is what the token of a request must be good for; false: no rule fits.
func (s *service) needs(extensions map[string]string, asked *authv3.AttributeContext_HttpRequest) (needs verify.Request, found bool, err error) {
	needs = verify.Request{
		Audience: strings.Fields(extensions[audienceExtension]), Scopes: strings.Fields(extensions[scopeExtension]), Issuer: extensions[issuerExtension],
	}
	if len(needs.Audience) > 0 || len(needs.Scopes) > 0 || needs.Issuer != "" {
		if invalid := server.CheckRequest(needs); invalid != nil {
			return needs, false, invalid
		}
		return needs, true, nil
	}
	if len(s.cfg.Rules) == 0 {
		return needs, true, nil
	}
	rule := ruleFor(s.cfg.Rules, asked.GetHost(), asked.GetPath())
	if rule == nil {
		return needs, false, nil
	}
	return rule.Needs, true, nil
}

// authorization are the values of that header. Envoy joins several with commas,
// which no token has, or sends them one by one where it is told to.
func authorization(asked *authv3.AttributeContext_HttpRequest) (values []string) {
	for _, header := range asked.GetHeaderMap().GetHeaders() {
		if strings.EqualFold(header.GetKey(), "authorization") {
			value := header.GetValue()
			if raw := header.GetRawValue(); len(raw) > 0 {
				value = string(raw)
			}
			values = append(values, value)
		}
	}
	if value, given := asked.GetHeaders()["authorization"]; given {
		values = append(values, value)
	}
	return values
}

func misconfigured(why string) error {
	return &apierror.Error{Code: apierror.InvalidArgument, Reason: apierror.ReasonInvalidRequest, Message: "what Envoy asks is not to be answered: " + why}
}

// undecided tells Envoy that nothing can be decided.
func (s *service) undecided(d gateway.Decision) (*authv3.CheckResponse, error) {
	if s.cfg.Undecided == AsError {
		return nil, server.StatusOf(d.Err)
	}
	answer := &authv3.DeniedHttpResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		Headers: []*corev3.HeaderValueOption{
			overwrite("content-type", "application/json"), overwrite("cache-control", "no-store"),
			overwrite("retry-after", gateway.Seconds(d.RetryAfter)),
		},
		Body: string(d.JSON()),
	}
	made := &authv3.CheckResponse{Status: &statuspb.Status{Code: int32(codes.Unavailable)}}
	if s.cfg.Undecided == AsErrorResponse {
		made.HttpResponse = &authv3.CheckResponse_ErrorResponse{ErrorResponse: answer}
	} else {
		made.HttpResponse = &authv3.CheckResponse_DeniedResponse{DeniedResponse: answer}
	}
	return made, nil
}

func denied(d gateway.Decision, asked *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	code, status := codes.Unauthenticated, typev3.StatusCode_Unauthorized
	if d.Status == http.StatusForbidden {
		code, status = codes.PermissionDenied, typev3.StatusCode_Forbidden
	}
	kind, body := "application/json", string(d.JSON())
	if !gateway.WantsJSON(asked.GetHeaders()["accept"]) {
		kind, body = "text/plain; charset=utf-8", d.Description+"\n"
	}
	return &authv3.CheckResponse{
		Status: &statuspb.Status{Code: int32(code)},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: status},
			Headers: []*corev3.HeaderValueOption{overwrite("www-authenticate", d.Challenge), overwrite("content-type", kind), overwrite("cache-control", "no-store")},
			Body:    body,
		}},
	}
}

// passed lets a request pass: with the identity headers as the token has them, in
// place of those of the request and without other spellings of them.
func (s *service) passed(d *gateway.Decision, asked *authv3.AttributeContext_HttpRequest) *authv3.CheckResponse {
	ok := &authv3.OkHttpResponse{Headers: make([]*corev3.HeaderValueOption, 0, len(s.names))}
	for i, value := range d.Identity() {
		if value == "" {
			ok.HeadersToRemove = append(ok.HeadersToRemove, s.names[i])
			continue
		}
		ok.Headers = append(ok.Headers, overwrite(s.names[i], value))
	}
	ok.HeadersToRemove = append(ok.HeadersToRemove, s.imitations(asked)...)
	return &authv3.CheckResponse{
		Status:          &statuspb.Status{Code: int32(codes.OK)},
		HttpResponse:    &authv3.CheckResponse_OkResponse{OkResponse: ok},
		DynamicMetadata: s.metadata(d.Result.Facts),
	}
}

// imitations are the names of the headers of a request that imitate identity headers.
func (s *service) imitations(asked *authv3.AttributeContext_HttpRequest) (names []string) {
	for name := range asked.GetHeaders() {
		if s.cfg.Judge.Imitates(name) {
			names = append(names, name)
		}
	}
	for _, header := range asked.GetHeaderMap().GetHeaders() {
		if s.cfg.Judge.Imitates(header.GetKey()) {
			names = append(names, header.GetKey())
		}
	}
	return names
}

// overwrite sets a header in place of all of that name.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// metadata are for other filters and the access log of Envoy, which finds them under
// the name of the filter.
func (s *service) metadata(f *verify.Facts) *structpb.Struct {
	made := map[string]*structpb.Value{
		"iss": structpb.NewStringValue(f.Issuer), "subject_type": structpb.NewStringValue(f.SubjectType.String()),
		"scope": structpb.NewStringValue(strings.Join(f.Scopes, " ")), "exp": structpb.NewNumberValue(float64(f.ExpiresAt.Unix())),
	}
	if f.SubjectType == verify.SubjectSub { // a client may have the name of a user
		made["sub"] = structpb.NewStringValue(f.Subject)
	}
	if f.ClientID != "" {
		made["client_id"] = structpb.NewStringValue(f.ClientID)
	}
	if len(s.cfg.Claims) > 0 {
		all := &structpb.Struct{}
		if err := all.UnmarshalJSON(f.Claims); err == nil {
			for _, name := range s.cfg.Claims {
				if value, given := all.GetFields()[name]; given {
					made[name] = value
				}
			}
		}
	}
	return &structpb.Struct{Fields: made}
}
