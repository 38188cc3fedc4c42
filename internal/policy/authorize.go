package policy

import "slices"

// Request is a request for a token with the client's defaults filled in.
type Request struct {
	Client    string
	Audience  string
	Resources []string
	Scopes    []string
	// Narrow reports that the caller named no scopes and that Scopes are the client's
	// defaults.
	Narrow bool
}

// Resolve returns the scopes to request from the IdP. ok is false if the caller may
// not make the request, or if the client does not exist.
//
// One grant must allow all scopes that the caller named. Default scopes are narrowed
// by the grant that allows the audience, the resources and the most default scopes;
// the first of several such grants counts. The request is denied if no default scope
// remains.
//
// The caller must not modify scopes.
func (c *Caller) Resolve(req Request) (scopes []string, ok bool) {
	switch {
	case c == nil:
		return nil, false
	case c.self:
		return req.Scopes, true
	default:
		return resolve(c.get[req.Client], req)
	}
}

func resolve(grants []*getGrant, req Request) (scopes []string, ok bool) {
	if req.Narrow && len(req.Scopes) > 0 {
		return narrow(grants, req)
	}
	for _, grant := range grants {
		if grant.allows(req) {
			return req.Scopes, true
		}
	}
	return nil, false
}

func narrow(grants []*getGrant, req Request) (scopes []string, ok bool) {
	for _, grant := range grants {
		if !grant.allowsTarget(req) {
			continue
		}
		if narrowed := grant.narrow(req.Scopes); len(narrowed) > len(scopes) {
			scopes = narrowed
		}
	}
	return scopes, len(scopes) > 0
}

// MayReceive reports whether the caller may receive the token that the IdP issued for
// req. The IdP may have granted more scopes than requested, so the grant that allows
// req must allow the granted scopes too.
//
// If the IdP does not name the granted scopes, granted are the requested ones (RFC
// 6749 section 5.1). If granted is empty, no scopes were requested either and the
// token may have any scope. A grant that lists scopes does not allow such a token.
func (c *Caller) MayReceive(req Request, granted []string) bool {
	if c == nil {
		return false
	}
	if c.self {
		return true
	}
	return mayReceive(c.get[req.Client], req, granted)
}

func mayReceive(grants []*getGrant, req Request, granted []string) bool {
	for _, grant := range grants {
		if grant.allows(req) && grant.allowsGranted(granted) {
			return true
		}
	}
	return false
}

// HasGrant reports whether the caller has any grant for tokens of the client. Without
// one, the caller must not learn whether the client exists.
func (c *Caller) HasGrant(client string) bool {
	return c != nil && (c.self || len(c.get[client]) > 0)
}

func (g *getGrant) allows(req Request) bool {
	return g.allowsTarget(req) && g.scopes.hasAll(req.Scopes)
}

// allowsTarget checks audience and resources.
func (g *getGrant) allowsTarget(req Request) bool {
	return (req.Audience == "" || g.audiences.has(req.Audience)) && g.resources.hasAll(req.Resources)
}

func (g *getGrant) allowsGranted(granted []string) bool {
	if len(granted) == 0 {
		return g.scopes.all || !g.listsScopes
	}
	return g.scopes.hasAll(granted)
}

// narrow returns the default scopes that the grant allows. The result is computed in
// advance for the defaults in Config; the client may have been reconfigured since.
func (g *getGrant) narrow(defaults []string) []string {
	if slices.Equal(defaults, g.defaults) {
		return g.narrowed
	}
	return g.scopes.filter(defaults)
}

// MayVerify returns the issuers for which the caller may verify tokens, each with the
// allowed audiences, sorted. Nil audiences mean any audience, and a nil map means any
// issuer. ok is false if the caller may verify no tokens. The caller must not modify
// the map.
func (c *Caller) MayVerify() (issuers map[string][]string, ok bool) {
	switch {
	case c == nil:
		return nil, false
	case c.self:
		return nil, true
	default:
		return c.verify, len(c.verify) > 0
	}
}

// MayDo reports whether the caller may perform an action on a client. An empty client
// stands for an action that concerns no particular client, which only a grant for all
// clients allows.
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
