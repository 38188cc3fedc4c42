package app

import (
	"reflect"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
)

// presets are the defaults that an IdP needs and others do not: each is what a
// key of the file can say as well. docs/identity-providers.md says why.
func presets() map[string]ClientConfig {
	return map[string]ClientConfig{
		"auth0":   {Auth: string(idp.SecretPost), AssertionTyp: idp.TypeJWT},
		"cognito": {Auth: string(idp.SecretBasic)},
		"entra": {
			Auth:              string(idp.SecretPost),
			AssertionAudience: idp.AudienceTokenEndpoint, AssertionAlgorithm: "PS256", AssertionTyp: idp.TypeJWT,
		},
		"google": {
			TokenURL:  "https://oauth2.googleapis.com/token",
			GrantType: idp.JWTBearer, AssertionAudience: idp.AudienceTokenEndpoint,
		},
		"keycloak": {Auth: string(idp.SecretBasic), AssertionTyp: idp.TypeJWT},
		"okta": {
			Auth:              string(idp.PrivateKeyJWT),
			AssertionAudience: idp.AudienceTokenEndpoint, AssertionTyp: idp.TypeJWT,
		},
		"salesforce": {Auth: string(idp.SecretPost), Extras: []string{"instance_url"}, DefaultLifetime: 10 * time.Minute},
		"zoom": {
			TokenURL:  "https://zoom.us/oauth/token",
			GrantType: "account_credentials", Auth: string(idp.SecretBasic), Extras: []string{"api_url"},
		},
	}
}

// complete fills in the defaults that depend on other keys.
func complete(c *Config, found *findings) {
	for name, client := range c.Clients {
		path := join("clients", name)
		if preset, known := presets()[client.Preset]; known {
			client.adopt(preset, func(key string) bool { return found.given(join(path, key)) })
		}
		if client.GrantType == idp.JWTBearer && !found.given(join(path, "auth")) {
			client.Auth = string(idp.None)
		}
		c.Clients[name] = client
	}
}

// adopt takes from a preset what is not given.
func (c *ClientConfig) adopt(preset ClientConfig, given func(key string) bool) {
	if given("issuer") {
		preset.TokenURL = ""
	}
	into, from := reflect.ValueOf(c).Elem(), reflect.ValueOf(preset)
	for i := range from.NumField() {
		if key := from.Type().Field(i).Tag.Get("yaml"); !from.Field(i).IsZero() && !given(key) {
			into.Field(i).Set(from.Field(i))
		}
	}
}
