// Package config reads the configuration file: its format, its defaults, and checks
// that report each problem with its line. It returns plain values and opens nothing;
// package app assembles the broker from them.
package config

import (
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/gatewayconf"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Config is the broker's configuration file. Its JSON Schema is generated from these
// types: editors show the comments on the fields as help, and the jsonschema tags are
// also checked when the file is read.
//
// A Config from [Load] or [Parse] has its defaults filled in and is consistent. It
// holds references to secrets, never their values, and must not be changed.
type Config struct {
	// Where the broker listens.
	Listen Listen `yaml:"listen"`
	// Where state is kept. Absent: in memory.
	Store Store `yaml:"store"`
	// How calls are served, and how serving ends.
	Server Server `yaml:"server"`
	// Limits on each caller and on the whole broker.
	Limits Limits `yaml:"limits"`
	// How the broker serves gateways, which do not call its own gRPC API.
	Gateways gatewayconf.Gateways `yaml:"gateways"`
	// The log, written to standard error.
	Log Log `yaml:"log"`
	// The audit log of issued tokens and refused requests, with their callers. Absent: no audit
	// log.
	Audit *Audit `yaml:"audit"`
	// OpenTelemetry traces of calls. Absent: no traces, unless OTEL_EXPORTER_OTLP_ENDPOINT is set.
	Tracing *Tracing `yaml:"tracing"`
	// The OAuth clients for which the broker issues tokens to callers, each under the name that
	// callers use in requests: 1 to 128 letters, digits, dots, underscores and hyphens.
	Clients map[string]Client `yaml:"clients" jsonschema:"anyof_required=clients"`
	// The issuers of the tokens that the broker verifies, each once. A token of any other issuer is
	// rejected.
	Issuers []Issuer `yaml:"issuers" jsonschema:"anyof_required=issuers"`
	// The cache of verified tokens, and how long callers may cache results.
	Verification Verification `yaml:"verification"`
	// The callers that may use the broker. No other caller has any permission.
	Callers []Caller `yaml:"callers"`
	// The roles that grant permissions to callers, by names of 1 to 128 letters, digits, dots,
	// underscores and hyphens.
	Roles map[string]Role `yaml:"roles"`

	// Warnings report settings that are valid but probably unintended.
	Warnings []yamlconf.Problem `yaml:"-"`
	// Digest is the SHA-256 of the file.
	Digest [sha256.Size]byte `yaml:"-"`
	// tokenFiles are the token files that issuers name.
	tokenFiles []namedFile `yaml:"-"`
	// findings have the line of each key.
	findings *yamlconf.Findings `yaml:"-"`
	// verifyItems has the index in the file of each verify grant, by role.
	verifyItems map[string][]int `yaml:"-"`
	// issuerItems has the index in the file of each issuer.
	issuerItems []int `yaml:"-"`
}

// Store defines where state is kept: exactly one kind is given.
type Store struct {
	// In the memory of this process: state is lost when it ends, and replicas share nothing.
	Memory *MemoryStore `yaml:"memory" jsonschema:"oneof_required=memory"`
	// In this file, for a single-node broker: state survives crashes. The file is created if it is
	// absent; its directory must exist, on a local disk.
	Bolt string `yaml:"bolt" jsonschema:"minLength=1,oneof_required=bolt"`
	// In Redis, which replicas share.
	Redis *RedisStore `yaml:"redis" jsonschema:"oneof_required=redis"`
	// The file with the keys that seal values in Bolt and Redis, as "broker ring new" creates it:
	// file:PATH, read again when it changes. Required with bolt and redis; all replicas must have
	// the same keys.
	SealingKeys secret.Ref `yaml:"sealing_keys"`
}

// MemoryStore is the store in memory. It has nothing to set.
type MemoryStore struct{}

// RedisStore defines how the broker connects to Redis.
type RedisStore struct {
	// HOST:PORT of the server, of some servers of a Cluster, or of the sentinels.
	Addresses []string `yaml:"addresses" jsonschema:"required,minItems=1,maxItems=32,uniqueItems=true,minLength=1,maxLength=256"`
	// The addresses belong to a Redis Cluster.
	Cluster bool `yaml:"cluster" jsonschema:"default=false"`
	// The addresses belong to sentinels, which know the master by this name.
	SentinelMaster string `yaml:"sentinel_master" jsonschema:"minLength=1,maxLength=128"`
	// The ACL user. Absent: the default user.
	Username string `yaml:"username" jsonschema:"minLength=1,maxLength=128"`
	// The location of the password: file:PATH (read again when it changes) or env:NAME.
	Password secret.Ref `yaml:"password"`
	// The sentinels' own ACL user.
	SentinelUsername string `yaml:"sentinel_username" jsonschema:"minLength=1,maxLength=128"`
	// The location of the sentinels' own password.
	SentinelPassword secret.Ref `yaml:"sentinel_password"`
	// The number of the database; a Cluster has only database 0.
	DB int `yaml:"db" jsonschema:"default=0,minimum=0,maximum=1023"`
	// The prefix of all keys. Brokers on the same Redis that are not replicas need different
	// prefixes.
	Prefix string `yaml:"prefix" jsonschema:"default=tb1:,minLength=1,maxLength=64"`
	// Encrypts the connections. Absent: connections are in plaintext, passwords included.
	TLS *RedisTLS `yaml:"tls"`
}

// RedisTLS defines the trusted authorities and the client certificate for Redis over
// TLS.
type RedisTLS struct {
	// The file with the certificates of the trusted authorities. Absent: the system's authorities.
	CA string `yaml:"ca" jsonschema:"minLength=1"`
	// The file with the client certificate, if Redis requires one; key is then required too.
	Cert string `yaml:"cert" jsonschema:"minLength=1"`
	// The file with the client certificate's private key.
	Key string `yaml:"key" jsonschema:"minLength=1"`
	// The name in the server's certificate. Absent: the host of the address.
	ServerName string `yaml:"server_name" jsonschema:"minLength=1,maxLength=253"`
}

// Server defines how calls are served, and how serving ends.
type Server struct {
	// The longest time that a unary call may take, 1s to 5m. A caller's own shorter deadline takes
	// precedence.
	Deadline time.Duration `yaml:"deadline" jsonschema:"default=30s"`
	// Let tools such as grpcurl list the services.
	Reflection bool `yaml:"reflection" jsonschema:"default=true"`
	// At shutdown, how long calls are still accepted after the health check reports NOT_SERVING, 0s
	// to 5m: the time that load balancers need to notice.
	DrainDelay time.Duration `yaml:"drain_delay" jsonschema:"default=0s"`
	// At shutdown, how long calls in progress may take once no new calls are accepted, 1s to 10m.
	// Remaining calls are then cut off.
	DrainTimeout time.Duration `yaml:"drain_timeout" jsonschema:"default=25s"`
	// Serve Go profiles under /debug/pprof/ on the ops listener, which must then be on loopback.
	Pprof bool `yaml:"pprof" jsonschema:"default=false"`
	// Where the ops listener serves the status page and the details of /readyz?verbose: only at a
	// loopback address, at any address, or nowhere. They show names of clients, issuers and
	// replicas to everyone who can connect.
	StatusPage string `yaml:"status_page" jsonschema:"default=loopback,enum=loopback,enum=always,enum=off"`
	// Calls that take longer are logged although they succeed, at most 5m. 0s: no successful call
	// is logged for its duration.
	SlowCall time.Duration `yaml:"slow_call" jsonschema:"default=1s"`
	// The audience that the JWT of a caller must contain.
	CallerAudience string `yaml:"caller_audience" jsonschema:"default=tokenbroker,minLength=1,maxLength=512"`
}

// Log defines the level and the format of the log.
type Log struct {
	// The least severe records that are logged.
	Level string `yaml:"level" jsonschema:"default=info,enum=debug,enum=info,enum=warn,enum=error"`
	// How records are written.
	Format string `yaml:"format" jsonschema:"default=json,enum=json,enum=text"`
}

// Client is an OAuth client registered at an IdP.
type Client struct {
	// The kind of IdP. Absent keys then have the defaults for this IdP, which
	// docs/identity-providers.md lists.
	Preset string `yaml:"preset" jsonschema:"values=presets"`
	// The IdP's issuer URL: its token endpoint is found by discovery. Exactly one of issuer and
	// token_url is given, unless the preset has it.
	Issuer string `yaml:"issuer" jsonschema:"minLength=1,oneof_required=issuer"`
	// The IdP's token endpoint, used without discovery.
	TokenURL string `yaml:"token_url" jsonschema:"minLength=1,oneof_required=token_url"`
	// The client identifier that the IdP issued.
	ClientID string `yaml:"client_id" jsonschema:"required,minLength=1,maxLength=512"`
	// The location of the client secret: file:PATH (a file, or a directory with the files current
	// and previous; read again when it changes), env:NAME, managed: set with "broker secret
	// rotate" and kept in the store, or a mapping with the secret manager that it is read from.
	// Never the secret itself. With private_key_jwt and the grant jwt-bearer the secret is the
	// private key, in PEM or as a JWK, or a Google service account's file. Required unless the auth
	// method needs no secret.
	Secret ClientSecret `yaml:"secret"`
	// With private_key_jwt: the broker makes the private key, publishes its public part and rotates
	// it, in place of secret. Needs bolt or redis.
	Key *Key `yaml:"key"`
	// How the client authenticates. Absent: client_secret_basic, or none with the grant jwt-bearer,
	// because its assertion already authenticates the client.
	Auth string `yaml:"auth" jsonschema:"default=client_secret_basic,values=auth_methods"`
	// The grant type of token requests. With urn:ietf:params:oauth:grant-type:jwt-bearer the broker
	// signs an assertion with the key in secret; any other grant type is sent unchanged, with
	// params.
	GrantType string `yaml:"grant_type" jsonschema:"default=client_credentials,minLength=1,maxLength=256"`
	// The client requests tokens on behalf of users only, whose tokens callers present.
	// grant_type is then urn:ietf:params:oauth:grant-type:token-exchange (the default), or
	// urn:ietf:params:oauth:grant-type:jwt-bearer (the default with preset entra): the assertion is
	// the user's token.
	Exchange *Exchange `yaml:"exchange"`
	// The assertion that the client presents: how the broker creates it, or the file that holds it.
	Assertion Assertion `yaml:"assertion"`
	// The trusted authorities for the IdP's certificate and, with tls_client_auth and
	// self_signed_tls_client_auth, the client certificate.
	TLS *ClientTLS `yaml:"tls"`
	// With client_secret_basic, send client_id and secret without the form-urlencoding that RFC
	// 6749 section 2.3.1 requires: some IdPs do not decode it.
	RawBasic bool `yaml:"raw_basic" jsonschema:"default=false"`
	// The audience parameter if the caller does not name an audience.
	Audience string `yaml:"audience" jsonschema:"maxLength=512"`
	// The resource parameters (RFC 8707) if the caller does not name resources, sent in this order.
	Resources []string `yaml:"resources" jsonschema:"maxItems=8,uniqueItems=true,minLength=1,maxLength=512"`
	// The requested scopes if the caller does not name scopes.
	Scopes []string `yaml:"scopes" jsonschema:"maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
	// Further form parameters of the token request. Parameters that other keys set, and
	// credentials, are rejected.
	Params map[string]string `yaml:"params"`
	// Members of the IdP's response that callers receive, such as instance_url.
	Extras []string `yaml:"extras" jsonschema:"maxItems=16,uniqueItems=true,minLength=1,maxLength=128"`
	// Further values of token_type that this IdP uses for bearer tokens, in upper or lower case.
	// Callers receive such tokens as Bearer.
	BearerTypes []string `yaml:"bearer_types" jsonschema:"minItems=1,maxItems=8,uniqueItems=true,minLength=1,maxLength=256"`
	// The assumed lifetime of a token if the IdP does not report it, 1s to 24h.
	DefaultLifetime time.Duration `yaml:"default_lifetime" jsonschema:"default=5m"`
	// Accept http:// URLs beyond loopback: secrets and tokens then travel unencrypted.
	AllowHTTP bool `yaml:"allow_http" jsonschema:"default=false"`
	// Connect to private and loopback addresses for this client: its IdP is in the network of the
	// broker. A URL that names a loopback host works without this key.
	AllowPrivate bool `yaml:"allow_private" jsonschema:"default=false"`
}

// Exchange defines how a client requests tokens on behalf of users.
type Exchange struct {
	// The types of users' tokens that callers may present. An ID token must have been issued to
	// this client.
	SubjectTypes []string `yaml:"subject_types" jsonschema:"minItems=1,uniqueItems=true,default=access_token,values=subject_types"`
	// The type of the requested tokens, sent with token-exchange: access_token or jwt. id-jag, and
	// jwt if assertion_from names this client, requests assertions for another IdP, which callers
	// never receive. Absent: the parameter is not sent, and the IdP decides.
	RequestedTokenType string `yaml:"requested_token_type" jsonschema:"enum=access_token,enum=jwt,enum=id-jag"`
	// The actor token that is sent with token-exchange: none, client (a token of the client itself),
	// or file:PATH (a JWT that another program renews; it is read for each request).
	Actor string `yaml:"actor" jsonschema:"default=none,minLength=1,maxLength=512"`
	// The client, by its name among clients, that exchanges the user's token for an assertion at its
	// IdP. This client then exchanges the assertion, with jwt-bearer (identity chaining, ID-JAG).
	AssertionFrom string `yaml:"assertion_from" jsonschema:"minLength=1,maxLength=128"`
	// How a new secret is proved: by a token of the client itself (client_credentials), or by the
	// next exchange, if the IdP gives the client no token of its own.
	Prove string `yaml:"prove" jsonschema:"default=client_credentials,enum=client_credentials,enum=next_exchange"`
}

// Assertion defines the content of a client's assertions (RFC 7523), or the file that
// holds one.
type Assertion struct {
	// The aud claim: issuer, token_endpoint, or the audience itself. Absent: issuer, or
	// token_endpoint where token_url is given.
	Audience string `yaml:"audience" jsonschema:"minLength=1,maxLength=2048"`
	// The signature algorithm. Absent: HS256 with client_secret_jwt; otherwise the alg of the JWK,
	// or RS256, ES256, ES384, ES512 or EdDSA by the kind of the key.
	Algorithm string `yaml:"algorithm" jsonschema:"values=assertion_algorithms"`
	// The kid in the header. Absent: the kid of the JWK or of the service account's file;
	// otherwise, unless a certificate is named, the key's thumbprint (RFC 7638).
	Kid string `yaml:"kid" jsonschema:"minLength=1,maxLength=256"`
	// The typ in the header. Absent: client-authentication+jwt, or JWT with the grant jwt-bearer.
	// Some IdPs accept only JWT.
	Typ string `yaml:"typ" jsonschema:"values=assertion_types"`
	// The sub claim with the grant jwt-bearer: the user on whose behalf tokens are requested.
	// Absent: the assertion has no sub.
	Subject string `yaml:"subject" jsonschema:"minLength=1,maxLength=512"`
	// The file with the certificates of the key in secret, in PEM: the header identifies the
	// certificate of the key (x5t#S256). If secret also contains the certificate, this file is not
	// needed.
	Certificate string `yaml:"certificate" jsonschema:"minLength=1"`
	// With federated_jwt and spiffe_jwt, the file with an assertion from another system, such as
	// Kubernetes' projected token or a JWT-SVID. It is read for each request.
	File string `yaml:"file" jsonschema:"minLength=1"`
}

// ClientTLS defines the trusted authorities for the client's IdP, and the certificate
// that authenticates the client (RFC 8705).
type ClientTLS struct {
	// The file with the certificates of the only authorities that are trusted for this IdP, in PEM.
	// It is read again when it changes. Absent: the system's authorities.
	CA string `yaml:"ca" jsonschema:"minLength=1"`
	// The file with the certificate, in PEM, followed by the intermediate certificates. The file
	// and the key are read again when they change. Requires key.
	Cert string `yaml:"cert" jsonschema:"minLength=1"`
	// The file with the certificate's private key, in PEM.
	Key string `yaml:"key" jsonschema:"minLength=1"`
}

// IssuerTLS defines the trusted authorities for an issuer.
type IssuerTLS struct {
	// The file with the certificates of the only authorities that are trusted for this issuer, in
	// PEM. It is read again when it changes.
	CA string `yaml:"ca" jsonschema:"required,minLength=1"`
}

// CA is the file with the authorities that the client trusts; if empty, the system's
// apply.
func (c *Client) CA() string {
	if c.TLS == nil {
		return ""
	}
	return c.TLS.CA
}

// CA is the file with the trusted authorities for the issuer; if empty, the system's
// apply.
func (c *Issuer) CA() string {
	if c.TLS == nil {
		return ""
	}
	return c.TLS.CA
}

// Issuer is an issuer of tokens that the broker verifies.
type Issuer struct {
	// Defaults for the tokens of a well-known issuer, which docs/identity-providers.md lists. A
	// given key overrides the preset.
	Preset string `yaml:"preset" jsonschema:"values=issuer_presets,anyof_required=preset"`
	// The issuer, exactly as in the iss claim of its tokens. With jwks_url or jwks_file it need not
	// be a URL. With tenants, a pattern of issuers: {tenant} stands for one segment of the path.
	// Required unless the preset has it.
	Issuer string `yaml:"issuer" jsonschema:"minLength=1,maxLength=512,anyof_required=issuer"`
	// The accepted tenants, by their names in the iss claim. Each tenant is an issuer with its own
	// keys and otherwise the same settings.
	Tenants []string `yaml:"tenants" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=128"`
	// The URL of the issuer's keys. Absent: found by discovery, unless jwks_file is given.
	JWKSURL string `yaml:"jwks_url"`
	// The file with the bearer token that jwks_url requires, such as the token of the pod's service
	// account. It is read for each request and sent to jwks_url only, which must be https.
	JWKSTokenFile string `yaml:"jwks_token_file" jsonschema:"minLength=1"`
	// The file with the issuer's keys, a JWK set, if the issuer cannot be reached. It is read again
	// every refresh_interval.
	JWKSFile string `yaml:"jwks_file" jsonschema:"minLength=1"`
	// A token must be for one of these audiences, unless the caller names other audiences.
	Audiences []string `yaml:"audiences" jsonschema:"required,minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=512"`
	// The accepted signature algorithms.
	Algorithms []string `yaml:"algorithms" jsonschema:"minItems=1,uniqueItems=true,default=RS256,default=ES256,default=EdDSA,values=algorithms"`
	// The accepted typ headers, in upper or lower case and with or without application/. JWT also
	// accepts a token without typ.
	Types []string `yaml:"types" jsonschema:"minItems=1,maxItems=8,uniqueItems=true,minLength=1,maxLength=128,default=at+jwt"`
	// The claim of JWTs that holds the scopes: its name, such as scp or roles; or, for a claim in
	// an object, the list of names that leads to it, such as [realm_access, roles].
	ScopeClaim ClaimPath `yaml:"scope_claim" jsonschema:"default=scope"`
	// Treat nbf and the scope claim as absent if they are null: some issuers write claims without a
	// value so. Otherwise such tokens are rejected.
	AllowNullClaims bool `yaml:"allow_null_claims" jsonschema:"default=false"`
	// The substitute for the audience of a token without aud. It never applies to the JWTs of
	// callers. Absent: such a token is rejected.
	MissingAud *MissingAud `yaml:"missing_aud"`
	// The claim that replaces the subject of a JWT without sub: client_id. The response marks such
	// a subject, and it never identifies a caller. reject: such a token is rejected.
	MissingSub string `yaml:"missing_sub" jsonschema:"default=reject,enum=reject,enum=client_id"`
	// The claims that mark ID tokens. A token other than at+jwt that has one of them is rejected.
	IDTokenClaims []string `yaml:"id_token_claims" jsonschema:"minItems=1,maxItems=16,uniqueItems=true,minLength=1,maxLength=128,default=at_hash,default=c_hash"`
	// The claims that mark access tokens. A token other than at+jwt that has none of them is rejected.
	// Absent: scope, scp, client_id, cid, appid, azpacr, gty and kubernetes.io, and permissions if
	// scope_claim names it.
	AccessTokenClaims []string `yaml:"access_token_claims" jsonschema:"minItems=1,maxItems=16,uniqueItems=true,minLength=1,maxLength=128"`
	// The largest accepted difference between the issuer's clock and the broker's, 0s to 60s.
	Leeway time.Duration `yaml:"leeway" jsonschema:"default=30s"`
	// Tokens with a longer lifetime are rejected, 1m to 8760h.
	MaxLifetime time.Duration `yaml:"max_lifetime" jsonschema:"default=24h"`
	// Tokens that were issued longer ago, and tokens without a time of issue, are rejected, 1s to
	// 8760h. Absent: the age is limited only by the lifetime of the token.
	MaxAge time.Duration `yaml:"max_age"`
	// How often the keys are fetched, 1m to 15m.
	RefreshInterval time.Duration `yaml:"refresh_interval" jsonschema:"default=5m"`
	// How long keys stay in use while they cannot be fetched again, up to 24h and not shorter than
	// refresh_interval.
	MaxStale time.Duration `yaml:"max_stale" jsonschema:"default=1h"`
	// Verify opaque tokens, which are not JWTs, by introspection at the issuer (RFC 7662). If
	// several issuers have it, each request, rule or listener must name the issuer of its opaque
	// tokens.
	Introspection *Introspection `yaml:"introspection"`
	// The trusted authorities for the issuer's certificate. Absent: the system's authorities.
	TLS *IssuerTLS `yaml:"tls"`
	// Accept http:// URLs beyond loopback: an attacker on the network path can then forge this
	// issuer's tokens.
	AllowHTTP bool `yaml:"allow_http" jsonschema:"default=false"`
	// Connect to private and loopback addresses for this issuer: it is in the network of the
	// broker. A URL that names a loopback host works without this key.
	AllowPrivate bool `yaml:"allow_private" jsonschema:"default=false"`
}

// ClaimPath is the path of a claim: the names that lead to it from object to object. In
// the file a single name may be a string.
type ClaimPath []string

// MissingAud defines the substitute for the audience of a token without aud: exactly
// one of claim and value.
type MissingAud struct {
	// A claim that holds the audience of the token, such as client_id: a string, or a list of
	// strings.
	Claim string `yaml:"claim" jsonschema:"minLength=1,maxLength=128,oneof_required=claim"`
	// The audience of all tokens without aud.
	Value string `yaml:"value" jsonschema:"minLength=1,maxLength=512,oneof_required=value"`
}

// Introspection defines how opaque tokens are verified at the issuer.
type Introspection struct {
	// The name of the client, among clients, that authenticates the broker to the issuer: with its
	// client_id, secret and auth method.
	Client string `yaml:"client" jsonschema:"required,minLength=1,maxLength=128"`
	// The introspection endpoint. Absent: found by discovery.
	Endpoint string `yaml:"endpoint" jsonschema:"minLength=1"`
	// How long a response is cached, and so how late a revocation at the issuer is noticed, 0s to
	// 5m. A response for a token that is not active is cached for at most 5s.
	Cache time.Duration `yaml:"cache" jsonschema:"default=30s"`
	// The assumed lifetime of a token if the issuer does not report its expiry, 1s to 24h. Absent:
	// such tokens are rejected.
	DefaultLifetime time.Duration `yaml:"default_lifetime"`
}

// Verification defines the cache of verified tokens.
type Verification struct {
	// The memory for the cache of JWTs with a valid signature, in MiB. 0: nothing is cached, and
	// every signature is verified again.
	CacheMiB int `yaml:"cache_mib" jsonschema:"default=64,minimum=0,maximum=65536"`
	// The longest time that callers may cache a result, 1s to 1h: a change of the configuration or
	// a revocation reaches a caller with a cached result only after that time.
	MaxValidity time.Duration `yaml:"max_validity" jsonschema:"default=5m"`
}

// Managed reports whether the store has the only copy of the client's credential: a managed
// secret, or a key that the broker makes.
func (c *Client) Managed() bool { return c.Secret.Managed() || c.Key != nil }

// Managed returns the name of a client with a managed credential, or "" if no client has one.
func (c *Config) Managed() string {
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		if client := c.Clients[name]; client.Managed() {
			return name
		}
	}
	return ""
}

// Load reads the configuration file at path. It reads no secrets and does not use the
// network. All problems are in one [*yamlconf.Error].
func Load(path string) (*Config, error) {
	data, err := yamlconf.Read(path)
	if err != nil {
		return nil, &yamlconf.Error{Problems: []yamlconf.Problem{{File: path, Message: err.Error()}}}
	}
	return Parse(path, data)
}

// Parse is Load for a file's content; name is the file's name in messages.
func Parse(name string, data []byte) (*Config, error) {
	config := new(Config)
	findings, err := yamlconf.Decode(name, data, config, fileFormat())
	if err != nil {
		return nil, err
	}
	complete(config, findings)
	checkConfig(config, findings)
	if err = findings.Err(); err != nil {
		return nil, err
	}
	config.tokenFiles = tokenFiles(config.Issuers)
	config.verifyItems = eachTenant(config.Roles, config.Issuers)
	config.Issuers, config.issuerItems = withTenants(config.Issuers)
	config.warnOfUpstreams(findings)
	config.Warnings, config.findings = findings.Warnings, findings
	config.Digest = sha256.Sum256(data)
	return config, nil
}
