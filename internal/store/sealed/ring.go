package sealed

import (
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	ringKeySize = 32 // bytes, for a key of AES-256 and for the names key
	ringIDSize  = 4  // bytes, of the id of a key
	ringMaxSize = 64 << 10
)

// Ring holds the keys that seal values. One, the primary, seals; each of them opens. The
// ring also has a names key, which hashes the names of things and stays when the others
// change.
//
// To change the sealing key of a fleet without losing a value: [Ring.Add] a key, wait
// until each replica has read it, [Ring.Promote] it, wait until no value that the old
// one sealed is needed, [Ring.Drop] the old one.
//
// A Ring is immutable, cannot print its keys, and is safe for concurrent use.
type Ring struct {
	names   redact.String
	primary ringID
	keys    map[ringID]ringKey
}

// ringID identifies a key of a ring. It is not secret.
type ringID [ringIDSize]byte

func (id ringID) String() string { return hex.EncodeToString(id[:]) }

type ringKey struct {
	bytes redact.String
	aead  cipher.AEAD
}

// ringJSON is the format of a ring in a file.
type ringJSON struct {
	Names   string            `json:"names"`
	Primary string            `json:"primary"`
	Keys    map[string]string `json:"keys"`
}

// GenerateRing returns a ring with a fresh names key and one fresh sealing key.
func GenerateRing() *Ring {
	id, key := freshRingKey()
	return &Ring{names: freshRingBytes(), primary: id, keys: map[ringID]ringKey{id: key}}
}

// ParseRing reads a ring from JSON:
//
//	{"names": KEY, "primary": ID, "keys": {ID: KEY, ...}}
//
// A KEY is 32 bytes in standard base64, an ID 8 hexadecimal digits in lower case. It is
// strict, and its errors show no input other than ids.
func ParseRing(data []byte) (*Ring, error) {
	if len(data) > ringMaxSize {
		return nil, fmt.Errorf("more than %d bytes: is it a ring? Make one with `broker ring new`", ringMaxSize)
	}
	var file ringJSON
	if err := json.Unmarshal(data, &file, json.RejectUnknownMembers(true)); err != nil {
		return nil, ringSyntaxError(err)
	}
	if len(file.Keys) == 0 {
		return nil, errors.New("it has no keys: make a ring with `broker ring new`")
	}
	names, err := parseRingBytes("the names key", file.Names)
	if err != nil {
		return nil, err
	}
	ring := &Ring{names: names, keys: make(map[ringID]ringKey, len(file.Keys))}
	for _, text := range slices.Sorted(maps.Keys(file.Keys)) {
		if err := ring.parseKey(text, file.Keys[text]); err != nil {
			return nil, err
		}
	}
	if err := ring.setPrimary(file.Primary); err != nil {
		return nil, err
	}
	return ring, nil
}

// ringSyntaxError does not repeat err, which shows names and values.
func ringSyntaxError(err error) error {
	switch {
	case errors.Is(err, json.ErrUnknownName):
		return errors.New(`it has an unknown member: only "names", "primary" and "keys" are allowed`)
	case errors.Is(err, jsontext.ErrDuplicateName):
		return errors.New("it has a member twice: keep one of them")
	}
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return fmt.Errorf("it is not JSON, from byte %d on: make a ring with `broker ring new`", syntax.ByteOffset)
	}
	return errors.New(`it is not of the form {"names": KEY, "primary": ID, "keys": {ID: KEY}}: make a ring with ` + "`broker ring new`")
}

func (r *Ring) parseKey(text, encoded string) error {
	id, err := parseRingID(text)
	if err != nil {
		return fmt.Errorf("a key's id %w", err)
	}
	bytes, err := parseRingBytes("key "+id.String(), encoded)
	if err != nil {
		return err
	}
	if bytes.Equal(r.names) {
		return fmt.Errorf("key %v is the names key as well: each must be random of its own. Replace it with `broker ring add`", id)
	}
	for other, key := range r.keys {
		if bytes.Equal(key.bytes) {
			return fmt.Errorf("keys %v and %v are the same: drop one, which will be missed by whatever it sealed", other, id)
		}
	}
	r.keys[id] = newRingKey(bytes)
	return nil
}

func (r *Ring) setPrimary(text string) error {
	if text == "" {
		return errors.New(`it does not say which key seals: name one in "primary"`)
	}
	id, err := r.find(text)
	if err != nil {
		return fmt.Errorf("the primary: %w", err)
	}
	r.primary = id
	return nil
}

// find returns the id of a key that the ring has.
func (r *Ring) find(text string) (ringID, error) {
	id, err := parseRingID(text)
	if err != nil {
		return ringID{}, fmt.Errorf("the id of a key %w", err)
	}
	if _, there := r.keys[id]; !there {
		return ringID{}, fmt.Errorf("there is no key %v in the ring: it has %v", id, r.IDs())
	}
	return id, nil
}

