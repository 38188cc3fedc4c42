package jose_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/cezzis/tokenbroker/internal/jose"
)

func wide(members int) string {
	var b strings.Builder
	for i := range members {
		fmt.Fprintf(&b, `,"m%d":%d`, i, i)
	}
	return "{" + b.String()[1:] + "}"
}

func TestParseObjectAccepts(t *testing.T) {
	for name, text := range map[string]string{
		"the empty object":          `{}`,
		"white space around":        " \n{ \"a\" : 1 } \t",
		"8 levels":                  strings.Repeat(`{"a":`, 7) + `{}` + strings.Repeat(`}`, 7),
		"brackets in strings":       `{"a":"[[[[[[[[[[{{{{{{{{{{\"[[[[[["}`,
		"64 members":                wide(64),
		"a surrogate pair":          `{"a":"\ud83d\ude00"}`,
		"names that differ in case": `{"a":1,"A":2}`,
		"one name in two objects":   `{"a":{"x":1},"b":{"x":1}}`,
	} {
		if _, err := jose.ParseObject([]byte(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseObjectRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":                    "",
		"an array":                   `[{"a":1}]`,
		"a string":                   `"a"`,
		"null":                       `null`,
		"a second object":            `{"a":1}{"a":1}`,
		"garbage after it":           `{"a":1}x`,
		"a NUL after it":             "{\"a\":1}\x00",
		"a byte order mark":          "\ufeff{\"a\":1}",
		"a name twice":               `{"a":1,"a":1}`,
		"a name twice, once escaped": `{"a":1,"\u0061":1}`,
		"a name twice, deeper":       `{"x":[{"a":1,"a":2}]}`,
		"invalid UTF-8":              "{\"a\":\"\xff\"}",
		"invalid UTF-8, deeper":      "{\"a\":{\"b\":[\"\xc0\xaf\"]}}",
		"invalid UTF-8 in a name":    "{\"\xff\":1}",
		"a lone surrogate":           `{"a":"\ud800"}`,
		"a lone surrogate in a name": `{"\udc00":1}`,
		"9 levels":                   strings.Repeat(`{"a":`, 8) + `{}` + strings.Repeat(`}`, 8),
		"9,000 levels":               strings.Repeat(`[`, 9000),
		"9,000 levels after an escape out of string": `{"a":\"` + strings.Repeat(`[`, 9000),
		"65 members":                          wide(65),
		"a comma too much":                    `{"a":1,}`,
		"a comment":                           `{"a":1/**/}`,
		"single quotes":                       `{'a':1}`,
		"NaN":                                 `{"a":NaN}`,
		"a number with a leading zero":        `{"a":01}`,
		"a raw control character in a string": "{\"a\":\"\n\"}",
		"a cut off text":                      `{"a":1`,
	} {
		if _, err := jose.ParseObject([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMembersOfAnObject(t *testing.T) {
	data := []byte(`{"s":"text","e":"a\u0062c\ud83d\ude00","empty":"","nul":"a\u0000","del":"a\u007f","c1":"a\u0085","n":12.5,"huge":1e999,
		"l":["a","b"],"none":[],"mixed":["a",1],"bad":["a\u0001"],"null":null,"o":{"x":"y"},"true":true,"\u006eame":"escaped"}`)
	before := bytes.Clone(data)
	o, err := jose.ParseObject(data)
	if err != nil {
		t.Fatal(err)
	}
	show := func(values ...any) string { return fmt.Sprint(values...) }
	text := func(name string) string { v, present, err := o.Text(name); return show(v, present, err != nil) }
	list := func(name string) string { v, present, err := o.List(name); return show(v, present, err != nil) }
	number := func(name string) string { v, present, err := o.Number(name); return show(v, present, err != nil) }
	for _, tt := range []struct{ what, got, want string }{
		{"text", text("s"), show("text", true, false)},
		{"escaped text", text("e"), show("abc😀", true, false)},
		{"empty text", text("empty"), show("", true, false)},
		{"absent text", text("S"), show("", false, false)},
		{"null as text", text("null"), show("", true, true)},
		{"a number as text", text("n"), show("", true, true)},
		{"NUL in a text", text("nul"), show("", true, true)},
		{"DEL in a text", text("del"), show("", true, true)},
		{"a C1 control in a text", text("c1"), show("", true, true)},
		{"a name with escapes", text("name"), show("escaped", true, false)},
		{"a list", list("l"), show([]string{"a", "b"}, true, false)},
		{"an empty list", list("none"), show([]string{}, true, false)},
		{"a text as list", list("s"), show([]string(nil), true, true)},
		{"an absent list", list("x"), show([]string(nil), false, false)},
		{"a mixed list", list("mixed"), show([]string(nil), true, true)},
		{"a control in a list", list("bad"), show([]string(nil), true, true)},
		{"a number", number("n"), show(12.5, true, false)},
		{"an absent number", number("x"), show(0.0, false, false)},
		{"a number beyond float64", number("huge"), show(0.0, true, true)},
		{"a text as number", number("s"), show(0.0, true, true)},
		{"null as number", number("null"), show(0.0, true, true)},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, tt.got, tt.want)
		}
	}
	for _, name := range []string{"null", "n", "true", "o"} {
		if _, _, err := o.List(name); err == nil || o.IsArray(name) {
			t.Errorf("%s was accepted as a list", name)
		}
	}
	inner, present, err := o.Object("o")
	if v, _, _ := inner.Text("x"); !present || err != nil || v != "y" {
		t.Errorf("object: %v %v %q", present, err, v)
	}
	if _, present, err := o.Object("l"); !present || err == nil {
		t.Error("a list was accepted as an object")
	}
	if _, present, err := o.Object("x"); present || err != nil {
		t.Error("an absent object is an error")
	}
	if !o.IsArray("mixed") || o.IsArray("x") {
		t.Error("IsArray")
	}
	if !o.Has("null") || o.Has("NULL") {
		t.Error("Has")
	}
	if !bytes.Equal(data, before) {
		t.Error("the text that was read is not what it was")
	}
}

// encoding/json reads each accepted object in the same way.
func FuzzParseObject(f *testing.F) {
	for _, seed := range []string{
		`{}`, `{"iss":"https://i","sub":"s","aud":["a","b"],"exp":1,"scope":"a b"}`, `{"a":1,"a":2}`, "{\"a\":\"\xff\"}", `{"a":"\ud800"}`,
		`{"a":{"b":[1,{"c":null}]}}`, strings.Repeat(`{"a":`, 9) + "1" + strings.Repeat("}", 9), `{"exp":1e3,"nbf":-0.5}`, `{"\u0061":"\u0000"}`, `{} {}`, `{"a":1e700}`, wide(70),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := jose.ParseObject(data)
		if err != nil {
			return
		}
		var reference map[string]any
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber() // a number may be larger than any float64
		if err := dec.Decode(&reference); err != nil || dec.More() || !utf8.Valid(data) {
			t.Fatalf("%q was accepted: %v", data, err)
		}
		for name, want := range reference {
			if !o.Has(name) {
				t.Fatalf("%q: no member %q", data, name)
			}
			if text, _, err := o.Text(name); err == nil && text != want {
				t.Errorf("%q: %q is %q, want %v", data, name, text, want)
			}
			if number, _, err := o.Number(name); err == nil {
				if want, err := want.(json.Number).Float64(); number != want || err != nil {
					t.Errorf("%q: %q is %v, want %v", data, name, number, want)
				}
			}
			if list, _, err := o.List(name); err == nil && !slices.Equal(list, texts(want)) {
				t.Errorf("%q: %q is %q, want %v", data, name, list, want)
			}
			_, _, _ = o.Object(name)
		}
	})
}

func texts(value any) []string {
	var list []string
	for _, element := range value.([]any) {
		list = append(list, element.(string))
	}
	return list
}
