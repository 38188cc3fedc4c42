package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Caller is a caller of the broker, its identification and its permissions. It is
// identified by exactly one of spiffe_id, uri_san, dns_san, a JWT (subject and claims)
// and uid, or else a listener is bound to it.
type Caller struct {
	// The caller's name in logs and in the audit log, unique among callers.
	Name string `yaml:"name" jsonschema:"required,minLength=1,maxLength=128"`
	// The SPIFFE ID in the caller's certificate. At the end, /* stands for any path below.
	SPIFFEID string `yaml:"spiffe_id" jsonschema:"minLength=1,maxLength=2048"`
	// A URI among the subject alternative names of the caller's certificate. At the end, /* stands
	// for any path below.
	URISAN string `yaml:"uri_san" jsonschema:"minLength=1,maxLength=2048"`
	// A DNS name among the subject alternative names of the caller's certificate.
	DNSSAN string `yaml:"dns_san" jsonschema:"minLength=1,maxLength=253"`
	// The issuer of the JWT that the caller presents, one of issuers, exactly as in the iss claim.
	// Requires subject, claims, or both.
	Issuer string `yaml:"issuer" jsonschema:"minLength=1,maxLength=512"`
	// The sub claim of the JWT that the caller presents. At the end, * after a colon or a slash
	// stands for any rest.
	Subject string `yaml:"subject" jsonschema:"minLength=1,maxLength=512"`
	// Further claims, all of which the JWT must have. With claims, subject may be absent.
	Claims []Claim `yaml:"claims" jsonschema:"minItems=1,maxItems=16"`
	// The user of the process that connects to the Unix socket, by number.
	UID *int `yaml:"uid" jsonschema:"minimum=0,maximum=4294967294"`
	// The names of the caller's roles.
	Roles []string `yaml:"roles" jsonschema:"required,minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=128"`
	// The caller's own limits. An absent limit is the same as in the top-level limits.
	Limits *CallerLimits `yaml:"limits"`
}

// Claim is a claim that the JWT of a caller must have.
type Claim struct {
	// The names that lead to the claim, the outermost first: one name for a claim that is not
	// nested.
	Path []string `yaml:"path" jsonschema:"required,minItems=1,maxItems=8,minLength=1,maxLength=256"`
	// The value of the claim if it is a string, or of one of its items if it is a list. At the end,
	// * after a colon or a slash stands for any rest.
	Value string `yaml:"value" jsonschema:"required,minLength=1,maxLength=512"`
}

// Role is a set of grants. At least one of its keys is given.
type Role struct {
	// Tokens that callers may get.
	Get []GetGrant `yaml:"get"`
	// Tokens that callers may get on behalf of users.
	Exchange []ExchangeGrant `yaml:"exchange"`
	// Tokens that callers may have verified.
	Verify []VerifyGrant `yaml:"verify"`
	// Actions that callers may take as operators.
	Admin []AdminGrant `yaml:"admin"`
}

// GetGrant lets a caller get tokens of a client. An absent list stands for the values
// that are configured for the client; "*" alone for any value.
type GetGrant struct {
	// The client, by its name among clients, or "*" for each.
	Client string `yaml:"client" jsonschema:"required,minLength=1,maxLength=128"`
	// Audiences that the caller may request.
	Audiences []string `yaml:"audiences" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=512"`
	// Resources (RFC 8707) that the caller may request.
	Resources []string `yaml:"resources" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=512"`
	// Scopes that the caller may request, and that the IdP may grant.
	Scopes []string `yaml:"scopes" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=256"`
}

// ExchangeGrant lets a caller get tokens of a client on behalf of the subjects of certain
// tokens. "*" has no meaning in client and from.
type ExchangeGrant struct {
	// The client, by its name among clients. It has exchange.
	Client string `yaml:"client" jsonschema:"required,minLength=1,maxLength=128"`
	// The user's tokens that the caller may present.
	From ExchangeFrom `yaml:"from" jsonschema:"required"`
	// Audiences that the caller may request. Absent: the client's.
	Audiences []string `yaml:"audiences" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=512"`
	// Resources (RFC 8707) that the caller may request. Absent: the client's.
	Resources []string `yaml:"resources" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=512"`
	// Scopes that the caller may request, and that the IdP may grant. Absent: the client's.
	Scopes []string `yaml:"scopes" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=256"`
}

