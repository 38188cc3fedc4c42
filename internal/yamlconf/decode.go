// Package yamlconf reads a configuration file in YAML into structs, and reports each
// problem with its line and a sentence that describes the fix. It knows the file's keys
// by the yaml and jsonschema tags of the structs alone.
package yamlconf

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

const (
	// NamePattern matches keys, and names in the place of keys.
	NamePattern = `^[A-Za-z0-9._-]{1,128}$`
	// DurationPattern excludes probable mistakes: signs, numbers without a unit, and
	// units below a millisecond.
	DurationPattern = `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`

	expectedDuration = "a duration such as 30s or 5m"
)

// Format describes a file beyond the tags of its structs. All fields must be set.
type Format struct {
	// Root describes the file in messages, such as "a mapping of sections".
	Root string
	// Empty is the fix for an empty file.
	Empty string
	// Types decodes nodes into values of types that have a notation of their own. A default
	// in a tag is decoded like text in the file.
	Types map[reflect.Type]func(n Node, v reflect.Value)
	// Values returns the list that the values= of a jsonschema tag names.
	Values func(list string) []string
	// Replaced returns the key that replaced one of an earlier version, or "".
	Replaced func(path, key string) string
}

// Decode decodes the content of a file into the struct that into points to. The findings
// have all problems with keys and values; a value with a problem keeps its default. The
// error is an [*Error], if the file is not a YAML mapping.
func Decode(file string, data []byte, into any, format Format) (*Findings, error) {
	d := &decoder{
		Findings: &Findings{file: file, lines: map[string]int{}},
		Format:   format,
		fields:   map[reflect.Type][]field{},
		name:     regexp.MustCompile(NamePattern),
		duration: regexp.MustCompile(DurationPattern),
	}
	root := d.parse(data)
	if root == nil {
		return nil, d.Err()
	}
	Node{d, root, ""}.Struct(reflect.ValueOf(into).Elem())
	return d.Findings, nil
}

// decoder decodes one file and records the line of each key.
type decoder struct {
	*Findings
	Format
	fields         map[reflect.Type][]field // of the structs decoded so far
	name, duration *regexp.Regexp
}

// Node is a value in the file. Its methods decode it into a value that holds the default
// and keeps it if the node is invalid.
type Node struct {
	d    *decoder
	yaml *yaml.Node // nil for a mapping without keys
	// Path is the path of the key or list item: see [Join] and [Item].
	Path string
}

// key returns the node of a key in the mapping.
func (n Node) key(name string, value *yaml.Node) Node { return Node{n.d, value, Join(n.Path, name)} }

// items returns the nodes of a list and records their lines.
func (n Node) items() []Node {
	items := make([]Node, len(n.yaml.Content))
	for i, element := range n.yaml.Content {
		items[i] = Node{n.d, element, Item(n.Path, i)}
		n.d.lines[items[i].Path] = element.Line
	}
	return items
}

// Addf adds a problem of the node, on its line.
func (n Node) Addf(format string, args ...any) {
	n.d.addLinef(n.yaml.Line, "%s: "+format, append([]any{n.Path}, args...)...)
}

// value decodes a value of any type.
func (n Node) value(v reflect.Value, f *field) {
	if !n.plain() {
		return
	}
	if decode, ok := n.d.Types[v.Type()]; ok {
		decode(n, v)
		return
	}
	switch into := v.Addr().Interface().(type) {
	case *string:
		if text, ok := n.text(f, "text"); ok {
			*into = text
		}
	case *time.Duration:
		n.period(into)
	case *bool:
		n.boolean(into)
	case *int:
		number(n, into, f, "a whole number", "!!int")
	case *float64:
		number(n, into, f, "a number such as 0.01", "!!int", "!!float")
	case *[]string:
		if texts, ok := n.texts(f); ok {
			*into = texts
		}
	default:
		n.composite(v, f)
	}
}

// Text returns the text of the node. expected describes the value in messages; the
// constraints are written as in a jsonschema tag. ok is false if it has added a problem.
func (n Node) Text(expected, constraints string) (value string, ok bool) {
	return n.text(n.d.constraints(constraints), expected)
}

// Texts returns the texts in the list; a text with a problem is empty. ok is false if the
// list itself has a problem.
func (n Node) Texts(constraints string) (values []string, ok bool) {
	return n.texts(n.d.constraints(constraints))
}

