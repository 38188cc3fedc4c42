package gateway

import (
	"context"
	"encoding/base64"
	"errors"
	"net/http"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/exchange"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Authorization is the header of the token that a gateway received, and the default header
// of an upstream token.
const Authorization = "Authorization"

// Upstream describes the token that a gateway sends to the service behind it, in place of
// the token that it received. Only the configuration of the broker names the client, the
// audience and the scopes: a gateway could pass on what a request names.
type Upstream struct {
	// Name identifies the entry in the configuration.
	Name string
	// Client is the client that the token is for. Audience and Scopes default to its own.
	Client, Audience string
	Scopes           []string
	// OnBehalfOf exchanges the token of the request for a token of its subject. Otherwise the
	// token is the client's own.
	OnBehalfOf bool
	// Header is the header of the token, in canonical form.
	Header string
	// KeepInbound lets the service have the token of the request as well.
	KeepInbound bool
	// Unverified requests need no token of their own. Only gateways that may not have tokens
	// verified may use the entry: a gateway that receives requests from outside would attach
	// the token to anyone's request.
	Unverified bool
}

// Removed reports whether the gateway must remove the Authorization header of a request. If
// the token takes its place, the gateway must replace it instead: Envoy removes headers
// after it has set others.
func (u *Upstream) Removed() bool { return !u.KeepInbound && u.Header != Authorization }

// Upstream returns the entry of a name, or nil.
func (j *Judge) Upstream(name string) *Upstream { return j.upstreams[name] }

// unverified decides about a request that needs no token.
func (j *Judge) unverified(ctx context.Context, gateway *policy.Caller, u *Upstream) Decision {
	if _, verifies := gateway.MayVerify(); verifies {
		denied := *j.broker.DenyToken(ctx, gateway, u.Client, idp.Request{Audience: u.Audience, Scopes: u.Scopes})
		denied.Message = "the upstream entry \"" + u.Name + "\" does not verify requests (verify: none), and caller \"" + gateway.Name() +
			"\" has verify grants: give the gateway of outgoing requests a caller of its own, without verify grants"
		return Undecided(&denied)
	}
	return j.withToken(ctx, gateway, u, redact.String{}, Decision{Status: http.StatusOK})
}

// withToken adds the upstream token to a decision that permits a request.
func (j *Judge) withToken(ctx context.Context, gateway *policy.Caller, u *Upstream, presented redact.String, d Decision) Decision {
	answer, err := j.obtain(ctx, gateway, u, presented)
	if err != nil {
		return j.withoutToken(gateway, u, d.Result.Facts, err)
	}
	value := answer.Token.Value.Reveal()
	if !isToken68(value) { // its type is Bearer: package idp accepts no other
		return Undecided(&apierror.Error{
			Code: apierror.FailedPrecondition, Reason: apierror.ReasonIdPMisconfigured, Metadata: map[string]string{"client": u.Client},
			Message: "the IdP's token of client \"" + u.Client + "\" cannot be sent in a header, because it has characters other than letters, digits and -._~+/=: have the IdP issue tokens without them",
		})
	}
	d.Upstream, d.UpstreamValue = u, redact.New("Bearer "+value)
	return d
}

// obtain gets the token as the gateway would in a call of its own: the same grants apply.
func (j *Judge) obtain(ctx context.Context, gateway *policy.Caller, u *Upstream, presented redact.String) (broker.Answer, error) {
	ask := broker.Ask{Client: u.Client, Audience: u.Audience, Scopes: u.Scopes}
	if u.OnBehalfOf {
		return exchange.Get(ctx, j.broker, gateway, ask, idp.Subject{Token: presented, Type: idp.TypeAccessToken})
	}
	return j.broker.Get(ctx, gateway, ask)
}

// withoutToken is the one table from the errors of an upstream token to decisions. Those
// that concern the requester's token are 401 and 403; all others are 503. None forwards the
// request.
func (j *Judge) withoutToken(gateway *policy.Caller, u *Upstream, facts *verify.Facts, err error) Decision {
	failure, ok := errors.AsType[*apierror.Error](err)
	if !ok || !u.OnBehalfOf {
		return Undecided(err)
	}
	denial := j.deny(http.StatusForbidden, "", "The access token does not give access to the service behind the gateway")
	switch failure.Reason {
	case apierror.ReasonSubjectRefused:
		switch failure.Metadata["rejection"] {
		case verify.Expired.String():
			denial = j.deny(http.StatusUnauthorized, InvalidToken, "The access token expired")
		case verify.Revoked.String(), verify.Inactive.String():
			denial = j.deny(http.StatusUnauthorized, InvalidToken, "The access token is not valid")
		}
	case apierror.ReasonNotEntitled:
		from := policy.Subject{Issuer: facts.Issuer, Audiences: facts.Audience, Scopes: facts.Scopes}
		if !gateway.HasExchange(u.Client) || gateway.AdmitsSubject(u.Client, from) {
			return Undecided(err) // no token would help
		}
	case apierror.ReasonInteraction:
		denial = j.interaction(failure.Metadata["claims"])
	case apierror.ReasonRequestRefused:
		if !idp.RefusesSubject(failure.Metadata["oauth_error"]) {
			return Undecided(err)
		}
	default:
		return Undecided(err)
	}
	denial.Err = err
	return *denial
}

// interaction denies a request whose user must authenticate again. Clients of Entra ID send
// the claims of the challenge to the IdP; without claims it is the challenge of RFC 9470.
func (j *Judge) interaction(claims string) *Decision {
	const description = "The identity provider requires the user to authenticate again"
	if claims == "" {
		return j.deny(http.StatusUnauthorized, InsufficientAuthentication, description)
	}
	denial := j.deny(http.StatusUnauthorized, InsufficientClaims, description)
	denial.Challenge += `, claims="` + base64.StdEncoding.EncodeToString([]byte(claims)) + `"`
	return denial
}

// isToken68 reports whether a text has the form of credentials in a header (RFC 9110
// section 11.2).
func isToken68(text string) bool {
	end := len(text)
	for end > 0 && text[end-1] == '=' {
		end--
	}
	for i := range end {
		c := text[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '.', c == '_', c == '~', c == '+', c == '/':
		default:
			return false
		}
	}
	return end > 0
}