// ExchangeFrom describes the tokens of users that a caller may present.
type ExchangeFrom struct {
	// The issuers of the tokens, each one of issuers.
	Issuers []string `yaml:"issuers" jsonschema:"required,minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=512"`
	// The audiences of the caller: a token must be for one of them.
	Audiences []string `yaml:"audiences" jsonschema:"required,minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=512"`
	// Scopes that a token must have.
	Scopes []string `yaml:"scopes" jsonschema:"minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
}

// VerifyGrant lets a caller have tokens of an issuer verified.
type VerifyGrant struct {
	// The issuer, as written in issuers, or "*" for each.
	Issuer string `yaml:"issuer" jsonschema:"required,minLength=1,maxLength=512"`
	// Audiences for which the caller may have tokens verified. Absent: the issuer's audiences. "*"
	// alone: any.
	Audiences []string `yaml:"audiences" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=512"`
}

// AdminGrant lets a caller take actions of an operator.
type AdminGrant struct {
	// The permitted actions: RPCs of AdminService, in lower case. "*" alone: all of them, and also
	// every action that a later version adds.
	Actions []string `yaml:"actions" jsonschema:"required,minItems=1,uniqueItems=true,values=actions"`
	// The clients to which the grant applies. Absent: all.
	Clients []string `yaml:"clients" jsonschema:"minItems=1,maxItems=10000,uniqueItems=true,minLength=1,maxLength=128"`
}

// PolicyConfig returns the callers, roles and limits of a valid configuration.
func (c *Config) PolicyConfig() policy.Config {
	config := policy.Config{
		Roles: map[string]policy.Role{}, Clients: map[string]policy.Defaults{}, Issuers: map[string][]string{},
	}
	for name, client := range c.Clients {
		config.Clients[name] = policy.Defaults{Audience: client.Audience, Resources: client.Resources, Scopes: client.Scopes, Exchanges: client.Exchange != nil}
	}
	for _, issuer := range c.Issuers {
		config.Issuers[issuer.Issuer] = issuer.Audiences
	}
	for _, caller := range c.Callers {
		config.Callers = append(config.Callers, policy.CallerConfig{
			Name: caller.Name, Match: caller.match(), Roles: caller.Roles, Limits: c.Limits.forCaller(caller.Limits),
		})
	}
	for name, role := range c.Roles {
		config.Roles[name] = role.grants()
	}
	return config
}

func (c *Caller) match() policy.Match {
	m := policy.Match{SPIFFEID: c.SPIFFEID, URISAN: c.URISAN, DNSSAN: c.DNSSAN, Issuer: c.Issuer, Subject: c.Subject}
	for _, claim := range c.Claims {
		m.Claims = append(m.Claims, policy.Claim(claim))
	}
	if c.UID != nil {
		uid := uint32(*c.UID) //nolint:gosec // its bounds are checked
		m.UID = &uid
	}
	return m
}

func (r *Role) grants() policy.Role {
	var role policy.Role
	for _, g := range r.Get {
		role.Get = append(role.Get, policy.GetGrant(g))
	}
	for _, g := range r.Exchange {
		role.Exchange = append(role.Exchange, policy.ExchangeGrant{Client: g.Client, From: policy.From(g.From), Audiences: g.Audiences, Resources: g.Resources, Scopes: g.Scopes})
	}
	for _, g := range r.Verify {
		role.Verify = append(role.Verify, policy.VerifyGrant(g))
	}
	for _, g := range r.Admin {
		grant := policy.AdminGrant{Clients: g.Clients}
		for _, action := range g.Actions {
			grant.Actions = append(grant.Actions, policy.Action(action))
		}
		role.Admin = append(role.Admin, grant)
	}
	return role
}

// eachTenant replaces each grant for a pattern of issuers by one grant per issuer. It
// returns the index in the file of each grant, by role.
func eachTenant(roles map[string]Role, issuers []Issuer) map[string][]int {
	items := map[string][]int{}
	for name, role := range roles {
		var grants []VerifyGrant
		for i, grant := range role.Verify {
			pattern := slices.IndexFunc(issuers, func(c Issuer) bool { return c.Issuer == grant.Issuer })
			if pattern < 0 {
				grants, items[name] = append(grants, grant), append(items[name], i)
				continue
			}
			for _, issuer := range issuers[pattern].each() {
				grants = append(grants, VerifyGrant{Issuer: issuer.Issuer, Audiences: grant.Audiences})
				items[name] = append(items[name], i)
			}
		}
		role.Verify = grants
		roles[name] = role
	}
	return items
}

