// Package config reads the configuration file: its format, its defaults, and checks whose
// problems name a line. It returns plain values and opens nothing; package app assembles
// the broker from them.
package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/cezzis/tokenbroker/internal/secret"
)

// maxConfigSize bounds the configuration file: 10,000 clients need about 3 MiB.
const maxConfigSize = 16 << 20

// Config is the broker's configuration file. Its JSON Schema is generated from
// these types: the comments on the fields are the help that editors show, and
// the jsonschema tags are what the file is held to when it is read.
//
// A Config that came from [Load] or [Parse] has its defaults filled
// in and is consistent. It holds references to secrets, never their values, and
// is not to be changed.
type Config struct {
	// Where the broker listens.
	Listen Listen `yaml:"listen"`
	// Where state is kept. Absent: in memory.
	Store Store `yaml:"store"`
	// How calls are served, and how serving ends.
	Server Server `yaml:"server"`
	// What the broker takes on, of each caller and of all.
	Limits Limits `yaml:"limits"`
	// How gateways are served, which do not call the broker's own gRPC API.
	Gateways Gateways `yaml:"gateways"`
	// What is logged, to standard error.
	Log Log `yaml:"log"`
	// Where it is written down who was given which token, and who was refused what. Absent: nowhere.
	Audit *Audit `yaml:"audit"`
	// OpenTelemetry traces of calls. Absent: there are none.
	Tracing *Tracing `yaml:"tracing"`
	// The OAuth clients whose tokens the broker hands out, each under the name that callers ask
	// for: 1 to 128 letters, digits, dots, underscores and hyphens.
	Clients map[string]Client `yaml:"clients" jsonschema:"anyof_required=clients"`
	// The issuers whose tokens the broker verifies, each once. A token of any other issuer is
	// rejected.
	Issuers []Issuer `yaml:"issuers" jsonschema:"anyof_required=issuers"`
	// What is remembered of verified tokens, and for how long.
	Verification Verification `yaml:"verification"`
	// Who may ask. Nobody else may ask for anything.
	Callers []Caller `yaml:"callers"`
	// What callers may, by names of 1 to 128 letters, digits, dots, underscores and hyphens.
	Roles map[string]Role `yaml:"roles"`

	// Warnings are about what is not wrong in the file, and hardly meant.
	Warnings []Problem `yaml:"-"`
	// Digest is the SHA-256 of the file.
	Digest [sha256.Size]byte `yaml:"-"`
	// tokenFiles are the files with tokens that issuers name.
	tokenFiles []namedFile `yaml:"-"`
	// file is the name of the file, and lines are those of its keys, by path.
	file  string         `yaml:"-"`
	lines map[string]int `yaml:"-"`
}

// Store says where state is kept: exactly one kind is given.
type Store struct {
	// In the memory of this process; nothing outlives it, and replicas share nothing.
	Memory *MemoryStore `yaml:"memory" jsonschema:"oneof_required=memory"`
	// In this file, for a broker of one node: it survives crashes. The file is created if it is
	// absent; its directory must exist, on a local disk.
	Bolt string `yaml:"bolt" jsonschema:"minLength=1,oneof_required=bolt"`
	// In Redis, which replicas share.
	Redis *RedisStore `yaml:"redis" jsonschema:"oneof_required=redis"`
	// The file with the keys that values in Bolt and Redis are sealed with, as "broker ring new"
	// makes it: file:PATH, read again when it changes. Required with those two; all replicas must
	// have the same.
	SealingKeys secret.Ref `yaml:"sealing_keys"`
}

// MemoryStore is the store in memory. It has nothing to set.
type MemoryStore struct{}

