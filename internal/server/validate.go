package server

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/exchange"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
	"github.com/cezzis/tokenbroker/internal/rotation"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Bounds of requests, as the proto files state them.
const (
	maxClientName = 128
	maxValue      = 512 // an audience, a resource, an issuer
	maxResources  = 8
	maxAudiences  = 16
	maxScopes     = 64
	maxScope      = 256
	maxMinTTL     = 24 * time.Hour
	sha256Size    = 32
	maxRequestID  = 64
	maxReason     = 256
	maxPage       = 1000
	defaultPage   = 100
	maxID         = 64
	maxSecret     = 16 << 10
	maxVersion    = 64
)

func invalid(field, format string, args ...any) *apierror.Error {
	return &apierror.Error{
		Code:    apierror.InvalidArgument,
		Reason:  apierror.ReasonInvalidRequest,
		Field:   field,
		Message: field + ": " + fmt.Sprintf(format, args...),
	}
}

// getRequestOf checks a request for a token and converts it. Unknown fields are
// refused: a caller that sends one relies on a feature that this broker does not have.
func getRequestOf(req *tokenbrokerv1.GetTokenRequest) (broker.Ask, *apierror.Error) {
	request, err := tokenRequestOf(req)
	if err != nil {
		return request, err
	}
	if minTTL := req.GetMinTtl(); minTTL != nil {
		request.MinTTL = minTTL.AsDuration()
		if minTTL.CheckValid() != nil || request.MinTTL < 0 || request.MinTTL > maxMinTTL {
			return request, invalid("min_ttl", "want a duration of 0 to %v", maxMinTTL)
		}
	}
	switch rejected := req.GetRejectedTokenSha256(); len(rejected) {
	case 0:
	case sha256Size:
		request.Rejected = (*[sha256Size]byte)(rejected)
	default:
		return request, invalid("rejected_token_sha256", "want the %d bytes of a SHA-256, got %d", sha256Size, len(rejected))
	}
	return request, nil
}

// SubjectOf checks the subject of a request for a token and converts it. tokenType may be
// empty. The errors repeat no part of the token.
func SubjectOf(token, tokenType string) (idp.Subject, *apierror.Error) {
	if token == "" {
		return idp.Subject{}, invalid("subject.token", "it is required: the token of the user or service on whose behalf the caller requests a token")
	}
	if strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return idp.Subject{}, invalid("subject.token", "want the token alone, without \"Bearer \", spaces and line breaks")
	}
	kind, err := exchange.SubjectType(tokenType)
	if err != nil {
		return idp.Subject{}, invalid("subject.token_type", "it %v", err)
	}
	return idp.Subject{Token: redact.New(token), Type: kind}, nil
}

// checkWatch refuses a watch with a subject: it would keep the token of a user for as
// long as the watch lasts.
func checkWatch(req *tokenbrokerv1.WatchTokenRequest) *apierror.Error {
	if req.GetSubject() == nil {
		return nil
	}
	return invalid("subject", "a watch cannot have a subject, because it would keep a user's token for as long as it lasts: call GetToken with the subject for each request of the user")
}

// tokenRequest is the common part of requests for a token.
type tokenRequest interface {
	proto.Message
	GetClientName() string
	GetAudience() string
	GetResources() []string
	GetScopes() []string
	GetSubject() *tokenbrokerv1.Subject
}

func tokenRequestOf(req tokenRequest) (broker.Ask, *apierror.Error) {
	request := broker.Ask{
		Client:    req.GetClientName(),
		Audience:  req.GetAudience(),
		Resources: req.GetResources(),
		Scopes:    req.GetScopes(),
	}
	if subject := req.GetSubject(); subject != nil {
		return request, firstOf(checkUnknown(req), checkUnknown(subject), CheckTokenRequest(request))
	}
	return request, firstOf(checkUnknown(req), CheckTokenRequest(request))
}

// CheckTokenRequest checks a token request against the bounds that the API states.
func CheckTokenRequest(request broker.Ask) *apierror.Error {
	return firstOf(
		checkClientName(request.Client),
		checkValue("audience", request.Audience),
		checkEach("resources", request.Resources, maxResources, checkResource),
		checkEach("scopes", request.Scopes, maxScopes, checkScope),
	)
}

