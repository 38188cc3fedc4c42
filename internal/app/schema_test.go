package app_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/invopop/jsonschema"
	validator "github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/secret"
)

var update = flag.Bool("update", false, "write docs/config.schema.json anew")

const (
	schemaFile  = "../../docs/config.schema.json"
	exampleFile = "../../broker.example.yaml"
	docsFile    = "../../docs/configuration.md"
)

// generateSchema makes the JSON Schema of the configuration from its types.
func generateSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	r := &jsonschema.Reflector{
		Anonymous:                  true,
		ExpandedStruct:             true,
		FieldNameTag:               "yaml",
		RequiredFromJSONSchemaTags: true,
		Mapper:                     mapType,
	}
	if err := r.AddGoComments("github.com/cezzis/tokenbroker/internal/app", "."); err != nil {
		t.Fatal(err)
	}
	for name, comment := range r.CommentMap {
		// Comments of types speak to Go programmers; those of fields to everyone.
		if strings.Count(filepath.Base(name), ".") == 1 {
			comment = ""
		}
		r.CommentMap[name] = strings.ReplaceAll(comment, "\n", " ")
	}
	s := r.Reflect(&app.Config{})
	s.Title = "tokenbroker configuration"
	refine(s)
	return s
}

// mapType is the schema of what a text in the file stands for.
func mapType(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return &jsonschema.Schema{Type: "string", Pattern: app.DurationPattern}
	case reflect.TypeFor[secret.Ref]():
		return &jsonschema.Schema{Type: "string", Pattern: "^(file|env):.+"}
	default:
		return nil
	}
}

// refine adds what tags cannot say.
func refine(s *jsonschema.Schema) {
	names := &jsonschema.Schema{Type: "string", Pattern: app.NamePattern}
	clients, _ := s.Properties.Get("clients")
	clients.PropertyNames = names

	reserved := &jsonschema.Schema{}
	for _, name := range app.ReservedParams() {
		reserved.Enum = append(reserved.Enum, name)
	}
	client := s.Definitions["ClientConfig"]
	params, _ := client.Properties.Get("params")
	params.PropertyNames = &jsonschema.Schema{Type: "string", Pattern: app.NamePattern, Not: reserved}

	// Only a client's secret may be managed.
	managed, _ := s.Definitions["ClientConfig"].Properties.Get("secret")
	managed.Pattern = "^((file|env):.+|managed)$"
	audience, _ := client.Properties.Get("assertion_audience")
	audience.Pattern = "^(issuer|token_endpoint|.*:.*)$"
	// Some presets know the token endpoint.
	endpoint := jsonschema.NewProperties()
	endpoint.Set("preset", &jsonschema.Schema{Enum: []any{"google", "zoom"}})
	client.OneOf = append(client.OneOf, &jsonschema.Schema{
		Title: "preset", Properties: endpoint, Required: []string{"preset"},
		Not: &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Required: []string{"issuer"}}, {Required: []string{"token_url"}}}},
	})

	for listener := range reflect.TypeFor[app.ListenConfig]().Fields() {
		if listener.Type != reflect.TypeFor[app.ListenerConfig]() {
			continue
		}
		property, _ := s.Definitions["ListenConfig"].Properties.Get(listener.Tag.Get("yaml"))
		_, property.Default, _ = strings.Cut(listener.Tag.Get("jsonschema"), "default=")
		address := &jsonschema.Schema{Type: "string", MinLength: new(uint64(1))}
		if listener.Name == "GRPC" {
			address.Not = &jsonschema.Schema{Const: "off"}
		}
		property.AnyOf = []*jsonschema.Schema{address, {Ref: property.Ref}}
		property.Ref = ""
	}
}

