package policy

// Ask is a question for a token with its defaults filled in: what would reach
// the IdP.
type Ask struct {
	Client    string
	Audience  string
	Resources []string
	Scopes    []string
}

// MayGet reports whether the caller may ask so. Where the client does not exist
// for it, it may not.
func (c *Caller) MayGet(ask Ask) bool {
	_, may := c.grantFor(ask)
	return may
}

// MayHave reports whether the caller may have the token that came of a question,
// by the scopes that the IdP says it granted: they may be more than were asked
// for. The grant that admits them must be one that admits the question.
func (c *Caller) MayHave(ask Ask, granted []string) bool {
	if c == nil {
		return false
	}
	if c.self {
		return true
	}
	for _, grant := range c.get[ask.Client] {
		if grant.admits(ask) && grant.scopes.hasAll(granted) {
			return true
		}
	}
	return false
}

func (c *Caller) grantFor(ask Ask) (*getGrant, bool) {
	if c == nil {
		return nil, false
	}
	if c.self {
		return nil, true
	}
	for _, grant := range c.get[ask.Client] {
		if grant.admits(ask) {
			return grant, true
		}
	}
	return nil, false
}

func (g *getGrant) admits(ask Ask) bool {
	return (ask.Audience == "" || g.audiences.has(ask.Audience)) && g.resources.hasAll(ask.Resources) && g.scopes.hasAll(ask.Scopes)
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
