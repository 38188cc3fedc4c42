package discovery

import (
	"bytes"
	"errors"
	"io"

	"github.com/go-json-experiment/json/jsontext"
)

var errNotObject = errors.New("not one JSON object")

// ParseMembers parses the members of one JSON object. It accepts invalid UTF-8 and
// repeated members, so that a defect in one member does not affect the others. It
// returns the names of repeated members; do not use their values, because parsers
// disagree about which one counts. The values share no memory with the body.
func ParseMembers(body []byte) (values map[string]jsontext.Value, repeated map[string]bool, err error) {
	decoder := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	if start, err := decoder.ReadToken(); err != nil || start.Kind() != jsontext.KindBeginObject {
		return nil, nil, errNotObject
	}
	values, repeated = map[string]jsontext.Value{}, map[string]bool{}
	for decoder.PeekKind() == jsontext.KindString {
		token, err := decoder.ReadToken()
		if err != nil {
			return nil, nil, errNotObject
		}
		name := token.String() // the token is valid until the next read only
		value, err := decoder.ReadValue()
		if err != nil {
			return nil, nil, errNotObject
		}
		if _, exists := values[name]; exists {
			repeated[name] = true
		}
		values[name] = value.Clone()
	}
	if end, err := decoder.ReadToken(); err != nil || end.Kind() != jsontext.KindEndObject {
		return nil, nil, errNotObject
	}
	if _, err := decoder.ReadToken(); !errors.Is(err, io.EOF) { // there is more after the object
		return nil, nil, errNotObject
	}
	return values, repeated, nil
}
