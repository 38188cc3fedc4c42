package discovery

import (
	"net/http"

	"github.com/cezzis/tokenbroker/internal/tracing"
)

// traced records a span for each request.
type traced struct {
	http.RoundTripper

	tracer *tracing.Tracer
}

// Trace records a span for each request of the Network's clients, named by
// [tracing.Named]. Call it before the first request. A nil tracer records nothing.
func (n *Network) Trace(tracer *tracing.Tracer) {
	n.tracer = tracer
	for _, client := range n.clients {
		n.trace(client)
	}
}

// trace adds tracing to a client if the Network has a tracer.
func (n *Network) trace(client *http.Client) *http.Client {
	if n.tracer != nil {
		client.Transport = traced{client.Transport, n.tracer}
	}
	return client
}

// RoundTrip implements http.RoundTripper. The span ends with the header of the response.
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

// CloseIdleConnections is called by [http.Client.CloseIdleConnections].
func (t traced) CloseIdleConnections() {
	(&http.Client{Transport: t.RoundTripper}).CloseIdleConnections()
}
