package policy

import "slices"

// Ask is a question for a token with its defaults filled in: what would reach
// the IdP.
type Ask struct {
	Client    string
	Audience  string
	Resources []string
	Scopes    []string
	// Narrow reports that the question names no scopes: Scopes are the client's
	// defaults, and the caller gets those of them that it may have.
	Narrow bool
}

// Resolve returns the scopes to request from the IdP, if the caller may ask so.
// Scopes that the question names are admitted all or not at all, by one grant.
// Default scopes are narrowed: of the grants that admit audience and resources the
// one that keeps most of them counts, the first of those that keep the same number.
// Where none is kept, the caller may not have the token. Where the client does not
// exist for the caller, it may not either.
//
// Do not change the scopes that it returns.
func (c *Caller) Resolve(ask Ask) (scopes []string, may bool) {
	switch {
	case c == nil:
		return nil, false
	case c.self:
		return ask.Scopes, true
	case ask.Narrow && len(ask.Scopes) > 0:
		return c.narrow(ask)
	}
	for _, grant := range c.get[ask.Client] {
		if grant.admits(ask) {
			return ask.Scopes, true
		}
	}
	return nil, false
}

func (c *Caller) narrow(ask Ask) (kept []string, may bool) {
	for _, grant := range c.get[ask.Client] {
		if !grant.admitsTarget(ask) {
			continue
		}
		if some := grant.narrow(ask.Scopes); len(some) > len(kept) {
			kept = some
		}
	}
	return kept, len(kept) > 0
}

// MayHave reports whether the caller may have the token that a question brought,
// by the scopes that the IdP granted: they may be more than were asked for. The
// grant that admits them must be one that admits the question.
//
// The IdP's answer need not name the scopes, and those that were asked for count
// then (RFC 6749 section 5.1). If there are none of these either, granted is empty
// and the token may carry any scope: a grant that lists scopes does not admit it.
func (c *Caller) MayHave(ask Ask, granted []string) bool {
	if c == nil {
		return false
	}
	if c.self {
		return true
	}
	for _, grant := range c.get[ask.Client] {
		if grant.admits(ask) && grant.admitsGranted(granted) {
			return true
		}
	}
	return false
}

// MayGetSome reports whether the caller has any grant for the client. To others
// nothing shows that the client exists.
func (c *Caller) MayGetSome(client string) bool {
	return c != nil && (c.self || len(c.get[client]) > 0)
}

func (g *getGrant) admits(ask Ask) bool { return g.admitsTarget(ask) && g.scopes.hasAll(ask.Scopes) }

func (g *getGrant) admitsTarget(ask Ask) bool {
	return (ask.Audience == "" || g.audiences.has(ask.Audience)) && g.resources.hasAll(ask.Resources)
}

func (g *getGrant) admitsGranted(granted []string) bool {
	if len(granted) == 0 {
		return g.scopes.all || !g.named
	}
	return g.scopes.hasAll(granted)
}

// narrow returns the default scopes that the grant admits. They are computed in
// advance for the defaults that the policy was made with; a client may have been
// configured anew since.
func (g *getGrant) narrow(defaults []string) []string {
	if slices.Equal(defaults, g.defaults) {
		return g.kept
	}
	return g.scopes.those(defaults)
}

// MayVerify returns the issuers whose tokens the caller may have verified, each
// with the audiences for which it may, sorted; nil audiences: any; nil issuers:
// all, for any. A caller who may verify nothing gets false. Do not change the map.
func (c *Caller) MayVerify() (issuers map[string][]string, may bool) {
	switch {
	case c == nil:
		return nil, false
	case c.self:
		return nil, true
	default:
		return c.verify, len(c.verify) > 0
	}
}

// MayDo reports whether the caller may do so to a client; empty: to none in
// particular, for which a grant for some clients is not enough.
func (c *Caller) MayDo(action Action, client string) bool {
	if c == nil {
		return false
	}
	if c.self {
		return true
	}
	granted := c.admin[action]
	return granted != nil && (granted.all || client != "" && granted.has(client))
}
