package config

import (
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/urlcheck"
	"github.com/cezzis/tokenbroker/internal/verify"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// withTenants replaces each pattern by its issuers. It also returns the index in the file
// of each issuer.
func withTenants(issuers []Issuer) (all []Issuer, items []int) {
	for i := range issuers {
		for _, one := range issuers[i].each() {
			all, items = append(all, one), append(items, i)
		}
	}
	return all, items
}

// each returns the issuers of an entry in a valid configuration.
func (c *Issuer) each() []Issuer {
	if len(c.Tenants) == 0 {
		return []Issuer{*c}
	}
	all := make([]Issuer, len(c.Tenants))
	for i, tenant := range c.Tenants {
		all[i] = *c
		all[i].Tenants = nil
		all[i].Issuer = verify.TenantURL(c.Issuer, tenant)
		all[i].JWKSURL = verify.TenantURL(c.JWKSURL, tenant)
	}
	return all
}

func checkIssuers(c *Config, findings *yamlconf.Findings) {
	first := map[string]string{} // path of the first entry with this issuer
	for i := range c.Issuers {
		path := yamlconf.Item("issuers", i)
		checkIssuer(&c.Issuers[i], path, findings)
		for _, tenant := range c.Issuers[i].each() {
			if before, ok := first[tenant.Issuer]; ok && before != path {
				findings.Addf(issuerAt(path, findings), "the same issuer as in line %d: an issuer has one entry, merge the two", findings.Line(issuerAt(before, findings)))
				break
			}
			if tenant.Issuer != "" {
				first[tenant.Issuer] = path
			}
		}
		if c.Issuers[i].Introspection != nil {
			checkIntrospection(c, &c.Issuers[i], path, findings)
		}
	}
}

// issuerAt returns the path of an entry's issuer, or of its preset if the preset provides
// it.
func issuerAt(entry string, findings *yamlconf.Findings) string {
	if issuer := yamlconf.Join(entry, "issuer"); findings.Given(issuer) {
		return issuer
	}
	return yamlconf.Join(entry, "preset")
}

func checkIssuer(c *Issuer, path string, findings *yamlconf.Findings) {
	if c.Issuer == "" && !findings.Given(yamlconf.Join(path, "issuer")) {
		findings.Addf(path, "issuer is missing")
	}
	checkTenants(c, path, findings)
	checkMissingAud(c.MissingAud, yamlconf.Join(path, "missing_aud"), findings)
	checkKeys(c, path, findings)
	findings.Within(yamlconf.Join(path, "leeway"), c.Leeway, 0, time.Minute)
	findings.Within(yamlconf.Join(path, "max_lifetime"), c.MaxLifetime, time.Minute, 8760*time.Hour)
	if age := yamlconf.Join(path, "max_age"); findings.Given(age) {
		findings.Within(age, c.MaxAge, time.Second, 8760*time.Hour)
	}
	findings.Within(yamlconf.Join(path, "refresh_interval"), c.RefreshInterval, time.Minute, 15*time.Minute)
	stale := yamlconf.Join(path, "max_stale")
	switch {
	case c.MaxStale > 24*time.Hour:
		findings.Addf(stale, "must not be longer than 24h")
	case c.MaxStale < c.RefreshInterval && findings.Given(stale):
		findings.Addf(stale, "must not be shorter than refresh_interval, which is %s", yamlconf.Short(c.RefreshInterval))
	}
}

func checkMissingAud(c *MissingAud, path string, findings *yamlconf.Findings) {
	claim, value := yamlconf.Join(path, "claim"), yamlconf.Join(path, "value")
	switch {
	case c == nil:
	case findings.Given(claim) && findings.Given(value):
		findings.Addf(value, "contradicts claim in line %d: give one of the two", findings.Line(claim))
	case c.Claim == "" && c.Value == "" && !findings.Given(claim) && !findings.Given(value): // a preset gives one without a line
		findings.Addf(path, "claim or value is missing: name the claim, or the audience, that stands for a missing aud")
	default:
		if err := verify.CheckAudienceClaim(c.Claim); err != nil {
			findings.Addf(claim, "%v", err)
		}
	}
}

// checkTenants checks that a pattern and tenants are given together.
func checkTenants(c *Issuer, path string, findings *yamlconf.Findings) {
	issuer, tenants := yamlconf.Join(path, "issuer"), yamlconf.Join(path, "tenants")
	pattern := strings.ContainsAny(c.Issuer, "{}")
	switch {
	case pattern && !findings.Given(tenants):
		findings.Addf(issuer, "a pattern needs tenants: list the tenants to accept, because a pattern alone accepts the tokens of every tenant")
	case findings.Given(tenants) && c.Issuer != "" && !pattern:
		findings.Addf(tenants, "needs an issuer with {tenant} in it, such as https://login.microsoftonline.com/{tenant}/v2.0")
	case pattern:
		if err := verify.CheckTenantPattern(c.Issuer); err != nil {
			findings.Addf(issuer, "%v", err)
		}
	}
	for i, tenant := range c.Tenants {
		if err := verify.CheckTenant(tenant); err != nil && tenant != "" {
			findings.Addf(yamlconf.Item(tenants, i), "%v", err)
		}
	}
}

// checkKeys checks the source of the issuer's keys.
func checkKeys(c *Issuer, path string, findings *yamlconf.Findings) {
	jwksURL, file, tenants := yamlconf.Join(path, "jwks_url"), yamlconf.Join(path, "jwks_file"), findings.Given(yamlconf.Join(path, "tenants"))
	pattern := strings.ContainsAny(c.JWKSURL, "{}")
	switch {
	case findings.Given(jwksURL) && findings.Given(file):
		findings.Addf(file, "contradicts jwks_url in line %d: give one of the two", findings.Line(jwksURL))
	case findings.Given(file) && tenants:
		findings.Addf(file, "each tenant has its own keys, and one file cannot serve all tenants: remove it, or give each tenant its own entry")
	case pattern && !tenants:
		findings.Addf(jwksURL, "a pattern needs tenants: list them, or give the URL itself")
	case c.JWKSURL != "" && tenants && verify.CheckTenantPattern(c.JWKSURL) != nil:
		findings.Addf(jwksURL, "each tenant has keys of its own: put {tenant} into the URL, once, as a whole segment of its path; or remove it, and they are found by discovery")
	}
	identifier := yamlconf.Join(path, "issuer")
	switch err := discovery.Problem(c.Issuer, c.AllowHTTP); {
	case c.hasKeys(path, findings):
		urlcheck.Identifier(identifier, c.Issuer, findings)
	case c.Issuer != "" && err != nil:
		findings.Addf(identifier, "%v; with jwks_url or jwks_file the issuer need not be a URL that the broker connects to", err)
	default:
		urlcheck.Endpoint(identifier, c.Issuer, c.AllowHTTP, c.AllowPrivate, findings)
	}
	urlcheck.Endpoint(jwksURL, c.JWKSURL, c.AllowHTTP, c.AllowPrivate, findings)
	checkTokenFile(c, path, findings)
}

// isJWT reports whether a JWT is given in place of its file name. File names are logged.
func isJWT(path string) bool { return strings.HasPrefix(path, "eyJ") && strings.Count(path, ".") == 2 }

// hasKeys reports whether the configuration names the URL or file of the issuer's keys.
func (c *Issuer) hasKeys(path string, findings *yamlconf.Findings) bool {
	return c.JWKSURL != "" || findings.Given(yamlconf.Join(path, "jwks_url")) || findings.Given(yamlconf.Join(path, "jwks_file"))
}

// checkTokenFile checks that the token is sent only to a configured URL, encrypted.
func checkTokenFile(c *Issuer, path string, findings *yamlconf.Findings) {
	jwksURL, file := yamlconf.Join(path, "jwks_url"), yamlconf.Join(path, "jwks_token_file")
	switch {
	case c.JWKSTokenFile == "":
	case isJWT(c.JWKSTokenFile):
		findings.Addf(file, "names the file with the token, and must never be the token itself")
	case c.JWKSURL == "" && !findings.Given(jwksURL):
		findings.Addf(file, "the token is sent to jwks_url only: give jwks_url, or remove it")
	case strings.HasPrefix(c.JWKSURL, "http:"):
		findings.Addf(jwksURL, "the token in jwks_token_file is never sent over http://: use https://")
	}
}

func checkIntrospection(c *Config, issuer *Issuer, entry string, findings *yamlconf.Findings) {
	i, path := issuer.Introspection, yamlconf.Join(entry, "introspection")
	at := yamlconf.Join(path, "client")
	client, ok := c.Clients[i.Client]
	undecoded := findings.Given("clients") && c.Clients == nil
	switch {
	case i.Client == "" || undecoded:
	case !ok:
		findings.Addf(at, "no client of this name is configured: add the client with which the broker calls the introspection endpoint to clients")
	case client.signedGrant() != "":
		findings.Addf(at, "this client authenticates by the grant jwt-bearer, which introspection does not support: name another client")
	case i.Endpoint == "" && client.Issuer != "" && client.Issuer != issuer.Issuer:
		findings.Addf(at, "this client is registered at another issuer, and its secret would be sent to this one: name a client of this issuer, or give the endpoint if it is meant")
	}
	if findings.Given(yamlconf.Join(entry, "tenants")) {
		findings.Addf(path, "not possible with tenants, because an opaque token does not name its tenant: give a tenant with opaque tokens its own entry")
	}
	// Without keys, the problem is reported for the issuer.
	if err := urlcheck.Undiscoverable(issuer.Issuer, issuer.AllowHTTP, issuer.AllowPrivate); err != nil && i.Endpoint == "" && issuer.hasKeys(entry, findings) {
		findings.Addf(path, "needs endpoint, because the issuer cannot be used for discovery: %v", err)
	}
	urlcheck.Endpoint(yamlconf.Join(path, "endpoint"), i.Endpoint, issuer.AllowHTTP, issuer.AllowPrivate, findings)
	findings.Within(yamlconf.Join(path, "cache"), i.Cache, 0, 5*time.Minute)
	if lifetime := yamlconf.Join(path, "default_lifetime"); findings.Given(lifetime) {
		findings.Within(lifetime, i.DefaultLifetime, time.Second, 24*time.Hour)
	}
}
