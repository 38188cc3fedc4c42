package app_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
)

// startAPIServer serves keys as the API server of Kubernetes does, to one token, and
// returns its URL and the file with the CA of its certificate.
func startAPIServer(t *testing.T, token string) (address, ca string) {
	t.Helper()
	authority, err := devca.New("cluster")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	key := josetest.New(t, "RS256", "cluster-1")
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+token {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write(josetest.Set(key.JWK()))
	}))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS()}, MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // handshakes fail on purpose
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL, fileWith(t, string(authority.PEM()))
}

// The preset and the keys that describe a place outside of a pod, tried over a real
// connection.
func TestKubernetesPresetFetchesClusterKeys(t *testing.T) {
	address, ca := startAPIServer(t, "token-of-the-pod")
	good := fileWith(t, "token-of-the-pod")
	const absent = "/var/run/secrets/kubernetes.io/serviceaccount/absent"
	check := func(ca, token string) (app.Finding, error) {
		config := parsed(t, fmt.Sprintf("issuers: [{preset: kubernetes, audiences: [tokenbroker], jwks_url: %q, tls: {ca: %q}, jwks_token_file: %q}]\n",
			address+"/openid/v1/jwks", ca, token))
		var keys app.Finding
		err := app.Check(t.Context(), config, app.Options{Logger: quiet()}, false, func(found app.Finding) {
			if strings.HasSuffix(found.What, ": keys") {
				keys = found
			}
		})
		return keys, err
	}
	if keys, err := check(ca, good); err != nil || keys.Err != nil || keys.What != "issuers https://kubernetes.default.svc.cluster.local: keys" || keys.Detail != "1 usable" {
		t.Errorf("%+v, %v", keys, err)
	}
	if keys, err := check(ca, fileWith(t, "another")); err != nil || keys.Err == nil || !strings.Contains(keys.Err.Error(), "system:service-account-issuer-discovery") {
		t.Errorf("a token that is not accepted: %+v, %v", keys, err)
	}
	if keys, err := check(ca, absent); err != nil || keys.Err == nil || !strings.Contains(keys.Err.Error(), "automountServiceAccountToken") {
		t.Errorf("no token: %+v, %v", keys, err)
	}
	if keys, err := check(fileWithAuthority(t), good); err != nil || keys.Err == nil || !strings.Contains(keys.Err.Error(), `"cluster"`) {
		t.Errorf("another CA: %+v, %v", keys, err)
	}
	if _, err := check(absent, good); err == nil || !strings.Contains(err.Error(), absent) || !strings.Contains(err.Error(), "automountServiceAccountToken") {
		t.Errorf("no CA: %v", err)
	}
	if _, err := check(filepath.Join(t.TempDir(), "absent"), good); err == nil || strings.Contains(err.Error(), "automountServiceAccountToken") {
		t.Errorf("no CA elsewhere: %v", err)
	}
}
