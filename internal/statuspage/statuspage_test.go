package statuspage_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/statuspage"
)

// healthy is a record of a replica on which everything works.
func healthy(id fleet.Name) fleet.Record {
	now := time.Now()
	return fleet.Record{
		Replica:      fleet.Replica{ID: id, Host: id, Version: "v1.2.3", Started: now.Add(-time.Hour), Written: now},
		Config:       fleet.Config{Applied: now.Add(-time.Hour)},
		Revocations:  fleet.Revocations{Count: 3, Usable: true, Loaded: now},
		Store:        fleet.Store{Kind: fleet.Redis, Servers: []fleet.Server{{Name: "redis:6379", Reads: true, Writes: true}}, Durable: fleet.Yes, Evicts: fleet.No},
		Issuers:      []fleet.Issuer{{Name: "https://login.example.com", Keys: 2, Loaded: now.Add(-3 * time.Minute)}},
		Clients:      []fleet.Client{{Name: "orders", State: fleet.ClientOK, Success: now}, {Name: "idle", State: fleet.ClientIdle}},
		Certificates: []fleet.Certificate{{Use: fleet.ListenerUse, Name: "broker.example.com", Begins: now.Add(-24 * time.Hour), Ends: now.Add(90*24*time.Hour + time.Minute)}},
		Audit:        fleet.Audit{On: true},
	}
}

// summaryOf is the summary of a fleet of the replica and others.
func summaryOf(self fleet.Record, others ...fleet.Member) fleet.Summary {
	return fleet.Summarize(fleet.View{Members: others}, &self, time.Now())
}

func serve(summary fleet.Summary, serving bool) *statuspage.Pages {
	return statuspage.New(statuspage.Config{
		Summary: func(context.Context) fleet.Summary { return summary },
		Serving: func() bool { return serving },
	})
}

func get(h http.Handler) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", http.NoBody))
	return w
}

// text returns the words of a page.
func text(w *httptest.ResponseRecorder) string {
	_, body, _ := strings.Cut(w.Body.String(), "</head>")
	return strings.Join(strings.Fields(regexp.MustCompile("<[^>]*>").ReplaceAllString(body, " ")), " ")
}

func expect(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, one := range want {
		if !strings.Contains(text, one) {
			t.Errorf("%q is missing in %s", one, text)
		}
	}
}

func TestPageOfAHealthyFleet(t *testing.T) {
	other := healthy("b")
	page := get(serve(summaryOf(healthy("a"), fleet.Member{Presence: fleet.Alive, Replica: other.Replica, Record: &other}), true))
	expect(t, text(page),
		"Everything works.", "as seen by a", "v1.2.3", "Replicas 2 alive", "a (this one) alive", "b alive", "up for 60m", "3 revocations loaded",
		"Store keeps its data on disk", "Redis redis:6379 reads and writes work", "orders ok", "idle not used yet",
		"https://login.example.com 2 keys fetched 3m ago", "broker broker.example.com expires in 90d", "Audit log works", "Tracing off")
	if strings.Contains(text(page), "Findings") {
		t.Error("there is a list of findings")
	}
	if !strings.Contains(page.Body.String(), "<title>ok · tokenbroker</title>") {
		t.Error("the title is not ok")
	}
}

func TestPageShowsFindings(t *testing.T) {
	broken := healthy("a")
	broken.Clients[0] = fleet.Client{Name: "orders", State: fleet.ClientRefused, Failed: time.Now().Add(-40 * time.Second), Failure: fleet.SecretRefused}
	broken.Certificates[0].Begins, broken.Certificates[0].Ends = time.Now().Add(-89*24*time.Hour), time.Now().Add(24*time.Hour+time.Minute)
	broken.Tracing = fleet.Tracing{On: true, Failing: time.Now().Add(-time.Minute)}
	lost := fleet.Member{Presence: fleet.Lost, Replica: fleet.Replica{ID: "b", Host: "b", Version: "v1.2.3"}, Age: 45 * time.Second}
	page := get(serve(summaryOf(broken, lost), true))
	expect(t, text(page),
		"1 problem needs action now, 3 warnings need attention.", "critical The IdP refuses the credentials of client orders.", "for 40s, since ", "runbook: secret-refused",
		"orders refused by the IdP", "b lost", "warning Replica b has not reported for 45s", "broker broker.example.com expires in 24h", "Tracing failing")
	expect(t, page.Body.String(), `href="https://github.com/cezzis/tokenbroker/blob/main/docs/runbook.md#secret-refused"`, "<code>broker secret rotate</code>",
		`<span class="state critical">refused by the IdP</span>`, `<span class="state warning">lost</span>`, `<span class="state warning">expires in 24h</span>`)
}

