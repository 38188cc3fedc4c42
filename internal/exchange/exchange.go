package exchange

import (
	"context"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// Get returns a token on behalf of subject if the caller may have it. The error is always
// an [*apierror.Error].
//
// The order matters. The subject token is verified before the grants of the caller are
// applied, because they depend on its claims; but only if the caller has a grant for the
// client, so that others cannot make the broker introspect tokens. Each call verifies the
// token and applies the grants, also if the result is cached.
func Get(ctx context.Context, b *broker.Broker, caller *policy.Caller, ask broker.Ask, subject idp.Subject) (broker.Answer, error) {
	answer, err := get(ctx, b, caller, ask, subject)
	if err != nil {
		return broker.Answer{}, err
	}
	return answer, nil
}

func get(ctx context.Context, b *broker.Broker, caller *policy.Caller, ask broker.Ask, subject idp.Subject) (broker.Answer, *apierror.Error) {
	requested := idp.Request{Audience: ask.Audience, Resources: ask.Resources, Scopes: ask.Scopes}
	at, defaults := b.Exchanging(ask.Client)
	if at == nil || !caller.HasExchange(ask.Client) {
		return broker.Answer{}, b.DenyToken(ctx, caller, ask.Client, requested)
	}
	j := judge{b, caller, ask.Client, at, subject}
	facts, err := j.verify(ctx)
	if err != nil {
		return broker.Answer{}, err
	}
	full := requested.WithDefaults(defaults)
	target := policy.Request{Client: ask.Client, Audience: full.Audience, Resources: full.Resources, Scopes: full.Scopes, Narrow: len(ask.Scopes) == 0}
	from := policy.Subject{Issuer: facts.Issuer, Audiences: facts.Audience, Scopes: facts.Scopes}
	scopes, may := caller.ResolveExchange(target, from)
	if !may {
		return broker.Answer{}, b.DenyTarget(ctx, caller, ask.Client, requested, full)
	}
	full.Scopes, target.Scopes, target.Narrow = scopes, scopes, false
	return b.GetOnBehalf(ctx, caller, ask, full, broker.Behalf{
		Subject: subject, Facts: facts,
		Actors:     func() []string { return actors(facts.Claims) },
		Judge:      j.again,
		MayReceive: func(granted []string) bool { return caller.MayReceiveExchanged(target, from, granted) },
	})
}

// judge verifies one subject token for a caller.
type judge struct {
	broker  *broker.Broker
	caller  *policy.Caller
	client  string
	at      *idp.Client // exchanges the subject token
	subject idp.Subject
}

// verify returns the facts of the subject token.
func (j *judge) verify(ctx context.Context) (*verify.Facts, *apierror.Error) {
	if !j.at.Accepts(j.subject.Type) {
		return nil, refused("subject.token_type", "not_accepted", fmt.Sprintf("The client exchanges no tokens of the type %s: send a token of another type, or add the type to the client's exchange.subject_types.", j.subject.Type))
	}
	result, err := j.broker.VerifySubject(ctx, j.caller, j.subject.Token, j.requirements())
	switch {
	case err != nil:
		return nil, err
	case result.Rejection != nil:
		return nil, refused("subject.token", result.Rejection.Reason.String(), result.Rejection.Message)
	case result.Facts.Confirmation != nil:
		return nil, refused("subject.token", "bound", "The token is bound to a key (cnf) of its holder, and the broker cannot prove to hold the key: send a bearer token.")
	case !time.Now().Before(result.Facts.ExpiresAt):
		// The verification allows a leeway. A new token for an old one needs none.
		return nil, refused("subject.token", verify.Expired.String(), "The token has expired.")
	}
	return result.Facts, nil
}

// requirements are those that any of the caller's grants has of subject tokens.
func (j *judge) requirements() verify.Request {
	from := j.caller.SubjectTokens(j.client)
	ask := verify.Request{Audience: from.Audiences, Issuers: from.Issuers, RealAudience: true}
	if len(from.Issuers) == 1 {
		for issuer := range from.Issuers {
			ask.OpaqueIssuer = issuer
		}
	}
	if j.subject.Type == idp.TypeIDToken {
		ask.IDTokenOf = j.at.ID()
	}
	return ask
}

func (j *judge) again(ctx context.Context) *apierror.Error {
	_, err := j.verify(ctx)
	return err
}

// refused is the error for a subject token that the broker does not accept. rejection is
// the reason for programs.
func refused(field, rejection, message string) *apierror.Error {
	return &apierror.Error{
		Code: apierror.InvalidArgument, Reason: apierror.ReasonSubjectRefused, Field: field,
		Metadata: map[string]string{"rejection": rejection}, Message: "the subject token is refused: " + message,
	}
}
