package idp_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/cezzis/tokenbroker/internal/idp"
)

// connections is a real IdP that knows the how-many-th request of its
// connection each request is.
func connections(t *testing.T, serve func(w http.ResponseWriter, nth int)) (tokenURL string, requests func() (total, conns int)) {
	t.Helper()
	var mu sync.Mutex
	seen, total := map[string]int{}, 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		seen[r.RemoteAddr]++
		nth := seen[r.RemoteAddr]
		total++
		mu.Unlock()
		serve(w, nth)
	}))
	t.Cleanup(server.Close)
	return server.URL, func() (int, int) {
		mu.Lock()
		defer mu.Unlock()
		return total, len(seen)
	}
}

func hangUp(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_ = conn.Close()
}

func TestClosedKeptConnectionIsRetried(t *testing.T) {
	tokenURL, requests := connections(t, func(w http.ResponseWriter, nth int) {
		if nth > 1 {
			hangUp(w)
			return
		}
		grants(good)(w, nil)
	})
	c := client(t, idp.Config{TokenURL: tokenURL})
	for range 2 {
		if _, err := c.Fetch(t.Context(), version, idp.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	if total, conns := requests(); total != 3 || conns != 2 {
		t.Errorf("%d requests on %d connections, want 3 on 2", total, conns)
	}
}

func TestNewConnectionWithoutResponseIsNotRetried(t *testing.T) {
	tokenURL, requests := connections(t, func(w http.ResponseWriter, _ int) { hangUp(w) })
	_, err := client(t, idp.Config{TokenURL: tokenURL}).Fetch(t.Context(), version, idp.Request{})
	isFault(t, err, idp.Transient, "EOF")
	if total, _ := requests(); total != 1 {
		t.Errorf("%d requests: the IdP may have issued a token for each", total)
	}
}

func TestConnectionIsUsedAgainAfterARefusal(t *testing.T) {
	tokenURL, requests := connections(t, func(w http.ResponseWriter, _ int) {
		answers(http.StatusBadRequest, jsonType, `{"error":"invalid_scope"}`)(w, nil)
	})
	c := client(t, idp.Config{TokenURL: tokenURL})
	for range 5 {
		_, err := c.Fetch(t.Context(), version, idp.Request{})
		isFault(t, err, idp.RequestRefused, "invalid_scope")
	}
	if total, conns := requests(); total != 5 || conns != 1 {
		t.Errorf("%d requests on %d connections", total, conns)
	}
}
