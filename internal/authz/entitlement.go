package authz

import (
	"fmt"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// NotEntitled denies a request for a token of a client that does not exist, or for which
// the caller has no grant.
func NotEntitled(caller *policy.Caller, client string, requested idp.Request) *apierror.Error {
	object := fmt.Sprintf("a token of client %q", client)
	if requested.Audience != "" {
		object += fmt.Sprintf(" for audience %q", requested.Audience)
	}
	if len(requested.Resources) > 0 {
		object += fmt.Sprintf(" for resources %q", requested.Resources)
	}
	if len(requested.Scopes) > 0 {
		object += fmt.Sprintf(" with scopes %q", requested.Scopes)
	}
	return Denied(caller, object, map[string]string{"client": client})
}

// NotGranted denies a request of a caller that has other grants for the client, and
// names the defaults that were applied.
func NotGranted(caller *policy.Caller, client string, requested, full idp.Request) *apierror.Error {
	object := ""
	add := func(isDefault bool, format string, value any) {
		object += fmt.Sprintf(format, value)
		if isDefault {
			object += " (the client's own)"
		}
	}
	if full.Audience != "" {
		add(requested.Audience == "", " for audience %q", full.Audience)
	}
	if len(full.Resources) > 0 {
		add(len(requested.Resources) == 0, " for resources %q", full.Resources)
	}
	verdict := "no grant of this caller admits all of that"
	if len(full.Scopes) > 0 {
		add(len(requested.Scopes) == 0, " with scopes %q", full.Scopes)
	}
	if len(full.Scopes) > 0 && len(requested.Scopes) == 0 {
		verdict = "no grant of this caller admits that target with any of these scopes"
	}
	return &apierror.Error{
		Code: apierror.PermissionDenied, Reason: apierror.ReasonNotEntitled,
		Metadata: map[string]string{"client": client, "caller": caller.Name()},
		Message: fmt.Sprintf("caller %q asked for a token of client %q%s: %s; an operator can list its permissions with: broker policy explain FILE %s",
			caller.Name(), client, object, verdict, caller.Name()),
	}
}

// GrantedTooMuch is the error for granted scopes that exceed the caller's permissions,
// or are unknown because neither the request nor the IdP named them.
func GrantedTooMuch(caller *policy.Caller, client string, requested, granted []string) *apierror.Error {
	err := &apierror.Error{
		Code: apierror.PermissionDenied, Reason: apierror.ReasonGrantedTooMuch,
		Metadata: map[string]string{"client": client, "caller": caller.Name()},
		Message: fmt.Sprintf("client %q was asked for the scopes %q and the IdP granted %q, more than caller %q may have: ask for fewer scopes, or have the caller's role name these",
			client, requested, granted, caller.Name()),
	}
	if len(granted) == 0 {
		err.Reason = apierror.ReasonGrantedUnknown
		err.Message = fmt.Sprintf("the IdP does not say which scopes its token of client %q has, no scopes were requested, and the role of caller %q admits certain scopes only: name scopes in the request, or give the client default scopes",
			client, caller.Name())
	}
	return err
}

// MayNotVerify denies the verification of a token of an issuer for audiences; both may be
// empty.
func MayNotVerify(caller *policy.Caller, issuer string, audiences []string) *apierror.Error {
	object, about := "the verification of tokens", map[string]string{}
	if issuer != "" {
		object += fmt.Sprintf(" of issuer %q", issuer)
		about["issuer"] = issuer
	}
	if len(audiences) > 0 {
		object += fmt.Sprintf(" for audiences %q", audiences)
	}
	return Denied(caller, object, about)
}
