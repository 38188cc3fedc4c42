package discovery

import (
	"net/http"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

// observed counts each request and records a span for it.
type observed struct {
	http.RoundTripper

	tracer *tracing.Tracer // nil: no spans
	count  func(tracing.Name)
}

// Observe counts each request of the Network's clients and records a span for it, named
// by [tracing.Named]. Call it before the first request. A nil tracer records nothing.
func (n *Network) Observe(tracer *tracing.Tracer, count func(tracing.Name)) {
	n.tracer, n.count = tracer, count
	for _, client := range n.clients {
		n.observe(client)
	}
}

// observe adds counting and tracing to a client.
func (n *Network) observe(client *http.Client) *http.Client {
	if n.count != nil {
		client.Transport = observed{client.Transport, n.tracer, n.count}
	}
	return client
}

// RoundTrip implements http.RoundTripper. The span ends with the header of the response.
func (t observed) RoundTrip(r *http.Request) (*http.Response, error) {
	name := tracing.NameIn(r.Context())
	t.count(name)
	if t.tracer == nil {
		return t.RoundTripper.RoundTrip(r)
	}
	ctx, span := t.tracer.Start(r.Context(), name)
	span.Host(r.URL.Hostname())
	response, err := t.RoundTripper.RoundTrip(r.WithContext(ctx))
	if err == nil {
		span.HTTPStatus(response.StatusCode)
	}
	span.End(err)
	return response, err
}

// CloseIdleConnections is called by [http.Client.CloseIdleConnections].
func (t observed) CloseIdleConnections() {
	(&http.Client{Transport: t.RoundTripper}).CloseIdleConnections()
}
