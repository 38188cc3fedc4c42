package devidp

import (
	"crypto/rand"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// maxOpaque bounds the tokens that are remembered, so that a server may run for
// long. Beyond it those that have expired are forgotten, and then any.
const maxOpaque = 1 << 15

// opaqueTokens are those that introspection knows. It is safe for concurrent
// use.
type opaqueTokens struct {
	mu     sync.Mutex
	claims map[string]map[string]any // by token; what they hold is not changed
}

func (o *opaqueTokens) add(token string, claims map[string]any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.claims) >= maxOpaque {
		maps.DeleteFunc(o.claims, func(_ string, claims map[string]any) bool { return expired(claims) })
	}
	for known := range o.claims {
		if len(o.claims) < maxOpaque {
			break
		}
		delete(o.claims, known)
	}
	if o.claims == nil {
		o.claims = map[string]map[string]any{}
	}
	o.claims[token] = claims
}

func (o *opaqueTokens) find(token string) map[string]any {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.claims[token]
}

func (o *opaqueTokens) remove(token string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.claims, token)
}

func expired(claims map[string]any) bool {
	exp, ok := claims["exp"].(int64)
	return ok && time.Now().Unix() >= exp
}

// MintOpaque returns a token of which introspection says exactly these members
// and that it is active, until it is revoked or an exp among them, an int64, has
// passed.
func (s *Server) MintOpaque(members map[string]any) redact.String {
	token := rand.Text()
	s.opaque.add(token, maps.Clone(members))
	return redact.New(token)
}

// Revoke ends an opaque token.
func (s *Server) Revoke(token redact.String) { s.opaque.remove(token.Reveal()) }

// serveIntrospection says what is known of a token (RFC 7662, section 2). It
// knows the opaque ones alone.
func (s *Server) serveIntrospection(w http.ResponseWriter, r *http.Request) {
	f := readAuthenticated(w, r)
	if answer := s.current().introspect; answer != nil && answer(w, r) {
		return
	}
	wrong := f.wrong
	if wrong == nil {
		wrong = s.authenticate(f)
	}
	if wrong == nil && f.Get("token") == "" {
		wrong = bad("invalid_request", "token is missing")
	}
	if wrong != nil {
		wrong.write(w)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	claims := s.opaque.find(f.Get("token"))
	if claims == nil || expired(claims) {
		writeJSON(w, http.StatusOK, map[string]any{"active": false})
		return
	}
	answer := map[string]any{"active": true}
	maps.Copy(answer, claims)
	writeJSON(w, http.StatusOK, answer)
}
