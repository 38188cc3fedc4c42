package config_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// client is a good file of five lines with one client; the keys that are added
// to the client begin in line 6.
func client(keys ...string) string {
	return "clients:\n  orders-api:\n    issuer: https://login.example.com\n    client_id: abc\n    secret: file:/run/secrets/orders\n" +
		indented(keys)
}

const noSource = "5: clients.a.secret: expected file:PATH, env:NAME, managed, or a mapping with exec or vault; never the secret itself"

// supplied is a file of five lines with this secret in line 5.
func supplied(secret string) string {
	return "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n    secret: " + secret + "\n"
}

// issuer is a good file of three lines with one issuer; the keys that are added
// to it begin in line 4.
func issuer(keys ...string) string {
	return "issuers:\n  - issuer: https://login.example.com\n    audiences: [https://orders.example.com]\n" + indented(keys)
}

// tenants is a good file of four lines with a pattern of issuers, if they are.
func tenants(list string) string {
	return "issuers:\n  - issuer: https://login.example.com/{tenant}/v2.0\n    audiences: [a]\n    tenants: " + list + "\n"
}

// callers is a good file with one issuer and one role, r, but for its callers, which
// begin in line 6.
func callers(list ...string) string {
	text := issuer() + "roles: {r: {verify: [{issuer: '*'}]}}\ncallers:\n"
	for _, caller := range list {
		text += "  - " + caller + "\n"
	}
	return text
}

// redis is a good file of seven lines but for the keys of its Redis, which begin
// in line 8.
func redis(keys ...string) string {
	return client() + "store:\n  redis:\n" + indented(keys) + "  sealing_keys: file:ring.json\n"
}

// resource is a good file but for the keys of its protected resource, which begin in line 7.
func resource(keys ...string) string {
	return issuer() + "gateways:\n  resources:\n    orders:\n" + strings.ReplaceAll("    "+strings.Join(keys, "\n    ")+"\n", "    ", "      ")
}

const plainURL = "expected a URL with a plain host and path, without a query and escapes, such as https://api.example.com/orders"

func indented(keys []string) string {
	var b strings.Builder
	for _, key := range keys {
		b.WriteString("    " + key + "\n")
	}
	return b.String()
}

// badConfig is a file and what is said of it, a line for each problem.
type badConfig struct {
	name, file, want string
	// structural: the schema must refuse the file as well.
	structural bool
}

