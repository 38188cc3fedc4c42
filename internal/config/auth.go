package config

import (
	"strings"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
)

// checkAuth reports contradictory keys about a client's authentication. Values from the
// preset do not count as contradictions.
func checkAuth(c *Client, path string, found *findings) {
	auth := idp.AuthMethod(c.Auth)
	checkSecret(c, path, found)
	checkRawBasic(c, join(path, "raw_basic"), found)
	checkAssertions(c, path, found)
	if at := join(path, "auth"); c.GrantType == idp.JWTBearer && auth != idp.None {
		found.addf(at, "the grant jwt-bearer proves the client by its own assertion: remove auth, or another grant_type is meant")
	}
	checkCertificate(c, path, found)
	if auth.Mutual() && strings.HasPrefix(c.TokenURL, "http:") {
		found.addf(join(path, "token_url"), "no certificate can be presented over http://: use https://, or change auth")
	}
}

// checkCertificate checks that a client certificate has its key and goes with auth by
// certificate.
func checkCertificate(c *Client, path string, found *findings) {
	mutual, in := idp.AuthMethod(c.Auth).Mutual(), join(path, "tls")
	needs(c.TLS != nil || !mutual, path, "tls", "auth: "+c.Auth, found)
	if c.TLS == nil {
		return
	}
	for _, key := range []string{"cert", "key"} {
		only(mutual, in, key, "auth: tls_client_auth and self_signed_tls_client_auth", found)
		if mutual && !found.given(join(in, key)) {
			found.addf(in, "%s is missing: auth: %s needs it", key, c.Auth)
		}
	}
	if !mutual && !found.given(join(in, "cert")) && !found.given(join(in, "key")) && !found.given(join(in, "ca")) {
		found.addf(in, "ca is missing: name the file with the IdP's CAs, or remove tls")
	}
}

// needs reports a key that is missing.
func needs(given bool, path, key, with string, found *findings) {
	if !given && !found.given(join(path, key)) {
		found.addf(path, "%s is missing: %s needs it", key, with)
	}
}

// only reports a key that does not apply to this client.
func only(applies bool, path, key, with string, found *findings) {
	if at := join(path, key); !applies && found.given(at) {
		found.addf(at, "is for %s only: remove it, or change auth", with)
	}
}

func checkSecret(c *Client, path string, found *findings) {
	at, needed := join(path, "secret"), idp.NeedsSecret(idp.AuthMethod(c.Auth), c.GrantType)
	switch {
	case needed && !found.given(at):
		found.addf(path, "secret is missing")
	case !needed && found.given(at):
		found.addf(at, "is not used with auth: %s: remove it, or change auth", c.Auth)
	}
}

func checkRawBasic(c *Client, path string, found *findings) {
	switch {
	case c.RawBasic && c.Auth != string(idp.SecretBasic):
		found.addf(path, "is for auth: client_secret_basic only: remove it, or change auth")
	case c.RawBasic && strings.Contains(c.ClientID, ":"):
		// RFC 7617 section 2: the first colon ends the user-id.
		found.addf(path, "the client_id contains a colon, and the IdP would read the rest as the secret: remove raw_basic, or change auth")
	}
}

func checkAssertions(c *Client, path string, found *findings) {
	auth, in := idp.AuthMethod(c.Auth), join(path, "assertion")
	key := idp.NeedsKey(auth, c.GrantType)
	for _, name := range []string{"audience", "algorithm", "typ"} {
		only(auth == idp.SecretJWT || key, in, name, "auth: client_secret_jwt and private_key_jwt, and the grant jwt-bearer", found)
	}
	for _, name := range []string{"kid", "certificate"} {
		only(key, in, name, "auth: private_key_jwt and the grant jwt-bearer", found)
	}
	if at := join(in, "subject"); found.given(at) && c.GrantType != idp.JWTBearer {
		found.addf(at, "is for grant_type: %s only: remove it, or change grant_type", idp.JWTBearer)
	}
	checkAssertionFile(c, path, found)
	checkAssertionAlgorithm(c, join(in, "algorithm"), key, found)
	checkAssertionAudience(c, join(in, "audience"), found)
}

func checkAssertionFile(c *Client, path string, found *findings) {
	auth, in := idp.AuthMethod(c.Auth), join(path, "assertion")
	only(auth.FromFile(), in, "file", "auth: federated_jwt and spiffe_jwt", found)
	file := join(in, "file")
	switch {
	case auth.FromFile() && !found.given(file):
		found.addf(path, "assertion.file is missing: auth: %s needs it", c.Auth)
	case isJWT(c.Assertion.File):
		found.addf(file, "names the file with the assertion, and must never be the assertion itself")
	}
}

func checkAssertionAlgorithm(c *Client, path string, key bool, found *findings) {
	switch symmetric := c.Assertion.Algorithm == jose.HS256; {
	case !found.given(path) || c.Assertion.Algorithm == "":
	case c.Auth == string(idp.SecretJWT) && !symmetric:
		found.addf(path, "is HS256 with auth: client_secret_jwt: remove it, or change auth")
	case key && symmetric:
		found.addf(path, "HS256 is for secrets, and here a private key signs: remove it, or change auth")
	}
}

func checkAssertionAudience(c *Client, path string, found *findings) {
	switch audience := c.Assertion.Audience; {
	case !found.given(path) || audience == "":
	case audience == idp.AudienceIssuer && c.Issuer == "":
		found.addf(path, "there is no issuer: give issuer in place of token_url, or write the audience itself")
	case audience == idp.AudienceIssuer, audience == idp.AudienceTokenEndpoint:
	case !strings.Contains(audience, ":"):
		found.addf(path, "expected issuer, token_endpoint, or the audience itself, a URL%s",
			didYouMean(audience, []string{idp.AudienceIssuer, idp.AudienceTokenEndpoint}))
	}
}
