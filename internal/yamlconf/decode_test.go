package yamlconf_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// building is the content of a file.
type building struct {
	Rooms map[string]room `yaml:"rooms"`
	Doors []door          `yaml:"doors" jsonschema:"maxItems=2"`
	Site  site            `yaml:"site"`
}

type room struct {
	Name   string            `yaml:"name" jsonschema:"required,minLength=1,maxLength=8"`
	Size   int               `yaml:"size" jsonschema:"default=2,minimum=1,maximum=9"`
	Title  string            `yaml:"title"`
	Level  string            `yaml:"level" jsonschema:"values=levels"`
	Tags   []string          `yaml:"tags" jsonschema:"default=a,default=b,minItems=1,maxItems=3,uniqueItems=true,minLength=1"`
	Labels map[string]string `yaml:"labels"`
	Area   area              `yaml:"area" jsonschema:"default=2x3"`
	Main   *door             `yaml:"main"`
}

type door struct {
	Open  bool          `yaml:"open" jsonschema:"default=true"`
	Pause time.Duration `yaml:"pause" jsonschema:"default=5s"`
	Share float64       `yaml:"share" jsonschema:"default=0.5,minimum=0,maximum=1"`
}

type site struct {
	Country string `yaml:"country" jsonschema:"default=ch,enum=ch,enum=de"`
}

// area has a notation of its own: WIDTHxHEIGHT, a list of both, or a mapping.
type area struct {
	Width  string `yaml:"width" jsonschema:"required"`
	Height string `yaml:"height"`
}

func decodeArea(n yamlconf.Node, v reflect.Value) {
	if n.IsMapping() {
		n.Struct(v)
		return
	}
	if n.IsList() {
		if sides, ok := n.Texts("required,minItems=1,maxItems=2"); ok {
			v.Set(reflect.ValueOf(area{sides[0], sides[len(sides)-1]}))
		}
		return
	}
	text, ok := n.Text("WIDTHxHEIGHT", "maxLength=5")
	if !ok {
		return
	}
	width, height, ok := strings.Cut(text, "x")
	if !ok {
		n.Addf("expected WIDTHxHEIGHT")
		return
	}
	v.Set(reflect.ValueOf(area{width, height}))
}

func decode(text string) (building, *yamlconf.Findings, error) {
	var b building
	findings, err := yamlconf.Decode("x", []byte(text), &b, yamlconf.Format{
		Root:  "a mapping of rooms and doors",
		Empty: "configure a room",
		Types: map[reflect.Type]func(n yamlconf.Node, v reflect.Value){reflect.TypeFor[area](): decodeArea},
		Values: func(list string) []string {
			if list != "levels" {
				panic("unknown list " + list)
			}
			return []string{"ground", "upper"}
		},
		Replaced: func(path, key string) string {
			if yamlconf.Join(path, key) == "site.land" {
				return "site.country"
			}
			return ""
		},
	})
	if err == nil {
		err = findings.Err()
	}
	return b, findings, err
}

// hall is a good file of five lines; keys are added to its room from line 6 on.
func hall(keys ...string) string {
	text := "rooms:\n  hall:\n    name: hall\n    size: 3\n    title: x\n"
	for _, key := range keys {
		text += "    " + key + "\n"
	}
	return text
}