func badConfigs() []badConfig {
	return []badConfig{
		// The file as a whole.
		{"empty", "", "1: the file is empty: configure clients, issuers or both", false},
		{"text", "hello\n", "1: the file is expected to be a mapping of sections such as clients: and issuers:, and is text", true},
		{"list", "- a\n", "1: the file is expected to be a mapping of sections such as clients: and issuers:, and is a list", true},
		{"nothing configured", "log: {level: info}\n", "1: the file configures neither clients nor issuers: add one of them", true},
		{"nothing in the sections", "clients: {}\nissuers: []\n", "1: the file configures neither clients nor issuers: add one of them", false},

		// Protected resources.
		{"resource without URL", resource("authorization_servers: [https://login.example.com]"), "6: gateways.resources.orders: url is missing", true},
		{"resource without server", resource("url: https://api.example.com"), "6: gateways.resources.orders: authorization_servers is missing", true},
		{"resource over http", resource("url: http://api.example.com", "authorization_servers: [https://login.example.com]"),
			"7: gateways.resources.orders.url: http:// beyond loopback is not encrypted: use https://, or accept it with allow_http: true", false},
		{"resource with a query", resource("url: https://api.example.com/?a=b", "authorization_servers: [https://login.example.com]"), "7: gateways.resources.orders.url: " + plainURL, false},
		{"resource with an escape", resource("url: https://api.example.com/%61", "authorization_servers: [https://login.example.com]"), "7: gateways.resources.orders.url: " + plainURL, false},
		{"resource with a dot segment", resource("url: https://api.example.com/a/../b", "authorization_servers: [https://login.example.com]"), "7: gateways.resources.orders.url: " + plainURL, false},
		{"resource with a quote", resource("url: 'https://api.example.com/a\"b'", "authorization_servers: [https://login.example.com]"), "7: gateways.resources.orders.url: " + plainURL, false},
		{"server of a resource", resource("url: https://api.example.com/a", "authorization_servers: [login.example.com]"),
			"8: gateways.resources.orders.authorization_servers[0]: the URL must be absolute; write it as https://host/path", false},
		{"two resources at a place", resource("url: https://api.example.com/a", "authorization_servers: [https://login.example.com]") +
			"    shop: {url: 'https://API.example.com:443/a', authorization_servers: [https://login.example.com]}\n",
			"9: gateways.resources.shop.url: has the host and path of the resource orders: its metadata would be at the same place", false},
		{"rule with an unknown resource", issuer() + "gateways: {ext_authz: {rules: [{resource: orders}]}}\n", "4: gateways.ext_authz.rules[0].resource: names no entry of gateways.resources", false},
		{"rule with a resource of another host", resource("url: https://api.example.com/a", "authorization_servers: [https://login.example.com]") +
			"  ext_authz:\n    rules:\n      - {host: api.example.com, resource: orders}\n      - {host: '*.example.com', resource: orders}\n      - {resource: orders}\n      - {host: shop.example.com, resource: orders}\n",
			"14: gateways.ext_authz.rules[3].resource: the URL of the resource has the host api.example.com, and the rule is for shop.example.com: clients refuse the metadata of another host", false},

		// Keys.
		{"unknown section", client() + "client: {}\n", "6: client: no such key; did you mean clients?", true},
		{"unknown section like none", client() + "zebra: {}\n", "6: zebra: no such key; possible here: listen, store, server, limits, gateways, log, audit, tracing, clients, issuers, verification, callers, roles", true},
		{"misspelt key", client("scope: [read]"), "6: clients.orders-api.scope: no such key; did you mean scopes?", true},
		{"unknown key in a listener", client() + "listen:\n  grpc: {address: ':8443', plain: true}\n", "7: listen.grpc.plain: no such key; did you mean plaintext?\n" +
			"7: listen.grpc: listens beyond loopback without encryption: give listen.tls, use a loopback address such as 127.0.0.1:8443, or accept it with {address: ..., plaintext: true}", true},
		{"key where none is", client() + "store: {memory: {size: 1}}\n", "6: store.memory.size: no such key; no key is possible here", true},
		{"unknown store", client() + "store: {mysql: {}}\n", "6: store.mysql: no such key; possible here: memory, bolt, redis, sealing_keys\n6: store: needs a kind of store: give memory, bolt or redis", true},
		{"redis without addresses", client() + "store: {redis: {}, sealing_keys: file:r}\n", "6: store.redis: addresses is missing", true},
		{"two stores", client() + "store:\n  memory: {}\n  bolt: b.db\n  sealing_keys: file:r\n", "8: store.bolt: contradicts store.memory in line 7: state is kept in one place, remove one of them\n9: store.sealing_keys: the memory store does not seal values: remove it, or use bolt or redis", true},
		{"no sealing keys", client() + "store: {bolt: b.db}\n", `6: store: sealing_keys is missing: make a ring of keys with "broker ring new > ring.json" and name it with sealing_keys: file:ring.json; all replicas need the same`, false},
		{"sealing keys from the environment", client() + "store: {bolt: b.db, sealing_keys: env:RING}\n", "6: store.sealing_keys: the ring of sealing keys is read from a file only, so that it can change while the broker runs: give file:PATH", false},
		{"sealing keys as a literal", client() + "store: {bolt: b.db, sealing_keys: hunter2}\n", "6: store.sealing_keys: a secret is given by reference: file:PATH or env:NAME, never as a literal", true},
		{"redis address without port", redis("addresses: [redis]"), "8: store.redis.addresses[0]: expected HOST:PORT with a numeric port, such as redis.example.com:6379", false},
		{"several addresses of nothing", redis("addresses: [a:1, b:2]"), "8: store.redis.addresses: more than one address: give cluster: true or sentinel_master: NAME", false},
		{"cluster and sentinels", redis("addresses: [a:1]", "cluster: true", "sentinel_master: m"), "10: store.redis.sentinel_master: contradicts cluster: true in line 9: the addresses belong to a Cluster or to sentinels, remove one of the two", false},
		{"database of a cluster", redis("addresses: [a:1]", "cluster: true", "db: 1"), "10: store.redis.db: a Cluster has only database 0: remove it", false},
		{"sentinel user without sentinels", redis("addresses: [a:1]", "sentinel_username: u", "sentinel_password: file:p"), "9: store.redis.sentinel_username: is for sentinels: give sentinel_master as well, or remove it\n10: store.redis.sentinel_password: is for sentinels: give sentinel_master as well, or remove it", false},
		{"redis user without password", redis("addresses: [a:1]", "username: u"), "9: store.redis.username: an ACL user needs a password: give password: file:PATH", false},
		{"redis password as a literal", redis("addresses: [a:1]", "password: hunter2"), "9: store.redis.password: a secret is given by reference: file:PATH or env:NAME, never as a literal", true},
		{"redis prefix with a brace", redis("addresses: [a:1]", `prefix: "{tb}"`), "9: store.redis.prefix: must not contain braces, spaces or pattern characters: use letters, digits and colons, such as tb1:", false},
		{"redis certificate without key", redis("addresses: [a:1]", "tls: {cert: c.crt}"), "9: store.redis.tls: a client certificate needs both cert and key: give both, or neither", false},
		{"space forgotten", client("params: {a:x}"), "6: clients.orders-api.params: a key with a colon in it: put a space after the colon that ends the key", true},
		{"name of a client", client() + "  orders api: {}\n", "6: clients: a key or name here is 1 to 128 letters, digits, dots, underscores and hyphens", true},
		{"name of a client too long", client() + "  " + strings.Repeat("x", 129) + ": {}\n", "6: clients: a key or name here is 1 to 128 letters, digits, dots, underscores and hyphens", true},
		{"name with a dot", client() + "  orders.v2:\n    issuer: https://login.example.com\n    client_id: abc\n    secret: 5\n",
			`9: clients."orders.v2".secret: expected file:PATH or env:NAME, found a number`, true},

		// Types.
		{"clients as a list", "clients: [a]\n", "1: clients: expected a mapping, found a list", true},
		{"issuers as a mapping", "issuers: {a: b}\n", "1: issuers: expected a list, found a mapping", true},
		{"client without keys", "clients:\n  orders-api:\n", "2: clients.orders-api: expected a mapping, found nothing: give a value or remove the key\n" +
			"2: clients.orders-api: issuer or token_url is missing: name the IdP by its issuer (discovery), or give its token endpoint\n2: clients.orders-api: secret is missing", true},
		{"section without keys", client() + "server:\n", "6: server: expected a mapping, found nothing: give a value or remove the key", true},
		{"number for text", client("audience: 5"), "6: clients.orders-api.audience: expected text, found a number: put it in quotes", true},
		{"truth for text", client("audience: true"), "6: clients.orders-api.audience: expected text, found true or false: put it in quotes", true},
		{"list for text", client("audience: [a]"), "6: clients.orders-api.audience: expected text, found a list", true},
		{"text for a list", client("scopes: read write"), "6: clients.orders-api.scopes: expected a list such as [a, b], found text", true},
		{"number in a list", client("scopes: [read, 5]"), "6: clients.orders-api.scopes[1]: expected text, found a number: put it in quotes", true},
		{"number for a parameter", client("params:", "  max_age: 60"), "7: clients.orders-api.params.max_age: expected text, found a number: put it in quotes", true},
		{"text for truth", client("raw_basic: yes"), "6: clients.orders-api.raw_basic: expected true or false, found text", true},
		{"number for a duration", client("default_lifetime: 300"), "6: clients.orders-api.default_lifetime: expected a duration such as 30s or 5m, found a number", true},
		{"duration without a unit", client("default_lifetime: '300'"), "6: clients.orders-api.default_lifetime: expected a duration such as 30s or 5m", true},
		{"duration in days", client("default_lifetime: 1d"), "6: clients.orders-api.default_lifetime: expected a duration such as 30s or 5m", true},
		{"negative duration", client("default_lifetime: -5m"), "6: clients.orders-api.default_lifetime: expected a duration such as 30s or 5m", true},
		{"text for a number", client() + "limits:\n  streams: many\n", "7: limits.streams: expected a whole number, found text", true},
		{"fraction for a number", client() + "limits:\n  streams: 1.5\n", "7: limits.streams: expected a whole number, found a number", true},
		{"number too small", client() + "limits:\n  streams: 0\n", "7: limits.streams: must be from 1 to 100000", true},
		{"number too large", client() + "limits:\n  streams: 100001\n", "7: limits.streams: must be from 1 to 100000", true},
		{"number beyond all bounds", client() + "limits:\n  streams: 99999999999999999999\n", "7: limits.streams: expected a whole number, found a number", true},
		{"list for a listener", client() + "listen: {ops: []}\n", "6: listen.ops: expected an address such as 127.0.0.1:8443, or {address: ..., plaintext: true}, found a list", true},
		{"empty listener", client() + "listen: {ops: ''}\n", "6: listen.ops: expected an address such as 127.0.0.1:8443, or {address: ..., plaintext: true}", true},
		{"nothing for a value", client("audience:"), "6: clients.orders-api.audience: expected text, found nothing: give a value or remove the key", true},

		// Values.
		{"audit to nowhere", client() + "audit: {tokens: first}\n", "6: audit: file is missing", true},
		{"audit of some tokens", client() + "audit: {file: a, tokens: some}\n", "6: audit.tokens: expected first or every", true},
		{"audit of verifications by default", client() + "audit: {file: a, verifications: reject}\n", "6: audit.verifications: expected all, none or rejected; did you mean rejected?", true},
		{"audit that blocks", client() + "audit: {file: a, when_full: block}\n", "6: audit.when_full: expected drop or refuse", true},
		{"traces without a scheme", client() + "tracing: {endpoint: 'collector:4317'}\n", "6: tracing.endpoint: expected https://HOST:PORT or http://HOST:PORT without a path, such as https://collector.example.com:4317", false},
		{"traces with a password", client() + "tracing: {endpoint: 'https://a:b@collector:4317'}\n", "6: tracing.endpoint: expected https://HOST:PORT or http://HOST:PORT without a path, such as https://collector.example.com:4317", false},
		{"traces to no port", client() + "tracing: {endpoint: 'https://collector'}\n", "6: tracing.endpoint: the port is missing: OTLP is usually at 4317 over gRPC and at 4318 over HTTP", false},
		{"traces in percent", client() + "tracing: {endpoint: 'https://collector:4317', sample: 5}\n", "6: tracing.sample: must be from 0 to 1", true},
		{"traces of no number", client() + "tracing: {endpoint: 'https://collector:4317', sample: .nan}\n", "6: tracing.sample: must be from 0 to 1", false},
		{"traces by text", client() + "tracing: {endpoint: 'https://collector:4317', sample: 1%}\n", "6: tracing.sample: expected a number such as 0.01, found text", true},
		{"authorities of plaintext", client() + "tracing: {endpoint: 'http://collector:4317', ca: a}\n", "6: tracing.ca: http:// does not use TLS: use https://, or remove it", false},
		{"log level", client() + "log: {level: warning}\n", "6: log.level: expected debug, info, warn or error; did you mean warn?", true},
		{"log format", client() + "log: {format: logfmt}\n", "6: log.format: expected json or text", true},
		{"authentication method", client("auth: basic"), "6: clients.orders-api.auth: expected client_secret_basic, client_secret_post, client_secret_jwt, private_key_jwt, tls_client_auth, self_signed_tls_client_auth, federated_jwt, spiffe_jwt or none", true},
		{"authentication method misspelt", client("auth: client_secret_basics"), "6: clients.orders-api.auth: expected client_secret_basic, client_secret_post, client_secret_jwt, private_key_jwt, tls_client_auth, self_signed_tls_client_auth, federated_jwt, spiffe_jwt or none; did you mean client_secret_basic?", true},
		{"algorithm", issuer("algorithms: [RS256, HS256]"), "4: issuers[0].algorithms[1]: expected RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA or Ed25519; did you mean RS256?", true},
		{"algorithm none", issuer("algorithms: [none]"), "4: issuers[0].algorithms[0]: expected RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA or Ed25519", true},
		{"empty scope claim", issuer("scope_claim: \"\""), "4: issuers[0].scope_claim: must not be empty", true},
		{"scope claim without a name", issuer("scope_claim: [realm_access, \"\"]"), "4: issuers[0].scope_claim[1]: must not be empty", true},
		{"no scope claim", issuer("scope_claim: []"), "4: issuers[0].scope_claim: the list is empty: give at least one", true},
		{"scope claim too deep", issuer("scope_claim: [a, b, c, d, e]"), "4: issuers[0].scope_claim: at most 4 are possible", true},
		{"scope claim that is a mapping", issuer("scope_claim: {realm_access: roles}"), "4: issuers[0].scope_claim: expected the name of a claim, or a list of names such as [realm_access, roles], found a mapping", true},
		{"no algorithms", issuer("algorithms: []"), "4: issuers[0].algorithms: the list is empty: give at least one, or remove the key", true},
		{"no types", issuer("types: []"), "4: issuers[0].types: the list is empty: give at least one, or remove the key", true},
		{"no audiences", "issuers:\n  - issuer: https://login.example.com\n    audiences: []\n", "3: issuers[0].audiences: the list is empty: give at least one", true},
		{"empty audience", "issuers:\n  - issuer: https://login.example.com\n    audiences: ['']\n", "3: issuers[0].audiences[0]: must not be empty", true},
		{"empty client_id", "clients:\n  a:\n    token_url: https://login.example.com/token\n    client_id: ''\n    secret: env:A\n", "4: clients.a.client_id: must not be empty", true},
		{"long audience", client("audience: " + strings.Repeat("x", 513)), "6: clients.orders-api.audience: must not be longer than 512 bytes", true},
		{"nine resources", client("resources: [a, b, c, d, e, f, g, h, i]"), "6: clients.orders-api.resources: at most 8 are possible", true},
		{"scope twice", client("scopes: [read, write, read]"), "6: clients.orders-api.scopes[2]: the same as clients.orders-api.scopes[0]: remove one of them", true},
		{"scopes in one text", client("scopes: ['read write']"), "6: clients.orders-api.scopes[0]: not a scope: printable ASCII without spaces, quotes and backslashes; several scopes are several items", false},
		{"bearer type that is another", client("bearer_types: [dpop]"), "6: clients.orders-api.bearer_types: dpop does not mean bearer, and cannot be one of the bearer types: remove it", false},
		{"extra that is a credential", client("extras: [instance_url, refresh_token]"), "6: clients.orders-api.extras[1]: is never handed on to callers: remove it", false},
		{"reserved parameters", client("params:", "  scope: read", "  client_secret: x", "  grant_type: account_credentials", "  password: x"), "7: clients.orders-api.params.scope: may not be set here: use the client's own key scopes\n" +
			"8: clients.orders-api.params.client_secret: may not be set here: use the client's own key secret, with a reference\n" +
			"9: clients.orders-api.params.grant_type: may not be set here: use the client's own key grant_type\n" +
			"10: clients.orders-api.params.password: may not be set here: a client authenticates with its secret, and credentials are never literals", true},
		{"secret as a literal", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n    secret: hunter2\n", "5: clients.a.secret: a secret is given by reference: file:PATH or env:NAME, never as a literal", true},
		{"secret without a path", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n    secret: 'file:'\n", `5: clients.a.secret: "file:" is not followed by a name`, true},
		{"default_lifetime out of bounds", client("default_lifetime: 25h"), "6: clients.orders-api.default_lifetime: must be from 1s to 24h", false},
		{"leeway out of bounds", issuer("leeway: 61s"), "4: issuers[0].leeway: must be from 0s to 1m", false},
		{"max_lifetime out of bounds", issuer("max_lifetime: 0s"), "4: issuers[0].max_lifetime: must be from 1m to 8760h", false},
		{"refresh_interval out of bounds", issuer("refresh_interval: 30s"), "4: issuers[0].refresh_interval: must be from 1m to 15m", false},
		{"max_stale out of bounds", issuer("max_stale: 25h"), "4: issuers[0].max_stale: must not be longer than 24h", false},
		{"server out of bounds", client() + "server:\n  deadline: 0s\n  drain_delay: 6m\n  drain_timeout: 500ms\n  slow_call: 1h\n", "7: server.deadline: must be from 1s to 5m\n" +
			"8: server.drain_delay: must be from 0s to 5m\n9: server.drain_timeout: must be from 1s to 10m\n10: server.slow_call: must be from 0s to 5m", false},
		{"URL without a scheme", "issuers:\n  - issuer: login.example.com\n    audiences: [a]\n", "2: issuers[0].issuer: the URL must be absolute; write it as https://host/path; with jwks_url or jwks_file the issuer need not be a URL that the broker connects to", false},
		{"URL with a password", issuer("jwks_url: https://me:hunter2@login.example.com/keys"), "4: issuers[0].jwks_url: the URL must not contain a user name or password", false},
		{"http issuer", "issuers:\n  - issuer: http://login.example.com\n    audiences: [a]\n", "2: issuers[0].issuer: http:// beyond loopback is not encrypted: use https://, or accept it with allow_http: true; with jwks_url or jwks_file the issuer need not be a URL that the broker connects to", false},
		{"http token_url", "clients:\n  a:\n    token_url: http://10.0.0.1/token\n    client_id: abc\n    secret: env:A\n", "3: clients.a.token_url: http:// beyond loopback is not encrypted: use https://, or accept it with allow_http: true", false},
		{"URN as issuer", "issuers:\n  - issuer: urn:example:issuer\n    audiences: [a]\n", "2: issuers[0].issuer: the URL must be absolute; write it as https://host/path; with jwks_url or jwks_file the issuer need not be a URL that the broker connects to", false},
		{"password in an issuer that is not fetched", "issuers:\n  - issuer: https://me:hunter2@login.example.com\n    audiences: [a]\n    jwks_file: k\n", "2: issuers[0].issuer: the URL must not contain a user name or password", false},
		{"line end in an issuer that is not fetched", "issuers:\n  - issuer: \"urn:a\\n\"\n    audiences: [a]\n    jwks_file: k\n", "2: issuers[0].issuer: must not contain control characters, or begin or end with a space: no token names such an issuer", false},
		{"introspection of an issuer that is no URL", client() + "issuers:\n  - issuer: urn:example:issuer\n    audiences: [a]\n    jwks_file: k\n    introspection: {client: orders-api}\n", "10: issuers[0].introspection.client: this client is registered at another issuer, and its secret would be sent to this one: name a client of this issuer, or give the endpoint if it is meant\n" +
			"10: issuers[0].introspection: needs endpoint, because the issuer cannot be used for discovery: the URL must be absolute; write it as https://host/path", false},
		{"http jwks_url", issuer("jwks_url: http://login.example.com/keys"), "4: issuers[0].jwks_url: http:// beyond loopback is not encrypted: use https://, or accept it with allow_http: true", false},
		{"empty issuer", "clients:\n  a:\n    issuer: ''\n    client_id: abc\n    secret: env:A\n", "3: clients.a.issuer: must not be empty", true},

		// What is missing.
		{"client_id and secret missing", "clients:\n\n  a:\n    issuer: https://login.example.com\n", "3: clients.a: client_id is missing\n3: clients.a: secret is missing", true},
		{"no token endpoint", "clients:\n  a:\n    client_id: abc\n    secret: env:A\n", "2: clients.a: issuer or token_url is missing: name the IdP by its issuer (discovery), or give its token endpoint", true},
		{"audiences missing", "issuers:\n\n  - issuer: https://login.example.com\n", "3: issuers[0]: audiences is missing", true},
		{"issuer missing", "issuers:\n  - audiences: [a]\n", "2: issuers[0]: issuer is missing", true},
		{"address missing", client() + "listen:\n  grpc:\n    plaintext: true\n", "7: listen.grpc: address is missing", true},
		{"kind of store missing", client() + "store: {}\n", "6: store: needs a kind of store: give memory, bolt or redis", true},

		// Contradictions.
		{"issuer and token_url", client("token_url: https://login.example.com/token"), "6: clients.orders-api.token_url: contradicts issuer in line 3: give one of the two", true},
		{"raw_basic without basic", client("auth: client_secret_post", "raw_basic: true"), "7: clients.orders-api.raw_basic: is for auth: client_secret_basic only: remove it, or change auth", false},
		{"secret missing", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n", "2: clients.a: secret is missing", false},
		{"secret missing for a grant", "clients:\n  a:\n    preset: google\n    client_id: abc\n", "2: clients.a: secret is missing", false},
		{"secret of nobody", client("auth: none"), "5: clients.orders-api.secret: is not used with auth: none: remove it, or change auth", false},
		{"secret beside a certificate", client("auth: tls_client_auth", "tls: {cert: c.crt, key: c.key}"), "5: clients.orders-api.secret: is not used with auth: tls_client_auth: remove it, or change auth", false},
		{"certificate missing", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n    auth: self_signed_tls_client_auth\n", "2: clients.a: tls is missing: auth: self_signed_tls_client_auth needs it", false},
		{"certificate without a key", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n    auth: tls_client_auth\n    tls: {cert: c.crt}\n", "6: clients.a.tls: key is missing: auth: tls_client_auth needs it", false},
		{"certificate of nobody", client("tls: {cert: c.crt, key: c.key}"), "6: clients.orders-api.tls.cert: is for auth: tls_client_auth and self_signed_tls_client_auth only: remove it, or change auth\n6: clients.orders-api.tls.key: is for auth: tls_client_auth and self_signed_tls_client_auth only: remove it, or change auth", false},
		{"tls without a CA", client("tls: {}"), "6: clients.orders-api.tls: ca is missing: name the file with the IdP's CAs, or remove tls", false},
		{"issuer's tls without a CA", issuer("tls: {}"), "4: issuers[0].tls: ca is missing", true},
		{"certificate over http", "clients:\n  a:\n    token_url: http://127.0.0.1/token\n    client_id: abc\n    auth: tls_client_auth\n    tls: {cert: c.crt, key: c.key}\n", "3: clients.a.token_url: no certificate can be presented over http://: use https://, or change auth", false},
		{"assertion.file missing", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n    auth: spiffe_jwt\n", "2: clients.a: assertion.file is missing: auth: spiffe_jwt needs it", false},
		{"assertion.file of nobody", client("assertion:", "  file: token"), "7: clients.orders-api.assertion.file: is for auth: federated_jwt and spiffe_jwt only: remove it, or change auth", false},
		{"assertions of nobody", client("assertion:", "  audience: issuer", "  algorithm: RS256", "  typ: JWT", "  kid: k", "  certificate: c.crt", "  subject: s"),
			"7: clients.orders-api.assertion.audience: is for auth: client_secret_jwt and private_key_jwt, and the grant jwt-bearer only: remove it, or change auth\n" +
				"8: clients.orders-api.assertion.algorithm: is for auth: client_secret_jwt and private_key_jwt, and the grant jwt-bearer only: remove it, or change auth\n" +
				"9: clients.orders-api.assertion.typ: is for auth: client_secret_jwt and private_key_jwt, and the grant jwt-bearer only: remove it, or change auth\n" +
				"10: clients.orders-api.assertion.kid: is for auth: private_key_jwt and the grant jwt-bearer only: remove it, or change auth\n" +
				"11: clients.orders-api.assertion.certificate: is for auth: private_key_jwt and the grant jwt-bearer only: remove it, or change auth\n" +
				"12: clients.orders-api.assertion.subject: is for grant_type: urn:ietf:params:oauth:grant-type:jwt-bearer only: remove it, or change grant_type", false},
		{"assertion as a text", client("auth: private_key_jwt", "assertion: token"), "7: clients.orders-api.assertion: expected a mapping, found text", true},
		{"unknown member of an assertion", client("auth: private_key_jwt", "assertion:", "  algo: RS256"), "8: clients.orders-api.assertion.algo: no such key; did you mean algorithm?", true},
		{"assertion keys of old", client("auth: private_key_jwt", "assertion_kid: k", "assertion_audience: issuer", "assertion_x: y"),
			"7: clients.orders-api.assertion_kid: no such key; it is now assertion.kid\n8: clients.orders-api.assertion_audience: no such key; it is now assertion.audience\n" +
				"9: clients.orders-api.assertion_x: no such key; did you mean assertion?", true},
		{"kid of a shared secret", client("auth: client_secret_jwt", "assertion: {kid: k}"), "7: clients.orders-api.assertion.kid: is for auth: private_key_jwt and the grant jwt-bearer only: remove it, or change auth", false},
		{"algorithm of a shared secret", client("auth: client_secret_jwt", "assertion: {algorithm: RS256}"), "7: clients.orders-api.assertion.algorithm: is HS256 with auth: client_secret_jwt: remove it, or change auth", false},
		{"algorithm of a key", client("auth: private_key_jwt", "assertion: {algorithm: HS256}"), "7: clients.orders-api.assertion.algorithm: HS256 is for secrets, and here a private key signs: remove it, or change auth", false},
		{"algorithm of nothing", client("auth: private_key_jwt", "assertion: {algorithm: RS257}"), "7: clients.orders-api.assertion.algorithm: expected HS256, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA or Ed25519; did you mean RS256?", true},
		{"audience misspelt", client("auth: private_key_jwt", "assertion: {audience: token-endpoint}"), "7: clients.orders-api.assertion.audience: expected issuer, token_endpoint, or the audience itself, a URL; did you mean token_endpoint?", true},
		{"audience of no issuer", "clients:\n  a:\n    token_url: https://login.example.com/token\n    client_id: abc\n    secret: env:A\n    auth: private_key_jwt\n    assertion: {audience: issuer}\n",
			"7: clients.a.assertion.audience: there is no issuer: give issuer in place of token_url, or write the audience itself", false},
		{"two proofs", client("auth: private_key_jwt", "grant_type: urn:ietf:params:oauth:grant-type:jwt-bearer"), "6: clients.orders-api.auth: the grant jwt-bearer proves the client by its own assertion: remove auth, or another grant_type is meant", false},
		{"preset", client("preset: azure"), "6: clients.orders-api.preset: expected auth0, cognito, entra, google, keycloak, okta, salesforce or zoom", true},
		{"preset without an endpoint", "clients:\n  a:\n    preset: okta\n    client_id: abc\n    secret: env:A\n", "2: clients.a: issuer or token_url is missing: name the IdP by its issuer (discovery), or give its token endpoint", true},
		{"raw_basic with a colon", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: a:b\n    raw_basic: true\n    secret: env:A\n", "5: clients.a.raw_basic: the client_id contains a colon, and the IdP would read the rest as the secret: remove raw_basic, or change auth", false},
		{"managed in memory", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: a\n    secret: managed\n", "5: clients.a.secret: a managed secret is kept in the store, and the memory store loses it at exit: give store.bolt or store.redis, or the secret as file:PATH", false},
		{"a managed password of Redis", redis("addresses: [redis:6379]", "password: managed"), "9: store.redis.password: managed is for the secrets of clients only: give file:PATH or env:NAME", true},
		{"secret of no source", supplied("{}"), noSource, true},
		{"secret of an unknown source", supplied("{exce: {command: [/bin/x]}}"), noSource, true},
		{"exec as text", supplied("{exec: /bin/x}"), "5: clients.a.secret.exec: expected a mapping, found text", true},
		{"exec as a reference", supplied("exec:/bin/x"), "5: clients.a.secret: a secret is given by reference: file:PATH or env:NAME, never as a literal", true},
		{"exec without a command", supplied("{exec: {every: 1m}}"), "5: clients.a.secret.exec: command is missing", true},
		{"exec of nothing", supplied("{exec: {command: []}}"), "5: clients.a.secret.exec.command: the list is empty: give at least one", true},
		{"exec of a line", supplied("{exec: {command: /bin/x y}}"), "5: clients.a.secret.exec.command: expected a list such as [a, b], found text", true},
		{"exec by PATH", supplied("{exec: {command: [aws, secretsmanager]}}"), "5: clients.a.secret.exec.command[0]: expected an absolute path such as /usr/local/bin/print-secret: the broker searches no PATH, and no shell reads the command", false},
		{"exec too often", supplied("{exec: {command: [/bin/x], every: 1s}}"), "5: clients.a.secret.exec.every: must be from 10s to 24h", false},
		{"exec for too long", supplied("{exec: {command: [/bin/x], timeout: 2m}}"), "5: clients.a.secret.exec.timeout: must be from 1s to 1m", false},
		{"exec with a value", supplied("{exec: {command: [/bin/x], environment: [A=b]}}"), "5: clients.a.secret.exec.environment[0]: expected the name of a variable, without its value", false},
		{"exec and vault", supplied("{exec: {command: [/bin/x]}, vault: {address: 'https://v', path: a, field: b, role: r}}"), "5: clients.a.secret: exec and vault exclude each other: give one of them", true},
		{"vault without a path", supplied("{vault: {address: 'https://v', field: b, role: r}}"), "5: clients.a.secret.vault: path is missing", true},
		{"vault without a role", supplied("{vault: {address: 'https://v', path: a, field: b}}"), "5: clients.a.secret.vault: role is missing: auth: kubernetes needs it", false},
		{"vault over http", supplied("{vault: {address: 'http://vault:8200', path: a, field: b, role: r}}"), "5: clients.a.secret.vault.address: http:// beyond loopback would send the login and the secret unencrypted: use https://", false},
		{"vault with data", supplied("{vault: {address: 'https://v', path: data/a, field: b, role: r}}"), "5: clients.a.secret.vault.path: give it without data/, which the broker adds", false},
		{"vault by jwt", supplied("{vault: {address: 'https://v', path: a, field: b, role: r, auth: jwt}}"), "5: clients.a.secret.vault: jwt_file is missing: auth: jwt needs it", false},
		{"vault with a literal secret_id", supplied("{vault: {address: 'https://v', path: a, field: b, auth: approle, role_id: 'env:A', secret_id: abc}}"), "5: clients.a.secret.vault.secret_id: a secret is given by reference: file:PATH or env:NAME, never as a literal", true},
		{"vault with another login", supplied("{vault: {address: 'https://v', path: a, field: b, role: r, token_file: /t}}"), "5: clients.a.secret.vault.token_file: is not used with auth: kubernetes: remove it, or change auth", false},
		{"vault by ldap", supplied("{vault: {address: 'https://v', path: a, field: b, role: r, auth: ldap}}"), "5: clients.a.secret.vault.auth: expected kubernetes, jwt, approle or token_file", true},
		{"managed by another name", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: a\n    secret: manged\n", "5: clients.a.secret: a secret is given by reference: file:PATH or env:NAME, never as a literal", true},
		{"the same issuer twice", issuer() + "  - audiences: [a]\n    issuer: https://login.example.com\n", "5: issuers[1].issuer: the same issuer as in line 2: an issuer has one entry, merge the two", false},
		{"max_stale under refresh_interval", issuer("refresh_interval: 10m", "max_stale: 5m"), "5: issuers[0].max_stale: must not be shorter than refresh_interval, which is 10m", false},
		{"private client", "clients:\n  a:\n    token_url: https://10.0.0.1/token\n    client_id: abc\n    secret: env:A\n", "3: clients.a.token_url: it is a private address: to allow it, set allow_private: true", false},
		{"link-local client", "clients:\n  a:\n    token_url: https://169.254.169.254/token\n    allow_private: true\n    client_id: abc\n    secret: env:A\n", "3: clients.a.token_url: it is a link-local address, which is never allowed", false},
		{"private issuer", "issuers:\n  - issuer: https://192.168.0.1\n    audiences: [a]\n", "2: issuers[0].issuer: it is a private address: to allow it, set allow_private: true", false},
		{"private jwks_url", issuer("jwks_url: https://[fd00::1]/keys"), "4: issuers[0].jwks_url: it is a private address: to allow it, set allow_private: true", false},
		{"max_age out of bounds", issuer("max_age: 0s"), "4: issuers[0].max_age: must be from 1s to 8760h", false},
		{"jwks_url and jwks_file", issuer("jwks_url: https://login.example.com/keys", "jwks_file: keys.json"), "5: issuers[0].jwks_file: contradicts jwks_url in line 4: give one of the two", false},
		{"preset of issuers", issuer("preset: kubernets"), "4: issuers[0].preset: expected cognito, dex or kubernetes; did you mean kubernetes?", true},
		{"preset and the same issuer", issuer() + "  - preset: kubernetes\n    audiences: [a]\n  - audiences: [a]\n    preset: kubernetes\n", "7: issuers[2].preset: the same issuer as in line 4: an issuer has one entry, merge the two", false},
		{"token for keys that are discovered", issuer("jwks_token_file: token"), "4: issuers[0].jwks_token_file: the token is sent to jwks_url only: give jwks_url, or remove it", false},
		{"token for a file", issuer("jwks_token_file: token", "jwks_file: keys.json"), "4: issuers[0].jwks_token_file: the token is sent to jwks_url only: give jwks_url, or remove it", false},
		{"token over http", issuer("jwks_url: http://login.example.com/keys", "jwks_token_file: token", "allow_http: true"), "4: issuers[0].jwks_url: the token in jwks_token_file is never sent over http://: use https://", false},
		{"token over http to loopback", issuer("preset: kubernetes", "jwks_url: http://127.0.0.1:8001/openid/v1/jwks"), "5: issuers[0].jwks_url: the token in jwks_token_file is never sent over http://: use https://", false},
		{"token in place of its file", issuer("jwks_url: https://login.example.com/keys", "jwks_token_file: eyJhbGciOiJub25lIn0.e30.c2ln"), "5: issuers[0].jwks_token_file: names the file with the token, and must never be the token itself", false},
		{"assertion in place of its file", "clients:\n  a:\n    issuer: https://login.example.com\n    client_id: abc\n    auth: federated_jwt\n    assertion: {file: eyJhbGciOiJub25lIn0.e30.c2ln}\n", "6: clients.a.assertion.file: names the file with the assertion, and must never be the assertion itself", false},
		{"empty jwks_token_file", issuer("jwks_url: https://login.example.com/keys", "jwks_token_file: ''"), "5: issuers[0].jwks_token_file: must not be empty", true},
		{"empty jwks_file", issuer("jwks_file: ''"), "4: issuers[0].jwks_file: must not be empty", true},
		{"pattern without tenants", "issuers:\n  - issuer: https://login.example.com/{tenant}/v2.0\n    audiences: [a]\n", "2: issuers[0].issuer: a pattern needs tenants: list the tenants to accept, because a pattern alone accepts the tokens of every tenant", false},
		{"tenants without a pattern", issuer("tenants: [t1]"), "4: issuers[0].tenants: needs an issuer with {tenant} in it, such as https://login.microsoftonline.com/{tenant}/v2.0", false},
		{"no tenants", tenants("[]"), "4: issuers[0].tenants: the list is empty: give at least one, or remove the key", true},
		{"tenant twice", tenants("[t1, t1]"), "4: issuers[0].tenants[1]: the same as issuers[0].tenants[0]: remove one of them", true},
		{"tenant with a slash", tenants("[t1, t2/x]"), "4: issuers[0].tenants[1]: the name of a tenant must be 1 to 128 letters, digits, dots, underscores and hyphens", false},
		{"tenant that is anybody", tenants("[common]"), "4: issuers[0].tenants[0]: this name means any tenant, and no token contains it: list the tenants by their IDs", false},
		{"another pattern", "issuers:\n  - issuer: https://login.example.com/{tenantid}/v2.0\n    audiences: [a]\n    tenants: [t1]\n", "2: issuers[0].issuer: the pattern must contain {tenant} once, as a whole segment of its path, and no other braces", false},
		{"pattern of a host", "issuers:\n  - issuer: https://{tenant}.example.com/v2.0\n    audiences: [a]\n    tenants: [t1]\n", "2: issuers[0].issuer: the URL cannot be parsed; write it as https://host/path; with jwks_url or jwks_file the issuer need not be a URL that the broker connects to\n" +
			"2: issuers[0].issuer: the pattern must contain {tenant} once, as a whole segment of its path, and no other braces", false},
		{"the same issuer by a pattern", tenants("[t1, t2]") + "  - issuer: https://login.example.com/t2/v2.0\n    audiences: [a]\n", "5: issuers[1].issuer: the same issuer as in line 2: an issuer has one entry, merge the two", false},
		{"keys of all tenants at one URL", tenants("[t1]") + "    jwks_url: https://login.example.com/keys\n", "5: issuers[0].jwks_url: each tenant has keys of its own: put {tenant} into the URL, once, as a whole segment of its path; or remove it, and they are found by discovery", false},
		{"keys of all tenants in one file", tenants("[t1]") + "    jwks_file: keys.json\n", "5: issuers[0].jwks_file: each tenant has its own keys, and one file cannot serve all tenants: remove it, or give each tenant its own entry", false},
		{"pattern of keys without tenants", issuer("jwks_url: https://login.example.com/{tenant}/keys"), "4: issuers[0].jwks_url: a pattern needs tenants: list them, or give the URL itself", false},
		{"introspection without a client", issuer("introspection: {}"), "4: issuers[0].introspection: client is missing", true},
		{"introspection by an unknown client", client() + issuer("introspection: {client: orders}"), "9: issuers[0].introspection.client: no client of this name is configured: add the client with which the broker calls the introspection endpoint to clients", false},
		{"introspection by another issuer's client", client() + "issuers:\n  - issuer: https://other.example.com\n    audiences: [a]\n    introspection: {client: orders-api}\n",
			"9: issuers[0].introspection.client: this client is registered at another issuer, and its secret would be sent to this one: name a client of this issuer, or give the endpoint if it is meant", false},
		{"introspection by a grant", client("grant_type: urn:ietf:params:oauth:grant-type:jwt-bearer") + issuer("introspection: {client: orders-api}"),
			"10: issuers[0].introspection.client: this client authenticates by the grant jwt-bearer, which introspection does not support: name another client", false},
		{"introspection of tenants", client() + tenants("[t1]") + "    introspection: {client: orders-api, endpoint: https://login.example.com/introspect}\n",
			"10: issuers[0].introspection: not possible with tenants, because an opaque token does not name its tenant: give a tenant with opaque tokens its own entry", false},
		{"listener for opaque tokens of an unknown issuer", client() + issuer("introspection: {client: orders-api}") + "listen:\n  grpc: {address: '127.0.0.1:1', opaque_issuer: https://other.example.com}\n  unix: {path: /run/x, opaque_issuer: https://login.example.com/}\n",
			"11: listen.grpc.opaque_issuer: no issuer of this name has introspection: name an issuer with introspection, spelled exactly as under issuers\n" +
				"12: listen.unix.opaque_issuer: no issuer of this name has introspection: name an issuer with introspection, spelled exactly as under issuers", false},
		{"listener for opaque tokens of an issuer without introspection", client() + issuer() + "listen:\n  http: {address: '127.0.0.1:1', opaque_issuer: https://login.example.com}\n  ops: {address: '127.0.0.1:2', opaque_issuer: https://login.example.com}\n",
			"10: listen.http.opaque_issuer: no issuer of this name has introspection: name an issuer with introspection, spelled exactly as under issuers\n" +
				"11: listen.ops.opaque_issuer: no token is presented to this listener: remove it", false},
		{"claim and value for a missing aud", client() + issuer("missing_aud:", "  claim: client_id", "  value: a"), "11: issuers[0].missing_aud.value: contradicts claim in line 10: give one of the two", true},
		{"nothing for a missing aud", client() + issuer("missing_aud: {}"), "9: issuers[0].missing_aud: claim or value is missing: name the claim, or the audience, that stands for a missing aud", true},
		{"a claim that is no audience", client() + issuer("missing_aud: {claim: sub}"), "9: issuers[0].missing_aud.claim: the claim sub cannot replace a missing aud; name a claim that identifies the recipient, such as client_id", false},
		{"another claim for a missing sub", client() + issuer("missing_sub: azp"), "9: issuers[0].missing_sub: expected reject or client_id", true},
		{"no marks of ID tokens", client() + issuer("id_token_claims: []"), "9: issuers[0].id_token_claims: the list is empty: give at least one, or remove the key", true},
		{"a preset of clients for an issuer", client() + issuer("preset: okta"), "9: issuers[0].preset: expected cognito, dex or kubernetes", true},
		{"introspection out of bounds", client() + issuer("introspection:", "  client: orders-api", "  cache: 6m", "  default_lifetime: 0s", "  endpoint: http://login.example.com/i"), "11: issuers[0].introspection.cache: must be from 0s to 5m\n" +
			"12: issuers[0].introspection.default_lifetime: must be from 1s to 24h\n" +
			"13: issuers[0].introspection.endpoint: http:// beyond loopback is not encrypted: use https://, or accept it with allow_http: true", false},
		{"private introspection endpoint", client() + issuer("introspection: {client: orders-api, endpoint: 'https://10.0.0.1/i'}"), "9: issuers[0].introspection.endpoint: it is a private address: to allow it, set allow_private: true", false},
		{"verification out of bounds", client() + "verification:\n  cache_mib: -1\n  max_validity: 2h\n", "7: verification.cache_mib: must be from 0 to 65536\n8: verification.max_validity: must be from 1s to 1h", true},
		{"plaintext missing", client() + "listen:\n  grpc: :8443\n  ops: 10.0.0.1:9090\n", "7: listen.grpc: listens beyond loopback without encryption: give listen.tls, use a loopback address such as 127.0.0.1:8443, or accept it with {address: ..., plaintext: true}\n" +
			"8: listen.ops: listens beyond loopback without encryption: use a loopback address such as 127.0.0.1:9090, or accept it with {address: ..., plaintext: true}", false},
		{"plaintext missing for a host name", client() + "listen: {grpc: 'broker.internal:8443'}\n", "6: listen.grpc: listens beyond loopback without encryption: give listen.tls, use a loopback address such as 127.0.0.1:8443, or accept it with {address: ..., plaintext: true}", false},
		{"plaintext false", client() + "listen: {grpc: {address: '[::]:8443', plaintext: false}}\n", "6: listen.grpc: listens beyond loopback without encryption: give listen.tls, use a loopback address such as 127.0.0.1:8443, or accept it with {address: ..., plaintext: true}", false},
		{"no port", client() + "listen: {grpc: 127.0.0.1}\n", "6: listen.grpc: expected HOST:PORT with a numeric port, such as 127.0.0.1:8443, or :8443 for every interface", false},
		{"named port", client() + "listen: {grpc: 'localhost:https'}\n", "6: listen.grpc: expected HOST:PORT with a numeric port, such as 127.0.0.1:8443, or :8443 for every interface", false},
		{"gRPC off", client() + "listen: {grpc: off}\n", "6: listen.grpc: the gRPC listener cannot be off: give an address such as 127.0.0.1:8443", true},
		{"the same address", client() + "listen:\n  grpc: 127.0.0.1:9000\n  ops: localhost:9000\n", "8: listen.ops: the same address as listen.grpc: give each listener a port of its own", false},
		{"the same port on every interface", client() + "listen:\n  ops: 127.0.0.1:9000\n  grpc: {address: ':9000', plaintext: true}\n", "8: listen.grpc: the same address as listen.ops: give each listener a port of its own", false},
		{"the same port on every IPv4 interface", client() + "listen:\n  grpc: 127.0.0.1:9000\n  ops: {address: '0.0.0.0:9000', plaintext: true}\n", "8: listen.ops: the same address as listen.grpc: give each listener a port of its own", false},
		{"the default's address", client() + "listen: {grpc: 127.0.0.1:9090}\n", "6: listen.grpc: the same address as listen.ops: give each listener a port of its own", false},
		{"pprof beyond loopback", client() + "listen: {ops: {address: ':9090', plaintext: true}}\nserver: {pprof: true}\n", "7: server.pprof: profiles are served on loopback only: give listen.ops a loopback address, or remove pprof", false},
		{"pprof without ops", client() + "listen: {ops: off}\nserver: {pprof: true}\n", "7: server.pprof: profiles are served on loopback only: give listen.ops a loopback address, or remove pprof", false},

		// Callers and roles.
		{"caller without a name", callers("{dns_san: a.example.com, roles: [r]}"), "6: callers[0]: name is missing", true},
		{"caller without roles", callers("{name: a, dns_san: a.example.com}"), "6: callers[0]: roles is missing", true},
		{"caller with no role", callers("{name: a, dns_san: a.example.com, roles: []}"), "6: callers[0].roles: the list is empty: give at least one", true},
		{"unknown role", callers("{name: a, dns_san: a.example.com, roles: [q]}"), "6: callers[0].roles[0]: no such role: add it to roles; did you mean r?", false},
		{"caller by nothing", callers("{name: a, roles: [r]}"), "6: callers[0]: the caller has no identity: give spiffe_id, uri_san, dns_san, issuer and subject or claims, or uid; or bind a listener to it", false},
		{"caller by two things", callers("{name: a, dns_san: a.example.com, uid: 5, roles: [r]}"), "6: callers[0].uid: a caller has one identity: remove this or dns_san", false},
		{"two callers of one name", callers("{name: a, uid: 1, roles: [r]}", "{name: a, uid: 2, roles: [r]}"), "7: callers[1].name: the same name as the caller in line 6: give each caller another", false},
		{"two callers by the same", callers("{name: a, dns_san: x.example.com, roles: [r]}", "{name: b, dns_san: X.example.com, roles: [r]}"),
			"7: callers[1].dns_san: the caller in line 6 has the same identity, so this one never matches: merge the two", false},
		{"two callers of a user", callers("{name: a, uid: 1, roles: [r]}", "{name: b, uid: 1, roles: [r]}"), "7: callers[1].uid: the caller in line 6 has the same identity, so this one never matches: merge the two", false},
		{"user out of range", callers("{name: a, uid: -1, roles: [r]}"), "6: callers[0].uid: must be from 0 to 4294967294", true},
		{"pattern of DNS names", callers("{name: a, dns_san: '*.example.com', roles: [r]}"), "6: callers[0].dns_san: expected one whole DNS name, such as gateway.example.com: patterns of them are not possible", false},
		{"SPIFFE ID of another scheme", callers("{name: a, spiffe_id: 'https://example.com/a', roles: [r]}"), "6: callers[0].spiffe_id: expected a SPIFFE ID, spiffe://TRUST-DOMAIN/PATH, with the trust domain in lower case and without port, query and fragment", false},
		{"SPIFFE ID without a domain", callers("{name: a, spiffe_id: 'spiffe:///a', roles: [r]}"), "6: callers[0].spiffe_id: expected a whole URI, such as spiffe://example.com/ns/shop/sa/checkout", false},
		{"any trust domain", callers("{name: a, spiffe_id: 'spiffe://*/a', roles: [r]}"), "6: callers[0].spiffe_id: * stands for a path at the end, after a slash: the rest is written out, the trust domain above all", false},
		{"part of a path", callers("{name: a, spiffe_id: 'spiffe://example.com/ns/shop*', roles: [r]}"), "6: callers[0].spiffe_id: * stands for a path at the end, after a slash: the rest is written out, the trust domain above all", false},
		{"SPIFFE ID without a path", callers("{name: a, spiffe_id: 'spiffe://example.com', roles: [r]}"), "6: callers[0].spiffe_id: a SPIFFE ID of a workload has a path and no slash at its end: write it out, or end it in /* for any path below", false},
		{"SPIFFE ID with percent-encoding", callers("{name: a, spiffe_id: 'spiffe://example.com/%61', roles: [r]}"), "6: callers[0].spiffe_id: not a valid SPIFFE ID: the trust domain consists of lower-case letters, digits and ._-, the path of segments of letters, digits and ._-, without percent-encoding and empty segments", false},
		{"SPIFFE ID with an empty fragment", callers("{name: a, spiffe_id: 'spiffe://example.com/a#', roles: [r]}"), "6: callers[0].spiffe_id: not a valid SPIFFE ID: the trust domain consists of lower-case letters, digits and ._-, the path of segments of letters, digits and ._-, without percent-encoding and empty segments", false},
		{"pattern that leads out", callers("{name: a, spiffe_id: 'spiffe://example.com/../*', roles: [r]}"), "6: callers[0].spiffe_id: not a valid SPIFFE ID: the trust domain consists of lower-case letters, digits and ._-, the path of segments of letters, digits and ._-, without percent-encoding and empty segments", false},
		{"any trust domain of an issuer", callers("{name: a, issuer: 'https://login.example.com', subject: 'spiffe://*', roles: [r]}"), "6: callers[0].subject: expected a whole URI, such as spiffe://example.com/ns/shop/sa/checkout", false},
		{"SPIFFE ID as a URI", callers("{name: a, uri_san: 'spiffe://example.com/a', roles: [r]}"), "6: callers[0].uri_san: this is a SPIFFE ID: use spiffe_id", false},
		{"URI without a scheme", callers("{name: a, uri_san: example, roles: [r]}"), "6: callers[0].uri_san: expected a whole URI, such as spiffe://example.com/ns/shop/sa/checkout", false},
		{"subject without its issuer", callers("{name: a, subject: b, roles: [r]}"), "6: callers[0]: issuer needs subject, claims, or both: give them for a caller that presents a JWT", false},
		{"caller of an unknown issuer", callers("{name: a, issuer: 'https://other.example.com', subject: b, roles: [r]}"), "6: callers[0].issuer: not one of issuers, which are compared byte by byte: add it there, so that its tokens can be verified", false},
		{"part of a subject", callers("{name: a, issuer: 'https://login.example.com', subject: 'system:shop*', roles: [r]}"), "6: callers[0].subject: * stands for a rest at the end, after a colon or a slash, such as system:serviceaccount:shop:*", false},
		{"part of a claim", callers("{name: a, issuer: 'https://login.example.com', claims: [{path: [ref], value: 'refs/heads/ma*'}], roles: [r]}"), "6: callers[0].claims[0].value: * stands for a rest at the end, after a colon or a slash, such as refs/heads/*", false},
		{"any value of a claim", callers("{name: a, issuer: 'https://login.example.com', subject: b, claims: [{path: [ref], value: '*'}], roles: [r]}"), "6: callers[0].claims[0].value: * stands for a rest at the end, after a colon or a slash, such as refs/heads/*", false},
		{"claims without their issuer", callers("{name: a, claims: [{path: [ref], value: b}], roles: [r]}"), "6: callers[0]: issuer needs subject, claims, or both: give them for a caller that presents a JWT", false},
		{"listener bound to nobody", client() + "listen: {grpc: {address: '127.0.0.1:1', caller: a}}\n", "6: listen.grpc.caller: no such caller: add it to callers", false},
		{"certificate without a key", client() + "listen:\n  tls: {cert: tls.crt}\n", "7: listen.tls: key is missing", true},
		{"TLS without anything", client() + "listen:\n  tls: {min_version: '1.2'}\n", "7: listen.tls: cert is missing\n7: listen.tls: key is missing", true},
		{"files beside SPIFFE", client() + "listen:\n  tls:\n    spiffe: {socket: 'unix:///run/agent.sock'}\n    cert: tls.crt\n    key: tls.key\n    client_ca: ca.crt\n", "9: listen.tls.cert: contradicts spiffe in line 8: the certificate and the CAs come from files or from the SPIFFE Workload API, remove one of them\n" +
			"10: listen.tls.key: contradicts spiffe in line 8: the certificate and the CAs come from files or from the SPIFFE Workload API, remove one of them\n" +
			"11: listen.tls.client_ca: contradicts spiffe in line 8: the certificate and the CAs come from files or from the SPIFFE Workload API, remove one of them", true},
		{"SPIFFE without a socket", client() + "listen:\n  tls:\n    spiffe: {trust_domains: [example.org]}\n", "8: listen.tls.spiffe: socket is missing", true},
		{"SPIFFE over TCP", client() + "listen:\n  tls:\n    spiffe: {socket: 'tcp://127.0.0.1:8081'}\n", "8: listen.tls.spiffe.socket: expected unix:// and an absolute path, such as unix:///run/spire/agent.sock", false},
		{"a path alone as the SPIFFE socket", client() + "listen:\n  tls:\n    spiffe: {socket: /run/agent.sock}\n", "8: listen.tls.spiffe.socket: expected unix:// and an absolute path, such as unix:///run/spire/agent.sock", false},
		{"a SPIFFE ID as a trust domain", client() + "listen:\n  tls:\n    spiffe: {socket: 'unix:///run/agent.sock', trust_domains: ['spiffe://example.org']}\n", "8: listen.tls.spiffe.trust_domains[0]: expected the name of a trust domain in lower case, such as example.org", false},
		{"unknown version of TLS", client() + "listen:\n  tls: {cert: tls.crt, key: tls.key, min_version: '1.1'}\n", "7: listen.tls.min_version: expected 1.2 or 1.3; did you mean 1.2?", true},
		{"version of TLS as a number", client() + "listen:\n  tls: {cert: tls.crt, key: tls.key, min_version: 1.3}\n", "7: listen.tls.min_version: expected text, found a number: put it in quotes", true},
		{"TLS that encrypts nothing", client() + "listen:\n  grpc: {address: ':8443', plaintext: true}\n  tls: {cert: tls.crt, key: tls.key}\n", "8: listen.tls: listen.grpc has plaintext, so TLS is not used: remove one of the two", false},
		{"TLS does not encrypt ops", client() + "listen:\n  grpc: ':8443'\n  ops: ':9090'\n  tls: {cert: tls.crt, key: tls.key}\n", "8: listen.ops: listens beyond loopback without encryption: use a loopback address such as 127.0.0.1:9090, or accept it with {address: ..., plaintext: true}", false},
		{"Unix socket without a path", client() + "listen:\n  unix: {mode: '0600'}\n", "7: listen.unix: path is missing", true},
		{"Unix socket here or there", client() + "listen:\n  unix: {path: broker.sock}\n", "7: listen.unix.path: expected an absolute path, because clients may have another working directory", false},
		{"Unix socket with a path too long", client() + "listen:\n  unix: {path: /" + strings.Repeat("x", 100) + "}\n", "7: listen.unix.path: must not be longer than 100 bytes", true},
		{"mode in letters", client() + "listen:\n  unix: {path: /run/x, mode: rw}\n", `7: listen.unix.mode: expected a mode in octal digits, such as "0660"`, false},
		{"mode as a number", client() + "listen:\n  unix: {path: /run/x, mode: 0660}\n", "7: listen.unix.mode: expected text, found a number: put it in quotes", true},
		{"mode beyond permissions", client() + "listen:\n  unix: {path: /run/x, mode: '4755'}\n", `7: listen.unix.mode: expected a mode in octal digits, such as "0660"`, false},
		{"Unix socket bound to nobody", callers("{name: a, uid: 1, roles: [r]}") + "listen: {unix: {path: /run/x, caller: b}}\n", "7: listen.unix.caller: no such caller: add it to callers", false},
		{"Unix socket of HTTP here or there", client() + "listen:\n  http_unix: {path: broker.sock}\n", "7: listen.http_unix.path: expected an absolute path, because clients may have another working directory", false},
		{"Unix socket of HTTP bound to nobody", callers("{name: a, uid: 1, roles: [r]}") + "listen: {http_unix: {path: /run/x, caller: b}}\n", "7: listen.http_unix.caller: no such caller: add it to callers", false},
		{"Unix socket for two", client() + "listen:\n  unix: {path: /run/x}\n  http_unix: {path: /run/x}\n", "8: listen.http_unix.path: the same path as listen.unix: give each socket one of its own", false},
		{"the user that stands for any", callers("{name: a, uid: 65534, roles: [r]}"), "6: callers[0].uid: 65534 stands for every user that is unknown to the broker's system, as in a container: run the caller as another user", false},
		{"HTTP beside gRPC", client() + "listen:\n  grpc: 127.0.0.1:9000\n  http: localhost:9000\n", "8: listen.http: the same address as listen.grpc: give each listener a port of its own", false},
		{"HTTP beyond loopback", client() + "listen:\n  http: ':8444'\n", "7: listen.http: listens beyond loopback without encryption: give listen.tls, use a loopback address such as 127.0.0.1:8444, or accept it with {address: ..., plaintext: true}", false},
		{"HTTP bound beyond loopback", callers("{name: a, roles: [r]}") + "listen: {http: {address: ':1', plaintext: true, caller: a}}\n", "7: listen.http.caller: every client of the listener would be this caller: bind a listener to a caller on loopback only", false},
		{"HTTP bound to nobody", client() + "listen: {http: {address: '127.0.0.1:1', caller: a}}\n", "6: listen.http.caller: no such caller: add it to callers", false},
		{"headers with an underscore", client() + "gateways: {header_prefix: X_Auth_}\n", "6: gateways.header_prefix: expected letters, digits and hyphens with a hyphen at the end, such as X-Auth-: some upstream servers read an underscore as a hyphen", false},
		{"a realm with a quote", client() + "gateways: {realm: 'a\"b'}\n", "6: gateways.realm: expected printable ASCII without quotes and backslashes", false},
		{"needs anywhere", client() + "gateways: {needs: path}\n", "6: gateways.needs: expected query or headers", true},
		{"a URL with a path", client() + "listen:\n  http:\n    address: 127.0.0.1:8444\n    url: https://broker.example.com/x\n", "9: listen.http.url: expected https://HOST or https://HOST:PORT without a path", false},
		{"a URL without encryption", client() + "listen: {http: {address: '127.0.0.1:8444', url: 'http://broker.example.com'}}\n", "6: listen.http.url: expected https://HOST or https://HOST:PORT without a path", false},
		{"a URL of a socket with a path", client() + "listen: {http_unix: {path: /run/http.sock, url: 'https://broker.example.com/x'}}\n", "6: listen.http_unix.url: expected https://HOST or https://HOST:PORT without a path", false},
		{"two URLs", client() + "listen:\n  http: {address: '127.0.0.1:8444', url: 'https://a.example.com'}\n  http_unix: {path: /run/http.sock, url: 'https://a.example.com'}\n", "8: listen.http_unix.url: contradicts listen.http.url in line 7: the HTTP API has one URL, give it once", false},
		{"a URL of gRPC", client() + "listen: {grpc: {address: '127.0.0.1:8443', url: 'https://a.example.com'}}\n", "6: listen.grpc.url: no such key; possible here: address, plaintext, caller, opaque_issuer", true},
		{"a URL without an address", client() + "listen: {http: {url: 'https://a.example.com'}}\n", "6: listen.http: address is missing", true},
		{"the URL by its old name", client() + "gateways: {url: 'https://a.example.com'}\n", "6: gateways.url: no such key; it is now listen.http.url", true},
		{"the audience of callers by its old name", client() + "server: {audience: a}\n", "6: server.audience: no such key; it is now server.caller_audience", true},
		{"a rule's host with a port", client() + "gateways: {ext_authz: {rules: [{host: 'api.example.com:443'}]}}\n", "6: gateways.ext_authz.rules[0].host: expected a host name without a port, such as api.example.com or *.example.com", false},
		{"a rule's path that is encoded", client() + "gateways: {ext_authz: {rules: [{path: /a%20b}]}}\n", "6: gateways.ext_authz.rules[0].path: expected a path as it reads once it is decoded, such as /orders/", false},
		{"a rule's host that is not plain", client() + "gateways: {ext_authz: {rules: [{host: admin..example.com}]}}\n", "6: gateways.ext_authz.rules[0].host: expected a host name without a port, such as api.example.com or *.example.com", false},
		{"a rule's path that is not plain", client() + "gateways: {ext_authz: {rules: [{path: /admin./x}]}}\n", "6: gateways.ext_authz.rules[0].path: expected a path as it reads once it is decoded, such as /orders/", false},
		{"a rule without a path that ignores case", client() + "gateways: {ext_authz: {rules: [{host: a.example.com, ignore_case: true}]}}\n", "6: gateways.ext_authz.rules[0].ignore_case: the rule has no path, so it ignores no case: remove it, or give path", false},
		{"a rule's odd scope", client() + "gateways: {ext_authz: {rules: [{scopes: ['a b']}]}}\n", "6: gateways.ext_authz.rules[0].scopes[0]: not a scope: printable ASCII without spaces, quotes and backslashes; several scopes are several items", false},
		{"connections too young", client() + "limits: {connection_age: 59s}\n", "6: limits.connection_age: must be from 1m to 24h", false},
		{"handshakes too long", client() + "limits: {handshake_timeout: 2m}\n", "6: limits.handshake_timeout: must be from 1s to 1m", false},
		{"no calls at all", client() + "limits: {in_flight: 0}\n", "6: limits.in_flight: must be from 1 to 1000000", true},
		{"a caller's limits too low", callers("{name: a, uid: 1, roles: [r], limits: {burst: 0}}"), "6: callers[0].limits.burst: must be from 1 to 1000000", true},
		{"a limit that a caller has not", callers("{name: a, uid: 1, roles: [r], limits: {in_flight: 1}}"), "6: callers[0].limits.in_flight: no such key; possible here: per_second, burst, concurrent, watches", true},
		{"listener bound beyond loopback", callers("{name: a, roles: [r]}") + "listen: {grpc: {address: ':1', plaintext: true, caller: a}}\n", "7: listen.grpc.caller: every client of the listener would be this caller: bind a listener to a caller on loopback only", false},
		{"metrics bound to a caller", callers("{name: a, uid: 1, roles: [r]}") + "listen: {ops: {address: '127.0.0.1:1', caller: a}}\n", "7: listen.ops.caller: the ops listener does not identify callers: remove it", false},
		{"role without grants", issuer() + "roles: {r: {}}\n", "4: roles.r: the role has no grant: add an item under get, exchange, verify or admin", false},
		{"role with an empty list", issuer() + "roles: {r: {verify: []}}\n", "4: roles.r: the role has no grant: add an item under get, exchange, verify or admin", false},
		{"grant without a client", issuer() + "roles: {r: {get: [{scopes: [a]}]}}\n", "4: roles.r.get[0]: client is missing", true},
		{"grant of an unknown client", client() + "roles: {r: {get: [{client: orders}]}}\n", "6: roles.r.get[0].client: no such client: add it to clients; did you mean orders-api?", false},
		{"grant of no scopes", client() + "roles: {r: {get: [{client: orders-api, scopes: []}]}}\n", "6: roles.r.get[0].scopes: the list is empty: give at least one, or remove the key", true},
		{"grant of everything and more", client() + "roles: {r: {get: [{client: orders-api, scopes: ['*', read]}]}}\n", `6: roles.r.get[0].scopes: "*" stands for everything: remove the rest, or remove "*"`, false},
		{"grant of two scopes as one", client() + "roles: {r: {get: [{client: orders-api, scopes: [read write]}]}}\n", "6: roles.r.get[0].scopes[0]: not a scope: printable ASCII without spaces, quotes and backslashes; several scopes are several items", false},
		{"grant of an unknown issuer", issuer() + "roles: {r: {verify: [{issuer: 'https://login.example.com/'}]}}\n", "4: roles.r.verify[0].issuer: not one of issuers, which are compared byte by byte: add it there, or correct it", false},
		{"grant of no action", issuer() + "roles: {r: {admin: [{clients: ['*']}]}}\n", "4: roles.r.admin[0]: actions is missing", true},
		{"grant of an unknown action", issuer() + "roles: {r: {admin: [{actions: [purge]}]}}\n", "4: roles.r.admin[0].actions[0]: expected list_clients, get_client, get_status, rotate_secret, activate_secret, rollback_secret, retire_secret, export_secret, import_secret, rotate_key, list_keys, purge_tokens, revoke_tokens, list_revocations, delete_revocation or *; did you mean purge_tokens?", true},
		{"grant to act upon an unknown client", client() + "roles: {r: {admin: [{actions: [purge_tokens], clients: [zebra]}]}}\n", "6: roles.r.admin[0].clients[0]: no such client: add it to clients", false},

		{"all at once, by line", "log: {level: loud}\nclients:\n  b: {issuer: https://b, client_id: 1, secret: env:B}\n  a: {issuer: https://a, client_id: 2}\nissuers: no\n",
			"1: log.level: expected debug, info, warn or error\n3: clients.b.client_id: expected text, found a number: put it in quotes\n" +
				"4: clients.a.client_id: expected text, found a number: put it in quotes\n4: clients.a: secret is missing\n5: issuers: expected a list, found text", true},
	}
}

func TestBadConfigurations(t *testing.T) {
	cases := badConfigs()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := config.Parse("broker.yaml", []byte(c.file))
			if cfg != nil || err == nil {
				t.Fatalf("the file was accepted:\n%s", c.file)
			}
			want := "broker.yaml:" + strings.ReplaceAll(c.want, "\n", "\nbroker.yaml:")
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("messages (-want +got):\n%s", diff)
			}
			if _, ok := errors.AsType[*yamlconf.Error](err); !ok {
				t.Errorf("the error is a %T", err)
			}
		})
	}
	if len(cases) < 100 {
		t.Errorf("only %d bad configurations were tried", len(cases))
	}
}

// An issuer whose keys are configured is not connected to, so it may be any
// identifier, and needs no allow_http.
func TestIssuerThatIsNoURLNeedsKeys(t *testing.T) {
	for _, identifier := range []string{
		"http://adfs.corp.example/adfs/services/trust", "urn:example:issuer", "orders@shop-123456.iam.gserviceaccount.com", "login.example.com", "https://10.0.0.1/realms/shop",
	} {
		for _, keys := range []string{"jwks_url: https://login.example.com/keys", "jwks_file: keys.json"} {
			config, err := config.Parse("broker.yaml", []byte("issuers:\n  - issuer: "+identifier+"\n    audiences: [a]\n    "+keys+"\n"))
			if err != nil || config.Issuers[0].Issuer != identifier || config.Issuers[0].AllowHTTP {
				t.Errorf("%s with %s: %v", identifier, keys, err)
			}
		}
		file := "issuers:\n  - issuer: " + identifier + "\n    audiences: [a]\n    jwks_url: http://login.example.com/keys\n"
		if _, err := config.Parse("broker.yaml", []byte(file)); err == nil || !strings.Contains(err.Error(), "issuers[0].jwks_url: http://") {
			t.Errorf("%s with keys over plain http: %v", identifier, err)
		}
	}
}
