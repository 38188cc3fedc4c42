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

// behaviour is what the controls set. A copy is read as a whole; what it
// refers to is replaced, never changed.
type behaviour struct {
	lifetime time.Duration
	delay    time.Duration
	down     bool
	failures int // how many of the next token requests fail
	failure  failure
	answer   func(http.ResponseWriter, *http.Request) bool
	secrets  map[string]registered // by client ID
	// introspect stands before the introspection endpoint as answer does before
	// the token endpoint.
	introspect func(http.ResponseWriter, *http.Request) bool
}

// failure is an answer that FailNext asked for.
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

// SetLifetime sets the lifetime of the tokens issued from now on, in whole
// seconds; a fraction is cut off.
func (s *Server) SetLifetime(d time.Duration) { s.change(func(b *behaviour) { b.lifetime = d }) }

// SetDelay makes the token endpoint wait before it answers, from the next
// request on. A caller who leaves ends the wait.
func (s *Server) SetDelay(d time.Duration) { s.change(func(b *behaviour) { b.delay = d }) }

// SetDown takes the whole server down or up again: a connection is aborted
// without an answer, and RoundTripper refuses to connect.
func (s *Server) SetDown(down bool) { s.change(func(b *behaviour) { b.down = down }) }

// SetAnswer puts a function before the token endpoint, after the delay. What
// it returns true for is answered; the rest goes on as usual. The form is parsed
// already, if it is one. Nil takes the function away.
func (s *Server) SetAnswer(answer func(w http.ResponseWriter, r *http.Request) bool) {
	s.change(func(b *behaviour) { b.answer = answer })
}

// SetIntrospection is SetAnswer for the introspection endpoint.
func (s *Server) SetIntrospection(answer func(w http.ResponseWriter, r *http.Request) bool) {
	s.change(func(b *behaviour) { b.introspect = answer })
}

// SetSecrets replaces the secrets of a client, which must be registered: all of
// them are good, and with none it cannot authenticate. At an IdP that is imitated a
// new one is good after a while only, if that is how it is there.
func (s *Server) SetSecrets(clientID string, secrets ...redact.String) {
	good := time.Now().Add(s.manners.propagation)
	s.reregister(clientID, func(before registered) registered {
		after := registered{keys: before.keys}
		for _, value := range secrets {
			held := slices.IndexFunc(before.secrets, func(d dated) bool { return d.value.Equal(value) })
			if held >= 0 {
				after.secrets = append(after.secrets, before.secrets[held])
				continue
			}
			after.secrets = append(after.secrets, dated{value, good})
		}
		return after
	})
}

// SetKeys replaces the public keys of a client's assertions, a JWK set. It panics
// if there is no such client, or no usable key.
func (s *Server) SetKeys(clientID string, set []byte) {
	keys, err := keysOf(set)
	if err != nil {
		panic(fmt.Sprintf("devidp: %v", err))
	}
	s.reregister(clientID, func(before registered) registered {
		before.keys = keys
		return before
	})
}

func (s *Server) reregister(clientID string, next func(before registered) registered) {
	if _, found := s.clients[clientID]; !found {
		panic(fmt.Sprintf("devidp: there is no client %q", clientID))
	}
	s.change(func(b *behaviour) {
		b.secrets = maps.Clone(b.secrets)
		b.secrets[clientID] = next(b.secrets[clientID])
	})
}

// registered is what a client is known by. It is replaced, never changed.
type registered struct {
	secrets []dated
	keys    []*jose.Key
}

// dated is a secret and when it begins to be good.
type dated struct {
	value redact.String
	since time.Time
}

// has reports whether a secret of the client passes a test and is good.
func (r registered) has(passes func(secret redact.String) bool) bool {
	return slices.ContainsFunc(r.secrets, func(d dated) bool { return !time.Now().Before(d.since) && passes(d.value) })
}

// FailNext makes the next n token requests fail, good or not, after the delay:
// with this status, these header fields and, unless oauthError is empty, an
// error answer of RFC 6749, section 5.2. It replaces what an earlier call left.
func (s *Server) FailNext(n, status int, oauthError string, header http.Header) {
	s.change(func(b *behaviour) { b.failures, b.failure = n, failure{status, oauthError, header.Clone()} })
}

func (s *Server) takeFailure() (next failure, failing bool) {
	s.change(func(b *behaviour) {
		if failing = b.failures > 0; failing {
			b.failures--
			next = b.failure
		}
	})
	return next, failing
}

// RotateKeys signs with a new key from now on. The old ones stay published if
// keepOld, and are withdrawn otherwise.
func (s *Server) RotateKeys(keepOld bool) {
	fresh := newKey(s.algorithm) // takes a while: not under the lock
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := []key{fresh}
	if keepOld {
		keys = append(keys, *s.keys.Load()...)
	}
	s.keys.Store(&keys)
}

// TokenRequest is one request to the token endpoint, as it was sent.
type TokenRequest struct {
	ClientID  string
	Scopes    []string // order kept
	Audience  string
	Resources []string
	// Auth is how the client authenticated, one of the Auth constants; empty: it did
	// not even say who it is.
	Auth string
	// At is when the request arrived.
	At time.Time
	// OK reports whether it was answered with a token by the server itself, not
	// by a function of SetAnswer.
	OK bool
}

// Bounds of the journal, so that a server may run for long.
const (
	maxRequests = 1 << 15
	maxPaths    = 1 << 10
)

// journal keeps what arrived. It is safe for concurrent use.
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
	if _, known := j.counts[path]; known || len(j.counts) < maxPaths {
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

// Requests returns how many requests came to the path, such as "/token", since
// the start: good or bad, answered or not, those while the server was down
// included.
func (s *Server) Requests(path string) int {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return s.journal.counts[path]
}

// TokenRequests returns the requests that the token endpoint got, in the order
// of their arrival, the latest 16,384 at least. Those that came while the server
// was down are not among them.
func (s *Server) TokenRequests() []TokenRequest {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	requests := make([]TokenRequest, len(s.journal.requests))
	for i, entry := range s.journal.requests {
		requests[i] = *entry
	}
	return requests
}
