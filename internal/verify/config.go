package verify

import (
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
)

// Config says whose tokens are good.
type Config struct {
	// Issuers, each once. None: every token is of an unknown issuer.
	Issuers []IssuerConfig
	// HTTP is for the issuers that have none of their own. Nil: a client that
	// connects to public addresses only.
	HTTP *http.Client
	// Logger is told of keys that come and go and of failed fetches. Nil: nobody
	// is.
	Logger *slog.Logger
	// Registerer takes the metrics. Nil: nobody does.
	Registerer prometheus.Registerer
	// CacheBytes bounds the memory for what is remembered of tokens that were
	// verified, so that their signature need not be verified again. Zero: 64 MiB.
	// Negative: nothing is remembered. It changes no answer.
	CacheBytes int64
	// MaxValidity bounds how long an answer may be kept: what is decided after
	// it, such as a change of the configuration, reaches those who keep answers
	// only then. Zero: 5 min.
	MaxValidity time.Duration
	// MaxTokenSize bounds the length of tokens, in bytes: at most
	// [jose.MaxTokenSize]. Zero: 16 KiB.
	MaxTokenSize int
}

// IssuerConfig says which tokens of an issuer are good, and where its keys are:
// one of Discovery, JWKSURL and JWKSFile is needed.
type IssuerConfig struct {
	// Issuer is the iss claim of its tokens, byte for byte. Templates such as
	// {tenantid} are refused: each tenant is an issuer with keys of its own; see
	// [TenantURL].
	Issuer string
	// Discovery finds the issuer's jwks_uri. Not asked if JWKSURL or JWKSFile is
	// set.
	Discovery *discovery.Issuer
	// JWKSURL is where the issuer's JWK set is. It must pass
	// [discovery.CheckURL].
	JWKSURL string
	// JWKSTokenFile is a file with the bearer token that a server demands which does
	// not publish its keys to everybody, such as the API server of Kubernetes. It is
	// read for each fetch. The token is sent to JWKSURL only, which must be https.
	// Empty: no token is sent.
	JWKSTokenFile string
	// JWKSFile is a file with the issuer's JWK set, for networks without a way
	// to the issuer. It is read again as often as a URL would be fetched.
	JWKSFile string
	// AllowHTTP lets JWKSURL be plain http on hosts that are not loopback.
	AllowHTTP bool
	// HTTP fetches the JWK set. It is made by [discovery.Network.ClientFor], for
	// JWKSURL or else for the issuer. Nil: Config.HTTP.
	HTTP *http.Client
	// Introspection asks the issuer about opaque tokens. If several issuers have it,
	// each request must say which of them to ask: see [Request]. Nil: tokens of this
	// issuer are JWTs.
	Introspection *Introspection

	// Audiences: a token must be for one of these, where a caller names none.
	// At least one is needed: no audience never means any.
	Audiences []string
	// Algorithms that signatures may have, of [jose.Algorithms]. Empty: RS256,
	// ES256 and EdDSA.
	Algorithms []string
	// Types are the media types that typ may have, in any case and with or
	// without "application/" (RFC 7515 section 4.1.9). Empty: at+jwt, which is
	// how RFC 9068 marks access tokens. JWT also admits tokens without typ. Any
	// other token than at+jwt must have a claim that marks it as an access
	// token, and none that marks it as something else.
	Types []string
	// ScopeClaim is the claim that holds the scopes; several names lead from object
	// to object, such as realm_access and roles. Empty: scope.
	ScopeClaim []string
	// AllowNullClaims takes nbf and the scope claim for absent where they are null.
	AllowNullClaims bool
	// MissingAudience says what stands for the audience of a token without aud. Zero:
	// nothing. It never applies to tokens that identify callers.
	MissingAudience MissingAudience
	// MissingSubject lets the client_id claim stand for the subject of a JWT without
	// sub; see [SubjectClientID]. The answers of introspection need no leave for that.
	MissingSubject bool
	// IDTokenClaims mark ID tokens: a token other than at+jwt must have none of them.
	// Empty: at_hash and c_hash.
	IDTokenClaims []string
	// AccessTokenClaims mark access tokens: a token other than at+jwt must have one of
	// them. Empty: the claim of the scopes, and [DefaultAccessTokenClaims].
	AccessTokenClaims []string
	// Leeway is how far the issuer's clock may be off, at most 60 s. Zero: 30 s.
	// Negative: not at all.
	Leeway time.Duration
	// MaxLifetime bounds how long tokens are issued for: from iat to exp, or
	// from now where there is no iat. Zero: 24 h.
	MaxLifetime time.Duration
	// MaxAge bounds how long ago tokens were issued; they then need an iat.
	// Zero: no bound.
	MaxAge time.Duration
	// RefreshInterval is how often the keys are fetched where the issuer gives
	// no max-age of its own, 1 to 15 min. Zero: 5 min.
	RefreshInterval time.Duration
	// MaxStale is how long keys are used that could not be fetched again: at
	// least RefreshInterval, at most 24 h. Zero: 1 h.
	MaxStale time.Duration
}