func TestPageOfAFleetWithoutItsStore(t *testing.T) {
	broken := healthy("a")
	broken.Store.Servers[0] = fleet.Server{Name: "redis:6379", ReadsSince: time.Now().Add(-3 * time.Minute), Cause: fleet.Unreachable}
	summary := fleet.Summarize(fleet.View{Err: context.DeadlineExceeded}, &broken, time.Now())
	expect(t, text(get(serve(summary, true))), "1 problem needs action now.", "The store cannot be reached", "1 alive, the others are unknown", "cannot be reached for 3m")
}

func TestPageOfAReplicaThatStops(t *testing.T) {
	expect(t, text(get(serve(summaryOf(healthy("a")), false))), "This replica is starting or shutting down.")
}

// Names are in the file of an operator, but the page must not depend on their good will.
func TestPageEscapesNames(t *testing.T) {
	broken := healthy("a")
	broken.Clients = []fleet.Client{{Name: "<script>alert(1)</script>\u202e", State: fleet.ClientNoSecret}}
	body := get(serve(summaryOf(broken), true)).Body.String()
	if strings.Contains(body, "<script") || strings.Contains(body, "\u202e") {
		t.Error("a name is not escaped")
	}
}

func TestPageOfManyClients(t *testing.T) {
	broken := healthy("a")
	broken.Clients = nil
	for range 3000 {
		broken.Clients = append(broken.Clients, fleet.Client{Name: fleet.Name("client-" + strings.Repeat("x", len(broken.Clients)%9+1) + time.Duration(len(broken.Clients)).String()), State: fleet.ClientOK})
	}
	broken.Clients[2999] = fleet.Client{Name: "zz-last", State: fleet.ClientNoSecret}
	page := get(serve(summaryOf(broken), true))
	expect(t, text(page), "3000 clients", "2900 more are not shown here.", "zz-last has no secret")
	if page.Body.Len() > 64<<10 {
		t.Errorf("the page has %d bytes", page.Body.Len())
	}
}

func TestPageHeaders(t *testing.T) {
	page := get(serve(summaryOf(healthy("a")), true))
	for name, want := range map[string]string{
		"Cache-Control": "no-store", "Content-Type": "text/html; charset=utf-8", "Referrer-Policy": "no-referrer",
		"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
	} {
		if got := page.Header().Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page.Body.String())
	if style == nil {
		t.Fatal("there is no style sheet")
	}
	hash := sha256.Sum256([]byte(style[1]))
	want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	if got := page.Header().Get("Content-Security-Policy"); got != want {
		t.Errorf("Content-Security-Policy: %q, want %q", got, want)
	}
}

func TestPageNeedsNothingElse(t *testing.T) {
	body := get(serve(summaryOf(healthy("a")), true)).Body.String()
	for _, forbidden := range []string{"<script", "<img", "<iframe", "<form", "@import", "url(", " src=", " onload=", ` style="`} {
		if strings.Contains(body, forbidden) {
			t.Errorf("the page contains %q", forbidden)
		}
	}
	for _, link := range regexp.MustCompile(`<link [^>]*href="([^"]*)"`).FindAllStringSubmatch(body, -1) {
		if !strings.HasPrefix(link[1], "data:") {
			t.Errorf("the page loads %s", link[1])
		}
	}
	expect(t, body, `<meta http-equiv="refresh" content="10">`, `<meta name="viewport" content="width=device-width, initial-scale=1">`,
		"@media (prefers-color-scheme: dark)", "color-scheme: light dark", "@media (max-width:")
}

func TestChecks(t *testing.T) {
	checks := func(summary fleet.Summary, serving bool) string {
		w := httptest.NewRecorder()
		serve(summary, serving).ServeChecks(w, httptest.NewRequest(http.MethodGet, "/readyz?verbose", http.NoBody), http.StatusOK, "first line")
		if w.Header().Get("Content-Type") != "text/plain; charset=utf-8" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers: %v", w.Header())
		}
		return w.Body.String()
	}
	all := checks(summaryOf(healthy("a")), true)
	if !strings.HasPrefix(all, "first line\n\nserving        ok\nreplicas       ok\n") || strings.Contains(all, "failed") {
		t.Errorf("a healthy fleet: %s", all)
	}
	broken := healthy("a")
	broken.Clients[0].State, broken.Clients[0].Failed = fleet.ClientRefused, time.Now().Add(-40*time.Second)
	expect(t, checks(summaryOf(broken), false),
		"serving        failed: this replica is starting or shutting down\n",
		"clients        failed: The IdP refuses the credentials of client orders. (critical, for 40s)\n", "issuers        ok\n")
	summary := summaryOf(healthy("a"))
	summary.Findings = []fleet.Finding{{Severity: fleet.Warning, ID: "of-a-later-version", Message: "Something.", Since: time.Now()}}
	expect(t, checks(summary, true), "other          failed: Something. (warning, just now)\n")
}
