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

// WithoutCache returns a Verifier that shares the issuers, with their keys, but
// remembers nothing.
func (v *Verifier) WithoutCache() *Verifier {
	without := *v
	without.cache = nil
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

// VerifyAt is Verify of a JWT when the wall clock shows now. Whatever is
// measured with the monotonic clock goes on as it did.
func (v *Verifier) VerifyAt(ctx context.Context, presented redact.String, req Request, now time.Time) (Result, error) {
	issuer, facts, keptUntil, err := v.establishJWT(ctx, presented, &req)
	if err == nil {
		var result Result
		if result, err = v.answer(issuer, facts, keptUntil, req, now); err == nil {
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
	issuer, key, facts, _, err := v.examine(ctx, presented, &Request{})
	if err == nil {
		id, _ := v.cache.find(presented)
		v.cache.put(id, issuer, key, facts)
	}
	return err
}

// Cached counts the entries of the cache and the bytes that it takes them for.
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

// Lookups counts the tokens that were found in the cache, and those that were
// not.
func (v *Verifier) Lookups() (hits, misses int) {
	m := v.cache.metrics
	return int(testutil.ToFloat64(m.hits)), int(testutil.ToFloat64(m.misses))
}

// CacheKey is what stands for a token in the cache.
func (v *Verifier) CacheKey(token string) [32]byte {
	id, _ := v.cache.find(redact.New(token))
	return id
}

// Memory is all text that can be reached from the cache, from a hasher that was
// used, and from one that digested a token as its first.
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
	default: // numbers, and what cannot hold text
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