// CheckVerifyRequest checks the requirements on a presented token against the bounds that the
// API states.
func CheckVerifyRequest(req verify.Request) *apierror.Error {
	return firstOf(
		checkEach("audiences", req.Audience, maxAudiences, checkResource),
		checkEach("required_scopes", req.Scopes, maxScopes, checkScope),
		checkValue("issuer", req.Issuer),
	)
}

func checkUnknown(req proto.Message) *apierror.Error {
	unknown := req.ProtoReflect().GetUnknown()
	if len(unknown) == 0 {
		return nil
	}
	number, _, _ := protowire.ConsumeTag(unknown)
	return invalid("request", "this broker does not know field %d of %s: upgrade the broker, or leave the field out", number, req.ProtoReflect().Descriptor().Name())
}

// secretChange is the common part of requests to change a secret.
type secretChange interface {
	proto.Message
	GetClientName() string
	GetRequestId() string
	GetReason() string
}

// changeOf checks a request to change a secret and converts it.
func changeOf(req secretChange) (rotation.Change, *apierror.Error) {
	change := rotation.Change{Client: req.GetClientName(), Request: req.GetRequestId(), Reason: req.GetReason()}
	err := firstOf(
		checkUnknown(req),
		checkClientName(change.Client),
		checkRequestID(change.Request),
		checkReason("reason", change.Reason),
	)
	if expecting, ok := req.(interface{ GetExpectedCurrentVersion() string }); ok && err == nil {
		change.Expected = expecting.GetExpectedCurrentVersion()
		err = checkVersion("expected_current_version", change.Expected)
	}
	return change, err
}

func checkVersion(field, version string) *apierror.Error {
	if len(version) > maxVersion {
		return invalid(field, "want a version that GetClient returned")
	}
	return checkValue(field, version)
}

// rotationOf checks a new secret. Its errors repeat no part of the secret.
func rotationOf(req *tokenbrokerv1.RotateSecretRequest) (rotation.NewSecret, *apierror.Error) {
	change, err := changeOf(req)
	size := len(req.GetSecret())
	switch {
	case err != nil:
	case size == 0 || size > maxSecret:
		err = invalid("secret", "want 1 to %d bytes, got %d", maxSecret, size)
	case req.GetStageOnly() && req.GetCompromised():
		err = invalid("compromised", "it cannot be combined with stage_only: the old secret is wiped when the new one becomes current")
	}
	return rotation.NewSecret{
		Change: change, Secret: redact.New(string(req.GetSecret())),
		StageOnly: req.GetStageOnly(), Compromised: req.GetCompromised(),
	}, err
}

func checkClientPage(req *tokenbrokerv1.ListClientsRequest) *apierror.Error {
	if err := checkUnknown(req); err != nil {
		return err
	}
	if size := req.GetPageSize(); size < 0 || size > maxPage {
		return invalid("page_size", "want 0 to %d", maxPage)
	}
	if len(req.GetPageToken()) > maxClientName {
		return invalid("page_token", "want the next_page_token of the previous page")
	}
	return nil
}

func checkPurge(req *tokenbrokerv1.PurgeTokensRequest) *apierror.Error {
	return firstOf(
		checkUnknown(req),
		checkClientName(req.GetClientName()),
		checkRequestID(req.GetRequestId()),
		checkReason("reason", req.GetReason()),
	)
}

func checkRequestID(id string) *apierror.Error {
	if id == "" || len(id) > maxRequestID {
		return invalid("request_id", "want 1 to %d characters that identify this call, so that it can be repeated", maxRequestID)
	}
	return nil
}

func checkReason(field, reason string) *apierror.Error {
	if len(reason) > maxReason {
		return invalid(field, "want at most %d bytes, got %d", maxReason, len(reason))
	}
	return nil
}

