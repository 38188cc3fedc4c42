package policy

import (
	"maps"
	"slices"
)

// ExchangeGrant allows a caller to get tokens of a client on behalf of the subjects of
// certain tokens. It admits subject and target together: a subject token that one grant
// admits gives no right to the target of another.
type ExchangeGrant struct {
	// Client is the name of a client that exchanges. Any has no special meaning here.
	Client string
	// From are the subject tokens.
	From From
	// Audiences, Resources and Scopes are the target, as in GetGrant.
	Audiences []string
	Resources []string
	Scopes    []string
}

// From describes subject tokens. Any has no special meaning here.
type From struct {
	// Issuers are the issuers of subject tokens, compared byte for byte.
	Issuers []string
	// Audiences: a subject token must be for one of these audiences. It is the audience of
	// the service that received the token; otherwise the service could use tokens that were
	// meant for others.
	Audiences []string
	// Scopes: a subject token must have all of these scopes.
	Scopes []string
}

// Subject has the facts of a verified subject token that grants depend on.
type Subject struct {
	Issuer            string
	Audiences, Scopes []string
}

// exchangeGrant is an ExchangeGrant with the defaults of its client filled in.
type exchangeGrant struct {
	from   From
	target getGrant
}

func (c *Caller) addExchange(grant *ExchangeGrant, clients map[string]Defaults) {
	defaults, ok := clients[grant.Client]
	if !ok || !defaults.Exchanges {
		return
	}
	target := GetGrant{Client: grant.Client, Audiences: grant.Audiences, Resources: grant.Resources, Scopes: grant.Scopes}
	from := From{slices.Clone(grant.From.Issuers), slices.Clone(grant.From.Audiences), slices.Clone(grant.From.Scopes)}
	c.exchange[grant.Client] = append(c.exchange[grant.Client], &exchangeGrant{from, target.resolve(defaults)})
	c.subjects[grant.Client] = c.subjects[grant.Client].with(from)
}

// HasExchange reports whether the caller has any exchange grant for the client. Without
// one, the caller must not learn whether the client exists, and no subject token is
// verified for it.
func (c *Caller) HasExchange(client string) bool { return c != nil && len(c.exchange[client]) > 0 }

// SubjectTokens describes the subject tokens that any grant for a client admits. It must
// not be modified.
type SubjectTokens struct {
	// Issuers has the issuers as keys. It is never nil, which would admit every issuer.
	Issuers map[string][]string
	// Audiences are sorted.
	Audiences []string
}

// with returns the description with the subject tokens of one more grant.
func (s SubjectTokens) with(from From) SubjectTokens {
	issuers := maps.Clone(s.Issuers)
	if issuers == nil {
		issuers = map[string][]string{}
	}
	for _, issuer := range from.Issuers {
		issuers[issuer] = nil
	}
	return SubjectTokens{issuers, sortedSet(slices.Concat(s.Audiences, from.Audiences))}
}

// SubjectTokens returns the subject tokens that any grant for the client admits. They bound
// the verification of a subject token; which grant admits it is decided by
// [Caller.ResolveExchange].
func (c *Caller) SubjectTokens(client string) SubjectTokens {
	if c == nil || c.subjects[client].Issuers == nil {
		return SubjectTokens{Issuers: map[string][]string{}}
	}
	return c.subjects[client]
}

// AdmitsSubject reports whether any grant for the client admits the subject token, whatever
// the target.
func (c *Caller) AdmitsSubject(client string, subject Subject) bool {
	return len(c.admitting(client, subject)) > 0
}

// ResolveExchange is [Caller.Resolve] for a request on behalf of a subject: only grants
// that admit the subject token count.
func (c *Caller) ResolveExchange(req Request, subject Subject) (scopes []string, ok bool) {
	return resolve(c.admitting(req.Client, subject), req)
}

// MayReceiveExchanged is [Caller.MayReceive] for a token on behalf of a subject.
func (c *Caller) MayReceiveExchanged(req Request, subject Subject, granted []string) bool {
	return mayReceive(c.admitting(req.Client, subject), req, granted)
}

// admitting returns the targets of the grants that admit the subject token.
func (c *Caller) admitting(client string, subject Subject) []*getGrant {
	if c == nil {
		return nil
	}
	var targets []*getGrant
	for _, grant := range c.exchange[client] {
		if grant.from.admits(subject) {
			targets = append(targets, &grant.target)
		}
	}
	return targets
}

func (f *From) admits(s Subject) bool {
	if !slices.Contains(f.Issuers, s.Issuer) {
		return false
	}
	for _, scope := range f.Scopes {
		if !slices.Contains(s.Scopes, scope) {
			return false
		}
	}
	return slices.ContainsFunc(s.Audiences, func(audience string) bool { return slices.Contains(f.Audiences, audience) })
}
