package config

import (
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// presets returns the clients' defaults for each IdP: each could also be given by a key
// of the file. docs/identity-providers.md has the reasons.
func presets() map[string]Client {
	return map[string]Client{
		"auth0":   {Auth: string(idp.SecretPost), Assertion: Assertion{Typ: idp.TypeJWT}},
		"cognito": {Auth: string(idp.SecretBasic)},
		"entra": {
			Auth:      string(idp.SecretPost),
			Assertion: Assertion{Audience: idp.AudienceTokenEndpoint, Algorithm: "PS256", Typ: idp.TypeJWT},
		},
		"google": {
			TokenURL:  "https://oauth2.googleapis.com/token",
			GrantType: idp.JWTBearer, Assertion: Assertion{Audience: idp.AudienceTokenEndpoint},
		},
		"keycloak": {Auth: string(idp.SecretBasic), Assertion: Assertion{Typ: idp.TypeJWT}},
		"okta": {
			Auth:      string(idp.PrivateKeyJWT),
			Assertion: Assertion{Audience: idp.AudienceTokenEndpoint, Typ: idp.TypeJWT},
		},
		"salesforce": {Auth: string(idp.SecretPost), Extras: []string{"instance_url"}, DefaultLifetime: 10 * time.Minute},
		"zoom": {
			TokenURL:  "https://zoom.us/oauth/token",
			GrantType: "account_credentials", Auth: string(idp.SecretBasic), Extras: []string{"api_url"},
		},
	}
}

// ServiceAccountDir is where Kubernetes mounts the token of a pod's service account
// and the CA of the cluster.
const ServiceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount/"

// issuerPresets returns the same for issuers.
func issuerPresets() map[string]Issuer {
	return map[string]Issuer{
		// Its access tokens have no typ, and no aud unless a resource is requested.
		"cognito": {Types: []string{idp.TypeJWT}, MissingAud: &MissingAud{Claim: "client_id"}},
		// Its access tokens have the form of its ID tokens; an ID token issued with a
		// code has c_hash.
		"dex": {Types: []string{idp.TypeJWT}, IDTokenClaims: []string{"c_hash"}, AccessTokenClaims: []string{"at_hash"}},
		"kubernetes": {
			Issuer:        "https://kubernetes.default.svc.cluster.local",
			JWKSURL:       "https://kubernetes.default.svc/openid/v1/jwks",
			JWKSTokenFile: ServiceAccountDir + "token",
			TLS:           &IssuerTLS{CA: ServiceAccountDir + "ca.crt"},
			AllowPrivate:  true,
			Types:         []string{idp.TypeJWT},
		},
	}
}

// complete fills in the defaults that depend on other keys.
func complete(c *Config, findings *yamlconf.Findings) {
	if !findings.Given("store") {
		c.Store.Memory = &MemoryStore{}
	}
	presets := presets()
	for name, client := range c.Clients {
		path := yamlconf.Join("clients", name)
		given := func(key string) bool { return findings.Given(path + "." + key) }
		if preset, ok := presets[client.Preset]; ok {
			if given("issuer") {
				preset.TokenURL = ""
			}
			yamlconf.Adopt(&client, preset, given)
		}
		if client.Exchange != nil {
			completeExchange(&client, given)
		}
		if client.signedGrant() != "" && !given("auth") {
			client.Auth = string(idp.None)
		}
		c.Clients[name] = client
	}
	for i := range c.Issuers {
		path := yamlconf.Item("issuers", i)
		given := func(key string) bool { return findings.Given(path + "." + key) }
		if preset, ok := issuerPresets()[c.Issuers[i].Preset]; ok {
			if given("jwks_file") {
				preset.JWKSURL, preset.JWKSTokenFile, preset.TLS = "", "", nil
			}
			yamlconf.Adopt(&c.Issuers[i], preset, given)
		}
	}
}
