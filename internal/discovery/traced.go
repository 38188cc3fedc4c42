package discovery

import (
	"net/http"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

// traced makes a span of each request.
type traced struct {
	http.RoundTripper

	tracer *tracing.Tracer
}

// Trace makes spans of the requests of all clients, named by [tracing.Named]. It
// is to be called before any is used.
func (n *Network) Trace(tracer *tracing.Tracer) {
	n.tracer = tracer
	for _, client := range n.clients {
		n.trace(client)
	}
}

// trace makes spans of a client's requests, if spans are made.
func (n *Network) trace(client *http.Client) *http.Client {
	if n.tracer != nil {
		client.Transport = traced{client.Transport, n.tracer}
	}
	return client
}

// RoundTrip implements http.RoundTripper. The span ends when the answer's header
// is there.
func (t traced) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, span := t.tracer.Start(r.Context(), tracing.NameIn(r.Context()))
	span.Host(r.URL.Hostname())
	response, err := t.RoundTripper.RoundTrip(r.WithContext(ctx))
	if err == nil {
		span.HTTPStatus(response.StatusCode)
	}
	span.End(err)
	return response, err
}

// CloseIdleConnections lets http.Client close them.
func (t traced) CloseIdleConnections() {
	(&http.Client{Transport: t.RoundTripper}).CloseIdleConnections()
}