// RedisStore says how Redis is reached.
type RedisStore struct {
	// HOST:PORT of the server; of some servers of a Cluster; of the sentinels.
	Addresses []string `yaml:"addresses" jsonschema:"required,minItems=1,maxItems=32,uniqueItems=true,minLength=1,maxLength=256"`
	// The addresses are of a Redis Cluster.
	Cluster bool `yaml:"cluster" jsonschema:"default=false"`
	// The addresses are of sentinels, which know the master by this name.
	SentinelMaster string `yaml:"sentinel_master" jsonschema:"minLength=1,maxLength=128"`
	// The ACL user. Absent: the default user.
	Username string `yaml:"username" jsonschema:"minLength=1,maxLength=128"`
	// Where the password is: file:PATH (read again when it changes) or env:NAME.
	Password secret.Ref `yaml:"password"`
	// The sentinels' own ACL user.
	SentinelUsername string `yaml:"sentinel_username" jsonschema:"minLength=1,maxLength=128"`
	// Where the sentinels' own password is.
	SentinelPassword secret.Ref `yaml:"sentinel_password"`
	// The number of the database; a Cluster has but 0.
	DB int `yaml:"db" jsonschema:"default=0,minimum=0,maximum=1023"`
	// What all keys begin with. Brokers that share nothing but the Redis have prefixes of their
	// own.
	Prefix string `yaml:"prefix" jsonschema:"default=tb1:,minLength=1,maxLength=64"`
	// Encrypts the connections. Absent: they are in plaintext, passwords included.
	TLS *RedisTLS `yaml:"tls"`
}

// RedisTLS says whom to trust, and how to be trusted, over TLS.
type RedisTLS struct {
	// The file with the certificates of the authorities that are trusted. Absent: those of the
	// system.
	CA string `yaml:"ca" jsonschema:"minLength=1"`
	// The file with the client certificate, if Redis wants one; it goes with key.
	Cert string `yaml:"cert" jsonschema:"minLength=1"`
	// The file with the client certificate's private key.
	Key string `yaml:"key" jsonschema:"minLength=1"`
	// The name in the server's certificate. Absent: the host of the address.
	ServerName string `yaml:"server_name" jsonschema:"minLength=1,maxLength=253"`
}

// Server says how calls are served, and how serving ends.
type Server struct {
	// The longest that a unary call may take, 1s to 5m. A caller's own shorter deadline holds.
	Deadline time.Duration `yaml:"deadline" jsonschema:"default=30s"`
	// Let tools such as grpcurl ask which services there are.
	Reflection bool `yaml:"reflection" jsonschema:"default=true"`
	// At shutdown, how long calls are still accepted after health says NOT_SERVING, 0s to 5m:
	// the time that load balancers need to notice.
	DrainDelay time.Duration `yaml:"drain_delay" jsonschema:"default=0s"`
	// At shutdown, how long calls in progress may take once no new ones are accepted, 1s to
	// 10m. What is left then is cut off.
	DrainTimeout time.Duration `yaml:"drain_timeout" jsonschema:"default=25s"`
	// Serve Go profiles under /debug/pprof/ on the ops listener, which must then be on loopback.
	Pprof bool `yaml:"pprof" jsonschema:"default=false"`
	// Calls that take longer are logged although they succeed, at most 5m. 0s: none are.
	SlowCall time.Duration `yaml:"slow_call" jsonschema:"default=1s"`
	// The audience that the JWT of a caller must name.
	CallerAudience string `yaml:"caller_audience" jsonschema:"default=tokenbroker,minLength=1,maxLength=512"`
}

// Log says what is logged.
type Log struct {
	// The least severe records that are logged.
	Level string `yaml:"level" jsonschema:"default=info,enum=debug,enum=info,enum=warn,enum=error"`
	// How records are written.
	Format string `yaml:"format" jsonschema:"default=json,enum=json,enum=text"`
}

