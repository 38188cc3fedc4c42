package verify

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/verify/jwks"
)

// Config configures a [Verifier].
type Config struct {
	// Issuers lists the trusted issuers, each once. Empty: every token is rejected
	// with [UnknownIssuer].
	Issuers []IssuerConfig
	// HTTP is the client for issuers that set no HTTP client. Nil: a client that
	// connects to public addresses only.
	HTTP *http.Client
	// Logger logs added and removed keys and failed fetches. Nil: no logging.
	Logger *slog.Logger
	// Registerer registers the metrics. Nil: the metrics are not exported.
	Registerer prometheus.Registerer
	// CacheBytes bounds the memory of the cache of verified JWTs, which saves
	// verifying a signature twice. The cache never changes a result. Zero: 64 MiB.
	// Negative: no cache.
	CacheBytes int64
	// MaxValidity bounds [Result.ValidUntil]. A later decision, for example a
	// changed configuration, reaches a caller that caches results only after this
	// time. Zero: 5 min. Negative is an error.
	MaxValidity time.Duration
	// MaxTokenSize bounds the length of tokens, in bytes: at most
	// [jose.MaxTokenSize]. Zero: 16 KiB.
	MaxTokenSize int
}

// IssuerConfig states which tokens of an issuer are accepted and where its keys are
// published.
type IssuerConfig struct {
	// Issuer is the iss claim of its tokens, byte for byte. Templates such as
	// {tenantid} are refused, because each tenant is an issuer with its own keys; see
	// [TenantURL].
	Issuer string
	// Keys states where its signing keys are published. [New] sets Optional if the issuer
	// has introspection, and HTTP to [Config.HTTP] if it is nil.
	Keys jwks.Config
	// Introspection configures how opaque tokens are verified. If several issuers
	// have it, each request must name one of them: see [Request]. Nil: this issuer
	// issues JWTs only.
	Introspection *Introspection

	// Audiences are the accepted audiences if a request names none. At least one is
	// required: an empty list never means any audience.
	Audiences []string
	// Algorithms are the accepted signature algorithms, a subset of
	// [jose.Algorithms]. Empty: RS256, ES256 and EdDSA.
	Algorithms []string
	// Types are the accepted media types of typ, compared without regard to case and
	// to the prefix "application/" (RFC 7515 section 4.1.9). Empty: at+jwt, the type
	// of access tokens in RFC 9068. JWT also admits tokens without typ. A token of
	// any type except at+jwt must have a claim that marks access tokens, and no
	// claim that marks other tokens.
	Types []string
	// ScopeClaim is the name of the claim with the scopes, or the path to a nested
	// claim, such as realm_access, roles; at most 4 names. Empty: scope.
	ScopeClaim []string
	// AllowNullClaims treats a null nbf or scope claim as absent.
	AllowNullClaims bool
	// MissingAudience supplies an audience for tokens without aud. Zero: such tokens
	// are rejected. It never applies to tokens that identify callers.
	MissingAudience MissingAudience
	// MissingSubject lets the client_id claim be the subject of a JWT without sub; see
	// [SubjectClientID]. For opaque tokens that is always allowed.
	MissingSubject bool
	// IDTokenClaims mark ID tokens: a token other than at+jwt must have none of them.
	// Empty: at_hash and c_hash.
	IDTokenClaims []string
	// AccessTokenClaims mark access tokens: a token other than at+jwt must have one of
	// them. Empty: the scope claim and [DefaultAccessTokenClaims].
	AccessTokenClaims []string
	// Leeway is the tolerated difference between the clocks of the issuer and the
	// broker, at most 60 s. Zero: 30 s. Negative: none.
	Leeway time.Duration
	// MaxLifetime bounds the time from iat to exp, or from now to exp if the token has
	// no iat. Zero: 24 h.
	MaxLifetime time.Duration
	// MaxAge bounds the time since iat, and makes iat mandatory. Zero: no bound.
	MaxAge time.Duration
}

// maxScopePath bounds the length of a scope claim's path. It is less than the depth
// to which [jose.ParseObject] accepts nested claims.
const maxScopePath = 4