func checkCallers(c *Config, findings *yamlconf.Findings) {
	names, matches := map[string]string{}, map[string]string{} // path of the first caller with this key
	for i := range c.Callers {
		caller, path := &c.Callers[i], yamlconf.Item("callers", i)
		if before, ok := names[caller.Name]; ok && caller.Name != "" {
			findings.Addf(yamlconf.Join(path, "name"), "the same name as the caller in line %d: give each caller another", findings.Line(yamlconf.Join(before, "name")))
		} else {
			names[caller.Name] = path
		}
		checkRecognised(c, caller, path, matches, findings)
		for j, role := range caller.Roles {
			if _, ok := c.Roles[role]; !ok && role != "" {
				findings.Addf(yamlconf.Item(yamlconf.Join(path, "roles"), j), "no such role: add it to roles%s", yamlconf.DidYouMean(role, slices.Collect(maps.Keys(c.Roles))))
			}
		}
	}
	if len(c.Callers) == 0 {
		findings.Warn("", "callers: no caller is configured, so every request would be refused: add a caller")
	}
	for _, name := range slices.Sorted(maps.Keys(c.Roles)) {
		checkRole(c, name, findings)
	}
	checkBound(c, findings)
}

func checkRecognised(c *Config, caller *Caller, path string, matches map[string]string, findings *yamlconf.Findings) {
	var keys []string
	for _, key := range []string{"spiffe_id", "uri_san", "dns_san", "subject", "claims", "uid"} {
		if bySubject := key == "claims" && caller.Subject != ""; findings.Given(yamlconf.Join(path, key)) && !bySubject {
			keys = append(keys, key)
		}
	}
	switch {
	case len(keys) > 1:
		findings.Addf(yamlconf.Join(path, keys[1]), "a caller has one identity: remove this or %s", keys[0])
		return
	case len(keys) == 0 && !c.Listen.bound(caller.Name):
		findings.Addf(path, "the caller has no identity: give spiffe_id, uri_san, dns_san, issuer and subject or claims, or uid; or bind a listener to it")
		return
	case len(keys) == 0:
		return
	}
	checkNames(c, caller, path, findings)
	key := strings.Join([]string{keys[0], caller.SPIFFEID, strings.ToLower(caller.DNSSAN), caller.URISAN, caller.Issuer, caller.Subject}, " ")
	key += claimsKey(caller.Claims)
	if caller.UID != nil {
		key += strconv.Itoa(*caller.UID)
	}
	if before, ok := matches[key]; ok {
		findings.Addf(yamlconf.Join(path, keys[0]), "the caller in line %d has the same identity, so this one never matches: merge the two", findings.Line(before))
		return
	}
	matches[key] = path
}

func checkNames(c *Config, caller *Caller, path string, findings *yamlconf.Findings) {
	checkURISAN(caller.SPIFFEID, "spiffe", yamlconf.Join(path, "spiffe_id"), findings)
	checkURISAN(caller.URISAN, "", yamlconf.Join(path, "uri_san"), findings)
	if strings.ContainsAny(caller.DNSSAN, "*/: ") {
		findings.Addf(yamlconf.Join(path, "dns_san"), "expected one whole DNS name, such as gateway.example.com: patterns of them are not possible")
	}
	issuer, subject := yamlconf.Join(path, "issuer"), yamlconf.Join(path, "subject")
	switch {
	case findings.Given(issuer) != (findings.Given(subject) || len(caller.Claims) > 0):
		findings.Addf(path, "issuer needs subject, claims, or both: give them for a caller that presents a JWT")
	case caller.Issuer != "" && !slices.ContainsFunc(c.Issuers, func(i Issuer) bool { return i.has(caller.Issuer) }):
		findings.Addf(issuer, "not one of issuers, which are compared byte by byte: add it there, so that its tokens can be verified")
	}
	if strings.HasPrefix(caller.Subject, "spiffe://") {
		checkURISAN(caller.Subject, "spiffe", subject, findings)
	} else {
		checkWildcard(caller.Subject, subject, "system:serviceaccount:shop:*", findings)
	}
	for i, claim := range caller.Claims {
		checkWildcard(claim.Value, yamlconf.Join(yamlconf.Item(yamlconf.Join(path, "claims"), i), "value"), "refs/heads/*", findings)
	}
}

// checkWildcard rejects a * that could match the rest of a name.
func checkWildcard(text, path, example string, findings *yamlconf.Findings) {
	at := strings.IndexByte(text, '*')
	if at >= 0 && (at != len(text)-1 || at == 0 || !strings.ContainsRune(":/", rune(text[at-1]))) {
		findings.Addf(path, "* stands for a rest at the end, after a colon or a slash, such as %s", example)
	}
}

