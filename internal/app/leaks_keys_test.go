package app_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"

	"github.com/cezzis/tokenbroker/internal/jose/josetest"
)

// serveKeys serves keys to clients with a token, and repeats the token wherever there
// is room for text. The path says what it does.
func (l *leaks) serveKeys() {
	l.t.Helper()
	key := josetest.New(l.t, "EdDSA", "key")
	l.keys = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.Header.Get("Authorization")
		switch r.URL.Path {
		case "/good":
			_, _ = w.Write(josetest.Set(key.JWK()))
		case "/not-json":
			_, _ = fmt.Fprint(w, token)
		case "/redirect":
			http.Redirect(w, r, "/elsewhere?"+url.QueryEscape(token), http.StatusFound)
		case "/broken":
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\n\r\n", token)
				_ = conn.Close()
			}
		case "/forbidden":
			w.Header().Set("WWW-Authenticate", "Bearer realm="+token)
			http.Error(w, token, http.StatusForbidden)
		default:
			http.Error(w, token, http.StatusUnauthorized)
		}
	}))
	l.keys.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	l.keys.StartTLS()
	l.t.Cleanup(l.keys.Close)
}

// keysWithTokens are issuers whose keys are served so.
func (l *leaks) keysWithTokens() string {
	l.t.Helper()
	var issuers strings.Builder
	add := func(path, token string) {
		fmt.Fprintf(&issuers, ", {issuer: \"https://cluster.example.com%s\", audiences: [api], jwks_url: \"%s%s\", jwks_token_file: %q}",
			path, l.keys.URL, path, l.file("token-for"+strings.ReplaceAll(path, "/", "-"), token))
	}
	for _, path := range []string{"/good", "/not-json", "/redirect", "/broken", "/forbidden", "/unauthorized"} {
		add(path, l.secret("token for keys"))
	}
	add("/no-token", l.secret("token for keys")+" "+l.secret("token for keys"))
	return issuers.String()
}