// maxScopePath is less than how deep claims may be nested.
const maxScopePath = 4

// MissingAudience says what stands for the audience of a token without aud: a claim, a
// string or an array of strings, or a fixed value. At most one of the two is set.
type MissingAudience struct{ Claim, Value string }

// DefaultIDTokenClaims are the claims that bind an ID token to an access token or a code
// (OpenID Connect Core sections 3.1.3.6 and 3.3.2.11).
func DefaultIDTokenClaims() []string { return []string{"at_hash", "c_hash"} }

// DefaultAccessTokenClaims are claims that issuers put into access tokens and not into
// ID tokens: besides the standard ones, those of Okta, Entra ID, Auth0 and Kubernetes.
func DefaultAccessTokenClaims() []string {
	return []string{"scope", "scp", "client_id", "cid", "appid", "azpacr", "gty", "kubernetes.io"}
}

// accessTokenClaims returns the claims that mark access tokens. A scope claim of another
// name than the usual ones, such as roles, is none by default: ID tokens may have it,
// too.
func (c IssuerConfig) accessTokenClaims(scopeClaim ...string) []string {
	switch {
	case len(c.AccessTokenClaims) > 0:
		return c.AccessTokenClaims
	case isScopeClaim(scopeClaim):
		return append(DefaultAccessTokenClaims(), scopeClaim[0])
	default:
		return DefaultAccessTokenClaims()
	}
}

// MaxLeeway is the longest leeway: a token may be good for so long after it
// expired.
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
		c.IDTokenClaims = DefaultIDTokenClaims()
	}
	c.Leeway = max(orDefault(c.Leeway, 30*time.Second), 0)
	c.MaxLifetime = orDefault(c.MaxLifetime, 24*time.Hour)
	c.RefreshInterval = orDefault(c.RefreshInterval, 5*time.Minute)
	c.MaxStale = orDefault(c.MaxStale, time.Hour)
	return c
}

func orDefault[N time.Duration | int64 | int](given, standard N) N {
	if given == 0 {
		return standard
	}
	return given
}

// check refuses what would accept more than was meant, or nothing at all.
func (c IssuerConfig) check() error {
	if err := c.checkSource(); err != nil {
		return err
	}
	if i := slices.IndexFunc(c.Algorithms, func(name string) bool { return !slices.Contains(jose.Algorithms(), name) }); i >= 0 {
		return fmt.Errorf("the algorithm %q is not one of %s", c.Algorithms[i], strings.Join(jose.Algorithms(), ", "))
	}
	switch {
	case c.Issuer == "":
		return errors.New("its name is empty")
	case strings.ContainsAny(c.Issuer, "{}"):
		return errors.New("its name is a template; configure each tenant's issuer as one of its own")
	case len(c.Audiences) == 0 || slices.Contains(c.Audiences, ""):
		return errors.New("it needs audiences, none of them empty: say whom its tokens are for")
	case slices.Contains(c.Types, ""):
		return errors.New("one of its types is empty; JWT admits tokens without typ")
	case slices.Contains(c.ScopeClaim, ""):
		return errors.New("a name of its scope claim is empty")
	case len(c.ScopeClaim) > maxScopePath:
		return fmt.Errorf("its scope claim is nested deeper than %d", maxScopePath)
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
		return errors.New("both a claim and a value stand for a missing audience; choose one")
	case slices.Contains(c.IDTokenClaims, "") || slices.Contains(c.AccessTokenClaims, ""):
		return errors.New("one of the claims that mark its tokens is empty")
	}
	return CheckAudienceClaim(c.MissingAudience.Claim)
}

// CheckAudienceClaim returns an error if a claim says something else than an audience
// in every token, so that it cannot stand for one.
func CheckAudienceClaim(claim string) error {
	if slices.Contains([]string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti"}, claim) {
		return fmt.Errorf("the claim %s cannot stand for a missing aud; name a claim that says whom the token is for, such as client_id", claim)
	}
	return nil
}

