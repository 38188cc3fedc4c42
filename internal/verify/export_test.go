package verify

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// WithoutCache returns a Verifier that shares the issuers and their keys, but has no
// cache.
func (v *Verifier) WithoutCache() *Verifier {
	without := *v
	without.cache, without.headers = nil, nil
	return &without
}

// Forget empties the cache.
func (v *Verifier) Forget() {
	for i := range v.cache.shards {
		s := &v.cache.shards[i]
		s.mu.Lock()
		clear(s.entries)
		s.oldest, s.newest, s.bytes = nil, nil, 0
		s.mu.Unlock()
	}
	v.cache.bytes.Store(0)
}

// VerifyAt is Verify of a JWT when the wall clock shows now. The monotonic clock is not
// changed.
func (v *Verifier) VerifyAt(ctx context.Context, presented redact.String, req Request, now time.Time) (Result, error) {
	token, err := v.establishJWT(ctx, presented, &req)
	if err == nil {
		var result Result
		if result, err = v.judge(token, req, now); err == nil {
			return result, nil
		}
	}
	if rejection, ok := errors.AsType[*Rejection](err); ok {
		return Result{Rejection: rejection}, nil
	}
	return Result{}, err
}

// VerifyCold verifies a token that was not found in the cache, and puts it there.
func (v *Verifier) VerifyCold(ctx context.Context, presented redact.String) error {
	verified, key, err := v.verifyJWT(ctx, presented, &Request{})
	if err == nil {
		digest, _ := v.cache.find(presented)
		v.cache.put(digest, verified.issuer, key, verified.facts)
	}
	return err
}

// Cached returns the number of cached entries and their total cost in bytes.
func (v *Verifier) Cached() (entries int, bytes int64) {
	for i := range v.cache.shards {
		s := &v.cache.shards[i]
		s.mu.Lock()
		for e := s.oldest; e != nil; e = e.next {
			entries++
		}
		bytes += s.bytes
		s.mu.Unlock()
	}
	return entries, bytes
}

// CachedHeaders returns the number of cached headers.
func (v *Verifier) CachedHeaders() int {
	v.headers.mu.RLock()
	defer v.headers.mu.RUnlock()
	return len(v.headers.parsed)
}

// Lookups returns the number of cache hits and misses.
func (v *Verifier) Lookups() (hits, misses int) {
	m := v.cache.metrics
	return int(testutil.ToFloat64(m.hits)), int(testutil.ToFloat64(m.misses))
}

// TokenDigest returns the digest of a token in the cache.
func (v *Verifier) TokenDigest(token string) [32]byte {
	digest, _ := v.cache.find(redact.New(token))
	return digest
}

// Memory returns all text that is reachable from the cache, from a used hasher, and
// from a hasher whose first token this is.
func (v *Verifier) Memory(token string) []byte {
	used, once := v.cache.hashers.Get(), v.cache.hashers.New()
	defer v.cache.hashers.Put(used)
	once.(*cacheHasher).digest(token)
	var w walk
	for _, root := range []any{v.cache, used, once} {
		w.visit(reflect.ValueOf(root))
	}
	return w.text.Bytes()
}

// walk collects text from memory.
type walk struct {
	seen map[uintptr]bool
	text bytes.Buffer
}

func (w *walk) visit(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && w.first(v.Pointer()) {
			w.visit(v.Elem())
		}
	case reflect.Interface:
		if !v.IsNil() {
			w.visit(v.Elem())
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			w.visit(field)
		}
	case reflect.Array:
		w.elements(v)
	case reflect.Slice:
		w.elements(v.Slice(0, v.Cap()))
	case reflect.Map:
		for entry := v.MapRange(); entry.Next(); {
			w.visit(entry.Key())
			w.visit(entry.Value())
		}
	case reflect.String:
		w.text.WriteString(v.String() + "\n")
	default: // numbers and other kinds without text
	}
}

func (w *walk) elements(v reflect.Value) {
	for i := range v.Len() {
		if element := v.Index(i); element.Kind() == reflect.Uint8 {
			w.text.WriteByte(byte(element.Uint()))
		} else {
			w.visit(element)
		}
	}
	w.text.WriteByte('\n')
}

func (w *walk) first(address uintptr) bool {
	if w.seen == nil {
		w.seen = map[uintptr]bool{}
	}
	seen := w.seen[address]
	w.seen[address] = true
	return !seen
}
