package httpapi

import (
	"io"
	"net/http"
	"net/url"

	"github.com/cezzis/tokenbroker/internal/gateway"
)

// resourceParameter names a protected resource of the configuration in queries of gateways.
const resourceParameter = "resource"

// resourceMetadata serves the metadata of a protected resource (RFC 9728 section 3) to a
// gateway that passes requests for them on. Gateways change the Host header, so it selects
// nothing: if resources of several hosts have the same path, the gateway names the resource
// in the query. The documents are public, so pages of any origin may read them.
func (s *Server) resourceMetadata(w http.ResponseWriter, r *http.Request) (int, error) {
	query, _ := url.ParseQuery(r.URL.RawQuery) // returns the well-formed parameters
	metadata := s.cfg.Resources.AtPath(r.URL.Path, query.Get(resourceParameter))
	if metadata == nil {
		return severalResources(w)
	}
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", gateway.ResourceCacheControl)
	header.Set("Access-Control-Allow-Origin", "*")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(metadata.Document) //nolint:gosec // JSON that the configuration determines; an error means that the client has disconnected
	return http.StatusOK, nil
}

// severalResources responds to a request for a path that has the metadata of resources, but
// not exactly one with this name.
func severalResources(w http.ResponseWriter) (int, error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, "Several resources have metadata at this path, or the named one has not: the gateway must add ?resource=NAME with a name in gateways.resources.\n")
	return http.StatusNotFound, nil
}

// resource returns the metadata of the resource that a gateway names; no names are no
// resource.
func (s *Server) resource(names []string) (*gateway.Metadata, error) {
	if len(names) == 0 {
		return nil, nil //nolint:nilnil // no resource is configured for the request
	}
	metadata := s.cfg.Resources.Named(names[0])
	if metadata == nil {
		return nil, misconfigured("resource names no entry of gateways.resources")
	}
	return metadata, nil
}