// parseRingID does not repeat a rejected id: it may be a key.
func parseRingID(text string) (id ringID, err error) {
	n, err := hex.Decode(id[:], []byte(text[:min(len(text), 2*ringIDSize)]))
	if err != nil || n != ringIDSize || id.String() != text {
		return ringID{}, fmt.Errorf("must be %d hexadecimal digits in lower case", 2*ringIDSize)
	}
	return id, nil
}

func parseRingBytes(what, encoded string) (redact.String, error) {
	if encoded == "" {
		return redact.String{}, fmt.Errorf("%s is missing: make a ring with `broker ring new`", what)
	}
	bytes, err := base64.StdEncoding.Strict().DecodeString(encoded)
	switch {
	case err != nil || base64.StdEncoding.EncodeToString(bytes) != encoded: // decoding ignores line ends
		return redact.String{}, fmt.Errorf("%s is not standard base64: make a ring with `broker ring new`", what)
	case len(bytes) != ringKeySize:
		return redact.String{}, fmt.Errorf("%s has %d bytes: it must have %d. Make a ring with `broker ring new`", what, len(bytes), ringKeySize)
	}
	return redact.New(string(bytes)), nil
}

func freshRingBytes() redact.String {
	var bytes [ringKeySize]byte
	_, _ = rand.Read(bytes[:]) // never fails
	return redact.New(string(bytes[:]))
}

func freshRingKey() (id ringID, key ringKey) {
	_, _ = rand.Read(id[:]) // never fails
	return id, newRingKey(freshRingBytes())
}

// newRingKey makes the AEAD of a key. Neither step fails for a key of this size.
func newRingKey(bytes redact.String) ringKey {
	block, err := aes.NewCipher([]byte(bytes.Reveal()))
	if err != nil {
		panic(err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err)
	}
	return ringKey{bytes, aead}
}

// Primary returns the id of the key that seals.
func (r *Ring) Primary() string { return r.primary.String() }

// IDs returns the ids of all keys, sorted.
func (r *Ring) IDs() []string {
	ids := slices.SortedFunc(maps.Keys(r.keys), func(a, b ringID) int { return cmp.Compare(a.String(), b.String()) })
	texts := make([]string, len(ids))
	for i, id := range ids {
		texts[i] = id.String()
	}
	return texts
}

// MAC is the HMAC-SHA256 of data under the names key. Names in keys of a store pass
// through it, so that the store does not see them.
func (r *Ring) MAC(data []byte) [sha256.Size]byte {
	mac := hmac.New(sha256.New, []byte(r.names.Reveal()))
	_, _ = mac.Write(data)
	return [sha256.Size]byte(mac.Sum(nil))
}

// Add returns the ring with one more key, and its id. The key opens but does not seal
// yet: replicas that have not read it could not open the values.
func (r *Ring) Add() (ring *Ring, id string) {
	fresh, key := freshRingKey()
	for r.keys[fresh].aead != nil {
		fresh, key = freshRingKey()
	}
	keys := maps.Clone(r.keys)
	keys[fresh] = key
	return &Ring{names: r.names, primary: r.primary, keys: keys}, fresh.String()
}

// Promote returns the ring with another primary.
func (r *Ring) Promote(id string) (*Ring, error) {
	primary, err := r.find(id)
	if err != nil {
		return nil, err
	}
	if primary == r.primary {
		return nil, fmt.Errorf("key %v is the primary already: there is nothing to do", primary)
	}
	return &Ring{names: r.names, primary: primary, keys: r.keys}, nil
}

// Drop returns the ring without a key. The primary cannot be dropped.
func (r *Ring) Drop(id string) (*Ring, error) {
	dropped, err := r.find(id)
	if err != nil {
		return nil, err
	}
	if dropped == r.primary {
		return nil, fmt.Errorf("key %v is the primary: promote another one first", dropped)
	}
	keys := maps.Clone(r.keys)
	delete(keys, dropped)
	return &Ring{names: r.names, primary: r.primary, keys: keys}, nil
}

// Reveal returns the ring in the format of its file, with its keys.
func (r *Ring) Reveal() []byte {
	encode := func(bytes redact.String) string { return base64.StdEncoding.EncodeToString([]byte(bytes.Reveal())) }
	file := ringJSON{Names: encode(r.names), Primary: r.Primary(), Keys: make(map[string]string, len(r.keys))}
	for id, key := range r.keys {
		file.Keys[id.String()] = encode(key.bytes)
	}
	data, err := json.Marshal(file, json.Deterministic(true), jsontext.WithIndent("  "))
	if err != nil {
		panic(err) // a map of texts
	}
	return append(data, '\n')
}

// Format writes the ids of the ring's keys, whatever the verb.
func (r *Ring) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "a ring of the keys %v, primary %v", r.IDs(), r.primary)
}
