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
	const keys = "issuers https://kubernetes.default.svc.cluster.local: keys"
	check := func(ca, token string) (passed string, failed string) {
		config := parsed(t, fmt.Sprintf("issuers: [{preset: kubernetes, audiences: [tokenbroker], jwks_url: %q, tls: {ca: %q}, jwks_token_file: %q}]\n",
			address+"/openid/v1/jwks", ca, token))
		some, others := live(t, config, nil, false)
		return some[keys], others[keys] + others["issuers: https://kubernetes.default.svc.cluster.local: tls.ca"]
	}
	if passed, failed := check(ca, good); passed != "1 usable" || failed != "" {
		t.Errorf("%q, %q", passed, failed)
	}
	if _, failed := check(ca, fileWith(t, "another")); !strings.Contains(failed, "system:service-account-issuer-discovery") {
		t.Errorf("a token that is not accepted: %q", failed)
	}
	if _, failed := check(ca, absent); !strings.Contains(failed, "automountServiceAccountToken") {
		t.Errorf("no token: %q", failed)
	}
	if _, failed := check(fileWithAuthority(t), good); !strings.Contains(failed, `"cluster"`) {
		t.Errorf("another CA: %q", failed)
	}
	if _, failed := check(absent, good); !strings.Contains(failed, absent) || !strings.Contains(failed, "automountServiceAccountToken") {
		t.Errorf("no CA: %q", failed)
	}
	if _, failed := check(filepath.Join(t.TempDir(), "absent"), good); failed == "" || strings.Contains(failed, "automountServiceAccountToken") {
		t.Errorf("no CA elsewhere: %q", failed)
	}
}
