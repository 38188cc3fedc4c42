package jose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxDepth   = 8
	maxMembers = 64
)

var (
	errNotObject = errors.New("is not one JSON object in UTF-8 with nothing after it")
	errDuplicate = errors.New("names a member twice")
	errTooDeep   = fmt.Errorf("is nested deeper than %d", maxDepth)
	errTooWide   = fmt.Errorf("has more than %d members", maxMembers)
)

// Object is a JSON object that every parser reads the same way: no name occurs
// twice, at any depth, and all text is sound Unicode (RFC 7493). Names match
// exactly. It is immutable; it shares memory with the text that it was read
// from.
type Object struct {
	members []member
}

type member struct {
	name  []byte
	value jsontext.Value
}

// ParseObject reads one JSON object of at most 64 members, nested at most 8
// deep, with nothing but white space around it. The error is the predicate of a
// sentence and quotes nothing of data.
func ParseObject(data []byte) (Object, error) {
	if tooDeep(data) {
		return Object{}, errTooDeep
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(data))
	if token, err := dec.ReadToken(); err != nil || token.Kind() != '{' {
		return Object{}, errNotObject
	}
	members := make([]member, 0, maxMembers/4)
	for dec.PeekKind() != '}' {
		if len(members) == maxMembers {
			return Object{}, errTooWide
		}
		m, err := readMember(dec)
		if err != nil {
			return Object{}, unsound(err)
		}
		members = append(members, m)
	}
	if _, err := dec.ReadToken(); err != nil {
		return Object{}, unsound(err)
	}
	if _, err := dec.ReadToken(); !errors.Is(err, io.EOF) {
		return Object{}, errNotObject
	}
	return Object{members}, nil
}

// unsound puts an error of the decoder, which may quote the text, into our words.
func unsound(err error) error {
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return errDuplicate
	}
	return errNotObject
}

// tooDeep counts brackets before anything is parsed: parsing recurses.
func tooDeep(data []byte) bool {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

func readMember(dec *jsontext.Decoder) (member, error) {
	name, err := dec.ReadValue()
	if err != nil {
		return member{}, err
	}
	plain, err := unquote(name)
	if err != nil {
		return member{}, err
	}
	value, err := dec.ReadValue()
	return member{plain, value}, err
}

// unquote returns the text of a JSON string, without copying it where it holds
// no escapes.
func unquote(quoted jsontext.Value) ([]byte, error) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1], nil
	}
	return jsontext.AppendUnquote(nil, quoted)
}

func (o Object) get(name string) jsontext.Value {
	for i := range o.members {
		if string(o.members[i].name) == name {
			return o.members[i].value
		}
	}
	return nil
}

// Has reports whether the object has a member of that name, whatever its value.
func (o Object) Has(name string) bool { return o.get(name) != nil }

// Text returns a member that must be a string if it is there, without control
// characters: it may become an identity, or a line of a log.
func (o Object) Text(name string) (text string, present bool, err error) {
	value := o.get(name)
	if value == nil {
		return "", false, nil
	}
	text, err = textOf(name, value)
	return text, true, err
}

func textOf(name string, value jsontext.Value) (string, error) {
	if value.Kind() != '"' {
		return "", fmt.Errorf("its %s is not a string", name)
	}
	plain, err := unquote(value)
	if err != nil || bytes.ContainsFunc(plain, unicode.IsControl) {
		return "", fmt.Errorf("its %s holds a control character", name)
	}
	return string(plain), nil
}

// List returns a member that must be an array of strings if it is there, or one
// string, which is returned as a list of one. The strings are as [Object.Text]
// has them.
func (o Object) List(name string) (list []string, array bool, err error) {
	value := o.get(name)
	switch value.Kind() {
	case '[':
		list, err = listOf(name, value)
		return list, true, err
	case 0: // absent
		return nil, false, nil
	default:
		text, err := textOf(name, value)
		return []string{text}, false, err
	}
}

func listOf(name string, value jsontext.Value) ([]string, error) {
	dec := jsontext.NewDecoder(bytes.NewBuffer(value))
	_, _ = dec.ReadToken() // "[": the value was found sound already
	list := make([]string, 0, 4)
	for dec.PeekKind() == '"' {
		element, _ := dec.ReadValue()
		text, err := textOf(name, element)
		if err != nil {
			return nil, err
		}
		list = append(list, text)
	}
	if dec.PeekKind() != ']' {
		return nil, fmt.Errorf("its %s holds what is not a string", name)
	}
	return list, nil
}

// Number returns a member that must be a number if it is there, as near as a
// float64 comes to it. One that is larger than any float64 is an error.
func (o Object) Number(name string) (number float64, present bool, err error) {
	value := o.get(name)
	if value == nil {
		return 0, false, nil
	}
	number, err = strconv.ParseFloat(string(value), 64)
	if value.Kind() != '0' || err != nil {
		return 0, true, fmt.Errorf("its %s is not a number", name)
	}
	return number, true, nil
}

// Object returns a member that must be an object if it is there.
func (o Object) Object(name string) (object Object, present bool, err error) {
	value := o.get(name)
	if value == nil {
		return Object{}, false, nil
	}
	object, err = ParseObject(value)
	if err != nil {
		return Object{}, true, fmt.Errorf("its %s %w", name, err)
	}
	return object, true, nil
}
