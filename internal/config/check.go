package config

import (
	"maps"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/urlcheck"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// checkConfig checks conditions that the decoder does not: bounds of durations,
// contradictions and keys that exclude each other. A value that could not be decoded has
// its default here, so that it gives no second problem.
func checkConfig(c *Config, findings *yamlconf.Findings) {
	undecoded := findings.Given("clients") && c.Clients == nil || findings.Given("issuers") && c.Issuers == nil
	if len(c.Clients) == 0 && len(c.Issuers) == 0 && !undecoded {
		findings.Addf("", "the file configures neither clients nor issuers: add one of them")
	}
	checkListen(c, findings)
	checkStore(&c.Store, findings)
	checkServer(&c.Server, findings)
	checkLimits(&c.Limits, findings)
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		client := c.Clients[name]
		checkClient(&client, yamlconf.Join("clients", name), findings)
		checkManaged(c, &client, yamlconf.Join("clients", name), findings)
		checkKey(c, &client, yamlconf.Join("clients", name), findings)
		client.Secret.check(yamlconf.Join(yamlconf.Join("clients", name), "secret"), findings)
	}
	checkLegs(c, findings)
	checkIssuers(c, findings)
	checkCallers(c, findings)
	c.Gateways.Check(c, findings)
	if c.Tracing != nil {
		checkTracing(c.Tracing, findings)
	}
	findings.Within("verification.max_validity", c.Verification.MaxValidity, time.Second, time.Hour)
}

func checkServer(s *Server, findings *yamlconf.Findings) {
	findings.Within("server.deadline", s.Deadline, time.Second, 5*time.Minute)
	findings.Within("server.drain_delay", s.DrainDelay, 0, 5*time.Minute)
	findings.Within("server.drain_timeout", s.DrainTimeout, time.Second, 10*time.Minute)
	findings.Within("server.slow_call", s.SlowCall, 0, 5*time.Minute)
}

func checkClient(c *Client, path string, findings *yamlconf.Findings) {
	checkTokenEndpoint(c, path, findings)
	checkAuth(c, path, findings)
	checkExchange(c, path, findings)
	findings.Scopes(yamlconf.Join(path, "scopes"), c.Scopes)
	for _, param := range reservedParams {
		if _, ok := c.Params[param.name]; ok {
			findings.Addf(yamlconf.Join(yamlconf.Join(path, "params"), param.name), "may not be set here: %s", param.instead)
		}
	}
	for i, extra := range c.Extras {
		if slices.Contains(keptMembers, extra) {
			findings.Addf(yamlconf.Item(yamlconf.Join(path, "extras"), i), "is never handed on to callers: remove it")
		}
	}
	if err := idp.CheckBearerTypes(c.BearerTypes); err != nil {
		findings.Addf(yamlconf.Join(path, "bearer_types"), "%v", err)
	}
	findings.Within(yamlconf.Join(path, "default_lifetime"), c.DefaultLifetime, time.Second, 24*time.Hour)
}

// checkManaged rejects managed secrets in a store that does not outlive the process: they
// have no other copy.
func checkManaged(c *Config, client *Client, path string, findings *yamlconf.Findings) {
	if client.Secret.Managed() && c.Store.Bolt == "" && c.Store.Redis == nil {
		findings.Addf(yamlconf.Join(path, "secret"), "a managed secret is kept in the store, and the memory store loses it at exit: "+
			"give store.bolt or store.redis, or the secret as file:PATH")
	}
}

func checkTokenEndpoint(c *Client, path string, findings *yamlconf.Findings) {
	issuer, tokenURL := yamlconf.Join(path, "issuer"), yamlconf.Join(path, "token_url")
	switch {
	case findings.Given(issuer) && findings.Given(tokenURL):
		findings.Addf(tokenURL, "contradicts issuer in line %d: give one of the two", findings.Line(issuer))
	case !findings.Given(issuer) && !findings.Given(tokenURL) && c.TokenURL == "":
		findings.Addf(path, "issuer or token_url is missing: name the IdP by its issuer (discovery), or give its token endpoint")
	}
	urlcheck.Endpoint(issuer, c.Issuer, c.AllowHTTP, c.AllowPrivate, findings)
	urlcheck.Endpoint(tokenURL, c.TokenURL, c.AllowHTTP, c.AllowPrivate, findings)
}

// reservedParams are the form parameters that the broker sets itself or that are
// credentials.
//
//nolint:gochecknoglobals // a table that nothing writes
var reservedParams = []struct{ name, instead string }{
	{"grant_type", "use the client's own key grant_type"},
	{"client_id", "use the client's own key client_id"},
	{"client_secret", "use the client's own key secret, with a reference"},
	{"scope", "use the client's own key scopes"},
	{"audience", "use the client's own key audience"},
	{"resource", "use the client's own key resources"},
	{"client_assertion", noCredential},
	{"client_assertion_type", noCredential},
	{"assertion", noCredential},
	{"subject_token", noCredential},
	{"actor_token", noCredential},
	{"password", noCredential},
	{"refresh_token", noCredential},
}

const noCredential = "a client authenticates with its secret, and credentials are never literals"

// keptMembers are the members of an IdP's response that are never extras: the token
// itself, which is in the response already, and members that would give a caller more
// than the token.
//
//nolint:gochecknoglobals // a table that nothing writes
var keptMembers = []string{"access_token", "refresh_token", "id_token"}