// Client is an OAuth client registered at an IdP.
type Client struct {
	// Which IdP this is. Keys that are not given then have the defaults that it needs, which
	// docs/identity-providers.md lists.
	Preset string `yaml:"preset" jsonschema:"values=presets"`
	// The IdP's issuer URL: its token endpoint is found by discovery. Exactly one of issuer and
	// token_url is given, unless the preset has it.
	Issuer string `yaml:"issuer" jsonschema:"minLength=1,oneof_required=issuer"`
	// The IdP's token endpoint, where discovery is not wanted.
	TokenURL string `yaml:"token_url" jsonschema:"minLength=1,oneof_required=token_url"`
	// The client identifier that the IdP issued.
	ClientID string `yaml:"client_id" jsonschema:"required,minLength=1,maxLength=512"`
	// Where the client secret is: file:PATH (a file, or a directory with the files current and
	// previous; read again when it changes), env:NAME, or managed: brought with "broker secret
	// rotate" and kept in the store. Never the secret itself. With private_key_jwt and the grant
	// jwt-bearer it is the private key, in PEM or as a JWK, or a Google service account's file.
	// Required unless auth needs none.
	Secret secret.Ref `yaml:"secret"`
	// How the client proves its identity. Absent: client_secret_basic, or none with the grant
	// jwt-bearer, which proves it by itself.
	Auth string `yaml:"auth" jsonschema:"default=client_secret_basic,values=auth_methods"`
	// The grant by which tokens are asked for. With urn:ietf:params:oauth:grant-type:jwt-bearer the
	// broker signs an assertion with the key in secret; any other is sent as it is, with params.
	GrantType string `yaml:"grant_type" jsonschema:"default=client_credentials,minLength=1,maxLength=256"`
	// The assertion that the client presents: how the broker makes it, or the file that holds it.
	Assertion Assertion `yaml:"assertion"`
	// The authorities of the IdP's certificate and, with tls_client_auth and
	// self_signed_tls_client_auth, the client certificate.
	TLS *ClientTLS `yaml:"tls"`
	// With client_secret_basic, send client_id and secret without the form-urlencoding that RFC
	// 6749 section 2.3.1 asks for: some IdPs do not decode it.
	RawBasic bool `yaml:"raw_basic" jsonschema:"default=false"`
	// The audience parameter where a caller names none.
	Audience string `yaml:"audience" jsonschema:"maxLength=512"`
	// The resource parameters (RFC 8707) where a caller names none, sent in this order.
	Resources []string `yaml:"resources" jsonschema:"maxItems=8,uniqueItems=true,minLength=1,maxLength=512"`
	// The scopes asked for where a caller names none.
	Scopes []string `yaml:"scopes" jsonschema:"maxItems=64,uniqueItems=true,minLength=1,maxLength=256"`
	// Further form parameters of the token request. Those that other keys set, and credentials,
	// are refused.
	Params map[string]string `yaml:"params"`
	// Members of the IdP's answer that callers get to see, such as instance_url.
	Extras []string `yaml:"extras" jsonschema:"maxItems=16,uniqueItems=true,minLength=1,maxLength=128"`
	// Further values of token_type by which this IdP means bearer, in any case. Callers get such
	// tokens as Bearer.
	BearerTypes []string `yaml:"bearer_types" jsonschema:"minItems=1,maxItems=8,uniqueItems=true,minLength=1,maxLength=256"`
	// How long a token is taken to live where the IdP does not say, 1s to 24h.
	DefaultLifetime time.Duration `yaml:"default_lifetime" jsonschema:"default=5m"`
	// Accept http:// URLs beyond loopback: secrets and tokens then travel unencrypted.
	AllowHTTP bool `yaml:"allow_http" jsonschema:"default=false"`
	// Connect to private and loopback addresses for this client: its IdP is in the network of the
	// broker. Where its URL names a loopback host, that needs no leave.
	AllowPrivate bool `yaml:"allow_private" jsonschema:"default=false"`
}