func TestSchema(t *testing.T) {
	want, err := json.MarshalIndent(generateSchema(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, '\n')
	if *update {
		if err := os.WriteFile(schemaFile, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Error("docs/config.schema.json is not what the types make: go test ./internal/app -run TestSchema -update")
	}
}

// published compiles the schema that is in docs, as an editor does.
func published(t *testing.T) *validator.Schema {
	t.Helper()
	compiled, err := validator.NewCompiler().Compile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// asJSON is a node as YAML's core schema has it: what looks like a date is
// text, and keys are text.
func asJSON(t *testing.T, n *yaml.Node) any {
	t.Helper()
	switch {
	case n.Kind == yaml.DocumentNode:
		return asJSON(t, n.Content[0])
	case n.Kind == yaml.MappingNode:
		object := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			object[n.Content[i].Value] = asJSON(t, n.Content[i+1])
		}
		return object
	case n.Kind == yaml.SequenceNode:
		list := []any{}
		for _, element := range n.Content {
			list = append(list, asJSON(t, element))
		}
		return list
	case n.Tag == "!!int" || n.Tag == "!!float" || n.Tag == "!!bool" || n.Tag == "!!null":
		var value any
		if err := n.Load(&value); err != nil {
			t.Fatal(err)
		}
		return value
	default:
		return n.Value
	}
}

func document(t *testing.T, data []byte) any {
	t.Helper()
	var node yaml.Node
	if err := yaml.Load(data, &node); err != nil {
		t.Fatal(err)
	}
	return asJSON(t, &node)
}

func TestSchemaAcceptsWhatTheBrokerAccepts(t *testing.T) {
	schema := published(t)
	good, err := filepath.Glob("testdata/config/*.yaml")
	if err != nil || len(good) < 5 {
		t.Fatalf("good configurations: %q, %v", good, err)
	}
	for _, path := range append(good, exampleFile) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := app.ParseConfig(path, data); err != nil {
			t.Errorf("the broker refuses a good configuration: %v", err)
		}
		if err := schema.Validate(document(t, data)); err != nil {
			t.Errorf("the schema refuses %s: %v", path, err)
		}
	}
}

func TestSchemaRefusesWhatIsStructurallyBad(t *testing.T) {
	schema := published(t)
	tried := 0
	for _, c := range badConfigs() {
		if !c.structural {
			continue
		}
		tried++
		if err := schema.Validate(document(t, []byte(c.file))); err == nil {
			t.Errorf("%s: the schema accepts\n%s", c.name, c.file)
		}
	}
	if tried < 50 {
		t.Errorf("only %d structurally bad configurations were tried", tried)
	}
}

func TestReservedParametersAreRefusedByBrokerAndSchema(t *testing.T) {
	schema := published(t)
	if len(app.ReservedParams()) < 5 {
		t.Errorf("reserved are only %q", app.ReservedParams())
	}
	for _, name := range app.ReservedParams() {
		file := []byte(client("params: {" + name + ": x}"))
		if _, err := app.ParseConfig("x", file); err == nil {
			t.Errorf("the broker accepts the parameter %s", name)
		}
		if err := schema.Validate(document(t, file)); err == nil {
			t.Errorf("the schema accepts the parameter %s", name)
		}
	}
}

// property is a key of the schema.
type property struct {
	path   string // with * for names and items
	schema *jsonschema.Schema
}

// properties lists all keys of the schema.
func properties(root, s *jsonschema.Schema, path string) []property {
	var all []property
	for _, alternative := range s.AnyOf {
		all = append(all, properties(root, alternative, path)...)
	}
	if s.Ref != "" {
		return properties(root, root.Definitions[strings.TrimPrefix(s.Ref, "#/$defs/")], path)
	}
	if s.Items != nil {
		all = append(all, properties(root, s.Items, path+".*")...)
	}
	if s.AdditionalProperties != nil {
		all = append(all, properties(root, s.AdditionalProperties, path+".*")...)
	}
	if s.Properties == nil {
		return all
	}
	for pair := s.Properties.Oldest(); pair != nil; pair = pair.Next() {
		at := strings.TrimPrefix(path+"."+pair.Key, ".")
		all = append(all, property{at, pair.Value})
		all = append(all, properties(root, pair.Value, at)...)
	}
	return all
}

func allProperties(t *testing.T) []property {
	t.Helper()
	schema := generateSchema(t)
	all := properties(schema, schema, "")
	if len(all) < 45 {
		t.Fatalf("the schema has only %d keys", len(all))
	}
	return all
}

func TestAlgorithmsAreThoseThatTheVerifierKnows(t *testing.T) {
	for _, p := range allProperties(t) {
		if p.path != "issuers.*.algorithms" {
			continue
		}
		var known []any
		for _, algorithm := range jose.Algorithms() {
			known = append(known, algorithm)
		}
		if !slices.Equal(p.schema.Items.Enum, known) {
			t.Errorf("the configuration knows %v, the verifier %v", p.schema.Items.Enum, known)
		}
		return
	}
	t.Error("the schema has no algorithms")
}

func TestEachKeyHasADescription(t *testing.T) {
	for _, p := range allProperties(t) {
		if p.schema.Description == "" {
			t.Errorf("%s has none", p.path)
		}
	}
}

func TestTheExampleShowsEachKey(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`^(clients|roles)\.[^.]+`)
	items := regexp.MustCompile(`\[\d+\]`)
	var shown []string
	for _, path := range app.ConfigPaths(data) {
		shown = append(shown, items.ReplaceAllString(names.ReplaceAllString(path, "$1.*"), ".*"))
	}
	for _, p := range allProperties(t) {
		// The two forms of a listener are shown with one listener each.
		path := regexp.MustCompile(`^listen\.(ops|http)\.`).ReplaceAllString(p.path, "listen.grpc.")
		if path == "store.memory" || path == "store.bolt" {
			continue // shown in a comment: a file has but one store
		}
		if !slices.Contains(shown, path) {
			t.Errorf("%s is not shown", p.path)
		}
	}
}

// TestTheDocumentationHasARowForEachKey: in the section of the key's mapping a
// row begins with the key and holds its default.
func TestTheDocumentationHasARowForEachKey(t *testing.T) {
	text, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	section := ""
	for line := range strings.Lines(string(text)) {
		if heading, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.Trim(strings.TrimSpace(heading), "`")
		}
		if cells := strings.Split(line, "|"); len(cells) == 6 {
			key := strings.Trim(strings.TrimSpace(cells[1]), "`")
			rows[section+"."+key] = strings.TrimSpace(cells[3])
		}
	}
	listeners := regexp.MustCompile(`^listen\.(grpc|http|ops)\.`)
	for _, p := range allProperties(t) {
		path := listeners.ReplaceAllString(p.path, "listen.*.")
		if !strings.Contains(path, ".") {
			continue // a section: it has a heading, which its keys need
		}
		row, ok := rows[path]
		if !ok {
			t.Errorf("docs/configuration.md has no row for %s", path)
			continue
		}
		if want := defaultText(p.schema.Default); want != "" && row != "`"+want+"`" {
			t.Errorf("%s: the documentation has the default %s, want `%s`", path, row, want)
		}
	}
	if documented := len(rows); documented < 45 {
		t.Errorf("only %d rows were found", documented)
	}
}

func defaultText(value any) string {
	if value == nil {
		return ""
	}
	text, err := json.Marshal(value)
	if err != nil {
		return err.Error()
	}
	return strings.ReplaceAll(strings.ReplaceAll(string(text), `"`, ""), ",", ", ")
}
