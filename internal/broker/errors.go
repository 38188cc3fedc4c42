package broker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/authz"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
	"github.com/cezzis/tokenbroker/internal/verify"
)

func notEntitled(caller *policy.Caller, ask Ask) *apierror.Error {
	asked := fmt.Sprintf("a token of client %q", ask.Client)
	if ask.Audience != "" {
		asked += fmt.Sprintf(" for audience %q", ask.Audience)
	}
	if len(ask.Resources) > 0 {
		asked += fmt.Sprintf(" for resources %q", ask.Resources)
	}
	if len(ask.Scopes) > 0 {
		asked += fmt.Sprintf(" with scopes %q", ask.Scopes)
	}
	return authz.Denied(caller, asked, map[string]string{"client": ask.Client})
}

// notGranted denies a request of a caller that has other grants for the client, and
// names the defaults that were applied.
func notGranted(caller *policy.Caller, ask Ask, full idp.Request) *apierror.Error {
	asked := ""
	add := func(isDefault bool, format string, value any) {
		asked += fmt.Sprintf(format, value)
		if isDefault {
			asked += " (the client's own)"
		}
	}
	if full.Audience != "" {
		add(ask.Audience == "", " for audience %q", full.Audience)
	}
	if len(full.Resources) > 0 {
		add(len(ask.Resources) == 0, " for resources %q", full.Resources)
	}
	verdict := "no grant of this caller admits all of that"
	if len(full.Scopes) > 0 {
		add(len(ask.Scopes) == 0, " with scopes %q", full.Scopes)
	}
	if len(full.Scopes) > 0 && len(ask.Scopes) == 0 {
		verdict = "no grant of this caller admits that target with any of these scopes"
	}
	return &apierror.Error{
		Code: apierror.PermissionDenied, Reason: apierror.ReasonNotEntitled,
		Metadata: map[string]string{"client": ask.Client, "caller": caller.Name()},
		Message: fmt.Sprintf("caller %q asked for a token of client %q%s: %s; an operator can list its permissions with: broker policy explain FILE %s",
			caller.Name(), ask.Client, asked, verdict, caller.Name()),
	}
}

// grantedTooMuch is the error for granted scopes that exceed the caller's permissions,
// or are unknown because neither the request nor the IdP named them.
func grantedTooMuch(caller *policy.Caller, client string, asked, granted []string) *apierror.Error {
	err := &apierror.Error{
		Code: apierror.PermissionDenied, Reason: apierror.ReasonGrantedTooMuch,
		Metadata: map[string]string{"client": client, "caller": caller.Name()},
		Message: fmt.Sprintf("client %q was asked for the scopes %q and the IdP granted %q, more than caller %q may have: ask for fewer scopes, or have the caller's role name these",
			client, asked, granted, caller.Name()),
	}
	if len(granted) == 0 {
		err.Reason = apierror.ReasonGrantedUnknown
		err.Message = fmt.Sprintf("the IdP does not say which scopes its token of client %q has, no scopes were requested, and the role of caller %q admits certain scopes only: name scopes in the request, or give the client default scopes",
			client, caller.Name())
	}
	return err
}

func forcedTooOften(client string) *apierror.Error {
	return &apierror.Error{
		Code:     apierror.ResourceExhausted,
		Reason:   apierror.ReasonForcedFetchLimited,
		Metadata: map[string]string{"client": client},
		Message:  fmt.Sprintf("client %q: the cached token does not live long enough for min_ttl, and a newer one was fetched less than %v ago; try again later, or with a lower min_ttl", client, ForcedInterval),
	}
}

func tooShort(client string, tok *token.Token) *apierror.Error {
	return &apierror.Error{
		Code:     apierror.FailedPrecondition,
		Reason:   apierror.ReasonMinTTLUnattainable,
		Metadata: map[string]string{"client": client, "lifetime": tok.Lifetime().Round(time.Second).String()},
		Message: fmt.Sprintf("client %q: the IdP issues tokens that live %v, which is too short for min_ttl; ask for less, or have the lifetime raised at the IdP",
			client, tok.Lifetime().Round(time.Second)),
	}
}

// ShuttingDown is the error for callers that this replica can no longer serve.
func ShuttingDown(client string) *apierror.Error {
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonShuttingDown, RetryAfter: time.Second,
		Metadata: map[string]string{"client": client},
		Message:  "this replica is shutting down; call another one",
	}
}

// outOfTime is the error of a flight that ended before its request to the IdP.
func (b *Broker) outOfTime(e *entry) *apierror.Error {
	if b.flying.Err() != nil {
		return ShuttingDown(e.client.name)
	}
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonIdPUnavailable, RetryAfter: time.Second,
		Metadata: map[string]string{"client": e.client.name},
		Message:  fmt.Sprintf("client %q: no token came in time", e.client.name),
	}
}

// crashed logs a panic by its type and stack, because its value may contain anything.
func (b *Broker) crashed(e *entry, cause any) *apierror.Error {
	b.log.Error("a fetch crashed", "client", e.client.name, "type", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
	return apierror.Fault(nil)
}

// notProved is the error of a proof without a result.
func (b *Broker) notProved(ctx context.Context, c *client) *apierror.Error {
	switch {
	case b.flying.Err() != nil:
		return ShuttingDown(c.name)
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		return apierror.GaveUp(ctx)
	}
	return &apierror.Error{
		Code: apierror.Unavailable, Reason: apierror.ReasonIdPUnavailable, RetryAfter: time.Second,
		Metadata: map[string]string{"client": c.name},
		Message:  fmt.Sprintf("client %q: the IdP did not answer in time", c.name),
	}
}

func unconfirmedPurge(c *client, err error) *apierror.Error {
	return store.Unconfirmed(err, fmt.Sprintf("client %q: the store did not confirm the purge", c.name), "call again with the same request_id", map[string]string{"client": c.name})
}

func mayNotVerify(caller *policy.Caller, ask verify.Request) *apierror.Error {
	asked, about := "the verification of tokens", map[string]string{}
	if ask.Issuer != "" {
		asked += fmt.Sprintf(" of issuer %q", ask.Issuer)
		about["issuer"] = ask.Issuer
	}
	if len(ask.Audience) > 0 {
		asked += fmt.Sprintf(" for audiences %q", ask.Audience)
	}
	return authz.Denied(caller, asked, about)
}