// Assertion says what the assertions of a client contain (RFC 7523), or where one is kept.
type Assertion struct {
	// The aud claim: issuer, token_endpoint, or the audience itself. Absent: issuer, or
	// token_endpoint where token_url is given.
	Audience string `yaml:"audience" jsonschema:"minLength=1,maxLength=2048"`
	// The signature algorithm. Absent: HS256 with client_secret_jwt; else the alg of the JWK, or
	// RS256, ES256, ES384, ES512 or EdDSA by the kind of the key.
	Algorithm string `yaml:"algorithm" jsonschema:"values=assertion_algorithms"`
	// The kid in the header. Absent: that of the JWK or of the service account's file; else, unless
	// a certificate is named, the key's thumbprint (RFC 7638).
	Kid string `yaml:"kid" jsonschema:"minLength=1,maxLength=256"`
	// The typ in the header. Absent: client-authentication+jwt, or JWT with the grant jwt-bearer.
	// Some IdPs accept only JWT.
	Typ string `yaml:"typ" jsonschema:"values=assertion_types"`
	// The sub claim with the grant jwt-bearer: the user on whose behalf tokens are requested.
	// Absent: the assertion has no sub.
	Subject string `yaml:"subject" jsonschema:"minLength=1,maxLength=512"`
	// The file with the certificates of the key in secret, in PEM: the header names the one that
	// belongs to the key (x5t#S256). A certificate that stands beside the key in secret needs no
	// file.
	Certificate string `yaml:"certificate" jsonschema:"minLength=1"`
	// With federated_jwt and spiffe_jwt, the file with an assertion that another system issues, such
	// as Kubernetes' projected token or a JWT-SVID. It is read for each request.
	File string `yaml:"file" jsonschema:"minLength=1"`
}

// ClientTLS says whom to trust at the client's IdP, and by which certificate the
// client proves its identity (RFC 8705).
type ClientTLS struct {
	// The file with the certificates of the authorities that are trusted for this IdP, in PEM, and
	// no others. It is read again when it changes. Absent: those of the system.
	CA string `yaml:"ca" jsonschema:"minLength=1"`
	// The file with the certificate, in PEM, and after it those that lead to its authority. It is
	// read again when it changes, and so is the key. It goes with key.
	Cert string `yaml:"cert" jsonschema:"minLength=1"`
	// The file with its private key, in PEM.
	Key string `yaml:"key" jsonschema:"minLength=1"`
}

// IssuerTLS says whom to trust at an issuer.
type IssuerTLS struct {
	// The file with the certificates of the authorities that are trusted for this issuer, in PEM, and
	// no others. It is read again when it changes.
	CA string `yaml:"ca" jsonschema:"required,minLength=1"`
}

// CA is the file of authorities that the client trusts; empty: the system's.
func (c *Client) CA() string {
	if c.TLS == nil {
		return ""
	}
	return c.TLS.CA
}

// CA is the file of authorities that are trusted for the issuer; empty: the system's.
func (c *Issuer) CA() string {
	if c.TLS == nil {
		return ""
	}
	return c.TLS.CA
}

