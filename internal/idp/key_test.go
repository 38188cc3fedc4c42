package idp_test

import (
	"crypto"
	"crypto/ecdsa"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
)

func TestKeyIDOfAssertions(t *testing.T) {
	signer := josetest.New(t, "ES256", "from-the-jwk")
	d, err := signer.Private.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	jwk := string(josetest.Marshal(signer.JWK(josetest.JSON{"d": josetest.Base64(d)})))
	certificate, certificatePEM := certify(t, signer.Private, time.Hour)
	_, foreign := certify(t, newKey(t, "ES256"), time.Hour)
	file := write(t, filepath.Join(t.TempDir(), "certificates"), foreign+certificatePEM)
	named := jose.CertificateThumbprint(certificate)
	parsed, err := jose.ParseSigningKey(redact.New(jwk))
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		secret    string
		assertion idp.Assertion
		kid, x5t  any
	}{
		"the thumbprint":                       {pemKey(t, signer.Private), idp.Assertion{}, parsed.Thumbprint(), nil},
		"configured":                           {pemKey(t, signer.Private), idp.Assertion{KeyID: "k2"}, "k2", nil},
		"the JWK's":                            {jwk, idp.Assertion{}, "from-the-jwk", nil},
		"configured before the JWK's":          {jwk, idp.Assertion{KeyID: "k2"}, "k2", nil},
		"a certificate's file":                 {pemKey(t, signer.Private), idp.Assertion{CertificateFile: file}, nil, named},
		"a certificate's file and a kid":       {pemKey(t, signer.Private), idp.Assertion{CertificateFile: file, KeyID: "k2"}, "k2", named},
		"a certificate beside the key":         {certificatePEM + pemKey(t, signer.Private), idp.Assertion{}, nil, named},
		"certificates beside the key":          {pemKey(t, signer.Private) + foreign + certificatePEM, idp.Assertion{}, nil, named},
		"the JWK's, with a certificate's file": {jwk, idp.Assertion{CertificateFile: file}, "from-the-jwk", named},
	} {
		got := fetched(t, idp.Config{Auth: idp.PrivateKeyJWT, Assertion: tt.assertion}, tt.secret, idp.Request{})
		header, _ := asserted(t, got.form.Get("client_assertion"), signer.Private.Public(), "ES256")
		if header["kid"] != tt.kid || header["x5t#S256"] != tt.x5t {
			t.Errorf("%s: %v", name, header)
		}
	}
}

func accountFile(t testing.TB, key crypto.Signer, members josetest.JSON) string {
	t.Helper()
	file := josetest.JSON{
		"type": "service_account", "project_id": "p", "private_key_id": "a1b2", "private_key": pemKey(t, key),
		"client_email": "sa@p.iam.gserviceaccount.com", "client_id": "123", "token_uri": "https://oauth2.googleapis.com/token", "universe_domain": "googleapis.com",
	}
	maps.Copy(file, members)
	return string(josetest.Marshal(file)) + "\n"
}

func TestServiceAccountFileAsTheSecret(t *testing.T) {
	key := newKey(t, "RS256")
	cfg := idp.Config{Grant: idp.JWTBearer, ClientID: "sa@p.iam.gserviceaccount.com"}
	got := fetched(t, cfg, accountFile(t, key, nil), idp.Request{Scopes: []string{"https://www.googleapis.com/auth/devstorage.read_only"}})
	header, claims := asserted(t, got.form.Get("assertion"), key.Public(), "RS256")
	if diff := cmp.Diff(map[string]any{"alg": "RS256", "typ": "JWT", "kid": "a1b2"}, header); diff != "" {
		t.Error(diff)
	}
	want := jwt.MapClaims{"iss": "sa@p.iam.gserviceaccount.com", "scope": "https://www.googleapis.com/auth/devstorage.read_only"}
	if diff := cmp.Diff(want, timed(t, claims, "aud")); diff != "" {
		t.Error(diff)
	}
	cfg.TokenURL = "https://idp.example/token"
	for says, members := range map[string]josetest.JSON{
		"another service account": {"client_email": "canary@p.iam.gserviceaccount.com"},
		"without a private_key":   {"private_key": ""},
		"that cannot be parsed":   {"client_email": 5},
		"contains no private key": {"private_key": "canary"},
	} {
		if err := client(t, cfg).CheckSecret(redact.New(accountFile(t, key, members))); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "canary") {
			t.Errorf("want %q, got %v", says, err)
		}
	}
	cfg.ClientID = "123"
	if err := client(t, cfg).CheckSecret(redact.New(accountFile(t, key, nil))); err != nil {
		t.Errorf("the account's number as client_id: %v", err)
	}
}

