package gatewayconf

import (
	"maps"
	"slices"
	"strings"

	"github.com/cezzis/tokenbroker/internal/gateway"
	"github.com/cezzis/tokenbroker/internal/urlcheck"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Resource defines the metadata of a protected resource (RFC 9728).
type Resource struct {
	// The URL at which clients use the resource, without a query. Clients compare it with the URL
	// that they use.
	URL string `yaml:"url" jsonschema:"required,minLength=1,maxLength=512"`
	// Accept http:// beyond loopback in the URLs.
	AllowHTTP bool `yaml:"allow_http" jsonschema:"default=false"`
	// The issuers that clients get tokens for the resource from.
	AuthorizationServers []string `yaml:"authorization_servers" jsonschema:"required,minItems=1,maxItems=16,uniqueItems=true,minLength=1,maxLength=512"`
	// The scopes that clients can request for the resource. Absent: the metadata name none.
	Scopes []string `yaml:"scopes" jsonschema:"minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
	// A name of the resource for people.
	Title string `yaml:"title" jsonschema:"minLength=1,maxLength=256"`
	// The URL of a page for developers of clients.
	Documentation string `yaml:"documentation" jsonschema:"minLength=1,maxLength=512"`
}

// ProtectedResources converts the resources, sorted by name.
func (g *Gateways) ProtectedResources() []gateway.Resource {
	var list []gateway.Resource
	for _, name := range slices.Sorted(maps.Keys(g.Resources)) {
		list = append(list, g.protected(name))
	}
	return list
}

func (g *Gateways) protected(name string) gateway.Resource {
	r := g.Resources[name]
	return gateway.Resource{
		Name: name, URL: r.URL, AuthorizationServers: r.AuthorizationServers, Scopes: r.Scopes, Title: r.Title, Documentation: r.Documentation,
	}
}

// checkResources also rejects resources whose metadata are at the same place: a request
// could not be mapped to one of them.
func (g *Gateways) checkResources(findings *yamlconf.Findings) {
	var valid []gateway.Resource
	for _, checked := range g.ProtectedResources() {
		r, path := g.Resources[checked.Name], yamlconf.Join("gateways.resources", checked.Name)
		at := yamlconf.Join(path, "url")
		urlcheck.URL(at, r.URL, r.AllowHTTP, findings)
		for i, server := range r.AuthorizationServers {
			urlcheck.URL(yamlconf.Item(yamlconf.Join(path, "authorization_servers"), i), server, r.AllowHTTP, findings)
		}
		urlcheck.URL(yamlconf.Join(path, "documentation"), r.Documentation, r.AllowHTTP, findings)
		findings.Scopes(yamlconf.Join(path, "scopes"), r.Scopes)
		if r.URL == "" {
			continue // reported elsewhere
		}
		if !checked.Valid() {
			findings.Addf(at, "expected a URL with a plain host and path, without a query and escapes, such as https://api.example.com/orders")
			continue
		}
		if i := slices.IndexFunc(valid, func(other gateway.Resource) bool { return other.SamePlace(&checked) }); i >= 0 {
			findings.Addf(at, "has the host and path of the resource %s: its metadata would be at the same place", valid[i].Name)
		}
		valid = append(valid, checked)
	}
}

// checkResource rejects a resource of another host than the rule's: clients refuse
// metadata of another host than the one they use.
func (g *Gateways) checkResource(rule *GatewayRule, path string, findings *yamlconf.Findings) {
	if rule.Resource == "" {
		return
	}
	if _, ok := g.Resources[rule.Resource]; !ok {
		findings.Addf(path, "names no entry of gateways.resources")
		return
	}
	checked := g.protected(rule.Resource)
	host := checked.Host()
	if exact := rule.Host != "" && !strings.HasPrefix(rule.Host, "*."); exact && checked.Valid() && !strings.EqualFold(rule.Host, host) {
		findings.Addf(path, "the URL of the resource has the host %s, and the rule is for %s: clients refuse the metadata of another host", host, rule.Host)
	}
}