func (c IssuerConfig) checkSource() error {
	switch {
	case c.JWKSURL != "" && c.JWKSFile != "":
		return errors.New("it has both a JWKS URL and a JWKS file; choose one")
	case c.JWKSTokenFile != "" && !strings.HasPrefix(c.JWKSURL, "https:"):
		return errors.New("it has a token for its JWKS URL, and no such URL of https, which alone the token may be sent to")
	case c.JWKSFile != "":
		return nil
	case c.JWKSURL != "":
		if err := discovery.CheckURL(c.JWKSURL, c.AllowHTTP); err != nil {
			return fmt.Errorf("its JWKS URL: %w", err)
		}
		return nil
	case c.Discovery == nil:
		return errors.New("it has no place to find its keys: a JWKS URL, a JWKS file or discovery")
	}
	return nil
}

func (c IssuerConfig) checkTimes() error {
	switch {
	case c.Leeway > MaxLeeway:
		return fmt.Errorf("its leeway is longer than %v", MaxLeeway)
	case c.MaxLifetime < 0 || c.MaxAge < 0:
		return errors.New("its maximal lifetime or age is negative")
	case c.RefreshInterval < minInterval || c.RefreshInterval > maxInterval:
		return fmt.Errorf("its refresh interval is not between %v and %v", minInterval, maxInterval)
	case c.MaxStale < c.RefreshInterval || c.MaxStale > 24*time.Hour:
		return errors.New("its maximal staleness is not between its refresh interval and 24 h")
	}
	return nil
}

// New returns a Verifier. It sends nothing yet: see [Verifier.Run]. An error
// names the issuer whose configuration is at fault.
func New(cfg Config) (*Verifier, error) { return newVerifier(cfg, &Verifier{}) }

// Next returns a Verifier that takes the place of this one. Issuers that are
// configured as before keep their keys, and what is remembered of their tokens.
// Both can be used until one is dropped: see [Verifier.Run] and
// [Verifier.Replaced].
func (v *Verifier) Next(cfg Config) (*Verifier, error) { return newVerifier(cfg, v) }

func newVerifier(cfg Config, before *Verifier) (*Verifier, error) {
	if cfg.HTTP == nil {
		cfg.HTTP = discovery.NewHTTPClient(nil)
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.MaxValidity < 0 {
		return nil, errors.New("the time for which an answer may be kept is negative")
	}
	metrics, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		byName:      map[string]*issuer{},
		opaque:      map[string]*opaqueTokens{},
		cache:       before.cache,
		cacheBytes:  orDefault(cfg.CacheBytes, defaultCacheBytes),
		maxValidity: orDefault(cfg.MaxValidity, defaultMaxValidity),
		maxToken:    orDefault(cfg.MaxTokenSize, defaultMaxTokenSize),
		metrics:     metrics,
	}
	if v.cacheBytes != before.cacheBytes {
		v.cache = newFactsCache(v.cacheBytes, metrics.cache)
	}
	for _, given := range cfg.Issuers {
		c := given.withDefaults()
		if err := c.check(); err != nil {
			return nil, fmt.Errorf("issuer %q: %w", c.Issuer, err)
		}
		if v.byName[c.Issuer] != nil {
			return nil, fmt.Errorf("issuer %q: it is configured twice", c.Issuer)
		}
		if c.HTTP == nil {
			c.HTTP = cfg.HTTP
		}
		i := before.byName[c.Issuer]
		if i == nil || !i.cfg.same(c) {
			i = &issuer{cfg: c, keys: newKeySource(c, c.HTTP, cfg.Logger, metrics)}
		}
		v.issuers = append(v.issuers, i)
		v.byName[c.Issuer] = i
		if c.Introspection == nil {
			continue
		}
		if v.opaque[c.Issuer] = before.opaque[c.Issuer]; v.opaque[c.Issuer] == nil || v.opaque[c.Issuer].issuer != i {
			v.opaque[c.Issuer] = newOpaqueTokens(i, cfg.Logger, metrics)
		}
	}
	return v, nil
}

// same reports whether an issuer is configured as another, what it is asked by
// included.
func (c IssuerConfig) same(other IssuerConfig) bool {
	a, b := c, other
	if a.Discovery != b.Discovery || a.HTTP != b.HTTP || (a.Introspection == nil) != (b.Introspection == nil) {
		return false
	}
	if a.Introspection != nil && *a.Introspection != *b.Introspection {
		return false
	}
	a.Discovery, a.HTTP, a.Introspection = nil, nil, nil
	b.Discovery, b.HTTP, b.Introspection = nil, nil, nil
	return reflect.DeepEqual(a, b) //nolint:govet // what may hold errors was compared above
}

// Replaced ends the series of the issuers that the next one does not have. It is
// called when nothing is asked of this one any more.
func (v *Verifier) Replaced(next *Verifier) {
	for name := range v.byName {
		if next.byName[name] == nil {
			v.metrics.forget(name)
		}
	}
}