// MissingAudience is a substitute for the audience of a token without aud: another
// claim, which holds a string or an array of strings, or a fixed value. At most one of
// the two is set.
type MissingAudience struct{ Claim, Value string }

// DefaultAccessTokenClaims returns claims that issuers put into access tokens and not
// into ID tokens: the standard ones, and some of Okta, Entra ID, Auth0 and Kubernetes.
func DefaultAccessTokenClaims() []string {
	return []string{"scope", "scp", "client_id", "cid", "appid", "azpacr", "gty", "kubernetes.io"}
}

// hasAccessClaim reports whether a token has a claim that marks access tokens. A null
// does not count. An unusual scope claim, such as roles, does not mark them by default,
// because ID tokens may have it too.
func hasAccessClaim(c *IssuerConfig, claims jose.Object, scopeClaim ...string) bool {
	has := func(name string) bool { return claims.Has(name) && !claims.IsNull(name) }
	if len(c.AccessTokenClaims) > 0 {
		return slices.ContainsFunc(c.AccessTokenClaims, has)
	}
	return slices.ContainsFunc(DefaultAccessTokenClaims(), has) || isScopeClaim(scopeClaim) && has(scopeClaim[0])
}

// MaxLeeway is the maximum of [IssuerConfig.Leeway]: a token can be accepted for this
// long after its expiry.
const MaxLeeway = time.Minute

const (
	defaultMaxValidity  = 5 * time.Minute
	defaultMaxTokenSize = 16 << 10
)

func (c IssuerConfig) withDefaults() IssuerConfig {
	if len(c.Algorithms) == 0 {
		c.Algorithms = []string{"RS256", "ES256", "EdDSA"}
	}
	if len(c.Types) == 0 {
		c.Types = []string{accessTokenType}
	}
	if len(c.ScopeClaim) == 0 {
		c.ScopeClaim = []string{"scope"}
	}
	if len(c.IDTokenClaims) == 0 {
		// These bind an ID token to an access token or a code (OpenID Connect Core
		// sections 3.1.3.6 and 3.3.2.11).
		c.IDTokenClaims = []string{"at_hash", "c_hash"}
	}
	c.Leeway = max(cmp.Or(c.Leeway, 30*time.Second), 0)
	c.MaxLifetime = cmp.Or(c.MaxLifetime, 24*time.Hour)
	c.Keys = c.Keys.WithDefaults()
	return c
}

// check refuses a configuration that would accept more tokens than intended, or none.
func (c IssuerConfig) check() error {
	if err := c.Keys.Check(); err != nil {
		return err
	}
	if i := slices.IndexFunc(c.Algorithms, func(name string) bool { return !slices.Contains(jose.Algorithms(), name) }); i >= 0 {
		return fmt.Errorf("the algorithm %q is not one of %s", c.Algorithms[i], strings.Join(jose.Algorithms(), ", "))
	}
	switch {
	case c.Issuer == "":
		return errors.New("its name is empty")
	case strings.ContainsAny(c.Issuer, "{}"):
		return errors.New("its name is a template; configure each tenant as a separate issuer")
	case len(c.Audiences) == 0 || slices.Contains(c.Audiences, ""):
		return errors.New("it has no audiences, or an empty one: name the services that its tokens are for")
	case slices.Contains(c.Types, ""):
		return errors.New("one of its types is empty; JWT admits tokens without typ")
	case slices.Contains(c.ScopeClaim, ""):
		return errors.New("a name in the path of its scope claim is empty")
	case len(c.ScopeClaim) > maxScopePath:
		return fmt.Errorf("the path of its scope claim is longer than %d names", maxScopePath)
	}
	if err := c.checkClaims(); err != nil {
		return err
	}
	if err := c.Introspection.check(); err != nil {
		return err
	}
	return c.checkTimes()
}

func (c IssuerConfig) checkClaims() error {
	switch {
	case c.MissingAudience.Claim != "" && c.MissingAudience.Value != "":
		return errors.New("it configures both a claim and a value for a missing audience; choose one")
	case slices.Contains(c.IDTokenClaims, "") || slices.Contains(c.AccessTokenClaims, ""):
		return errors.New("one of the claims that mark its tokens is empty")
	}
	return CheckAudienceClaim(c.MissingAudience.Claim)
}

