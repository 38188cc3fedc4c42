package broker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// writeCertificate writes a new self-signed certificate and its key.
func writeCertificate(t *testing.T, files idp.CertificateFiles) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{files.Cert: {Type: "CERTIFICATE", Bytes: der}, files.Key: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRenewedCertificateEndsARefusal as another secret does: what was refused of
// one certificate is not held against the next. The client has no secret.
func TestRenewedCertificateEndsARefusal(t *testing.T) {
	dir := t.TempDir()
	files := idp.CertificateFiles{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key")}
	inBubble(t, func(t *testing.T) {
		writeCertificate(t, files)
		// The certificate is for a front; to the IdP behind it the client says who it
		// is and no more.
		server, err := devidp.New(devidp.Config{Issuer: issuer, Algorithm: "EdDSA", Clients: []devidp.Client{{ID: "abc", Auth: devidp.AuthNone}}})
		if err != nil {
			t.Fatal(err)
		}
		client, err := idp.New(idp.Config{
			TokenURL: server.TokenEndpoint(), ClientID: "abc", Auth: idp.TLS, Certificate: files,
			HTTPWith: func(tls.Certificate) *http.Client { return discovery.NewHTTPClient(server.RoundTripper()) },
		})
		if err != nil {
			t.Fatal(err)
		}
		b, err := broker.New(broker.Config{Setup: broker.Setup{Clients: []broker.ClientConfig{{Name: "orders", IdP: client}}}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()

		server.FailNext(1, http.StatusUnauthorized, "invalid_client", nil)
		for range 3 {
			_, err := b.Get(t.Context(), policy.Self(), orders())
			wantError(t, err, apierror.FailedPrecondition, apierror.ReasonCredentialsRefused)
		}
		if n := server.Requests(devidp.TokenPath); n != 1 {
			t.Errorf("%d requests with a refused certificate", n)
		}
		writeCertificate(t, files)
		for range 2 {
			if _, err := client.ReloadCertificate(); err != nil {
				t.Fatal(err)
			}
		}
		answer, err := b.Get(t.Context(), policy.Self(), orders())
		if err != nil || answer.Token.SecretVersion != client.Credential().ID {
			t.Errorf("with the new certificate: %v", err)
		}
	})
}