func TestDecode(t *testing.T) {
	good := room{
		Name: "a", Size: 9, Title: "2026-01-01", Level: "upper", Tags: []string{"read", "true"}, Labels: map[string]string{"b.c": "1"},
		Area: area{"4", "5"}, Main: &door{Pause: 90 * time.Second, Share: 1},
	}
	for _, tt := range []struct {
		name, text string
		want       building
	}{
		{"defaults", "rooms: {b: {name: a}}\ndoors: [{}]\n", building{
			Rooms: map[string]room{"b": {Name: "a", Size: 2, Tags: []string{"a", "b"}, Area: area{"2", "3"}}},
			Doors: []door{{Open: true, Pause: 5 * time.Second, Share: 0.5}},
			Site:  site{"ch"},
		}},
		{"all keys", "rooms:\n  b:\n    name: a\n    size: 9\n    title: 2026-01-01\n    level: upper\n    tags: [read, 'true']\n    labels: {b.c: '1'}\n" +
			"    area: 4x5\n    main: {open: FALSE, pause: 1m30s, share: 1}\nsite: {country: de}\n", building{Rooms: map[string]room{"b": good}, Site: site{"de"}}},
		{"mapping for a type with its own notation", "rooms: {b: {name: a, tags: [c], area: {width: '7'}}}\n", building{
			Rooms: map[string]room{"b": {Name: "a", Size: 2, Tags: []string{"c"}, Area: area{Width: "7", Height: "3"}}}, Site: site{"ch"},
		}},
		{"list for a type with its own notation", "rooms: {b: {name: a, tags: [c], area: ['7', '8']}}\n", building{
			Rooms: map[string]room{"b": {Name: "a", Size: 2, Tags: []string{"c"}, Area: area{"7", "8"}}}, Site: site{"ch"},
		}},
		{"byte order mark and CRLF", "\ufeffsite:\r\n  country: de\r\n", building{Site: site{"de"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, _, err := decode(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// badFile is a file and its problems, one per line: the line and the message.
type badFile struct{ name, text, want string }

func badFiles() []badFile {
	return []badFile{
		{"empty", "", "1: the file is empty: configure a room"},
		{"only comments", "# nothing\n\n# here\n", "1: the file is empty: configure a room"},
		{"empty document", "---\n", "2: the file is empty: configure a room"},
		{"two documents", hall() + "---\n" + hall(), "6: a second document begins here: the configuration is one document, without --- inside"},
		{"broken second document", hall() + "---\na: [b", "7: the quote or bracket that opens here is not closed as expected: close it, or check the commas inside"},
		{"not UTF-8", "log:\n  level: \xc3(\n", "2: the text is not UTF-8 here: save the file as UTF-8"},
		{"UTF-16", "\xff\xfea\x00:\x00", "1: the text is not UTF-8 here: save the file as UTF-8"},
		{"control character", "log:\n  level: \x01\n", `2: a control character: remove it, or write it as \x.. in double quotes`},
		{"too large", strings.Repeat("#\n", 8<<20) + "#", "1: the file is larger than 16 MiB: is it the configuration?"},
		{"tab", "log:\n\tlevel: info\n", "2: a tab: indent with spaces"},
		{"tab after spaces", "log:\n  \tlevel: info\n", "2: a tab: indent with spaces"},
		{"open list", hall("tags: [read, write"), "6: the quote or bracket that opens here is not closed as expected: close it, or check the commas inside"},
		{"open mapping", "log: {level: info\nrooms: {}\n", "1: the quote or bracket that opens here is not closed as expected: close it, or check the commas inside"},
		{"open quote", hall(`title: "https://hall`), "6: the quote or bracket that opens here is not closed as expected: close it, or check the commas inside"},
		{"two colons", hall("title: urn: hall"), "6: a colon makes a key here, where no key is possible: check the indentation, or put the text in quotes"},
		{"no colon", "log:\n  level info\n  format: json\n", "3: a colon makes a key here, where no key is possible: check the indentation, or put the text in quotes"},
		{"no colon at all", "log:\n  level: info\nrooms\ndoors:\n", "4: a key and its value are expected: is the colon missing, or the space after it?"},
		{"at sign", hall("title: @hall"), "6: a text that begins with one of @ ` % | > must be in quotes"},
		{"odd indentation", "rooms:\n    a:\n  b:\n", "3: a key is expected: check the indentation, and the quotes in the line before"},
		{"key in a list", "doors:\n  - a\n  b: c\n", "3: an item (-) of the list is expected: check the indentation"},
		{"item behind a key", hall("tags: - read"), "6: an item (-) may not stand here: begin the list in a line of its own, or check the indentation"},
		{"escape", hall(`title: "a\qb"`), "6: a backslash in double quotes begins an escape: double it, or use single quotes"},
		{"deep", strings.Repeat("[", 20_000), "1: nested too deeply"},
		{"directive", "%YAML 3.0\n---\nlog: {}\n", "1: not valid YAML: check the indentation, quotes and brackets here and in the line before"},
		{"unknown alias", hall("title: *hall"), "6: anchors (&) and aliases (*) are not read: write the value out, or put a text that begins so in quotes"},
		{"alias", hall("level: &a x", "tags: [*a]"), "6: rooms.hall.level: anchors (&) and aliases (*) are not read: write the value out, or put a text that begins so in quotes\n" +
			"7: rooms.hall.tags[0]: anchors (&) and aliases (*) are not read: write the value out, or put a text that begins so in quotes"},
		{"merge key", hall("<<: {title: x}"), "6: rooms.hall: merge keys (<<) are not read: write the keys out"},
		{"tag", hall("level: !!str 5"), "6: rooms.hall.level: tags (!) are not read: remove it, or put a text that begins so in quotes"},
		{"key twice", hall("size: 3"), "6: rooms.hall.size: given before, in line 4: remove one of them"},
		{"section twice", hall() + "rooms: {}\n", "6: rooms: given before, in line 1: remove one of them"},
		{"room twice", hall() + "  hall: {}\n", "6: rooms.hall: given before, in line 2: remove one of them"},
		{"label twice", hall("labels: {a: x, a: y}"), "6: rooms.hall.labels.a: given before, in line 6: remove one of them"},
		{"key is a list", hall("? [a]", ": b"), "6: rooms.hall: a key or name here is 1 to 128 letters, digits, dots, underscores and hyphens"},
		{"text in place of a mapping", "hello\n", "1: the file is expected to be a mapping of rooms and doors, and is text"},
		{"unknown key", hall("nothing: x"), "6: rooms.hall.nothing: no such key; possible here: name, size, title, level, tags, labels, area, main"},
		{"misspelt key", hall("titel: x"), "6: rooms.hall.titel: no such key; did you mean title?"},
		{"replaced key", "site: {land: ch}\n", "1: site.land: no such key; it is now site.country"},
		{"missing key", "rooms: {a: {}}\n", "1: rooms.a: name is missing"},
		{"missing key of a type with its own notation", hall("area: {}"), "6: rooms.hall.area: width is missing"},
		{"colon without a space", hall("labels: {a:x}"), "6: rooms.hall.labels: a key with a colon in it: put a space after the colon that ends the key"},
		{"name with a dot", "rooms: {b.c: {name: 5}}\n", `1: rooms."b.c".name: expected text, found a number: put it in quotes`},
		{"value of another type", hall("tags: x", "main: [x]", "labels: [x]", "area: 5"), "6: rooms.hall.tags: expected a list such as [a, b], found text\n" +
			"7: rooms.hall.main: expected a mapping, found a list\n8: rooms.hall.labels: expected a mapping, found a list\n9: rooms.hall.area: expected WIDTHxHEIGHT, found a number"},
		{"section of another type", "rooms: x\ndoors: {}\nsite:\n", "1: rooms: expected a mapping, found text\n2: doors: expected a list, found a mapping\n" +
			"3: site: expected a mapping, found nothing: give a value or remove the key"},
		{"scalars of another type", "doors:\n- open: yes\n  pause: 5\n  share: x\n- share: .nan\n  pause: 1d\n", "2: doors[0].open: expected true or false, found text\n" +
			"3: doors[0].pause: expected a duration such as 30s or 5m, found a number\n4: doors[0].share: expected a number such as 0.01, found text\n" +
			"5: doors[1].share: must be from 0 to 1\n6: doors[1].pause: expected a duration such as 30s or 5m"},
		{"values out of bounds", "rooms:\n  a:\n    name: ''\n    size: 10\n    level: uper\n    tags: []\n  b:\n    name: much too long\n    size: 1.5\n    tags: [a, b, a]\n",
			"3: rooms.a.name: must not be empty\n4: rooms.a.size: must be from 1 to 9\n5: rooms.a.level: expected ground or upper; did you mean upper?\n" +
				"6: rooms.a.tags: the list is empty: give at least one, or remove the key\n8: rooms.b.name: must not be longer than 8 bytes\n" +
				"9: rooms.b.size: expected a whole number, found a number\n10: rooms.b.tags[2]: the same as rooms.b.tags[0]: remove one of them"},
		{"too many items", hall("tags: [a, b, c, d]"), "6: rooms.hall.tags: at most 3 are possible"},
		{"constraints of a type with its own notation", hall("area: 100x100"), "6: rooms.hall.area: must not be longer than 5 bytes"},
		{"list for a type with its own notation that is empty", hall("area: []"), "6: rooms.hall.area: the list is empty: give at least one"},
		{"problem of a type with its own notation", hall("area: '5'"), "6: rooms.hall.area: expected WIDTHxHEIGHT"},
	}
}

func TestDecode_badFiles(t *testing.T) {
	for _, c := range badFiles() {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := decode(c.text)
			if _, ok := errors.AsType[*yamlconf.Error](err); !ok {
				t.Fatalf("the error is %v, a %T", err, err)
			}
			want := "x:" + strings.ReplaceAll(c.want, "\n", "\nx:")
			if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(err.Error(), "\n")); d != "" {
				t.Errorf("messages (-want +got):\n%s", d)
			}
		})
	}
}

// A value with a problem keeps its default, so that checks that follow add no second problem.
func TestDecode_badValuesKeepTheirDefaults(t *testing.T) {
	b, findings, err := decode("doors: [{pause: 5}]\nsite: {country: fr}\n")
	if err == nil || b.Doors[0].Pause != 5*time.Second || b.Site.Country != "ch" {
		t.Errorf("%+v, %v", b, err)
	}
	if !findings.Given("site.country") || findings.Given("rooms") || findings.Line("doors[0].pause") != 1 {
		t.Errorf("findings: %+v", findings)
	}
}

func TestDefaultsAreNotShared(t *testing.T) {
	b, _, err := decode("rooms: {b: {name: b}, c: {name: c}}\n")
	if err != nil {
		t.Fatal(err)
	}
	b.Rooms["b"].Tags[0] = "changed"
	if got := b.Rooms["c"].Tags[0]; got != "a" {
		t.Errorf("changing one room changed the other's default to %q", got)
	}
}

func TestFindingsNameFileAndLine(t *testing.T) {
	_, findings, err := decode("\nsite:\n  country: de\n")
	if err != nil {
		t.Fatal(err)
	}
	findings.Addf("site.country", "is not %s", "there")
	findings.Addf("", "nothing is configured")
	findings.Warn("site", "is not used")
	if got, want := findings.Err().Error(), "x:1: nothing is configured\nx:3: site.country: is not there"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if w := findings.Warnings; len(w) != 1 || w[0].String() != "x:2: site: is not used" {
		t.Errorf("warnings are %v", w)
	}
	if got := (yamlconf.Problem{File: "x", Message: "cannot be read"}).String(); got != "x: cannot be read" {
		t.Errorf("a problem without a line is %q", got)
	}
}

// FuzzDecode checks that every file is decoded, or rejected with messages of this package
// that name a line.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(hall("tags: [a]", "main: {open: true, pause: 1m}", "area: {width: x}")))
	for _, c := range badFiles() {
		if len(c.text) < 4096 {
			f.Add([]byte(c.text))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _, err := decode(string(data))
		if err == nil {
			return
		}
		bad, ok := errors.AsType[*yamlconf.Error](err)
		if !ok || len(bad.Problems) == 0 {
			t.Fatalf("rejected with %v, a %T", err, err)
		}
		line := 1
		for _, p := range bad.Problems {
			if p.Line < line || p.File != "x" || p.Message == "" || strings.Contains(p.Message, "\n") {
				t.Errorf("after line %d: %+v", line, p)
			}
			line = p.Line
			for _, word := range []string{"go-yaml", "yaml:", "construct", "time.Duration", "reflect."} {
				if strings.Contains(p.Message, word) && !strings.Contains(string(data), word) {
					t.Errorf("the message contains %q: %s", word, p.Message)
				}
			}
		}
	})
}
