package client

import (
	"encoding/json"
	"net/http"
	"strings"
)

// Resource describes a service to its clients as a protected resource of RFC 9728, so that
// they find its authorization servers by themselves, as clients of MCP do. The URLs are
// the service's own: no part of a request is used for them.
//
//	resource := client.Resource{URL: "https://api.example.com/mcp", AuthorizationServers: []string{"https://login.example.com"}}
//	verifier := c.Verifier(client.RequireAudience("https://api.example.com/mcp"), client.WithResource(resource))
//	mux.Handle(resource.MetadataPath(), resource.MetadataHandler())
//	mux.Handle("/mcp", client.HTTPMiddleware(verifier)(handler))
//
// A broker behind a gateway serves the same metadata by its own configuration.
type Resource struct {
	// URL is the URL at which clients use the resource, without a query and a fragment.
	// Clients compare it with the URL that they use.
	URL string
	// AuthorizationServers are the issuers from which clients get tokens.
	AuthorizationServers []string
	// Scopes that clients can request, a title for people and the URL of a page for
	// developers are omitted in the metadata if they are empty.
	Scopes               []string
	Title, Documentation string
}

// MetadataURL returns the URL of the metadata (RFC 9728 section 3.1).
func (r Resource) MetadataURL() string {
	scheme, rest, _ := strings.Cut(r.URL, "://")
	host, _, _ := strings.Cut(rest, "/")
	return scheme + "://" + host + r.MetadataPath()
}

// MetadataPath returns the path of the metadata at the host of the resource.
func (r Resource) MetadataPath() string {
	_, rest, _ := strings.Cut(r.URL, "://")
	path := "/.well-known/oauth-protected-resource"
	if _, below, _ := strings.Cut(rest, "/"); below != "" {
		path += "/" + below
	}
	return path
}

// MetadataHandler serves the metadata. They are public: it must not be behind
// [HTTPMiddleware], and pages of any origin may read them.
func (r Resource) MetadataHandler() http.Handler {
	document, err := json.Marshal(struct {
		Resource             string   `json:"resource"`
		AuthorizationServers []string `json:"authorization_servers,omitempty"`
		Methods              []string `json:"bearer_methods_supported"`
		Scopes               []string `json:"scopes_supported,omitempty"`
		Title                string   `json:"resource_name,omitempty"`
		Documentation        string   `json:"resource_documentation,omitempty"`
	}{r.URL, r.AuthorizationServers, []string{"header"}, r.Scopes, r.Title, r.Documentation})
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case err != nil: // impossible: strings can always be encoded
			http.Error(w, "the metadata cannot be encoded", http.StatusInternalServerError)
		case req.Method != http.MethodGet && req.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the metadata can only be read", http.StatusMethodNotAllowed)
		default:
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Cache-Control", "public, max-age=300")
			w.Header().Set("Access-Control-Allow-Origin", "*")
			_, _ = w.Write(document)
		}
	})
}

// WithResource makes each WWW-Authenticate of refused requests refer to the metadata of the
// resource (RFC 9728 section 5.1). The default is no reference.
func WithResource(r Resource) VerifierOption {
	return verifierOption(func(v *Verifier) { v.challenges.metadata = r.MetadataURL() })
}
