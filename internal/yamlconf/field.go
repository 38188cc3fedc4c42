package yamlconf

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// field is a key of a mapping and the constraints of its jsonschema tag.
type field struct {
	index    []int
	name     string
	required bool
	unique   bool
	enum     []string
	defaults []string // one value, or one per list item
	limits   map[string]int
}

func (d *decoder) fieldsOf(t reflect.Type) []field {
	if fields, ok := d.fields[t]; ok {
		return fields
	}
	var fields []field
	for _, f := range reflect.VisibleFields(t) { // an embedded struct has its keys here
		if !f.Anonymous && f.Tag.Get("yaml") != "-" {
			key := d.constraints(f.Tag.Get("jsonschema"))
			key.index, key.name = f.Index, f.Tag.Get("yaml")
			fields = append(fields, *key)
		}
	}
	d.fields[t] = fields
	return fields
}

// constraints parses a jsonschema tag.
func (d *decoder) constraints(tag string) *field {
	f := &field{limits: map[string]int{}}
	for constraint := range strings.SplitSeq(tag, ",") {
		key, value, _ := strings.Cut(constraint, "=")
		switch key {
		case "required":
			f.required = true
		case "uniqueItems":
			f.unique = true
		case "enum":
			f.enum = append(f.enum, value)
		case "values":
			f.enum = d.Values(value)
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

func (d *decoder) setDefault(v reflect.Value, f *field) {
	if len(f.defaults) == 0 {
		return
	}
	text := f.defaults[0]
	if decode, ok := d.Types[v.Type()]; ok {
		decode(Node{d, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}, f.name}, v)
		return
	}
	switch into := v.Addr().Interface().(type) {
	case *string:
		*into = text
	case *[]string:
		*into = slices.Clone(f.defaults)
	case *time.Duration:
		*into, _ = time.ParseDuration(text)
	case *bool:
		*into = text == "true"
	case *int:
		*into, _ = strconv.Atoi(text)
	case *float64:
		*into, _ = strconv.ParseFloat(text, 64)
	}
}

// suggest names the key that replaced this one, or the nearest key, or all valid keys.
func (d *decoder) suggest(path, key string, fields []field) string {
	if replacement := d.Replaced(path, key); replacement != "" {
		return "; it is now " + replacement
	}
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	near := DidYouMean(key, names)
	switch {
	case near != "":
		return near
	case len(names) == 0:
		return "; no key is possible here"
	default:
		return "; possible here: " + strings.Join(names, ", ")
	}
}

// DidYouMean returns "; did you mean x?" for the nearest of names, or "" if no name is
// near.
func DidYouMean(text string, names []string) string {
	if len(text) > 64 {
		return ""
	}
	best, least := "", 1+max(2, len(text)/3)
	for _, name := range names {
		distance := editDistance(text, name)
		if len(text) > 2 && (strings.HasPrefix(text, name) || strings.HasPrefix(name, text)) {
			distance = min(distance, 2)
		}
		if distance < least {
			best, least = name, distance
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

// OneOf formats names as "a, b or c".
func OneOf(names []string) string {
	last := len(names) - 1
	if last == 0 {
		return names[0]
	}
	return strings.Join(names[:last], ", ") + " or " + names[last]
}
