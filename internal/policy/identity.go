package policy

import (
	"slices"
	"strings"
)

// Identity is the authenticated identity of a peer: the names in a verified
// certificate, the claims of a verified JWT, or the user of a process on this host.
type Identity struct {
	// URIs and DNSNames are the subject alternative names of a certificate.
	URIs     []string
	DNSNames []string
	// Issuer, Subject and Claims come from a JWT. Claims are all its claims, as a JSON
	// object without repeated members.
	Issuer, Subject string
	Claims          []byte
	// UID is the user of the process that connected to a Unix socket, or nil for any
	// other connection.
	UID *uint32
}

// Match configures how a caller is identified. At most one kind is set. A caller
// without any is identified by a listener that is bound to it.
type Match struct {
	// SPIFFEID is the only URI of a certificate (SPIFFE X.509-SVID section 2).
	SPIFFEID string
	// URISAN and DNSSAN are a subject alternative name of a certificate.
	//
	// SPIFFEID and URISAN may end in "/*", which stands for any path below, without
	// percent-encoding, query and fragment. DNS names match as a whole and regardless
	// of case.
	URISAN, DNSSAN string
	// Issuer and Subject match a JWT. Subject may end in "*" after ':' or '/'.
	// The JWT must also have all Claims. Subject is optional if there are Claims.
	Issuer, Subject string
	Claims          []Claim
	// UID is the user of a process that connects to a Unix socket.
	UID *uint32
}

// pattern is a URI or a subject that ends in "*".
type pattern struct {
	prefix string
	uri    bool
	caller *Caller
}

func (p *Policy) addMatch(m Match, c *Caller) {
	switch {
	case m.SPIFFEID != "":
		p.addURI(m.SPIFFEID, c)
	case m.URISAN != "":
		p.addURI(m.URISAN, c)
	case m.DNSSAN != "":
		p.dns[strings.ToLower(m.DNSSAN)] = c
	case m.Issuer != "":
		p.addSubject(m, c)
	case m.UID != nil:
		p.uids[*m.UID] = c
	}
}

func (p *Policy) addURI(uri string, c *Caller) {
	if prefix, ok := strings.CutSuffix(uri, Any); ok {
		p.patterns = append(p.patterns, pattern{prefix, true, c})
		return
	}
	p.uris[uri] = c
}

// Caller returns the caller with an identity, or nil if no configured caller matches.
// A URI takes precedence over a DNS name, a whole name over a pattern, and a long
// pattern over a short one. The result is nil if matches of the same precedence
// identify different callers.
func (p *Policy) Caller(id Identity) *Caller {
	switch {
	case id.UID != nil:
		return p.uids[*id.UID]
	case id.Issuer != "" || id.Subject != "":
		matches := p.matchJWT(id)
		return matches.single()
	}
	uris := id.URIs
	// A SPIFFE ID counts only if it is the only URI (X.509-SVID section 2).
	if len(uris) > 1 {
		uris = slices.DeleteFunc(slices.Clone(uris), spiffeScheme)
	}
	if matches := matchNames(uris, func(uri string) *Caller { return p.uris[uri] }); matches.first != nil {
		return matches.single()
	}
	if matches := matchNames(uris, p.byPattern); matches.first != nil {
		return matches.single()
	}
	matches := matchNames(id.DNSNames, func(name string) *Caller { return p.dns[strings.ToLower(name)] })
	return matches.single()
}

// Ambiguous reports whether several callers match a JWT with the same precedence, so
// that it identifies none of them.
func (p *Policy) Ambiguous(id Identity) bool { return len(p.matchJWT(id).others) > 0 }

// matchNames returns the callers that find returns for the names.
func matchNames(names []string, find func(name string) *Caller) (m matches) {
	for _, name := range names {
		m.add(find(name))
	}
	return m
}

func (p *Policy) byPattern(uri string) *Caller {
	for _, pattern := range p.patterns {
		if pattern.matches(uri) {
			return pattern.caller
		}
	}
	return nil
}

// matches reports whether a name begins with the prefix and continues without leaving
// it. A URI that another program could decode, truncate or normalize does not match.
func (p *pattern) matches(name string) bool {
	rest, ok := strings.CutPrefix(name, p.prefix)
	switch {
	case !ok || rest == "":
		return false
	case spiffeScheme(name):
		return IsSPIFFEID(name)
	case p.uri && strings.ContainsAny(rest, `%?#\`):
		return false
	}
	return !slices.ContainsFunc(strings.Split(rest, "/"), func(segment string) bool {
		return segment == "" || segment == "." || segment == ".."
	})
}