// CheckAudienceClaim returns an error for a registered claim (RFC 7519 section 4.1): its
// meaning is fixed, so it cannot replace a missing aud.
func CheckAudienceClaim(claim string) error {
	if slices.Contains([]string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"}, claim) {
		return fmt.Errorf("the claim %s cannot replace a missing aud; name a claim that identifies the recipient, such as client_id", claim)
	}
	return nil
}

func (c IssuerConfig) checkTimes() error {
	switch {
	case c.Leeway > MaxLeeway:
		return fmt.Errorf("its leeway is longer than %v", MaxLeeway)
	case c.MaxLifetime < 0 || c.MaxAge < 0:
		return errors.New("its maximum lifetime or age is negative")
	}
	return nil
}

// New returns a Verifier. It sends no request before [Verifier.Run] or
// [Verifier.Verify]. An error names the issuer with the invalid configuration.
//
// If before is not nil, the new Verifier replaces it: issuers with an unchanged
// configuration keep their keys, their cached tokens and their metrics. Both can be
// used until before is dropped: see [Verifier.Run] and [Verifier.DeleteMetricsExcept].
func New(cfg Config, before *Verifier) (*Verifier, error) {
	if before == nil {
		before = &Verifier{}
	}
	if cfg.HTTP == nil {
		cfg.HTTP = discovery.NewHTTPClient(nil)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxValidity < 0 {
		return nil, errors.New("the maximum validity of a result is negative")
	}
	metrics, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		byName:      map[string]*issuer{},
		opaque:      map[string]*opaqueVerifier{},
		cache:       before.cache,
		cacheBytes:  cmp.Or(cfg.CacheBytes, defaultCacheBytes),
		maxValidity: cmp.Or(cfg.MaxValidity, defaultMaxValidity),
		headers:     &headerCache{},
		maxToken:    cmp.Or(cfg.MaxTokenSize, defaultMaxTokenSize),
		metrics:     metrics,
	}
	if v.cacheBytes != before.cacheBytes {
		v.cache = newFactsCache(v.cacheBytes, metrics.cache)
	}
	for _, configured := range cfg.Issuers {
		c := configured.withDefaults()
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("issuer %q: %w", c.Issuer, err)
		}
		if v.byName[c.Issuer] != nil {
			return nil, fmt.Errorf("issuer %q: it is configured twice", c.Issuer)
		}
		c.Keys.HTTP = cmp.Or(c.Keys.HTTP, cfg.HTTP)
		c.Keys.Optional = c.Introspection != nil
		i := before.byName[c.Issuer]
		if i == nil || !i.cfg.equal(c) {
			i = &issuer{cfg: c, keys: jwks.New(c.Issuer, c.Keys, cfg.Logger, metrics.forIssuer(c.Issuer))}
		}
		v.issuers = append(v.issuers, i)
		v.byName[c.Issuer] = i
		if c.Introspection == nil {
			continue
		}
		if v.opaque[c.Issuer] = before.opaque[c.Issuer]; v.opaque[c.Issuer] == nil || v.opaque[c.Issuer].issuer != i {
			v.opaque[c.Issuer] = newOpaqueVerifier(i, cfg.Logger, metrics)
		}
	}
	return v, nil
}

// equal compares two configurations. The issuer's keys and the introspection endpoint are
// compared by identity.
func (c IssuerConfig) equal(other IssuerConfig) bool {
	a, b := c, other
	if a.Keys != b.Keys || (a.Introspection == nil) != (b.Introspection == nil) {
		return false
	}
	if a.Introspection != nil && *a.Introspection != *b.Introspection {
		return false
	}
	a.Keys, b.Keys = jwks.Config{}, jwks.Config{}
	a.Introspection, b.Introspection = nil, nil
	return reflect.DeepEqual(a, b) //nolint:govet // the fields that may hold errors were compared above
}

// DeleteMetricsExcept deletes the metrics of the issuers that next does not have. Call
// it once v verifies no more tokens.
func (v *Verifier) DeleteMetricsExcept(next *Verifier) {
	for name := range v.byName {
		if next.byName[name] == nil {
			v.metrics.delete(name)
		}
	}
}
