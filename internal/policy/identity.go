package policy

import (
	"slices"
	"strings"
)

// Identity is what somebody proved to be, by one of the ways there are: the names
// in a certificate that an authority vouches for, the issuer and subject of a
// token that was verified, or the user of a process on this host.
type Identity struct {
	// URIs and DNSNames are the subject alternative names of a certificate.
	URIs     []string
	DNSNames []string
	// Issuer and Subject are those of a JWT, and Claims all its claims, as a JSON object
	// that names no member twice.
	Issuer, Subject string
	Claims          []byte
	// UID is the user of the process at the other end of a Unix socket. Nil: it is
	// none.
	UID *uint32
}

// Match says how a caller is recognised: exactly one of these.
type Match struct {
	// SPIFFEID is a SPIFFE ID. A certificate that has it has no other URI (SPIFFE
	// X.509-SVID section 2).
	SPIFFEID string
	// URISAN and DNSSAN are a subject alternative name of a certificate.
	//
	// SPIFFEID and URISAN may end in "/*": any path below, without percent-encoding,
	// query and fragment. DNS names are compared whole, in any case.
	URISAN, DNSSAN string
	// Issuer and Subject are those of a JWT. Subject may end in "*" after ':' or '/'.
	// Claims are what it must say besides; with them, there may be no Subject.
	Issuer, Subject string
	Claims          []Claim
	// UID is a user of this host, who connects to a Unix socket.
	UID *uint32
	// A caller with none of them is recognised by nothing that it proves: a
	// listener is bound to it.
}

// pattern is a URI or a subject that ends in "*".
type pattern struct {
	prefix string
	uri    bool // it is a URI
	caller *Caller
}

func (p *Policy) admit(m Match, c *Caller) {
	switch {
	case m.SPIFFEID != "":
		p.admitURI(m.SPIFFEID, c)
	case m.URISAN != "":
		p.admitURI(m.URISAN, c)
	case m.DNSSAN != "":
		p.dns[strings.ToLower(m.DNSSAN)] = c
	case m.Issuer != "":
		p.admitSubject(m, c)
	case m.UID != nil:
		p.uids[*m.UID] = c
	}
}

func (p *Policy) admitURI(uri string, c *Caller) {
	if prefix, ok := strings.CutSuffix(uri, Any); ok {
		p.patterns = append(p.patterns, pattern{prefix, true, c})
		return
	}
	p.uris[uri] = c
}

// Caller returns who that is; nil: none of those who are configured. A URI counts
// more than a DNS name, a whole name more than a pattern, a long pattern more
// than a short one. Names that count the same and are of different callers are
// of none, and so is a JWT that fits several callers.
func (p *Policy) Caller(id Identity) *Caller {
	switch {
	case id.UID != nil:
		return p.uids[*id.UID]
	case id.Issuer != "" || id.Subject != "":
		found := p.subject(id)
		return found.the()
	}
	uris := id.URIs
	// A SPIFFE ID counts only if it is the only URI (X.509-SVID section 2).
	if len(uris) > 1 {
		uris = slices.DeleteFunc(slices.Clone(uris), spiffeScheme)
	}
	if found := theOne(uris, func(uri string) *Caller { return p.uris[uri] }); found != nil {
		return found.caller
	}
	if found := theOne(uris, p.byPattern); found != nil {
		return found.caller
	}
	if found := theOne(id.DNSNames, func(name string) *Caller { return p.dns[strings.ToLower(name)] }); found != nil {
		return found.caller
	}
	return nil
}

// Ambiguous reports whether a JWT fits several callers equally well, and therefore
// identifies none of them.
func (p *Policy) Ambiguous(id Identity) bool { return len(p.subject(id).others) > 0 }

// match is what names were found to be of; its caller is nil if of several.
type match struct{ caller *Caller }

// theOne returns nil if no name is a caller's.
func theOne(names []string, find func(name string) *Caller) *match {
	var found *match
	for _, name := range names {
		caller := find(name)
		switch {
		case caller == nil:
		case found == nil:
			found = &match{caller}
		case found.caller != caller:
			return &match{}
		}
	}
	return found
}

func (p *Policy) byPattern(uri string) *Caller {
	for _, one := range p.patterns {
		if one.admits(uri) {
			return one.caller
		}
	}
	return nil
}

// admits reports whether a pattern stands for a name: the name is longer than the
// pattern's prefix, and the rest cannot lead out of it. A URI must be plain for
// that: one that others would decode, cut off or normalize matches no pattern.
func (p *pattern) admits(name string) bool {
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