// Issuer is an issuer whose tokens are verified.
type Issuer struct {
	// Defaults for the tokens of a well-known issuer, which docs/identity-providers.md lists. A key
	// that is given wins over its preset.
	Preset string `yaml:"preset" jsonschema:"values=issuer_presets,anyof_required=preset"`
	// The issuer, exactly as the iss claim of its tokens has it. With jwks_url or jwks_file it need
	// not be a URL. With tenants, a pattern of issuers: {tenant} stands for one segment of the path.
	// Required unless the preset has it.
	Issuer string `yaml:"issuer" jsonschema:"minLength=1,maxLength=512,anyof_required=issuer"`
	// The tenants whose tokens are verified, by the names that stand in the iss claim. Each is an
	// issuer, with keys of its own and all else as it stands here.
	Tenants []string `yaml:"tenants" jsonschema:"minItems=1,maxItems=256,uniqueItems=true,minLength=1,maxLength=128"`
	// Where its keys are. Absent: found by discovery, unless jwks_file is given.
	JWKSURL string `yaml:"jwks_url"`
	// The file with the bearer token that jwks_url demands, such as the token of the pod's service
	// account. It is read for each request and sent to jwks_url only, which must be https.
	JWKSTokenFile string `yaml:"jwks_token_file" jsonschema:"minLength=1"`
	// The file with its keys, a JWK set, where the issuer cannot be reached. It is read again every
	// refresh_interval.
	JWKSFile string `yaml:"jwks_file" jsonschema:"minLength=1"`
	// A token must be for one of these, unless the caller names other audiences.
	Audiences []string `yaml:"audiences" jsonschema:"required,minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=512"`
	// The signature algorithms that are accepted.
	Algorithms []string `yaml:"algorithms" jsonschema:"minItems=1,uniqueItems=true,default=RS256,default=ES256,default=EdDSA,values=algorithms"`
	// The typ headers that are accepted, in any case and with or without application/. JWT also
	// admits a token without typ.
	Types []string `yaml:"types" jsonschema:"minItems=1,maxItems=8,uniqueItems=true,minLength=1,maxLength=128,default=at+jwt"`
	// The claim of JWTs that holds the scopes: its name, such as scp or roles; or, where it is within
	// an object, a list of names that leads to it, such as [realm_access, roles].
	ScopeClaim ClaimPath `yaml:"scope_claim" jsonschema:"default=scope"`
	// Take nbf and the scope claim for absent where they are null, as some issuers write a claim
	// that they have no value for. Without it such tokens are rejected.
	AllowNullClaims bool `yaml:"allow_null_claims" jsonschema:"default=false"`
	// What stands for the audience of a token that has no aud. It never applies to the JWTs of callers.
	// Absent: nothing, and such a token is rejected.
	MissingAud *MissingAud `yaml:"missing_aud"`
	// The claim that stands for the subject of a JWT that has no sub: client_id. The response marks such
	// a subject, and it is never a caller's. reject: such a token is rejected.
	MissingSub string `yaml:"missing_sub" jsonschema:"default=reject,enum=reject,enum=client_id"`
	// The claims that mark ID tokens. A token other than at+jwt that has one of them is rejected.
	IDTokenClaims []string `yaml:"id_token_claims" jsonschema:"minItems=1,maxItems=16,uniqueItems=true,minLength=1,maxLength=128,default=at_hash,default=c_hash"`
	// The claims that mark access tokens. A token other than at+jwt that has none of them is rejected.
	// Absent: scope, scp, client_id, cid, appid, azpacr, gty and kubernetes.io, and permissions if
	// scope_claim names it.
	AccessTokenClaims []string `yaml:"access_token_claims" jsonschema:"minItems=1,maxItems=16,uniqueItems=true,minLength=1,maxLength=128"`
	// How far the issuer's clock may be off, 0s to 60s.
	Leeway time.Duration `yaml:"leeway" jsonschema:"default=30s"`
	// Tokens that were issued for longer are rejected, 1m to 8760h.
	MaxLifetime time.Duration `yaml:"max_lifetime" jsonschema:"default=24h"`
	// Tokens that were issued longer ago are rejected, and those that do not say when, 1s to 8760h.
	// Absent: they may be as old as they live.
	MaxAge time.Duration `yaml:"max_age"`
	// How often the keys are fetched, 1m to 15m.
	RefreshInterval time.Duration `yaml:"refresh_interval" jsonschema:"default=5m"`
	// How long keys are used that could not be fetched again, up to 24h and not shorter than
	// refresh_interval.
	MaxStale time.Duration `yaml:"max_stale" jsonschema:"default=1h"`
	// Ask the issuer about opaque tokens, which are no JWTs (RFC 7662). If several issuers have it, each
	// request, rule or listener must name the issuer of its opaque tokens.
	Introspection *Introspection `yaml:"introspection"`
	// The authorities of the issuer's certificate. Absent: those of the system.
	TLS *IssuerTLS `yaml:"tls"`
	// Accept http:// URLs beyond loopback: whoever is on the way can then forge this issuer's
	// tokens.
	AllowHTTP bool `yaml:"allow_http" jsonschema:"default=false"`
	// Connect to private and loopback addresses for this issuer: it is in the network of the
	// broker. Where its URL names a loopback host, that needs no leave.
	AllowPrivate bool `yaml:"allow_private" jsonschema:"default=false"`
}

