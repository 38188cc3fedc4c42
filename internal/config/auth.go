package config

import (
	"strings"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

func (c *Client) signedGrant() string { return idp.SignedGrant(c.GrantType, c.Exchange != nil) }

// NeedsSecret reports whether the client needs a secret.
func (c *Client) NeedsSecret() bool {
	return idp.NeedsSecret(idp.AuthMethod(c.Auth), c.signedGrant())
}

// checkAuth reports contradictory keys about a client's authentication. Values from the
// preset do not count as contradictions.
func checkAuth(c *Client, path string, findings *yamlconf.Findings) {
	auth := idp.AuthMethod(c.Auth)
	checkSecret(c, path, findings)
	checkRawBasic(c, yamlconf.Join(path, "raw_basic"), findings)
	checkAssertions(c, path, findings)
	if at := yamlconf.Join(path, "auth"); c.signedGrant() != "" && auth != idp.None {
		findings.Addf(at, "the grant jwt-bearer proves the client by its own assertion: remove auth, or another grant_type is meant")
	}
	checkCertificate(c, path, findings)
	if auth.Mutual() && strings.HasPrefix(c.TokenURL, "http:") {
		findings.Addf(yamlconf.Join(path, "token_url"), "no certificate can be presented over http://: use https://, or change auth")
	}
}

// checkCertificate checks that a client certificate has its key and goes with auth by
// certificate.
func checkCertificate(c *Client, path string, findings *yamlconf.Findings) {
	mutual, in := idp.AuthMethod(c.Auth).Mutual(), yamlconf.Join(path, "tls")
	findings.Needs(c.TLS != nil || !mutual, path, "tls", "auth: "+c.Auth)
	if c.TLS == nil {
		return
	}
	for _, key := range []string{"cert", "key"} {
		findings.Only(mutual, in, key, "auth: tls_client_auth and self_signed_tls_client_auth")
		if mutual && !findings.Given(yamlconf.Join(in, key)) {
			findings.Addf(in, "%s is missing: auth: %s needs it", key, c.Auth)
		}
	}
	if !mutual && !findings.Given(yamlconf.Join(in, "cert")) && !findings.Given(yamlconf.Join(in, "key")) && !findings.Given(yamlconf.Join(in, "ca")) {
		findings.Addf(in, "ca is missing: name the file with the IdP's CAs, or remove tls")
	}
}

func checkSecret(c *Client, path string, findings *yamlconf.Findings) {
	at, needed := yamlconf.Join(path, "secret"), c.NeedsSecret()
	switch {
	case c.Key != nil: // checkKey checks it
	case needed && !findings.Given(at):
		findings.Addf(path, "secret is missing")
	case !needed && findings.Given(at):
		findings.Addf(at, "is not used with auth: %s: remove it, or change auth", c.Auth)
	}
}

func checkRawBasic(c *Client, path string, findings *yamlconf.Findings) {
	switch {
	case c.RawBasic && c.Auth != string(idp.SecretBasic):
		findings.Addf(path, "is for auth: client_secret_basic only: remove it, or change auth")
	case c.RawBasic && strings.Contains(c.ClientID, ":"):
		// RFC 7617 section 2: the first colon ends the user-id.
		findings.Addf(path, "the client_id contains a colon, and the IdP would read the rest as the secret: remove raw_basic, or change auth")
	}
}

func checkAssertions(c *Client, path string, findings *yamlconf.Findings) {
	auth, in := idp.AuthMethod(c.Auth), yamlconf.Join(path, "assertion")
	key := idp.NeedsKey(auth, c.signedGrant())
	for _, name := range []string{"audience", "algorithm", "typ"} {
		findings.Only(auth == idp.SecretJWT || key, in, name, "auth: client_secret_jwt and private_key_jwt, and the grant jwt-bearer")
	}
	for _, name := range []string{"kid", "certificate"} {
		findings.Only(key, in, name, "auth: private_key_jwt and the grant jwt-bearer")
	}
	if at := yamlconf.Join(in, "subject"); findings.Given(at) && c.signedGrant() == "" {
		findings.Addf(at, "is for grant_type: %s only: remove it, or change grant_type", idp.JWTBearer)
	}
	checkAssertionFile(c, path, findings)
	checkAssertionAlgorithm(c, yamlconf.Join(in, "algorithm"), key, findings)
	checkAssertionAudience(c, yamlconf.Join(in, "audience"), findings)
}

func checkAssertionFile(c *Client, path string, findings *yamlconf.Findings) {
	auth, in := idp.AuthMethod(c.Auth), yamlconf.Join(path, "assertion")
	findings.Only(auth.FromFile(), in, "file", "auth: federated_jwt and spiffe_jwt")
	file := yamlconf.Join(in, "file")
	switch {
	case auth.FromFile() && !findings.Given(file):
		findings.Addf(path, "assertion.file is missing: auth: %s needs it", c.Auth)
	case isJWT(c.Assertion.File):
		findings.Addf(file, "names the file with the assertion, and must never be the assertion itself")
	}
}

func checkAssertionAlgorithm(c *Client, path string, key bool, findings *yamlconf.Findings) {
	switch symmetric := c.Assertion.Algorithm == jose.HS256; {
	case !findings.Given(path) || c.Assertion.Algorithm == "":
	case c.Auth == string(idp.SecretJWT) && !symmetric:
		findings.Addf(path, "is HS256 with auth: client_secret_jwt: remove it, or change auth")
	case key && symmetric:
		findings.Addf(path, "HS256 is for secrets, and here a private key signs: remove it, or change auth")
	}
}

func checkAssertionAudience(c *Client, path string, findings *yamlconf.Findings) {
	switch audience := c.Assertion.Audience; {
	case !findings.Given(path) || audience == "":
	case audience == idp.AudienceIssuer && c.Issuer == "":
		findings.Addf(path, "there is no issuer: give issuer in place of token_url, or write the audience itself")
	case audience == idp.AudienceIssuer, audience == idp.AudienceTokenEndpoint:
	case !strings.Contains(audience, ":"):
		findings.Addf(path, "expected issuer, token_endpoint, or the audience itself, a URL%s",
			yamlconf.DidYouMean(audience, []string{idp.AudienceIssuer, idp.AudienceTokenEndpoint}))
	}
}
