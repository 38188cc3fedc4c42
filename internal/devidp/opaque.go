package devidp

import (
	"crypto/rand"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// maxOpaque bounds the stored tokens, for servers that run for a long time. Beyond it,
// expired tokens are dropped first and then any.
const maxOpaque = 1 << 15

// opaqueTokens are the tokens that can be introspected. It is safe for concurrent use.
type opaqueTokens struct {
	mu     sync.Mutex
	claims map[string]map[string]any // by token; the inner maps are never modified
}

func (o *opaqueTokens) add(token string, claims map[string]any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.claims) >= maxOpaque {
		maps.DeleteFunc(o.claims, func(_ string, claims map[string]any) bool { return expired(claims) })
	}
	for stored := range o.claims {
		if len(o.claims) < maxOpaque {
			break
		}
		delete(o.claims, stored)
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

// MintOpaque returns a token whose introspection returns exactly these members and that
// it is active. It is active until it is revoked or the member exp, an int64, has passed.
func (s *Server) MintOpaque(members map[string]any) redact.String {
	token := rand.Text()
	s.opaque.add(token, maps.Clone(members))
	return redact.New(token)
}

// Revoke revokes an opaque token.
func (s *Server) Revoke(token redact.String) { s.opaque.remove(token.Reveal()) }

// serveIntrospection introspects an opaque token (RFC 7662 section 2). Any other token is
// inactive.
func (s *Server) serveIntrospection(w http.ResponseWriter, r *http.Request) {
	f := readAuthenticated(w, r)
	if answer := s.current().introspect; answer != nil && answer(w, r) {
		return
	}
	err := f.err
	if err == nil {
		err = s.authenticate(f)
	}
	if err == nil && f.Get("token") == "" {
		err = badRequest("invalid_request", "token is missing")
	}
	if err != nil {
		err.write(w)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	claims := s.opaque.find(f.Get("token"))
	if claims == nil || expired(claims) {
		writeJSON(w, http.StatusOK, map[string]any{"active": false})
		return
	}
	result := map[string]any{"active": true}
	maps.Copy(result, claims)
	writeJSON(w, http.StatusOK, result)
}
