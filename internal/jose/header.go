package jose

import (
	"errors"
	"fmt"
)

const maxKeyID = 256 // bytes

// Header is the header of a JWS (RFC 7515 section 4.1). Do not trust any of it before
// the signature is verified.
type Header struct {
	// Algorithm is alg.
	Algorithm string
	// KeyID is kid; empty if the header has none. Use it only to look up a key. It has
	// at most 256 bytes and no control characters.
	KeyID string
	// Type is typ; may be empty.
	Type string
	// KeyPlace is the name of a parameter, jku or x5u, with the URL of a key; empty if
	// the header has none. The URL is ignored, because only the configured source of an
	// issuer's keys is trusted.
	KeyPlace string
}

// ParseHeader parses a token's header. It refuses parameters that change the signed
// content or supply a key, because the presenter would choose that key. It ignores
// unknown parameters (RFC 7515 section 4) and the URL of a key. The error is a sentence
// about the token ("its header ..."), an [UnsupportedError] for a refused parameter.
func ParseHeader(data []byte) (Header, error) {
	object, err := ParseObject(data)
	if err != nil {
		return Header{}, fmt.Errorf("its header %w", err)
	}
	for _, name := range [...]string{"crit", "b64", "zip", "enc", "jwk"} {
		if object.Has(name) {
			return Header{}, UnsupportedError("its header has the parameter " + name)
		}
	}
	if cty, present, err := object.Text("cty"); present && (err != nil || cty != "") {
		return Header{}, UnsupportedError("its header announces a nested token (cty)")
	}
	return readHeader(object)
}

func readHeader(object Object) (h Header, err error) {
	var present bool
	if h.Algorithm, present, err = object.Text("alg"); err != nil || !present {
		return Header{}, errors.New("its header has no alg, or one that is not a string")
	}
	if h.Type, _, err = object.Text("typ"); err != nil {
		return Header{}, err
	}
	if h.KeyID, _, err = object.Text("kid"); err != nil {
		return Header{}, err
	}
	for _, name := range [...]string{"jku", "x5u"} {
		_, present, err := object.Text(name)
		switch {
		case err != nil:
			return Header{}, err
		case present:
			h.KeyPlace = name
		}
	}
	if len(h.KeyID) > maxKeyID {
		return Header{}, fmt.Errorf("its kid is longer than %d bytes", maxKeyID)
	}
	return h, nil
}
