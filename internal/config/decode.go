package config

import (
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/cezzis/tokenbroker/internal/secret"
)

const (
	// namePattern matches the names in the file: of clients, and of OAuth parameters (RFC
	// 6749 appendix A).
	namePattern = `^[A-Za-z0-9._-]{1,128}$`
	// durationPattern excludes probable mistakes: signs, numbers without a unit, and
	// units below a millisecond.
	durationPattern = `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`

	expectedDuration = "a duration such as 30s or 5m"
)

// decoder fills a Config from a file's nodes. It checks them against the jsonschema tags
// and records the line of each key.
type decoder struct {
	*findings
	fields         map[reflect.Type][]field // of the structs decoded so far
	name, duration *regexp.Regexp
}

func decodeConfig(root *yaml.Node, into *Config, found *findings) {
	d := &decoder{
		findings: found,
		fields:   map[reflect.Type][]field{},
		name:     regexp.MustCompile(namePattern),
		duration: regexp.MustCompile(durationPattern),
	}
	d.structure(root, reflect.ValueOf(into).Elem(), "")
	if !found.given("store") {
		into.Store.Memory = &MemoryStore{}
	}
}

// value decodes n into v, which holds the default and keeps it if n is invalid.
func (d *decoder) value(n *yaml.Node, v reflect.Value, f *field, path string) {
	if !d.plain(n, path) {
		return
	}
	switch into := v.Addr().Interface().(type) {
	case *string:
		d.text(n, into, f, path)
	case *time.Duration:
		d.period(n, into, path)
	case *bool:
		d.truth(n, into, path)
	case *int:
		d.number(n, into, f, path)
	case *float64:
		d.fraction(n, into, f, path)
	case *[]string:
		d.texts(n, into, f, path)
	case *ClaimPath:
		d.claim(n, into, path)
	case *secret.Ref:
		d.reference(n, into, path)
	case *Listener, *HTTPListener:
		d.listener(n, v, path)
	default:
		d.composite(n, v, f, path)
	}
}

func (d *decoder) composite(n *yaml.Node, v reflect.Value, f *field, path string) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		d.value(n, v.Elem(), f, path)
	case reflect.Map:
		d.mapping(n, v, f, path)
	case reflect.Slice:
		d.list(n, v, f, path)
	default:
		d.structure(n, v, path)
	}
}

// plain rejects YAML features that disguise a node's value.
func (d *decoder) plain(n *yaml.Node, path string) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.addf(n.Line, "%s: "+noAliases, path)
	case n.Style&yaml.TaggedStyle != 0:
		d.addf(n.Line, "%s: tags (!) are not read: remove it, or put a text that begins so in quotes", path)
	default:
		return true
	}
	return false
}

// unexpected reports a value of the wrong type.
func (d *decoder) unexpected(n *yaml.Node, path, expected string) {
	hint := ""
	switch {
	case n.Tag == "!!null":
		hint = ": give a value or remove the key"
	case expected == "text" && n.Kind == yaml.ScalarNode:
		hint = ": put it in quotes"
	}
	d.addf(n.Line, "%s: expected %s, found %s%s", path, expected, kindOf(n), hint)
}

// structure decodes a mapping whose keys are v's fields. A nil n is a mapping
// without keys.
func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string) {
	if n != nil && n.Kind != yaml.MappingNode {
		d.unexpected(n, path, "a mapping")
		n = nil
	}
	fields := d.fieldsOf(v.Type())
	nodes := make([]*yaml.Node, len(fields))
	if n != nil {
		d.pick(n, fields, nodes, path)
	}
	for i := range fields {
		f := &fields[i]
		target := v.FieldByIndex(f.index)
		f.setDefault(target)
		switch {
		case nodes[i] != nil:
			d.value(nodes[i], target, f, join(path, f.name))
		case target.Kind() == reflect.Struct && !f.leaf:
			d.structure(nil, target, join(path, f.name))
		case f.required && n != nil:
			d.addAtf(path, "%s is missing", f.name)
		}
	}
}