// TestSecretsOfAnotherKind: what cannot work is said before it is tried, never
// quoted, and never sent.
func TestSecretsOfAnotherKind(t *testing.T) {
	ec := newKey(t, "ES256")
	key := pemKey(t, ec)
	_, foreign := certify(t, newKey(t, "ES256"), time.Hour)
	files := t.TempDir()
	tokenURL, requests := idpServer(t, grants(good))
	for name, tt := range map[string]struct {
		cfg        idp.Config
		with, says string
	}{
		"no secret":                     {idp.Config{}, "", "is empty"},
		"a key for basic":               {idp.Config{}, key, "it is a private key, which auth client_secret_basic would not keep private"},
		"a key for post":                {idp.Config{Auth: idp.SecretPost}, key, "it is a private key"},
		"a key in one line for post":    {idp.Config{Auth: idp.SecretPost}, strings.ReplaceAll(key, "\n", `\n`), "it is a private key"},
		"a service account for basic":   {idp.Config{}, accountFile(t, ec, nil), "it is a private key"},
		"a key for an HMAC":             {idp.Config{Auth: idp.SecretJWT}, key, "it is a private key"},
		"a short secret for an HMAC":    {idp.Config{Auth: idp.SecretJWT}, "canary", "shorter than 32 bytes"},
		"a secret for a key":            {idp.Config{Auth: idp.PrivateKeyJWT}, longSecret, "it contains no private key"},
		"a secret for a grant":          {idp.Config{Grant: idp.JWTBearer}, longSecret, "it contains no private key"},
		"no key for a grant":            {idp.Config{Grant: idp.JWTBearer}, "", "is empty"},
		"an algorithm of another key":   {idp.Config{Auth: idp.PrivateKeyJWT, Assertion: idp.Assertion{Algorithm: "RS256"}}, key, "does not sign with assertion.algorithm RS256"},
		"a certificate of another key":  {idp.Config{Auth: idp.PrivateKeyJWT}, key + foreign, "none of the certificates"},
		"a certificate file of another": {idp.Config{Auth: idp.PrivateKeyJWT, Assertion: idp.Assertion{CertificateFile: write(t, filepath.Join(files, "a"), foreign)}}, key, "none of the certificates"},
		"a certificate file that is no": {idp.Config{Auth: idp.PrivateKeyJWT, Assertion: idp.Assertion{CertificateFile: write(t, filepath.Join(files, "b"), key)}}, key, "contains a PEM block that is not a certificate"},
		"an empty certificate file":     {idp.Config{Auth: idp.PrivateKeyJWT, Assertion: idp.Assertion{CertificateFile: write(t, filepath.Join(files, "c"), "")}}, key, "none of the certificates"},
		"no certificate file":           {idp.Config{Auth: idp.PrivateKeyJWT, Assertion: idp.Assertion{CertificateFile: filepath.Join(files, "d")}}, key, "cannot be read"},
	} {
		tt.cfg.TokenURL, tt.cfg.IntrospectionURL = tokenURL, tokenURL
		c := client(t, tt.cfg)
		err := c.CheckSecret(redact.New(tt.with))
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: want %q, got %v", name, tt.says, err)
			continue
		}
		_, fetchErr := c.Fetch(t.Context(), secretOf(tt.with), idp.Request{})
		isFault(t, fetchErr, idp.CredentialRefused, "received no request, because the secret cannot be used: it")
		if tt.cfg.Grant != idp.JWTBearer {
			_, introspectErr := c.Introspect(t.Context(), secretOf(tt.with), redact.New("x"))
			isFault(t, introspectErr, idp.CredentialRefused, tt.says)
		}
		shown := err.Error() + printed(fetchErr)
		if strings.Contains(shown, "canary") || strings.Contains(shown, strings.Split(key, "\n")[1]) {
			t.Errorf("%s: quoted: %s", name, shown)
		}
	}
	if n := len(requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// FuzzCheckSecret: whatever the secret is, it is accepted or refused in a sentence
// of our own.
func FuzzCheckSecret(f *testing.F) {
	key := newKey(f, "RS256")
	_, certificate := certify(f, key, time.Hour)
	for _, text := range []string{"", longSecret, pemKey(f, key), certificate, pemKey(f, key) + certificate, accountFile(f, key, nil), `{"private_key":"x"}`, `{"private_key":`, `{"kty":"RSA"}`, "{}", "\xff"} {
		f.Add(text)
	}
	var clients []*idp.Client
	for _, cfg := range []idp.Config{{}, {Auth: idp.SecretPost}, {Auth: idp.SecretJWT}, {Auth: idp.PrivateKeyJWT}, {Grant: idp.JWTBearer}, {Auth: idp.None}} {
		cfg.TokenURL, cfg.ClientID = "https://idp.example/token", "sa@p.iam.gserviceaccount.com"
		client, err := idp.New(cfg)
		if err != nil {
			f.Fatal(err)
		}
		clients = append(clients, client)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for i, c := range clients {
			err := c.CheckSecret(redact.New(text))
			switch {
			case err == nil && text == "" && i < len(clients)-1:
				t.Error("an empty secret is accepted")
			case err != nil && (len(err.Error()) > 200 || !strings.HasPrefix(err.Error(), "it") && !strings.HasPrefix(err.Error(), "a") && !strings.HasPrefix(err.Error(), "the")):
				t.Errorf("%v", err)
			}
		}
	})
}
