package app

import (
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cezzis/tokenbroker/internal/httpapi"
	"github.com/cezzis/tokenbroker/internal/statuspage"
)

// opsServer serves metrics, health and profiles. Ready means that the configuration is
// applied and the listeners are up: an outage of an IdP, of an issuer's keys or of the
// store must not remove every replica from rotation at once.
func (a *App) opsServer() *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{Registry: a.registry}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	pages := statuspage.New(statuspage.Config{Summary: a.status.summary, Serving: a.ready.Load})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { a.serveReady(w, r, pages) })
	for _, path := range []string{"GET /{$}", "GET /status"} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if reason := a.statusIsOff(r); reason != "" {
				say(w, http.StatusForbidden, reason)
				return
			}
			pages.ServeHTTP(w, r)
		})
	}
	if a.config.Server.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	}
	return &http.Server{
		Handler:           closeWhereFramingIsUnclear(mux),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      2 * time.Minute, // a profile takes its time
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}
}

// serveReady reports whether the replica serves calls. With ?verbose it lists the checks of
// the fleet too, which do not change the status code.
func (a *App) serveReady(w http.ResponseWriter, r *http.Request, pages *statuspage.Pages) {
	status, line := http.StatusOK, "ok"
	if !a.ready.Load() {
		status, line = http.StatusServiceUnavailable, "not serving: starting or draining"
	}
	if !r.URL.Query().Has("verbose") {
		say(w, status, line)
		return
	}
	if reason := a.statusIsOff(r); reason != "" {
		say(w, status, line+"\n\n"+reason)
		return
	}
	pages.ServeChecks(w, r, status, line)
}

// statusIsOff returns why this request gets no status of the fleet, and what to set; empty:
// it gets it. On loopback, a website could point its own name at this address and read the
// page in the browser of an operator, so only requests without such a name get it.
func (a *App) statusIsOff(r *http.Request) string {
	const always = "server: {status_page: always}"
	switch setting := a.config.Server.StatusPage; {
	case setting == "off":
		return "The status page is off. To serve it, remove server.status_page from the configuration, or set " + always + ". `broker status` shows the same."
	case !a.config.ServesStatusPage():
		return "The status page is off, because this listener is not on loopback and the page shows the names of clients, issuers and replicas to everyone who can connect.\n" +
			"To serve it, set " + always + " in the configuration and restart the broker. `broker status` shows the same to callers with the permission."
	case setting != "always" && !isLocalName(r.Host):
		return "The status page is served to localhost and to IP addresses only. To serve it under another name, set " + always + " in the configuration and restart the broker."
	default:
		return ""
	}
}

// isLocalName reports whether the host of a request is localhost or an IP address.
func isLocalName(host string) bool {
	name := host
	if only, _, err := net.SplitHostPort(host); err == nil {
		name = only
	}
	_, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil || strings.EqualFold(name, "localhost")
}

// closeWhereFramingIsUnclear closes the connection after a request whose body might be
// taken for the next request.
func closeWhereFramingIsUnclear(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if httpapi.MustClose(r) {
			w.Header().Set("Connection", "close")
		}
		next.ServeHTTP(w, r)
	})
}

func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