// claimsKey returns the same key for the same claims in any order.
func claimsKey(claims []Claim) string {
	texts := make([]string, len(claims))
	for i, claim := range claims {
		texts[i] = fmt.Sprintf(" %q=%q", claim.Path, claim.Value)
	}
	slices.Sort(texts)
	return strings.Join(texts, "")
}

// has reports whether the entry covers that issuer.
func (c *Issuer) has(issuer string) bool {
	return slices.ContainsFunc(c.each(), func(tenant Issuer) bool { return tenant.Issuer == issuer })
}

func checkURISAN(text, scheme, path string, findings *yamlconf.Findings) {
	if problem := policy.ProblemOfURI(text, scheme); text != "" && problem != "" {
		findings.Addf(path, "%s", problem)
	}
}

func checkRole(c *Config, name string, findings *yamlconf.Findings) {
	role, path := c.Roles[name], yamlconf.Join("roles", name)
	if len(role.Get)+len(role.Exchange)+len(role.Verify)+len(role.Admin) == 0 {
		findings.Addf(path, "the role has no grant: add an item under get, exchange, verify or admin")
	}
	if !slices.ContainsFunc(c.Callers, func(caller Caller) bool { return slices.Contains(caller.Roles, name) }) {
		findings.Warn(path, "no caller has this role: give it to a caller, or remove it")
	}
	for i, grant := range role.Get {
		at := yamlconf.Item(yamlconf.Join(path, "get"), i)
		checkGranted(c, grant.Client, yamlconf.Join(at, "client"), findings)
		if c.Clients[grant.Client].Exchange != nil {
			findings.Addf(yamlconf.Join(at, "client"), "this client has exchange, and its tokens belong to users: grant it under exchange, or remove exchange from the client")
		}
		checkAlone(grant.Audiences, yamlconf.Join(at, "audiences"), findings)
		checkAlone(grant.Resources, yamlconf.Join(at, "resources"), findings)
		checkAlone(grant.Scopes, yamlconf.Join(at, "scopes"), findings)
		findings.Scopes(yamlconf.Join(at, "scopes"), slices.DeleteFunc(slices.Clone(grant.Scopes), func(s string) bool { return s == policy.Any }))
	}
	for i := range role.Exchange {
		checkExchangeGrant(c, &role.Exchange[i], yamlconf.Item(yamlconf.Join(path, "exchange"), i), findings)
	}
	for i, grant := range role.Verify {
		at := yamlconf.Item(yamlconf.Join(path, "verify"), i)
		checkAlone(grant.Audiences, yamlconf.Join(at, "audiences"), findings)
		covers := func(issuer Issuer) bool { return issuer.Issuer == grant.Issuer || issuer.has(grant.Issuer) }
		if grant.Issuer != "" && grant.Issuer != policy.Any && !slices.ContainsFunc(c.Issuers, covers) {
			findings.Addf(yamlconf.Join(at, "issuer"), "not one of issuers, which are compared byte by byte: add it there, or correct it")
		}
	}
	for i, grant := range role.Admin {
		at := yamlconf.Item(yamlconf.Join(path, "admin"), i)
		checkAlone(grant.Actions, yamlconf.Join(at, "actions"), findings)
		checkAlone(grant.Clients, yamlconf.Join(at, "clients"), findings)
		for j, client := range grant.Clients {
			checkGranted(c, client, yamlconf.Item(yamlconf.Join(at, "clients"), j), findings)
		}
	}
}

func checkGranted(c *Config, client, path string, findings *yamlconf.Findings) {
	if _, ok := c.Clients[client]; !ok && client != policy.Any && client != "" {
		findings.Addf(path, "no such client: add it to clients%s", yamlconf.DidYouMean(client, slices.Collect(maps.Keys(c.Clients))))
	}
}

// checkAlone rejects other values beside "*", which would have no effect.
func checkAlone(values []string, path string, findings *yamlconf.Findings) {
	if len(values) > 1 && slices.Contains(values, policy.Any) {
		findings.Addf(path, `"*" stands for everything: remove the rest, or remove "*"`)
	}
}

// CallerNames returns the names of the callers.
func (c *Config) CallerNames() []string {
	names := make([]string, len(c.Callers))
	for i := range c.Callers {
		names[i] = c.Callers[i].Name
	}
	return names
}
