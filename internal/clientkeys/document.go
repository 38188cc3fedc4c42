package clientkeys

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strconv"
	"time"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// Linger is how long a key stays published after it was retired: until the last assertion
// that was signed with it has expired. An assertion is valid for a minute, a fetch takes
// half a minute, replicas notice the change within seconds, and clocks differ.
const Linger = 3 * time.Minute

// file is the last element of the path of a document.
const file = "jwks.json"

// maxAge is the longest time for which caches may keep a document.
const maxAge = 5 * time.Minute

// Path returns the path of a client's document. It contains an opaque ID, because the
// documents are public and the names of clients are not.
func Path(mac secret.MAC, client string) string {
	return "/" + secret.Name(mac, "public keys", []byte(client)) + "/" + file
}

// published reports whether a version belongs in the document.
func published(r secret.Record, now time.Time) bool {
	return r.Publication.Key != "" && (r.State != secret.Retired || now.Before(r.Since.Add(Linger)))
}

// Document returns the JWK set with the public keys of a client.
func Document(h secret.History, now time.Time) []byte {
	var keys [][]byte
	for _, r := range h.Versions {
		if published(r, now) {
			keys = append(keys, []byte(r.Publication.Key))
		}
	}
	return append(append([]byte(`{"keys":[`), bytes.Join(keys, []byte(","))...), "]}\n"...)
}

// Handler serves the documents of all clients, from memory. Every other request gets the
// same 404, so that the IDs of clients cannot be guessed by its form.
func (k *Keys) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		set := k.at(r)
		if set == nil || !set.View().Loaded {
			w.Header().Set("Cache-Control", "no-store")
			http.Error(w, "not found", http.StatusNotFound)
			return
		}
		document := Document(set.View().History, time.Now())
		digest := sha256.Sum256(document)
		tag := `"` + base64.RawURLEncoding.EncodeToString(digest[:12]) + `"`
		w.Header().Set("ETag", tag)
		w.Header().Set("Cache-Control", "public, max-age="+strconv.Itoa(int(cacheFor(set.Made).Seconds())))
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_, _ = w.Write(document)
	})
}

// cacheFor returns how long caches may keep a document: much less than a key is published
// before its use.
func cacheFor(m credential.Made) time.Duration { return min(maxAge, m.PublishBefore/4) }

// at returns the client whose document is requested, or nil.
func (k *Keys) at(r *http.Request) *credential.Set {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || r.URL.RawQuery != "" {
		return nil
	}
	return (*k.paths.Load())[r.URL.Path]
}

// index finds the clients by the paths of their documents.
func (k *Keys) index(sets []*credential.Set) {
	paths := make(map[string]*credential.Set, len(sets))
	for _, set := range sets {
		paths[Path(k.cfg.MAC, set.Client)] = set
	}
	k.paths.Store(&paths)
}
