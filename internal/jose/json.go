package jose

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
)

const (
	maxDepth   = 8
	maxMembers = 64
	// usualMember is the typical length of a member, in bytes, to estimate their number.
	usualMember = 32

	space = " \t\r\n"
)

var (
	errNotObject = errors.New("is not one JSON object in UTF-8 with nothing after it")
	errDuplicate = errors.New("names a member twice")
	errTooDeep   = fmt.Errorf("is nested deeper than %d levels", maxDepth)
	errTooWide   = fmt.Errorf("has more than %d members", maxMembers)
)

// Object is a JSON object that every parser reads the same way: no name is repeated, at
// any depth, and all text is valid Unicode (RFC 7493). Names match exactly. It is
// immutable and shares memory with the parsed text.
type Object struct {
	members []member
	// names has a bit for each name, so that most names that the object lacks need no
	// comparison. Several names share a bit.
	names uint64
}

type member struct {
	name  []byte
	value jsontext.Value
}

// ParseObject parses one JSON object of at most 64 members, nested at most 8 levels
// deep, with only white space around it. The error is the predicate of a sentence ("is
// not ...") and quotes nothing of data.
func ParseObject(data []byte) (Object, error) {
	if err := validate(data); err != nil {
		return Object{}, err
	}
	object := Object{members: make([]member, 0, min(4+len(data)/usualMember, maxMembers))}
	name, rest := nextValue(afterBracket(data))
	for name != nil {
		if len(object.members) == maxMembers {
			return Object{}, errTooWide
		}
		plain, err := unquote(name)
		if err != nil {
			return Object{}, errNotObject
		}
		var value jsontext.Value
		value, rest = nextValue(rest)
		object.members = append(object.members, member{plain, value})
		object.names |= nameBit(string(plain))
		name, rest = nextValue(rest)
	}
	return object, nil
}

// nameBit returns one of 64 bits.
func nameBit(name string) uint64 {
	if name == "" {
		return 1
	}
	return 1 << ((5*uint(len(name)) + uint(name[0])) % 64)
}

// validate checks everything about an object except its number of members, so that
// the functions below need no checks.
func validate(data []byte) error {
	value := jsontext.Value(data)
	switch {
	case depth(data) > maxDepth: // checked first, because the parser recurses
		return errTooDeep
	case value.Kind() != '{':
		return errNotObject
	case value.IsValid(): // RFC 7493: unique names, valid Unicode
		return nil
	case value.IsValid(jsontext.AllowDuplicateNames(true)):
		return errDuplicate
	default:
		return errNotObject
	}
}

// depth returns the nesting depth of the value at the start of data. If there are at most
// maxDepth brackets it returns their number, which is an upper bound and faster to find.
func depth(data []byte) int {
	if brackets := bytes.Count(data, []byte("{")) + bytes.Count(data, []byte("[")); brackets <= maxDepth {
		return brackets
	}
	_, deepest := extent(bytes.TrimLeft(data, space))
	return deepest
}

// extent returns the length and the nesting depth of the string, object or array at the
// start of data. Without an end the length is that of data.
func extent(data []byte) (end, deepest int) {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '\\':
			i++
		case '"':
			i += stringEnd(data[i:]) - 1
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
		case '}', ']':
			depth--
		}
		if depth == 0 {
			return i + 1, deepest
		}
	}
	return len(data), deepest
}

// stringEnd returns the length of the string at the start of data. Without an end that is
// the length of data.
func stringEnd(data []byte) int {
	for end := 1; ; end++ {
		next := bytes.IndexByte(data[end:], '"')
		if next < 0 {
			return len(data)
		}
		end += next
		escapes := 0
		for data[end-1-escapes] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return end + 1
		}
	}
}

// afterBracket returns the content of a valid object or array, after its opening bracket.
func afterBracket(data []byte) []byte {
	start := 0
	for data[start] != '{' && data[start] != '[' {
		start++
	}
	return data[start+1:]
}

