package idp_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
)

func TestFingerprintCoversTheRequest(t *testing.T) {
	dir := t.TempDir()
	key := newKey(t, "ES256")
	_, certificate := certify(t, key, time.Hour)
	files := idp.CertificateFiles{Cert: write(t, filepath.Join(dir, "crt"), certificate), Key: write(t, filepath.Join(dir, "key"), pemKey(t, key))}
	same := idp.Config{TokenURL: "https://idp.example/token", ClientID: clientID}
	changes := []func(*idp.Config){
		func(*idp.Config) {},
		func(c *idp.Config) { c.TokenURL += "2" },
		func(c *idp.Config) {
			c.TokenURL, c.Issuer = "", discovery.New(discovery.Config{Issuer: "https://idp.example"})
		},
		func(c *idp.Config) { c.ClientID += "2" },
		func(c *idp.Config) { c.Auth = idp.SecretPost },
		func(c *idp.Config) { c.Auth = idp.SecretJWT },
		func(c *idp.Config) { c.Auth = idp.PrivateKeyJWT },
		func(c *idp.Config) { c.Auth, c.Certificate = idp.TLS, files },
		func(c *idp.Config) { c.Auth, c.Certificate = idp.SelfSignedTLS, files },
		func(c *idp.Config) { c.Auth, c.AssertionFile = idp.FederatedJWT, "file" },
		func(c *idp.Config) { c.Auth, c.AssertionFile = idp.SpiffeJWT, "file" },
		func(c *idp.Config) { c.Auth = idp.None },
		func(c *idp.Config) { c.Grant = idp.JWTBearer },
		func(c *idp.Config) { c.Grant = "account_credentials" },
		func(c *idp.Config) { c.Grant = idp.TokenExchange },
		func(c *idp.Config) { c.Grant, c.Exchange = idp.TokenExchange, &idp.Exchange{} },
		func(c *idp.Config) {
			c.Grant, c.Exchange = idp.TokenExchange, &idp.Exchange{RequestedTokenType: idp.TypeJWTToken}
		},
		func(c *idp.Config) { c.Grant, c.Exchange = idp.JWTBearer, &idp.Exchange{} },
		func(c *idp.Config) { c.RawBasic = true },
		func(c *idp.Config) { c.Assertion.Audience = "urn:idp" },
		func(c *idp.Config) { c.Assertion.Algorithm = "PS256" },
		func(c *idp.Config) { c.Assertion.KeyID = "k" },
		func(c *idp.Config) { c.Assertion.Type = "JWT" },
		func(c *idp.Config) { c.Assertion.Subject = "s" },
		func(c *idp.Config) { c.Assertion.CertificateFile = "file" },
		func(c *idp.Config) { c.Params = map[string]string{"a": "b"} },
		func(c *idp.Config) { c.Params = map[string]string{"a": "c"} },
		func(c *idp.Config) { c.Extras = []string{"a"} },
		func(c *idp.Config) { c.DefaultLifetime = time.Minute },
	}
	seen := map[[32]byte]int{}
	for i, change := range changes {
		cfg := same
		change(&cfg)
		fingerprint := client(t, cfg).Fingerprint()
		if before, ok := seen[fingerprint]; ok {
			t.Errorf("%d has the fingerprint of %d", i, before)
		}
		seen[fingerprint] = i
	}
	for name, change := range map[string]func(*idp.Config){
		"the default auth":     func(c *idp.Config) { c.Auth = idp.SecretBasic },
		"the default grant":    func(c *idp.Config) { c.Grant = idp.ClientCredentials },
		"the default audience": func(c *idp.Config) { c.Assertion.Audience = idp.AudienceTokenEndpoint },
	} {
		cfg := same
		change(&cfg)
		if client(t, cfg).Fingerprint() != client(t, same).Fingerprint() {
			t.Errorf("%s, written out, has another fingerprint", name)
		}
	}
	mutual := same
	mutual.Auth, mutual.Certificate = idp.TLS, files
	renewed := mutual
	_, other := certify(t, key, 2*time.Hour)
	renewed.Certificate.Cert = write(t, filepath.Join(dir, "crt2"), other)
	if client(t, mutual).Fingerprint() != client(t, renewed).Fingerprint() {
		t.Error("a renewed certificate changes the fingerprint: every token would be fetched anew")
	}
}
