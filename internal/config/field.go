package config

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// field is a key of a mapping and the constraints of its jsonschema tag.
type field struct {
	index    []int
	name     string
	leaf     bool // a struct that is one value: it has no keys to fill
	required bool
	unique   bool
	enum     []string
	defaults []string // one value, or one per list item
	limits   map[string]int
}

func (d *decoder) fieldsOf(t reflect.Type) []field {
	if known, ok := d.fields[t]; ok {
		return known
	}
	var fields []field
	for _, f := range reflect.VisibleFields(t) { // an embedded struct has its keys here
		if !f.Anonymous && f.Tag.Get("yaml") != "-" {
			fields = append(fields, newField(f))
		}
	}
	d.fields[t] = fields
	return fields
}

func newField(from reflect.StructField) field {
	f := field{index: from.Index, name: from.Tag.Get("yaml"), limits: map[string]int{}}
	f.leaf = slices.Contains([]reflect.Type{reflect.TypeFor[secret.Ref](), reflect.TypeFor[Listener](), reflect.TypeFor[HTTPListener]()}, from.Type)
	for tag := range strings.SplitSeq(from.Tag.Get("jsonschema"), ",") {
		key, value, _ := strings.Cut(tag, "=")
		switch key {
		case "required":
			f.required = true
		case "uniqueItems":
			f.unique = true
		case "enum":
			f.enum = append(f.enum, value)
		case "values":
			f.enum = valuesOf(value)
		case "default":
			f.defaults = append(f.defaults, value)
		default:
			if limit, err := strconv.Atoi(value); err == nil {
				f.limits[key] = limit
			}
		}
	}
	return f
}

// valuesOf returns the values of a key with a list from other code, named in its
// jsonschema tag: so the list cannot differ from that code.
func valuesOf(list string) []string {
	switch list {
	case "actions":
		return append(texts(policy.Actions()), policy.Any)
	case "algorithms":
		return jose.Algorithms()
	case "assertion_algorithms":
		return jose.SigningAlgorithms()
	case "assertion_types":
		return idp.AssertionTypes()
	case "auth_methods":
		return texts(idp.AuthMethods())
	case "issuer_presets":
		return slices.Sorted(maps.Keys(issuerPresets()))
	case "presets":
		return slices.Sorted(maps.Keys(presets()))
	case "undecided":
		return slices.Sorted(maps.Keys(Undecided()))
	case "verifications":
		return slices.Sorted(maps.Keys(Verifications()))
	default:
		panic("a jsonschema tag names the list " + list + ", which does not exist")
	}
}

func texts[T ~string](values []T) []string {
	made := make([]string, len(values))
	for i, value := range values {
		made[i] = string(value)
	}
	return made
}

func (f *field) setDefault(v reflect.Value) {
	if len(f.defaults) == 0 {
		return
	}
	text := f.defaults[0]
	switch into := v.Addr().Interface().(type) {
	case *string:
		*into = text
	case *[]string:
		*into = slices.Clone(f.defaults)
	case *ClaimPath:
		*into = ClaimPath{text}
	case *time.Duration:
		*into, _ = time.ParseDuration(text)
	case *bool:
		*into = text == "true"
	case *int:
		*into, _ = strconv.Atoi(text)
	case *float64:
		*into, _ = strconv.ParseFloat(text, 64)
	case *Listener:
		if text != "off" {
			into.Address = text
		}
	}
}

// suggest names the key that replaced this one, or the nearest key, or all valid keys.
func (d *decoder) suggest(path, key string, fields []field) string {
	if replaced := d.replacement(path, key); replaced != "" {
		return "; it is now " + replaced
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	near := didYouMean(key, names)
	switch {
	case near != "":
		return near
	case len(names) == 0:
		return "; no key is possible here"
	default:
		return "; possible here: " + strings.Join(names, ", ")
	}
}

// replacement returns the key that replaced one of an earlier version, or "".
func (d *decoder) replacement(path, key string) string {
	switch join(path, key) {
	case "gateways.url":
		return "listen.http.url"
	case "server.audience":
		return "server.caller_audience"
	}
	member, ofAssertion := strings.CutPrefix(key, "assertion_")
	isMember := func(f field) bool { return f.name == member }
	if ofAssertion && strings.HasPrefix(path, "clients.") && slices.ContainsFunc(d.fieldsOf(reflect.TypeFor[Assertion]()), isMember) {
		return "assertion." + member
	}
	return ""
}

// didYouMean returns "; did you mean x?" for the nearest of known, or "" if no name is
// near.
func didYouMean(text string, known []string) string {
	if len(text) > 64 {
		return ""
	}
	best, least := "", 1+max(2, len(text)/3)
	for _, k := range known {
		distance := editDistance(text, k)
		if len(text) > 2 && (strings.HasPrefix(text, k) || strings.HasPrefix(k, text)) {
			distance = min(distance, 2)
		}
		if distance < least {
			best, least = k, distance
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// editDistance returns the number of bytes to insert, remove or replace to turn a into b.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// oneOf formats names as "a, b or c".
func oneOf(names []string) string {
	last := len(names) - 1
	if last == 0 {
		return names[0]
	}
	return strings.Join(names[:last], ", ") + " or " + names[last]
}