func (n Node) composite(v reflect.Value, f *field) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		n.value(v.Elem(), f)
	case reflect.Map:
		n.mapping(v, f)
	case reflect.Slice:
		n.list(v, f)
	default:
		n.Struct(v)
	}
}

// plain rejects YAML features that disguise a node's value.
func (n Node) plain() bool {
	switch {
	case n.yaml.Kind == yaml.AliasNode || n.yaml.Anchor != "":
		n.Addf(noAliases)
	case n.yaml.Style&yaml.TaggedStyle != 0:
		n.Addf("tags (!) are not read: remove it, or put a text that begins so in quotes")
	default:
		return true
	}
	return false
}

// unexpected reports a value of the wrong type.
func (n Node) unexpected(expected string) {
	hint := ""
	switch {
	case n.yaml.Tag == "!!null":
		hint = ": give a value or remove the key"
	case expected == "text" && n.yaml.Kind == yaml.ScalarNode:
		hint = ": put it in quotes"
	}
	n.Addf("expected %s, found %s%s", expected, kindOf(n.yaml), hint)
}

// IsMapping reports whether the node is a mapping.
func (n Node) IsMapping() bool { return n.yaml.Kind == yaml.MappingNode }

// HasOnly reports whether the node is a mapping with at least one key and no other keys than
// these.
func (n Node) HasOnly(keys ...string) bool {
	if !n.IsMapping() || len(n.yaml.Content) == 0 {
		return false
	}
	for i := 0; i < len(n.yaml.Content); i += 2 {
		if !slices.Contains(keys, n.yaml.Content[i].Value) {
			return false
		}
	}
	return true
}

// IsList reports whether the node is a list.
func (n Node) IsList() bool { return n.yaml.Kind == yaml.SequenceNode }

// Struct decodes a mapping into the fields of v.
func (n Node) Struct(v reflect.Value) {
	if n.yaml != nil && !n.IsMapping() {
		n.unexpected("a mapping")
		n.yaml = nil
	}
	fields := n.d.fieldsOf(v.Type())
	values := make([]*yaml.Node, len(fields))
	if n.yaml != nil {
		n.pick(fields, values)
	}
	for i := range fields {
		f := &fields[i]
		target := v.FieldByIndex(f.index)
		n.d.setDefault(target, f)
		switch {
		case values[i] != nil:
			n.key(f.name, values[i]).value(target, f)
		case target.Kind() == reflect.Struct && n.d.Types[target.Type()] == nil:
			n.key(f.name, nil).Struct(target)
		case f.required && n.yaml != nil:
			n.d.Addf(n.Path, "%s is missing", f.name)
		}
	}
}

// pick finds the value of each field among the keys.
func (n Node) pick(fields []field, values []*yaml.Node) {
	for i := 0; i+1 < len(n.yaml.Content); i += 2 {
		key := n.yaml.Content[i]
		at := slices.IndexFunc(fields, func(f field) bool { return f.name == key.Value })
		switch {
		case !n.usable(key):
		case at < 0:
			n.key(key.Value, key).Addf("no such key%s", n.d.suggest(n.Path, key.Value, fields))
		case values[at] != nil:
			n.addDuplicate(key)
		default:
			values[at] = n.yaml.Content[i+1]
			n.d.lines[Join(n.Path, key.Value)] = key.Line
		}
	}
}

// usable rejects keys that cannot be names. The message does not repeat them: without the
// space after the colon, a key includes its value.
func (n Node) usable(key *yaml.Node) bool {
	k := Node{n.d, key, n.Path}
	if k.Path == "" {
		k.Path = "the file"
	}
	switch {
	case key.Tag == "!!merge":
		k.Addf("merge keys (<<) are not read: write the keys out")
	case !k.plain():
	case key.Kind == yaml.ScalarNode && n.d.name.MatchString(key.Value):
		return true
	case key.Kind == yaml.ScalarNode && strings.Contains(key.Value, ":"):
		k.Addf("a key with a colon in it: put a space after the colon that ends the key")
	default:
		k.Addf("a key or name here is 1 to 128 letters, digits, dots, underscores and hyphens")
	}
	return false
}

func (n Node) addDuplicate(key *yaml.Node) {
	k := n.key(key.Value, key)
	k.Addf("given before, in line %d: remove one of them", n.d.lines[k.Path])
}

