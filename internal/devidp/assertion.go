package devidp

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	assertionType   = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
	maxAssertedLife = time.Hour
	// clockSkew is the tolerance for assertions from the future. There is none, so that
	// clients must backdate their assertions.
	clockSkew = 0
)

// assertion is an unverified JWT of a client. problem describes a JWT that cannot be
// parsed.
type assertion struct {
	compact                    jose.Compact
	header                     jose.Header
	certificate                string // x5t#S256
	issuer, subject, id, scope string
	audience                   string
	issued, expires            float64
	problem                    string
}

// readAssertion parses a JWT without verifying it.
func readAssertion(text string) *assertion {
	a := new(assertion)
	var err error
	if a.compact, err = jose.Split(redact.New(text)); err != nil {
		return &assertion{problem: "the assertion is not a JWT"}
	}
	a.header, err = jose.ParseHeader(a.compact.Header)
	header, errHeader := jose.ParseObject(a.compact.Header)
	claims, errClaims := jose.ParseObject(a.compact.Payload)
	if err != nil || errHeader != nil || errClaims != nil {
		return &assertion{problem: "the assertion's header or claims cannot be parsed"}
	}
	for into, object := range map[*string]jose.Object{&a.certificate: header, &a.issuer: claims, &a.subject: claims, &a.audience: claims, &a.id: claims, &a.scope: claims} {
		name := map[*string]string{&a.certificate: "x5t#S256", &a.issuer: "iss", &a.subject: "sub", &a.audience: "aud", &a.id: "jti", &a.scope: "scope"}[into]
		if *into, _, err = object.Text(name); err != nil {
			return &assertion{problem: "the assertion's " + name + " is not a string"}
		}
	}
	for name, into := range map[string]*float64{"iat": &a.issued, "exp": &a.expires} {
		var present bool
		if *into, present, err = claims.Number(name); err != nil || !present {
			return &assertion{problem: "the assertion has no " + name}
		}
	}
	return a
}

func (f *form) readClientAssertion() *oauthError {
	f.client = readAssertion(f.Get("client_assertion"))
	f.auth = AuthPrivateKeyJWT
	if f.client.header.Algorithm == jose.HS256 {
		f.auth = AuthSecretJWT
	}
	switch {
	case f.client.problem != "":
		return badRequest("invalid_request", f.client.problem)
	case f.Get("client_assertion_type") != assertionType:
		return badRequest("invalid_request", "the client_assertion_type is missing or unsupported")
	case f.clientID != "" && f.clientID != f.client.subject:
		return badRequest("invalid_request", "client_id differs from the assertion's sub")
	case f.client.issuer != f.client.subject:
		return unauthorized(f.auth, "the assertion's iss is not its sub")
	}
	f.clientID = f.client.subject
	return nil
}

// checkAssertion verifies an assertion and returns the description of an error, or "".
func (s *Server) checkAssertion(a *assertion, c credentials, types []string) string {
	now := time.Now()
	at := float64(now.UnixMilli()) / 1000
	switch {
	case a.problem != "":
		return a.problem
	case !slices.Contains(types, a.header.Type):
		return "the assertion's typ is not accepted"
	case !a.signedBy(c):
		return "the assertion's signature is not one of the client's"
	case s.deviations.certificate && a.certificate == "" && a.header.Algorithm != jose.HS256:
		return "the assertion names no certificate (x5t#S256)"
	case !slices.Contains(s.audiences(), a.audience):
		return "the assertion is for another audience"
	case a.expires <= at, a.issued > at+clockSkew:
		return "the assertion has expired, or was issued in the future"
	case a.expires-a.issued > maxAssertedLife.Seconds():
		return "the assertion lives for too long"
	case a.id == "" || !s.replays.first(a.issuer+" "+a.id, now):
		return "the assertion has no jti, or was used before"
	}
	return ""
}

func (s *Server) audiences() []string {
	if s.deviations.audience != nil {
		return []string{s.deviations.audience(s)}
	}
	return []string{s.issuer, s.endpoint}
}

func (a *assertion) signedBy(c credentials) bool {
	if a.header.Algorithm == jose.HS256 {
		return c.has(func(secret redact.String) bool {
			mac := hmac.New(sha256.New, []byte(secret.Reveal()))
			_, _ = mac.Write(a.compact.SigningInput)
			return hmac.Equal(mac.Sum(nil), a.compact.Signature)
		})
	}
	return slices.ContainsFunc(c.keys, func(key *jose.Key) bool {
		kidMatches := a.header.KeyID == key.ID() || a.header.KeyID == "" || a.header.KeyID == key.Thumbprint()
		return kidMatches && jose.Verify(a.header.Algorithm, key, a.compact.SigningInput, a.compact.Signature) == nil
	})
}

// keysOf parses a JWK set, which may be nil.
func keysOf(set []byte) ([]*jose.Key, error) {
	if set == nil {
		return nil, nil
	}
	parsed, err := jose.ParseSet(set)
	if err != nil {
		return nil, fmt.Errorf("its keys: %w", err)
	}
	return slices.Collect(parsed.Keys.All()), nil
}

// replays detects assertions that are used again. It is safe for concurrent use.
type replays struct {
	mu   sync.Mutex
	used map[string]time.Time // when to forget the assertion
}

// first records an assertion and reports whether it is used for the first time.
func (r *replays) first(id string, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, used := r.used[id]; used {
		return false
	}
	if r.used == nil {
		r.used = map[string]time.Time{}
	}
	if len(r.used) >= maxRequests {
		maps.DeleteFunc(r.used, func(_ string, until time.Time) bool { return now.After(until) })
	}
	r.used[id] = now.Add(maxAssertedLife)
	return true
}
