package gateway

import (
	"encoding/json"
	"net/url"
	"strings"
)

// ResourcePrefix is the beginning of the paths at which clients fetch the metadata of
// protected resources (RFC 9728 section 3).
const ResourcePrefix = "/.well-known/oauth-protected-resource"

// ResourceCacheControl is the Cache-Control of metadata: they are public, and a change of the
// configuration takes effect at clients within five minutes.
const ResourceCacheControl = "public, max-age=300"

// Resource is a protected resource, as its metadata describe it to clients (RFC 9728). All
// URLs come from the configuration: a client must not be able to direct another client
// to an authorization server by the headers of a request.
type Resource struct {
	// Name is the name in the configuration, by which gateways refer to the resource.
	Name string
	// URL is the resource identifier, the URL at which clients use the resource.
	URL string
	// AuthorizationServers are the issuers of tokens for the resource.
	AuthorizationServers []string
	// Scopes, Title and Documentation are omitted in the metadata if they are empty.
	Scopes               []string
	Title, Documentation string
}

// MetadataURL returns the URL of the metadata: the well-known path comes before the path of
// the resource (RFC 9728 section 3.1).
func (r *Resource) MetadataURL() string {
	scheme, rest, _ := strings.Cut(r.URL, "://")
	host, path, _ := strings.Cut(rest, "/")
	if path != "" {
		path = "/" + path
	}
	return scheme + "://" + host + ResourcePrefix + path
}

// Host returns the host of the resource in the form in which rules compare hosts.
func (r *Resource) Host() string {
	u, err := url.Parse(r.URL)
	if err != nil {
		return ""
	}
	host, _ := plainHost(u.Host)
	return host
}

// place is the host, with a port other than the default ones, and the path of metadata. Two
// resources at one place could not be distinguished.
type place struct{ host, path string }

func (r *Resource) place() place {
	u, err := url.Parse(r.MetadataURL())
	if err != nil {
		return place{}
	}
	host, _ := hostWithPort(u.Host)
	return place{host, u.Path}
}

// SamePlace reports whether the metadata of two resources are at the same host and path.
func (r *Resource) SamePlace(other *Resource) bool { return r.place() == other.place() }

// hostWithPort is plainHost, with the port unless it is 80 or 443: clients leave out a
// default port, and the broker does not see the scheme.
func hostWithPort(host string) (name string, plain bool) {
	name, plain = plainHost(host)
	if i := strings.LastIndexByte(host, ':'); i >= 0 && plain && !strings.HasSuffix(host, "]") {
		if port := host[i:]; port != ":80" && port != ":443" {
			name += port
		}
	}
	return name, plain
}

// Valid reports whether the URL is a resource identifier whose metadata can be matched
// without doubt: a plain host and a plain path in ASCII without escapes, and no query.
func (r *Resource) Valid() bool {
	u, err := url.Parse(r.URL)
	if err != nil || u.RawQuery != "" || u.ForceQuery || strings.ContainsAny(r.URL, `"\%#`) || strings.ContainsFunc(r.URL, notASCII) {
		return false
	}
	_, plain := plainHost(u.Host)
	if u.Path == "" || u.Path == "/" {
		return plain
	}
	_, plainToo := plainPath(u.Path)
	return plain && plainToo
}

func notASCII(c rune) bool { return c <= ' ' || c > '~' }

// document returns the metadata (RFC 9728 section 2).
func (r *Resource) document() []byte {
	body, err := json.Marshal(struct {
		Resource             string   `json:"resource"`
		AuthorizationServers []string `json:"authorization_servers"`
		Methods              []string `json:"bearer_methods_supported"`
		Scopes               []string `json:"scopes_supported,omitempty"`
		Title                string   `json:"resource_name,omitempty"`
		Documentation        string   `json:"resource_documentation,omitempty"`
	}{r.URL, r.AuthorizationServers, []string{"header"}, r.Scopes, r.Title, r.Documentation})
	if err != nil {
		return nil // impossible: strings can always be encoded
	}
	return append(body, '\n')
}

// Resources are the protected resources of the configuration. It does not change, and a
// nil one has no resources.
type Resources struct {
	byName map[string]*Metadata
	byPath map[string][]*Metadata
}

// Metadata are the metadata of one resource.
type Metadata struct {
	// Document is the JSON document, URL its location.
	Document []byte
	URL      string

	place
	name string
}

// NewResources prepares the metadata of resources that are valid and have different names.
func NewResources(list []Resource) *Resources {
	r := &Resources{byName: map[string]*Metadata{}, byPath: map[string][]*Metadata{}}
	for i := range list {
		m := &Metadata{Document: list[i].document(), URL: list[i].MetadataURL(), place: list[i].place(), name: list[i].Name}
		r.byName[m.name] = m
		r.byPath[m.path] = append(r.byPath[m.path], m)
	}
	return r
}

// Named returns the metadata of the resource with a name in the configuration, or nil.
func (r *Resources) Named(name string) *Metadata {
	if r == nil {
		return nil
	}
	return r.byName[name]
}

// Paths returns the paths of all metadata.
func (r *Resources) Paths() (paths []string) {
	if r == nil {
		return nil
	}
	for path := range r.byPath {
		paths = append(paths, path)
	}
	return paths
}

// AtPath returns the metadata at a path, or nil. name selects among resources of several
// hosts that have the same path; it may be empty if only one has it.
func (r *Resources) AtPath(path, name string) *Metadata {
	if r == nil {
		return nil
	}
	list := r.byPath[path]
	if name == "" && len(list) == 1 {
		return list[0]
	}
	for _, m := range list {
		if m.name == name {
			return m
		}
	}
	return nil
}

// AtHost returns the metadata at a host and a raw path with its query, or nil. The host
// only selects a resource: no part of it is in the metadata.
func (r *Resources) AtHost(host, target string) *Metadata {
	if r == nil || !strings.HasPrefix(target, ResourcePrefix) {
		return nil
	}
	path, _, _ := strings.Cut(target, "?")
	host, plain := hostWithPort(host)
	for _, m := range r.byPath[path] {
		if plain && m.host == host {
			return m
		}
	}
	return nil
}