// mapping decodes a mapping into a Go map: its keys are names.
func (n Node) mapping(v reflect.Value, f *field) {
	if !n.IsMapping() {
		n.unexpected("a mapping")
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.yaml.Content)/2))
	for i := 0; i+1 < len(n.yaml.Content); i += 2 {
		key := n.yaml.Content[i]
		value := n.key(key.Value, n.yaml.Content[i+1])
		switch {
		case !n.usable(key):
		case n.d.Given(value.Path):
			n.addDuplicate(key)
		default:
			n.d.lines[value.Path] = key.Line
			element := reflect.New(v.Type().Elem()).Elem()
			value.value(element, f)
			v.SetMapIndex(reflect.ValueOf(key.Value), element)
		}
	}
}

// list decodes a list of mappings.
func (n Node) list(v reflect.Value, f *field) {
	if !n.IsList() {
		n.unexpected("a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.yaml.Content), len(n.yaml.Content)))
	for i, element := range n.items() {
		element.value(v.Index(i), f)
	}
}

func (n Node) texts(f *field) (values []string, ok bool) {
	if !n.IsList() {
		n.unexpected("a list such as [a, b]")
		return nil, false
	}
	if len(n.yaml.Content) < f.limits["minItems"] {
		fix := "give at least one, or remove the key"
		if f.required {
			fix = "give at least one"
		}
		n.Addf("the list is empty: %s", fix)
		return nil, false
	}
	if maximum := f.limits["maxItems"]; maximum > 0 && len(n.yaml.Content) > maximum {
		n.Addf("at most %d are possible", maximum)
		return nil, false
	}
	items := n.items()
	values = make([]string, len(items))
	for i, element := range items {
		element.value(reflect.ValueOf(&values[i]).Elem(), f)
		if before := slices.Index(values[:i], values[i]); f.unique && before >= 0 && values[i] != "" {
			element.Addf("the same as %s: remove one of them", items[before].Path)
		}
	}
	return values, true
}

// scalar returns the text of the node, which must be text.
func (n Node) scalar(expected string) (string, bool) {
	// A date is a timestamp only in YAML 1.1; here it is text.
	if n.yaml.Kind != yaml.ScalarNode || n.yaml.Tag != "!!str" && n.yaml.Tag != "!!timestamp" {
		n.unexpected(expected)
		return "", false
	}
	return n.yaml.Value, true
}

func (n Node) text(f *field, expected string) (value string, ok bool) {
	value, ok = n.scalar(expected)
	maximum := f.limits["maxLength"]
	switch {
	case !ok:
		return "", false
	case len(f.enum) > 0 && !slices.Contains(f.enum, value):
		n.Addf("expected %s%s", OneOf(f.enum), DidYouMean(value, f.enum))
	case value == "" && f.limits["minLength"] > 0:
		n.Addf("must not be empty")
	case maximum > 0 && len(value) > maximum:
		n.Addf("must not be longer than %d bytes", maximum)
	default:
		return value, true
	}
	return "", false
}

func (n Node) period(into *time.Duration) {
	value, ok := n.scalar(expectedDuration)
	if !ok {
		return
	}
	duration, err := time.ParseDuration(value)
	if err != nil || !n.d.duration.MatchString(value) {
		n.Addf("expected %s", expectedDuration)
		return
	}
	*into = duration
}

func (n Node) boolean(into *bool) {
	if n.yaml.Kind != yaml.ScalarNode || n.yaml.Tag != "!!bool" {
		n.unexpected("true or false")
		return
	}
	*into = strings.EqualFold(n.yaml.Value, "true")
}

// number decodes a number that YAML resolves to one of the tags.
func number[T int | float64](n Node, into *T, f *field, expected string, tags ...string) {
	minimum, maximum := f.limits["minimum"], f.limits["maximum"]
	if n.yaml.Kind != yaml.ScalarNode || !slices.Contains(tags, n.yaml.Tag) {
		n.unexpected(expected)
		return
	}
	var value T
	// NaN compares false with both bounds, so the condition is a negated "within".
	if err := n.yaml.Load(&value); err != nil || !(value >= T(minimum) && value <= T(maximum)) {
		n.Addf("must be from %d to %d", minimum, maximum)
		return
	}
	*into = value
}
