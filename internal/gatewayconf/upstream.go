package gatewayconf

import (
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Upstream defines the token that a gateway sends to the service behind it, in place of the
// token of the request.
type Upstream struct {
	// The client, by its name among clients, that the token is for.
	Client string `yaml:"client" jsonschema:"required,minLength=1,maxLength=128"`
	// The audience of the token. Absent: the client's.
	Audience string `yaml:"audience" jsonschema:"minLength=1,maxLength=512"`
	// The scopes of the token. Absent: the client's, narrowed by the gateway's role.
	Scopes []string `yaml:"scopes" jsonschema:"minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
	// Exchange the token of the request for a token of its user; the client has exchange.
	// Otherwise the token is the client's own.
	OnBehalfOf bool `yaml:"on_behalf_of" jsonschema:"default=false"`
	// The header of the token, as Bearer and the token.
	Header string `yaml:"header" jsonschema:"default=Authorization,minLength=1,maxLength=64"`
	// Let the service have the token of the request as well. Otherwise the gateway removes it.
	KeepInbound bool `yaml:"keep_inbound" jsonschema:"default=false"`
	// token: each request needs a valid token. none: requests need no token; only a gateway
	// without verify grants may then use the entry, for requests that leave the network.
	Verify string `yaml:"verify" jsonschema:"default=token,enum=token,enum=none"`
}

// Unverified reports whether requests need no token.
func (u *Upstream) Unverified() bool { return u.Verify == "none" }

// ForGateways converts the entries.
func (g *Gateways) ForGateways() []gateway.Upstream {
	var entries []gateway.Upstream
	for _, name := range slices.Sorted(maps.Keys(g.Upstream)) {
		u := g.Upstream[name]
		entries = append(entries, gateway.Upstream{
			Name: name, Client: u.Client, Audience: u.Audience, Scopes: u.Scopes, OnBehalfOf: u.OnBehalfOf,
			Header: u.Header, KeepInbound: u.KeepInbound, Unverified: u.Unverified(),
		})
	}
	return entries
}

// Clients has the facts about the section clients that the checks need.
type Clients interface {
	// Kinds returns whether each client exchanges tokens of users.
	Kinds() map[string]bool
	// IssuesAssertions reports whether the results of a client are never handed out.
	IssuesAssertions(name string) bool
}

func (g *Gateways) checkUpstreams(clients Clients, findings *yamlconf.Findings) {
	kinds := clients.Kinds()
	for _, name := range slices.Sorted(maps.Keys(g.Upstream)) {
		u, path := g.Upstream[name], yamlconf.Join("gateways.upstream", name)
		exchanges, ok := kinds[u.Client]
		client, onBehalf := yamlconf.Join(path, "client"), yamlconf.Join(path, "on_behalf_of")
		switch {
		case u.Client == "":
		case !ok:
			findings.Addf(client, "no such client: add it to clients%s", yamlconf.DidYouMean(u.Client, slices.Collect(maps.Keys(kinds))))
		case clients.IssuesAssertions(u.Client):
			findings.Addf(client, "this client issues assertions for another IdP, which are never handed out: name the client with assertion_from")
		case exchanges && !u.OnBehalfOf:
			findings.Addf(client, "this client has exchange, and its tokens belong to users: add on_behalf_of: true, or name a client without exchange")
		case !exchanges && u.OnBehalfOf:
			findings.Addf(onBehalf, "the client requests its own tokens: remove on_behalf_of, or name a client that has exchange")
		case u.OnBehalfOf && u.Unverified():
			findings.Addf(onBehalf, "verify: none leaves the token of the request unverified, so it cannot be exchanged: remove one of the two")
		}
		findings.Scopes(yamlconf.Join(path, "scopes"), u.Scopes)
		g.checkHeader(&u, path, findings)
		if g.Needs == "headers" && !g.inRules(name) {
			findings.Addf(path, "nothing can use the entry: with gateways.needs: headers, /verify takes no upstream, because the sender of a request could choose it; name the entry in a rule of ext_authz, or remove it")
		}
	}
}

func (g *Gateways) inRules(name string) bool {
	return g.ExtAuthz != nil && slices.ContainsFunc(g.ExtAuthz.Rules, func(rule GatewayRule) bool { return rule.Upstream == name })
}

// headerName is stricter than HTTP: some upstream servers read other characters as a hyphen.
const headerName = `^[A-Za-z][A-Za-z0-9-]*$`

func (g *Gateways) checkHeader(u *Upstream, path string, findings *yamlconf.Findings) {
	header := yamlconf.Join(path, "header")
	name := http.CanonicalHeaderKey(u.Header)
	switch {
	case !regexp.MustCompile(headerName).MatchString(u.Header):
		if u.Header != "" {
			findings.Addf(header, "expected the name of a header, of letters, digits and hyphens: some servers read an underscore as a hyphen, and a name with a colon is no header of its own")
		}
	case strings.HasPrefix(name, http.CanonicalHeaderKey(g.HeaderPrefix)):
		findings.Addf(header, "begins with gateways.header_prefix, so gateways remove it with the identity headers: give another name")
	case reserved(name):
		findings.Addf(header, "a token cannot be sent in this header, because it has a meaning of its own for servers or proxies: use Authorization, or a header such as X-Upstream-Token")
	case u.KeepInbound && name == gateway.Authorization:
		findings.Addf(yamlconf.Join(path, "keep_inbound"), "the token replaces that of the request in Authorization, so the service cannot have both: give another header, or remove keep_inbound")
	}
}

// reserved reports whether a header, in canonical form, routes a request, delimits it, says
// who sent it, controls a gateway, or has a meaning in the responses of /verify.
func reserved(name string) bool {
	prefixes := []string{"Accept", "Access-Control-", "Content-", "If-", "Proxy-", "Sec-", "X-Envoy-", "X-Forwarded", "X-Original-", "X-Rewrite-", "X-Verify-"}
	if slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
		return true
	}
	return slices.Contains([]string{
		"Host", "Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect", "Http2-Settings", "Max-Forwards",
		"Cookie", "Set-Cookie", "Forwarded", "Via", "From", "Referer", "Origin", "User-Agent", "X-Real-Ip", "X-Client-Ip", "True-Client-Ip", "X-Http-Method-Override", "X-Request-Id", "Traceparent", "Tracestate", "Baggage",
		"Age", "Allow", "Cache-Control", "Date", "Etag", "Expires", "Last-Modified", "Location", "Pragma", "Range", "Retry-After", "Server", "Vary", "Www-Authenticate", "X-Content-Type-Options",
	}, name)
}

// checkUse checks the upstream entry of a rule.
func (g *Gateways) checkUse(rule *GatewayRule, path string, findings *yamlconf.Findings) {
	if rule.Upstream == "" {
		return
	}
	at := yamlconf.Join(path, "upstream")
	u, ok := g.Upstream[rule.Upstream]
	switch {
	case !ok:
		findings.Addf(at, "no such entry: add it to gateways.upstream%s", yamlconf.DidYouMean(rule.Upstream, slices.Collect(maps.Keys(g.Upstream))))
	case rule.Host == "" || strings.HasPrefix(rule.Host, "*"):
		findings.Addf(at, "a rule with upstream names one exact host, because the token would otherwise reach any host that a request names: give host")
	case u.Unverified() && len(rule.Audiences)+len(rule.Scopes)+len(rule.Issuer) > 0:
		findings.Addf(at, "the entry has verify: none, so nothing checks audiences, scopes and issuer of this rule: remove them, or verify: none")
	}
}
