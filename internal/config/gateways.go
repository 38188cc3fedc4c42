package config

import (
	"regexp"
	"strings"

	"github.com/cezzis/tokenbroker/internal/gateway"
)

// Gateways says how gateways are served.
type Gateways struct {
	// How the names of the headers begin that tell whose token it is.
	HeaderPrefix string `yaml:"header_prefix" jsonschema:"default=X-Auth-,minLength=2,maxLength=64"`
	// The realm of WWW-Authenticate.
	Realm string `yaml:"realm" jsonschema:"default=api,minLength=1,maxLength=128"`
	// Where gateways say at /verify what a token must be good for: in the query, or in headers.
	Needs string `yaml:"needs" jsonschema:"default=query,enum=query,enum=headers"`
	// Serve Envoy's ext_authz on the listeners of the gRPC API. Absent: it is not served.
	ExtAuthz *ExtAuthz `yaml:"ext_authz"`
}

// ExtAuthz says how Envoy is served.
type ExtAuthz struct {
	// What Envoy is told where nothing can be decided: that the call failed (error), the same as an
	// answer with status 503 for Envoy from 1.37 on (error_response), or to deny with status 503.
	Undecided string `yaml:"undecided" jsonschema:"default=error,values=undecided"`
	// Claims that Envoy gets to see in its dynamic metadata, beside those that every token has.
	Claims []string `yaml:"claims" jsonschema:"minItems=1,maxItems=32,uniqueItems=true,minLength=1,maxLength=128"`
	// What tokens must be good for, by the first rule that fits a request; one that none fits is
	// denied. Absent: a token must be good for its issuer's own audiences. The context extensions
	// audience, scope and issuer of a route go before.
	Rules []GatewayRule `yaml:"rules" jsonschema:"minItems=1,maxItems=1000"`
}

// GatewayRule says what the tokens of some requests must be good for.
type GatewayRule struct {
	// The host of the requests, without a port; *. at the beginning stands for any host below.
	// Absent: any.
	Host string `yaml:"host" jsonschema:"minLength=1,maxLength=253"`
	// The path of the requests; with / at the end every path below. Absent: any.
	Path string `yaml:"path" jsonschema:"minLength=1,maxLength=512"`
	// Match the path in any case, for services that do so: without it /Admin/ is not /admin/.
	IgnoreCase bool `yaml:"ignore_case"`
	// A token must be for one of these. Absent: for one of its issuer's own.
	Audiences []string `yaml:"audiences" jsonschema:"minItems=1,maxItems=16,uniqueItems=true,minLength=1,maxLength=512"`
	// A token must carry all of these.
	Scopes []string `yaml:"scopes" jsonschema:"minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
	// A token must be of this issuer. Absent: of any that the gateway may ask about.
	Issuer string `yaml:"issuer" jsonschema:"minLength=1,maxLength=512"`
}

// checkGateways checks the keys of gateways.
func checkGateways(c *Config, found *findings) {
	g := &c.Gateways
	const prefix, realm = "gateways.header_prefix", "gateways.realm"
	if g.HeaderPrefix != "" && !regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]*-$`).MatchString(g.HeaderPrefix) {
		found.addAtf(prefix, "expected letters, digits and hyphens with a hyphen at the end, such as X-Auth-: what is behind a gateway may take an underscore for a hyphen")
	}
	if strings.ContainsFunc(g.Realm, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
		found.addAtf(realm, "expected printable ASCII without quotes and backslashes")
	}
	if g.ExtAuthz != nil {
		checkRules(g.ExtAuthz.Rules, found)
	}
}

func checkRules(rules []GatewayRule, found *findings) {
	for i := range rules {
		rule, path := &rules[i], item("gateways.ext_authz.rules", i)
		host, decoded := (&gateway.Rule{Host: rule.Host, Path: rule.Path}).Valid()
		if !host {
			found.addAtf(join(path, "host"), "expected a host name without a port, such as api.example.com or *.example.com")
		}
		if !decoded {
			found.addAtf(join(path, "path"), "expected a path as it reads once it is decoded, such as /orders/")
		}
		if rule.IgnoreCase && rule.Path == "" {
			found.addAtf(join(path, "ignore_case"), "the rule has no path, so there is no case to ignore")
		}
		checkScopes(rule.Scopes, join(path, "scopes"), found)
	}
}

// Undecided maps the values of gateways.ext_authz.undecided.
func Undecided() map[string]gateway.UndecidedAs {
	return map[string]gateway.UndecidedAs{"error": gateway.AsError, "error_response": gateway.AsErrorResponse, "denial": gateway.AsDenial}
}
