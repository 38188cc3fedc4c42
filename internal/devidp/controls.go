package devidp

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

// behaviour is the state that the controls set. Readers copy it; the values to which it
// refers are replaced and never modified.
type behaviour struct {
	lifetime time.Duration
	delay    time.Duration
	down     bool
	failures int // number of the next token requests that fail
	failure  failure
	answer   func(http.ResponseWriter, *http.Request) bool
	secrets  map[string]credentials // by client ID
	// introspect is answer for the introspection endpoint.
	introspect func(http.ResponseWriter, *http.Request) bool
}

// failure is the response that FailNext sets.
type failure struct {
	status int
	code   string
	header http.Header
}

func (f failure) write(w http.ResponseWriter) {
	maps.Copy(w.Header(), f.header)
	if f.code == "" {
		w.WriteHeader(f.status)
		return
	}
	writeJSON(w, f.status, map[string]string{"error": f.code})
}

func (s *Server) current() behaviour {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.behaviour
}

func (s *Server) change(set func(*behaviour)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set(&s.behaviour)
}

// SetLifetime sets the lifetime of tokens issued from now on. It is truncated to whole
// seconds.
func (s *Server) SetLifetime(d time.Duration) { s.change(func(b *behaviour) { b.lifetime = d }) }

// SetDelay delays the responses of the token endpoint from the next request on. The end
// of a request ends its delay.
func (s *Server) SetDelay(d time.Duration) { s.change(func(b *behaviour) { b.delay = d }) }

// SetDown makes the whole server unavailable or available again. While it is down, it
// aborts connections without a response, and RoundTripper refuses to connect.
func (s *Server) SetDown(down bool) { s.change(func(b *behaviour) { b.down = down }) }

// SetAnswer sets a function for requests to the token endpoint, which runs after the delay.
// It returns true if it wrote a response, else the server handles the request as usual.
// The form has been parsed. Nil removes the function.
func (s *Server) SetAnswer(answer func(w http.ResponseWriter, r *http.Request) bool) {
	s.change(func(b *behaviour) { b.answer = answer })
}

// SetIntrospection is SetAnswer for the introspection endpoint.
func (s *Server) SetIntrospection(answer func(w http.ResponseWriter, r *http.Request) bool) {
	s.change(func(b *behaviour) { b.introspect = answer })
}

// SetSecrets replaces the secrets of a client, all of which are valid. Without any the
// client cannot authenticate. An imitated IdP may accept a new secret only after its
// propagation delay. SetSecrets panics if the client is not registered.
func (s *Server) SetSecrets(clientID string, secrets ...redact.String) {
	since := time.Now().Add(s.deviations.propagation)
	s.changeCredentials(clientID, func(before credentials) credentials {
		after := credentials{keys: before.keys}
		for _, value := range secrets {
			i := slices.IndexFunc(before.secrets, func(d datedSecret) bool { return d.value.Equal(value) })
			if i >= 0 {
				after.secrets = append(after.secrets, before.secrets[i])
				continue
			}
			after.secrets = append(after.secrets, datedSecret{value, since})
		}
		return after
	})
}

// SetKeys replaces the public keys of a client's assertions, a JWK set. It panics if the
// client is not registered or a key is not usable.
func (s *Server) SetKeys(clientID string, set []byte) {
	keys, err := keysOf(set)
	if err != nil {
		panic(fmt.Sprintf("devidp: %v", err))
	}
	s.changeCredentials(clientID, func(c credentials) credentials {
		c.keys = keys
		return c
	})
}

func (s *Server) changeCredentials(clientID string, next func(before credentials) credentials) {
	if _, ok := s.clients[clientID]; !ok {
		panic(fmt.Sprintf("devidp: there is no client %q", clientID))
	}
	s.change(func(b *behaviour) {
		b.secrets = maps.Clone(b.secrets)
		b.secrets[clientID] = next(b.secrets[clientID])
	})
}

// credentials of a client. They are replaced and never modified.
type credentials struct {
	secrets []datedSecret
	keys    []*jose.Key
}

// datedSecret is a secret that is valid from a time on.
type datedSecret struct {
	value redact.String
	since time.Time
}

// has reports whether matches holds for a valid secret.
func (c credentials) has(matches func(secret redact.String) bool) bool {
	return slices.ContainsFunc(c.secrets, func(d datedSecret) bool { return !time.Now().Before(d.since) && matches(d.value) })
}

// FailNext makes the next n token requests fail after the delay, with a status, header
// fields and, unless code is empty, an error response (RFC 6749 section 5.2). It
// replaces the remaining failures of an earlier call.
func (s *Server) FailNext(n, status int, code string, header http.Header) {
	s.change(func(b *behaviour) { b.failures, b.failure = n, failure{status, code, header.Clone()} })
}

func (s *Server) nextFailure() (next failure, ok bool) {
	s.change(func(b *behaviour) {
		if ok = b.failures > 0; ok {
			b.failures--
			next = b.failure
		}
	})
	return next, ok
}

// RotateKeys signs with a new key from now on. keepOld decides whether the old keys
// remain published.
func (s *Server) RotateKeys(keepOld bool) {
	next := newKey(s.algorithm) // slow, so not under the lock
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := []key{next}
	if keepOld {
		keys = append(keys, *s.keys.Load()...)
	}
	s.keys.Store(&keys)
}

// TokenRequest records a request to the token endpoint.
type TokenRequest struct {
	ClientID  string
	Scopes    []string // in the order of the request
	Audience  string
	Resources []string
	// Auth is one of the Auth constants, or empty if the request names no client.
	Auth string
	// At is the time of arrival.
	At time.Time
	// OK reports whether the server itself, not a function of SetAnswer, issued a token.
	OK bool
}

// Bounds of the journal, for servers that run for a long time.
const (
	maxRequests = 1 << 15
	maxPaths    = 1 << 10
)

// journal records requests. It is safe for concurrent use.
type journal struct {
	mu       sync.Mutex
	counts   map[string]int // by path
	requests []*TokenRequest
}

func (j *journal) count(path string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.counts == nil {
		j.counts = make(map[string]int)
	}
	if _, ok := j.counts[path]; ok || len(j.counts) < maxPaths {
		j.counts[path]++
	}
}

func (j *journal) add(f form) *TokenRequest {
	entry := &TokenRequest{
		ClientID:  f.clientID,
		Scopes:    strings.Fields(f.scope()),
		Audience:  f.Get("audience"),
		Resources: slices.Clone(f.Values["resource"]),
		Auth:      f.auth,
		At:        time.Now(),
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.requests) == maxRequests {
		j.requests = slices.Delete(j.requests, 0, maxRequests/2)
	}
	j.requests = append(j.requests, entry)
	return entry
}

func (j *journal) succeeded(entry *TokenRequest) {
	j.mu.Lock()
	defer j.mu.Unlock()
	entry.OK = true
}

// Requests returns the number of requests to a path, such as "/token", since the start.
// It includes invalid requests and those during which the server was down.
func (s *Server) Requests(path string) int {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return s.journal.counts[path]
}

// TokenRequests returns at least the latest 16,384 requests to the token endpoint, in
// the order of arrival, without those during which the server was down.
func (s *Server) TokenRequests() []TokenRequest {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	requests := make([]TokenRequest, len(s.journal.requests))
	for i, entry := range s.journal.requests {
		requests[i] = *entry
	}
	return requests
}
