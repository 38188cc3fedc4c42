// Package statuspage serves the status of the fleet to people: a page in HTML, and a list
// of checks in text. Both show what fleet.Summary contains, so neither a secret nor a
// token, a claim, the name of a caller or a text of an IdP.
package statuspage

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
)

var (
	//go:embed page.gohtml
	pageText string
	//go:embed page.css
	css string
)

// Config configures the pages.
type Config struct {
	// Summary returns the status of the fleet. It does not read the store for each call.
	Summary func(context.Context) fleet.Summary
	// Serving reports whether this replica serves calls: it has started and is not stopping.
	Serving func() bool
}

// Pages serves the status. It is safe for concurrent use.
type Pages struct {
	cfg      Config
	template *template.Template
	policy   string
}

// New returns Pages.
func New(cfg Config) *Pages {
	hash := sha256.Sum256([]byte(css))
	return &Pages{
		cfg:      cfg,
		template: template.Must(template.New("page").Parse(pageText)),
		// The embedded style sheet, the icon in the page, and nothing else.
		policy: "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'; img-src data:; " +
			"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
	}
}

// ServeHTTP serves the page.
func (p *Pages) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	summary := p.cfg.Summary(r.Context())
	var body bytes.Buffer
	if err := p.template.Execute(&body, newView(&summary, time.Now(), p.cfg.Serving())); err != nil {
		http.Error(w, "The page could not be rendered.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Security-Policy", p.policy)
	respond(w, http.StatusOK, "text/html; charset=utf-8", body.Bytes())
}

// ServeChecks responds with a text that begins with the given line and lists the checks.
func (p *Pages) ServeChecks(w http.ResponseWriter, r *http.Request, status int, line string) {
	summary := p.cfg.Summary(r.Context())
	respond(w, status, "text/plain; charset=utf-8", []byte(line+"\n\n"+checksText(&summary, time.Now(), p.cfg.Serving())))
}

func respond(w http.ResponseWriter, status int, contentType string, body []byte) {
	header := w.Header()
	header.Set("Cache-Control", "no-store")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Content-Type", contentType)
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("X-Frame-Options", "DENY")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