// ClaimPath is the path of a claim: the names that lead to it from object to object. In
// the file a single name may be a string.
type ClaimPath []string

// MissingAud says what stands for the audience of a token without aud: one of the two.
type MissingAud struct {
	// A claim that says whom the token is for, such as client_id: a text, or a list of texts.
	Claim string `yaml:"claim" jsonschema:"minLength=1,maxLength=128,oneof_required=claim"`
	// An audience that all tokens without aud are taken to be for.
	Value string `yaml:"value" jsonschema:"minLength=1,maxLength=512,oneof_required=value"`
}

// Introspection says how an issuer is asked about opaque tokens.
type Introspection struct {
	// The name of the client, among clients, that the broker asks as: with its client_id, secret
	// and way of authentication.
	Client string `yaml:"client" jsonschema:"required,minLength=1,maxLength=128"`
	// The introspection endpoint. Absent: found by discovery.
	Endpoint string `yaml:"endpoint" jsonschema:"minLength=1"`
	// How long an answer is used, and so how late a revocation at the issuer is noticed, 0s to 5m.
	// That a token is not active is remembered for 5s at most.
	Cache time.Duration `yaml:"cache" jsonschema:"default=30s"`
	// How long a token is taken to be good where the issuer does not say when it expires, 1s to
	// 24h. Absent: such tokens are rejected.
	DefaultLifetime time.Duration `yaml:"default_lifetime"`
}

// Verification says what is remembered of verified tokens.
type Verification struct {
	// The memory for what is remembered of JWTs whose signature was good, in MiB. 0: nothing is
	// remembered, and every signature is verified anew.
	CacheMiB int `yaml:"cache_mib" jsonschema:"default=64,minimum=0,maximum=65536"`
	// How long callers may keep an answer at most, 1s to 1h: a change of the configuration and a
	// revocation reach those who keep answers only then.
	MaxValidity time.Duration `yaml:"max_validity" jsonschema:"default=5m"`
}

// Managed returns the name of a client with a managed secret, or "" if no client has one.
func (c *Config) Managed() string {
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		if c.Clients[name].Secret.Managed() {
			return name
		}
	}
	return ""
}

// Load reads the configuration file at path. It reads no secrets and does not use the
// network. All problems are in one [*Error].
func Load(path string) (*Config, error) {
	data, err := Read(path)
	if err != nil {
		return nil, &Error{[]Problem{{File: path, Message: err.Error()}}}
	}
	return Parse(path, data)
}

// Parse is Load for a file's content; name is the file's name in messages.
func Parse(name string, data []byte) (*Config, error) {
	found := &findings{file: name, lines: map[string]int{}}
	root := parseYAML(data, found)
	if len(found.problems) > 0 {
		return nil, found.err()
	}
	config := new(Config)
	decodeConfig(root, config, found)
	complete(config, found)
	checkConfig(config, found)
	if len(found.problems) > 0 {
		return nil, found.err()
	}
	config.tokenFiles = tokenFiles(config.Issuers)
	eachTenant(config.Roles, config.Issuers)
	config.Issuers = withTenants(config.Issuers)
	config.Warnings, config.file, config.lines = found.warnings, name, found.lines
	config.Digest = sha256.Sum256(data)
	return config, nil
}

// Read returns the content of the configuration file. An error does not quote it. A file
// that is larger than a configuration can be is an error.
func Read(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, unreadable(err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxConfigSize+1))
	if err != nil {
		return nil, unreadable(err)
	}
	return data, nil
}

// unreadable drops the path from the operating system's error: the message begins with it
// already.
func unreadable(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	return fmt.Errorf("the configuration cannot be read: %w", err)
}