// pick finds the node of each field among n's keys.
func (d *decoder) pick(n *yaml.Node, fields []field, nodes []*yaml.Node, path string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		at := slices.IndexFunc(fields, func(f field) bool { return f.name == key.Value })
		switch {
		case !d.usable(key, path):
		case at < 0:
			d.addf(key.Line, "%s: no such key%s", join(path, key.Value), d.suggest(path, key.Value, fields))
		case nodes[at] != nil:
			d.twice(key, join(path, key.Value))
		default:
			nodes[at] = n.Content[i+1]
			d.lines[join(path, key.Value)] = key.Line
		}
	}
}

// usable rejects keys that cannot be names. The message does not repeat them: without the
// space after the colon, a key includes its value.
func (d *decoder) usable(key *yaml.Node, path string) bool {
	if path == "" {
		path = "the file"
	}
	switch {
	case key.Tag == "!!merge":
		d.addf(key.Line, "%s: merge keys (<<) are not read: write the keys out", path)
	case !d.plain(key, path):
	case key.Kind == yaml.ScalarNode && d.name.MatchString(key.Value):
		return true
	case key.Kind == yaml.ScalarNode && strings.Contains(key.Value, ":"):
		d.addf(key.Line, "%s: a key with a colon in it: put a space after the colon that ends the key", path)
	default:
		d.addf(key.Line, "%s: a key or name here is 1 to 128 letters, digits, dots, underscores and hyphens", path)
	}
	return false
}

func (d *decoder) twice(key *yaml.Node, path string) {
	d.addf(key.Line, "%s: given before, in line %d: remove one of them", path, d.lines[path])
}

// mapping decodes a mapping whose keys are names.
func (d *decoder) mapping(n *yaml.Node, v reflect.Value, f *field, path string) {
	if n.Kind != yaml.MappingNode {
		d.unexpected(n, path, "a mapping")
		return
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(n.Content)/2))
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, at := n.Content[i], join(path, n.Content[i].Value)
		switch {
		case !d.usable(key, path):
		case d.given(at):
			d.twice(key, at)
		default:
			d.lines[at] = key.Line
			element := reflect.New(v.Type().Elem()).Elem()
			d.value(n.Content[i+1], element, f, at)
			v.SetMapIndex(reflect.ValueOf(key.Value), element)
		}
	}
}

// list decodes a list of mappings.
func (d *decoder) list(n *yaml.Node, v reflect.Value, f *field, path string) {
	if n.Kind != yaml.SequenceNode {
		d.unexpected(n, path, "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, element := range n.Content {
		d.lines[item(path, i)] = element.Line
		d.value(element, v.Index(i), f, item(path, i))
	}
}

func (d *decoder) texts(n *yaml.Node, into *[]string, f *field, path string) {
	if n.Kind != yaml.SequenceNode {
		d.unexpected(n, path, "a list such as [a, b]")
		return
	}
	if len(n.Content) < f.limits["minItems"] {
		d.emptyList(n, f, path)
	}
	if most := f.limits["maxItems"]; most > 0 && len(n.Content) > most {
		d.addf(n.Line, "%s: at most %d are possible", path, most)
		return
	}
	values := make([]string, len(n.Content))
	for i, element := range n.Content {
		at := item(path, i)
		d.lines[at] = element.Line
		d.value(element, reflect.ValueOf(&values[i]).Elem(), f, at)
		if before := slices.Index(values[:i], values[i]); f.unique && before >= 0 && values[i] != "" {
			d.addf(element.Line, "%s: the same as %s: remove one of them", at, item(path, before))
		}
	}
	*into = values
}

// Bounds of a ClaimPath.
const (
	maxClaimDepth = 4
	maxClaimName  = 256
)

// claim decodes the name of a claim, or a list of names.
func (d *decoder) claim(n *yaml.Node, into *ClaimPath, path string) {
	bounds := &field{required: true, limits: map[string]int{"minItems": 1, "maxItems": maxClaimDepth, "minLength": 1, "maxLength": maxClaimName}}
	if n.Kind == yaml.SequenceNode {
		d.texts(n, (*[]string)(into), bounds, path)
		return
	}
	name, ok := d.scalar(n, path, "the name of a claim, or a list of names such as [realm_access, roles]")
	switch {
	case !ok:
	case name == "":
		d.addf(n.Line, "%s: must not be empty", path)
	case len(name) > maxClaimName:
		d.addf(n.Line, "%s: must not be longer than %d bytes", path, maxClaimName)
	default:
		*into = ClaimPath{name}
	}
}

func (d *decoder) emptyList(n *yaml.Node, f *field, path string) {
	if f.required {
		d.addf(n.Line, "%s: the list is empty: give at least one", path)
		return
	}
	d.addf(n.Line, "%s: the list is empty: give at least one, or remove the key", path)
}

// scalar returns the text of n, which must be text.
func (d *decoder) scalar(n *yaml.Node, path, expected string) (string, bool) {
	// A date is a timestamp only in YAML 1.1; here it is text.
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" && n.Tag != "!!timestamp" {
		d.unexpected(n, path, expected)
		return "", false
	}
	return n.Value, true
}