// nextValue returns the next value of a valid object or array and the text after it;
// the name of a member is a value too. The value is nil at the end.
func nextValue(rest []byte) (value jsontext.Value, after []byte) {
	for isSpace(rest[0]) || rest[0] == ',' || rest[0] == ':' {
		rest = rest[1:]
	}
	end := 0
	switch rest[0] {
	case '}', ']':
		return nil, nil
	case '"':
		end = stringEnd(rest)
	case '{', '[':
		end, _ = extent(rest)
	default:
		for !isSpace(rest[end]) && rest[end] != ',' && rest[end] != '}' && rest[end] != ']' {
			end++
		}
	}
	return rest[:end:end], rest[end:]
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// unquote returns the text of a JSON string. It copies the text only if it has escapes.
func unquote(quoted jsontext.Value) ([]byte, error) {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1], nil
	}
	return jsontext.AppendUnquote(nil, quoted)
}

func (o Object) get(name string) jsontext.Value {
	if o.names&nameBit(name) == 0 {
		return nil
	}
	for i := range o.members {
		if string(o.members[i].name) == name {
			return o.members[i].value
		}
	}
	return nil
}

// IsNull reports whether the named member is null. It is false for an absent member.
func (o Object) IsNull(name string) bool { return o.get(name).Kind() == jsontext.KindNull }

// WithoutNulls returns the object without the named members that are null.
func (o Object) WithoutNulls(names ...string) Object {
	if !slices.ContainsFunc(names, o.IsNull) {
		return o
	}
	return o.without(func(m member) bool {
		return slices.Contains(names, string(m.name)) && m.value.Kind() == jsontext.KindNull
	})
}

// withoutAllNulls returns the object without any member that is null.
func (o Object) withoutAllNulls() Object {
	return o.without(func(m member) bool { return m.value.Kind() == jsontext.KindNull })
}

func (o Object) without(remove func(member) bool) Object {
	return Object{slices.DeleteFunc(slices.Clone(o.members), remove), o.names}
}

// Len returns the number of members.
func (o Object) Len() int { return len(o.members) }

// Has reports whether the object has a member of that name, with any value.
func (o Object) Has(name string) bool { return o.get(name) != nil }

// Text returns the named member, which must be absent or a string. The string must have
// no control characters, because it may become an identity or part of a log line.
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
	if err != nil || hasControl(plain) {
		return "", fmt.Errorf("its %s contains a control character", name)
	}
	return stringOf(plain), nil
}

// hasControl reports whether a valid UTF-8 text contains a control character: one of
// ASCII, or U+0080 to U+009F, which begin with the byte C2.
func hasControl(text []byte) bool {
	for i, c := range text {
		if c < ' ' || c == 0x7f || c == 0xc2 && i+1 < len(text) && text[i+1] < 0xa0 {
			return true
		}
	}
	return false
}

// stringOf converts a text without an allocation if most tokens have it.
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

// IsArray reports whether the named member is an array.
func (o Object) IsArray(name string) bool { return o.get(name).Kind() == '[' }

// List returns the named member, which must be absent or an array of strings as
// [Object.Text] accepts them.
func (o Object) List(name string) (list []string, present bool, err error) {
	value := o.get(name)
	if value == nil {
		return nil, false, nil
	}
	if value.Kind() != '[' {
		return nil, true, fmt.Errorf("its %s is not a list", name)
	}
	var usual [8]string // most lists are not longer
	found := usual[:0]
	for element, rest := nextValue(afterBracket(value)); element != nil; element, rest = nextValue(rest) {
		text, err := textOf(name, element)
		if err != nil {
			return nil, true, err
		}
		found = append(found, text)
	}
	list = make([]string, len(found)) // a cache may keep it for long: without spare capacity
	copy(list, found)
	return list, true, nil
}

// Number returns the named member, which must be absent or a number, rounded to a
// float64. A number beyond the range of a float64 is an error.
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

// Object returns the named member, which must be absent or an object.
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