// revocationOf checks the form of a request; the broker checks its meaning.
func revocationOf(req *tokenbrokerv1.RevokeTokensRequest) (revocation.Revocation, *apierror.Error) {
	m := req.GetRevocation()
	r := revocation.Revocation{
		Issuer: m.GetIssuer(), TokenID: m.GetTokenId(), Subject: m.GetSubject(),
		ClientID: m.GetClientId(), All: m.GetAll(), Reason: m.GetReason(),
	}
	err := firstOf(
		checkUnknown(req),
		checkUnknown(m),
		checkRequestID(req.GetRequestId()),
		checkValue("revocation.issuer", r.Issuer),
		checkValue("revocation.token_id", r.TokenID),
		checkValue("revocation.subject", r.Subject),
		checkValue("revocation.client_id", r.ClientID),
		checkReason("revocation.reason", r.Reason),
		instant("revocation.issued_before", m.GetIssuedBefore(), &r.IssuedBefore),
		instant("revocation.expires_at", m.GetExpiresAt(), &r.ExpiresAt),
	)
	return r, err
}

// instant converts a timestamp that may be unset.
func instant(field string, from *timestamppb.Timestamp, to *time.Time) *apierror.Error {
	if from == nil {
		return nil
	}
	if err := from.CheckValid(); err != nil {
		return invalid(field, "not a valid timestamp")
	}
	*to = from.AsTime()
	return nil
}

func checkList(req *tokenbrokerv1.ListRevocationsRequest) *apierror.Error {
	if err := checkUnknown(req); err != nil {
		return err
	}
	if size := req.GetPageSize(); size < 0 || size > maxPage {
		return invalid("page_size", "want 0 to %d", maxPage)
	}
	return checkValue("issuer", req.GetIssuer())
}

func checkDelete(req *tokenbrokerv1.DeleteRevocationRequest) *apierror.Error {
	if err := checkUnknown(req); err != nil {
		return err
	}
	if id := req.GetId(); id == "" || len(id) > maxID {
		return invalid("id", "it is required: the id that RevokeTokens or ListRevocations returned")
	}
	return firstOf(checkRequestID(req.GetRequestId()), checkReason("reason", req.GetReason()))
}

// verifyRequestOf checks a request and converts it to the requirements on the token.
func verifyRequestOf(req *tokenbrokerv1.VerifyTokenRequest) (verify.Request, *apierror.Error) {
	request := verify.Request{Audience: req.GetAudiences(), Scopes: req.GetRequiredScopes(), Issuer: req.GetIssuer()}
	if err := checkUnknown(req); err != nil {
		return request, err
	}
	if req.GetToken() == "" {
		return request, invalid("token", "it is required")
	}
	return request, CheckVerifyRequest(request)
}

func firstOf(errs ...*apierror.Error) *apierror.Error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkClientName(name string) *apierror.Error {
	if name == "" {
		return invalid("client_name", "it is required: the name of a client in the broker's configuration")
	}
	if len(name) > maxClientName {
		return invalid("client_name", "want at most %d characters, got %d", maxClientName, len(name))
	}
	for _, c := range []byte(name) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && c != '.' && c != '_' && c != '-' {
			return invalid("client_name", "want only letters, digits, '.', '_' and '-'")
		}
	}
	return nil
}

func checkValue(field, value string) *apierror.Error {
	if len(value) > maxValue {
		return invalid(field, "want at most %d bytes, got %d", maxValue, len(value))
	}
	for _, c := range value {
		if c < ' ' || c == 0x7f || c == utf8.RuneError {
			return invalid(field, "it contains a control character")
		}
	}
	return nil
}

func checkEach(field string, values []string, most int, check func(field, value string) *apierror.Error) *apierror.Error {
	if len(values) > most {
		return invalid(field, "want at most %d, got %d", most, len(values))
	}
	for _, value := range values {
		if err := check(field, value); err != nil {
			return err
		}
	}
	return nil
}

func checkResource(field, value string) *apierror.Error {
	if value == "" {
		return invalid(field, "one of them is empty")
	}
	return checkValue(field, value)
}

// checkScope checks a scope against scope-token of RFC 6749 section 3.3.
func checkScope(field, scope string) *apierror.Error {
	if scope == "" {
		return invalid(field, "one of them is empty")
	}
	if len(scope) > maxScope {
		return invalid(field, "want at most %d bytes each, got %d", maxScope, len(scope))
	}
	for _, c := range []byte(scope) {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return invalid(field, "one of them contains a character that is not allowed in a scope; send each scope as a value of its own, not one text with spaces")
		}
	}
	return nil
}