func (d *decoder) text(n *yaml.Node, into *string, f *field, path string) {
	value, ok := d.scalar(n, path, "text")
	most := f.limits["maxLength"]
	switch {
	case !ok:
	case len(f.enum) > 0 && !slices.Contains(f.enum, value):
		d.addf(n.Line, "%s: expected %s%s", path, oneOf(f.enum), didYouMean(value, f.enum))
	case value == "" && f.limits["minLength"] > 0:
		d.addf(n.Line, "%s: must not be empty", path)
	case most > 0 && len(value) > most:
		d.addf(n.Line, "%s: must not be longer than %d bytes", path, most)
	default:
		*into = value
	}
}

func (d *decoder) period(n *yaml.Node, into *time.Duration, path string) {
	value, ok := d.scalar(n, path, expectedDuration)
	if !ok {
		return
	}
	period, err := time.ParseDuration(value)
	if err != nil || !d.duration.MatchString(value) {
		d.addf(n.Line, "%s: expected %s", path, expectedDuration)
		return
	}
	*into = period
}

func (d *decoder) truth(n *yaml.Node, into *bool, path string) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
		d.unexpected(n, path, "true or false")
		return
	}
	*into = strings.EqualFold(n.Value, "true")
}

func (d *decoder) number(n *yaml.Node, into *int, f *field, path string) {
	least, most := f.limits["minimum"], f.limits["maximum"]
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" {
		d.unexpected(n, path, "a whole number")
		return
	}
	var value int
	if err := n.Load(&value); err != nil || value < least || value > most {
		d.addf(n.Line, "%s: must be from %d to %d", path, least, most)
		return
	}
	*into = value
}

func (d *decoder) fraction(n *yaml.Node, into *float64, f *field, path string) {
	least, most := f.limits["minimum"], f.limits["maximum"]
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" && n.Tag != "!!float" {
		d.unexpected(n, path, "a number such as 0.01")
		return
	}
	var value float64
	// NaN compares false with both bounds, so the condition is a negated "within".
	if err := n.Load(&value); err != nil || !(value >= float64(least) && value <= float64(most)) {
		d.addf(n.Line, "%s: must be from %d to %d", path, least, most)
		return
	}
	*into = value
}

func (d *decoder) reference(n *yaml.Node, into *secret.Ref, path string) {
	value, ok := d.scalar(n, path, "file:PATH or env:NAME")
	if !ok {
		return
	}
	ref, err := secret.ParseRef(value)
	if err == nil && ref.Managed() && !mayBeManaged(path) {
		err = errors.New("managed is for the secrets of clients only: give file:PATH or env:NAME")
	}
	if err != nil {
		d.addf(n.Line, "%s: %v", path, err)
		return
	}
	*into = ref
}

// mayBeManaged reports whether the path is that of a client's secret.
func mayBeManaged(path string) bool {
	return strings.HasPrefix(path, "clients.") && strings.HasSuffix(path, ".secret")
}

// listener decodes an address or a mapping. "off" means no listener.
func (d *decoder) listener(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == yaml.MappingNode {
		d.structure(n, v, path)
		return
	}
	const expected = "an address such as 127.0.0.1:8443, or {address: ..., plaintext: true}"
	switch value, ok := d.scalar(n, path, expected); {
	case !ok:
	case value == "":
		d.addf(n.Line, "%s: expected %s", path, expected)
	case value == "off":
		v.SetZero()
	default:
		v.FieldByName("Address").SetString(value)
	}
}
