// Package gatewayconf is the section gateways of the configuration file: its keys and the
// checks of their values.
package gatewayconf

import (
	"regexp"
	"strings"

	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Gateways defines how gateways are served.
type Gateways struct {
	// The prefix of the headers with the identity in a verified token.
	HeaderPrefix string `yaml:"header_prefix" jsonschema:"default=X-Auth-,minLength=2,maxLength=64"`
	// The realm of WWW-Authenticate.
	Realm string `yaml:"realm" jsonschema:"default=api,minLength=1,maxLength=128"`
	// Where gateways pass the requirements for a token to /verify: in the query, or in headers.
	Needs string `yaml:"needs" jsonschema:"default=query,enum=query,enum=headers"`
	// Serve Envoy's ext_authz on the listeners of the gRPC API. Absent: it is not served.
	ExtAuthz *ExtAuthz `yaml:"ext_authz"`
	// Tokens that gateways send to the services behind them in place of the token of the request,
	// by names of 1 to 128 letters, digits, dots, underscores and hyphens.
	Upstream map[string]Upstream `yaml:"upstream"`
	// Protected resources behind gateways, by names of 1 to 128 letters, digits, dots, underscores
	// and hyphens. Clients find their authorization servers by the metadata of RFC 9728.
	Resources map[string]Resource `yaml:"resources"`
}

// ExtAuthz defines how Envoy is served.
type ExtAuthz struct {
	// The result for Envoy if no decision is possible: a failed call (error), the same as a
	// response with status 503 for Envoy 1.37 or later (error_response), or a denial with status
	// 503 (denial).
	Undecided string `yaml:"undecided" jsonschema:"default=error,values=undecided"`
	// Claims that Envoy receives in its dynamic metadata, in addition to the claims of every token.
	Claims []string `yaml:"claims" jsonschema:"minItems=1,maxItems=32,uniqueItems=true,minLength=1,maxLength=128"`
	// Requirements for tokens. The first rule that matches a request applies; a request without a
	// matching rule is denied. Absent: a token must be for one of its issuer's own audiences. The
	// context extensions audience, scope and issuer of a route take precedence.
	Rules []GatewayRule `yaml:"rules" jsonschema:"minItems=1,maxItems=1000"`
}

// GatewayRule defines the requirements for the tokens of some requests.
type GatewayRule struct {
	// The host of the requests, without a port; *. at the beginning stands for any host below.
	// Absent: any.
	Host string `yaml:"host" jsonschema:"minLength=1,maxLength=253"`
	// The path of the requests; with / at the end every path below. Absent: any.
	Path string `yaml:"path" jsonschema:"minLength=1,maxLength=512"`
	// Match the path in upper or lower case, for services that do so: otherwise /Admin/ does not
	// match /admin/.
	IgnoreCase bool `yaml:"ignore_case"`
	// A token must be for one of these audiences. Absent: for one of its issuer's own.
	Audiences []string `yaml:"audiences" jsonschema:"minItems=1,maxItems=16,uniqueItems=true,minLength=1,maxLength=512"`
	// A token must carry all of these scopes.
	Scopes []string `yaml:"scopes" jsonschema:"minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
	// A token must come from this issuer. Absent: from any issuer that the gateway's roles permit.
	Issuer string `yaml:"issuer" jsonschema:"minLength=1,maxLength=512"`
	// The token for the service, by its name in gateways.upstream; host is then required, without
	// *. at the beginning. Absent: the service gets the token of the request.
	Upstream string `yaml:"upstream" jsonschema:"minLength=1,maxLength=128"`
	// The entry of gateways.resources to whose metadata 401 and 403 refer. Absent: to none.
	Resource string `yaml:"resource" jsonschema:"minLength=1,maxLength=128"`
}

// Check checks the keys of the section.
func (g *Gateways) Check(clients Clients, findings *yamlconf.Findings) {
	const prefix, realm = "gateways.header_prefix", "gateways.realm"
	if g.HeaderPrefix != "" && !regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]*-$`).MatchString(g.HeaderPrefix) {
		findings.Addf(prefix, "expected letters, digits and hyphens with a hyphen at the end, such as X-Auth-: some upstream servers read an underscore as a hyphen")
	}
	if strings.ContainsFunc(g.Realm, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		findings.Addf(realm, "expected printable ASCII without quotes and backslashes")
	}
	g.checkResources(findings)
	if g.ExtAuthz != nil {
		g.checkRules(findings)
	}
	g.checkUpstreams(clients, findings)
}

func (g *Gateways) checkRules(findings *yamlconf.Findings) {
	for i := range g.ExtAuthz.Rules {
		rule, path := &g.ExtAuthz.Rules[i], yamlconf.Item("gateways.ext_authz.rules", i)
		host, decoded := (&gateway.Rule{Host: rule.Host, Path: rule.Path}).Valid()
		if !host {
			findings.Addf(yamlconf.Join(path, "host"), "expected a host name without a port, such as api.example.com or *.example.com")
		}
		if !decoded {
			findings.Addf(yamlconf.Join(path, "path"), "expected a path as it reads once it is decoded, such as /orders/")
		}
		if rule.IgnoreCase && rule.Path == "" {
			findings.Addf(yamlconf.Join(path, "ignore_case"), "the rule has no path, so it ignores no case: remove it, or give path")
		}
		findings.Scopes(yamlconf.Join(path, "scopes"), rule.Scopes)
		g.checkUse(rule, path, findings)
		g.checkResource(rule, yamlconf.Join(path, "resource"), findings)
	}
}

// Undecided maps the values of gateways.ext_authz.undecided.
func Undecided() map[string]gateway.UndecidedAs {
	return map[string]gateway.UndecidedAs{"error": gateway.AsError, "error_response": gateway.AsErrorResponse, "denial": gateway.AsDenial}
}
