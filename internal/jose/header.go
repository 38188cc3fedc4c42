package jose

import (
	"errors"
	"fmt"
)

const maxKeyID = 256

// Header is what a token's header says. Nothing in it is to be believed before
// the signature was found good.
type Header struct {
	// Algorithm is alg, as it is written.
	Algorithm string
	// KeyID is kid; empty: it names none. It is a name to look up and nothing
	// else: at most 256 bytes, without control characters.
	KeyID string
	// Type is typ; may be empty.
	Type string
	// KeyPlace names the parameter, jku or x5u, by which the header says where its
	// key is. It is not looked at: the keys of an issuer are those that it
	// publishes where it is configured to. Empty: there is none.
	KeyPlace string
}

// ParseHeader reads a token's header. It refuses parameters that would change
// what is signed, or bring a key of the presenter's own choice; those that it
// does not know, and those that only say where a key is, are ignored (RFC 7515
// section 4).
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
		return Header{}, UnsupportedError("its header says with cty that another token is nested in it")
	}
	return readHeader(object)
}

func readHeader(object Object) (h Header, err error) {
	var present bool
	if h.Algorithm, present, err = object.Text("alg"); err != nil || !present {
		return Header{}, errors.New("its header has no alg that is a string")
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
