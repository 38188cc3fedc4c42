package jose

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"unicode"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxDepth   = 8
	maxMembers = 64
	// usualMember is how long a member is where there are many.
	usualMember = 32

	space = " \t\r\n"
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
	if err := sound(data); err != nil {
		return Object{}, err
	}
	members := make([]member, 0, min(4+len(data)/usualMember, maxMembers))
	name, rest := next(opened(data))
	for name != nil {
		if len(members) == maxMembers {
			return Object{}, errTooWide
		}
		plain, err := unquote(name)
		if err != nil {
			return Object{}, errNotObject
		}
		var value jsontext.Value
		value, rest = next(rest)
		members = append(members, member{plain, value})
		name, rest = next(rest)
	}
	return Object{members}, nil
}

// sound finds out all that may be wrong with an object but its width. What is
// read afterwards needs no checks.
func sound(data []byte) error {
	value := jsontext.Value(data)
	switch _, depth := extent(bytes.TrimLeft(data, space)); {
	case depth > maxDepth: // known before anything is parsed, which recurses
		return errTooDeep
	case value.Kind() != '{':
		return errNotObject
	case value.IsValid(): // RFC 7493: unique names, sound Unicode
		return nil
	case value.IsValid(jsontext.AllowDuplicateNames(true)):
		return errDuplicate
	default:
		return errNotObject
	}
}

// extent returns where the string, object or array ends that data begins with,
// and how deep it is nested. If it does not end, the end is that of data.
func extent(data []byte) (end, deepest int) {
	depth, quoted := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
		if depth == 0 && !quoted {
			return i + 1, deepest
		}
	}
	return len(data), deepest
}

// opened returns what follows the bracket that opens a valid object or array.
func opened(data []byte) []byte { return data[bytes.IndexAny(data, "{[")+1:] }

// next returns the next value of a valid object or array, and what follows it;
// names of members are values here. Nil: the object or array ends.
func next(rest []byte) (value jsontext.Value, after []byte) {
	rest = bytes.TrimLeft(rest, space+",:")
	var end int
	switch rest[0] {
	case '}', ']':
		return nil, nil
	case '"', '{', '[':
		end, _ = extent(rest)
	default:
		end = bytes.IndexAny(rest, space+",}]")
	}
	return rest[:end:end], rest[end:]
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

// IsNull reports whether the object has a member of that name that is null.
func (o Object) IsNull(name string) bool { return o.get(name).Kind() == jsontext.KindNull }

// WithoutNulls returns the object without its members of these names that are null.
func (o Object) WithoutNulls(names ...string) Object {
	if !slices.ContainsFunc(names, o.IsNull) {
		return o
	}
	return o.without(func(m member) bool {
		return slices.Contains(names, string(m.name)) && m.value.Kind() == jsontext.KindNull
	})
}

// withoutNulls returns the object without all members that are null.
func (o Object) withoutNulls() Object {
	return o.without(func(m member) bool { return m.value.Kind() == jsontext.KindNull })
}

func (o Object) without(left func(member) bool) Object {
	return Object{slices.DeleteFunc(slices.Clone(o.members), left)}
}

// Len is the number of members.
func (o Object) Len() int { return len(o.members) }

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
	return stringOf(plain), nil
}

// stringOf saves the allocation for texts that most tokens have.
func stringOf(plain []byte) string {
	switch string(plain) {
	case "RS256":
		return "RS256"
	case "ES256":
		return "ES256"
	case "at+jwt":
		return "at+jwt"
	case "JWT":
		return "JWT"
	default:
		return string(plain)
	}
}

// IsArray reports whether the object has a member of that name that is an array.
func (o Object) IsArray(name string) bool { return o.get(name).Kind() == '[' }

// List returns a member that must be an array of strings if it is there. The
// strings are as [Object.Text] has them.
func (o Object) List(name string) (list []string, present bool, err error) {
	value := o.get(name)
	if value == nil {
		return nil, false, nil
	}
	if value.Kind() != '[' {
		return nil, true, fmt.Errorf("its %s is not a list", name)
	}
	list = make([]string, 0, 4)
	for element, rest := next(opened(value)); element != nil; element, rest = next(rest) {
		text, err := textOf(name, element)
		if err != nil {
			return nil, true, err
		}
		list = append(list, text)
	}
	return list, true, nil
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
