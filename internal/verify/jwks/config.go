package jwks

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/discovery"
)

// Config states where an issuer publishes its keys. One of Discovery, URL and File is
// required.
type Config struct {
	// Discovery finds the issuer's jwks_uri. It is not used if URL or File is set.
	Discovery *discovery.Issuer
	// URL is the URL of the issuer's JWK set. It must pass [discovery.CheckURL].
	URL string
	// TokenFile is a file with a bearer token for URL, which must be https. Some servers,
	// such as the API server of Kubernetes, require one. It is read for each fetch, and
	// sent to no other URL. Empty: no token is sent.
	TokenFile string
	// File is a file with the issuer's JWK set, for networks without access to the
	// issuer. It is read as often as a URL would be fetched.
	File string
	// AllowHTTP allows plain http for a URL with a host that is not loopback.
	AllowHTTP bool
	// HTTP fetches the JWK set. Create it with [discovery.Network.ClientFor] for URL, or
	// for the issuer if URL is empty.
	HTTP *http.Client
	// Optional states that the issuer may publish no keys, because it issues opaque
	// tokens only: metadata without jwks_uri is then no error, unless it named keys
	// before.
	Optional bool
	// RefreshInterval is the time between fetches of the keys if the issuer sends no
	// max-age, 1 to 15 min. Zero: 5 min.
	RefreshInterval time.Duration
	// MaxStale is how long keys are used after the last successful fetch: at least
	// RefreshInterval, at most 24 h. Zero: 1 h.
	MaxStale time.Duration
}

// WithDefaults returns c with defaults for zero durations.
func (c Config) WithDefaults() Config {
	c.RefreshInterval = cmp.Or(c.RefreshInterval, 5*time.Minute)
	c.MaxStale = cmp.Or(c.MaxStale, time.Hour)
	return c
}

// Check returns an error if the configuration, with its defaults, is not valid.
func (c Config) Check() error {
	switch {
	case c.URL != "" && c.File != "":
		return errors.New("it has both a JWKS URL and a JWKS file; choose one")
	case c.TokenFile != "" && !strings.HasPrefix(c.URL, "https:"):
		return errors.New("it has a token file for its JWKS URL, but that URL is missing or not https: the token is sent to an https JWKS URL only")
	case c.URL == "" && c.File == "" && c.Discovery == nil:
		return errors.New("it has no source of keys: configure a JWKS URL, a JWKS file or discovery")
	case c.RefreshInterval < minInterval || c.RefreshInterval > maxInterval:
		return fmt.Errorf("its refresh interval is not between %v and %v", minInterval, maxInterval)
	case c.MaxStale < c.RefreshInterval || c.MaxStale > 24*time.Hour:
		return errors.New("its maximum staleness is not between its refresh interval and 24 h")
	}
	if c.URL != "" {
		if err := discovery.CheckURL(c.URL, c.AllowHTTP); err != nil {
			return fmt.Errorf("its JWKS URL: %w", err)
		}
	}
	return nil
}

// Metrics are the series of one issuer's keys.
type Metrics struct {
	Keys, Skipped, LastSuccess prometheus.Gauge
	Success, Failure           prometheus.Counter // of fetches
}

// Status is the status of an issuer's keys.
type Status struct {
	Issuer string
	// Keys counts the usable keys, Skipped the unusable entries of the JWK set.
	Keys, Skipped int
	// LoadedAt is the start of the last successful fetch; zero if there was none.
	LoadedAt time.Time
	// MaxStale is how long keys are used that cannot be fetched again.
	MaxStale time.Duration
	// NextAt is the time of the next fetch; zero before the first one.
	NextAt time.Time
	// Err is the error of the last fetch; nil if it succeeded or there was none. It
	// quotes nothing of the issuer's response.
	Err error
}

// ErrUnknownKey means that the issuer publishes no usable key for a token.
var ErrUnknownKey = errors.New("the issuer publishes no such key")

// UnavailableError means that an issuer's keys could not be fetched.
type UnavailableError struct {
	// RetryAfter is the time until the next attempt, 1 s to 1 min.
	RetryAfter time.Duration
	// Err is the error of the last attempt; nil if none has finished. It quotes nothing
	// of the issuer's response.
	Err error
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("the keys cannot be fetched: %v", e.Err)
}

// Unwrap returns Err.
func (e *UnavailableError) Unwrap() error { return e.Err }
