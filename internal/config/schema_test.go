package config_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
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

	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
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
	for pkg, dir := range map[string]string{"config": ".", "gatewayconf": "../gatewayconf"} {
		if err := r.AddGoComments("github.com/cezzis/tokenbroker/internal/"+pkg, dir); err != nil {
			t.Fatal(err)
		}
	}
	for name, comment := range r.CommentMap {
		// Comments of types speak to Go programmers; those of fields to everyone.
		if strings.Count(filepath.Base(name), ".") == 1 {
			comment = ""
		}
		r.CommentMap[name] = strings.ReplaceAll(comment, "\n", " ")
	}
	s := r.Reflect(&config.Config{})
	s.Title = "tokenbroker configuration"
	refine(s)
	return s
}

// mapType is the schema of what a text in the file stands for.
func mapType(t reflect.Type) *jsonschema.Schema {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return &jsonschema.Schema{Type: "string", Pattern: yamlconf.DurationPattern}
	case reflect.TypeFor[secret.Ref]():
		return &jsonschema.Schema{Type: "string", Pattern: "^(file|env):.+"}
	case reflect.TypeFor[config.ClaimPath]():
		name := &jsonschema.Schema{Type: "string", MinLength: new(uint64(1)), MaxLength: new(uint64(256))}
		return &jsonschema.Schema{OneOf: []*jsonschema.Schema{name, {Type: "array", Items: name, MinItems: new(uint64(1)), MaxItems: new(uint64(4))}}}
	default:
		return nil
	}
}

// refine adds what tags cannot say.
func refine(s *jsonschema.Schema) {
	names := &jsonschema.Schema{Type: "string", Pattern: yamlconf.NamePattern}
	clients, _ := s.Properties.Get("clients")
	clients.PropertyNames = names
	upstream, _ := s.Definitions["Gateways"].Properties.Get("upstream")
	upstream.PropertyNames = names

	reserved := &jsonschema.Schema{}
	for _, name := range config.ReservedParams() {
		reserved.Enum = append(reserved.Enum, name)
	}
	client := s.Definitions["Client"]
	params, _ := client.Properties.Get("params")
	params.PropertyNames = &jsonschema.Schema{Type: "string", Pattern: yamlconf.NamePattern, Not: reserved}

	// Only a client's secret may be managed, or have a source that is read at intervals.
	managed, _ := s.Definitions["Client"].Properties.Get("secret")
	managed.AnyOf = []*jsonschema.Schema{{Type: "string", Pattern: "^((file|env):.+|managed)$"}, {Ref: managed.Ref}}
	managed.Ref = ""
	audience, _ := s.Definitions["Assertion"].Properties.Get("audience")
	audience.Pattern = "^(issuer|token_endpoint|.*:.*)$"
	// Some presets know the token endpoint.
	endpoint := jsonschema.NewProperties()
	endpoint.Set("preset", &jsonschema.Schema{Enum: anys(config.PresetsWithEndpoint())})
	client.OneOf = append(client.OneOf, &jsonschema.Schema{
		Title: "preset", Properties: endpoint, Required: []string{"preset"},
		Not: &jsonschema.Schema{AnyOf: []*jsonschema.Schema{{Required: []string{"issuer"}}, {Required: []string{"token_url"}}}},
	})

	addValues(s, reflect.TypeFor[config.Config](), s.Properties.Get)

	for listener := range reflect.TypeFor[config.Listen]().Fields() {
		if listener.Type != reflect.TypeFor[config.Listener]() && listener.Type != reflect.TypeFor[config.HTTPListener]() {
			continue
		}
		property, _ := s.Definitions["Listen"].Properties.Get(listener.Tag.Get("yaml"))
		_, property.Default, _ = strings.Cut(listener.Tag.Get("jsonschema"), "default=")
		address := &jsonschema.Schema{Type: "string", MinLength: new(uint64(1))}
		if listener.Name == "GRPC" {
			address.Not = &jsonschema.Schema{Const: "off"}
		}
		property.AnyOf = []*jsonschema.Schema{address, {Ref: property.Ref}}
		property.Ref = ""
	}
}

// addValues adds the lists that tags name, to the properties of a type and to those
// of all types that it contains.
func addValues(s *jsonschema.Schema, t reflect.Type, propertyOf func(key string) (*jsonschema.Schema, bool)) {
	for key := range t.Fields() {
		property, ok := propertyOf(key.Tag.Get("yaml"))
		if !ok {
			continue
		}
		for tag := range strings.SplitSeq(key.Tag.Get("jsonschema"), ",") {
			if list, ok := strings.CutPrefix(tag, "values="); ok && property.Items != nil {
				property.Items.Enum = anys(config.ValuesOf(list))
			} else if ok {
				property.Enum = anys(config.ValuesOf(list))
			}
		}
		part := key.Type
		for part.Kind() == reflect.Pointer || part.Kind() == reflect.Slice || part.Kind() == reflect.Map {
			part = part.Elem()
		}
		if definition := s.Definitions[part.Name()]; definition != nil && definition.Properties != nil && part.Kind() == reflect.Struct {
			addValues(s, part, definition.Properties.Get)
		}
	}
}

func anys(texts []string) (values []any) {
	for _, text := range texts {
		values = append(values, text)
	}
	return values
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
		t.Error("docs/config.schema.json is not what the types make: go test ./internal/config -run TestSchema -update")
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

func TestSchemaAcceptsValidFiles(t *testing.T) {
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
		if _, err := config.Parse(path, data); err != nil {
			t.Errorf("the broker refuses a good configuration: %v", err)
		}
		if err := schema.Validate(document(t, data)); err != nil {
			t.Errorf("the schema refuses %s: %v", path, err)
		}
	}
}

func TestSchemaRefusesStructuralErrors(t *testing.T) {
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

func TestReservedParametersAreRefused(t *testing.T) {
	schema := published(t)
	if len(config.ReservedParams()) < 5 {
		t.Errorf("reserved are only %q", config.ReservedParams())
	}
	for _, name := range config.ReservedParams() {
		file := []byte(client("params: {" + name + ": x}"))
		if _, err := config.Parse("x", file); err == nil {
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

// The lists that code owns are whole in the schema, and the broker takes each of
// their values.
func TestListsMatchTheCode(t *testing.T) {
	var levels []string // as cmd/broker reads them
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		levels = append(levels, strings.ToLower(level.String()))
	}
	role := func(action string) string {
		return client("") + "callers: [{name: a, spiffe_id: \"spiffe://example.com/a\", roles: [r]}]\nroles: {r: {admin: [{actions: [\"" + action + "\"]}]}}\n"
	}
	for _, list := range []struct {
		path   string
		values []string
		file   func(value string) string // nil: tried elsewhere
	}{
		{"issuers.*.algorithms", jose.Algorithms(), func(value string) string { return issuer("algorithms: [" + value + "]") }},
		{"clients.*.preset", config.Presets(), nil},
		{"issuers.*.preset", config.ValuesOf("issuer_presets"), func(value string) string { return issuer("preset: " + value) }},
		{"clients.*.auth", texts(idp.AuthMethods()), nil},
		{"clients.*.assertion.algorithm", jose.SigningAlgorithms(), nil},
		{"clients.*.assertion.typ", idp.AssertionTypes(), nil},
		{"log.level", levels, func(value string) string { return client("") + "log: {level: " + value + "}\n" }},
		{"roles.*.admin.*.actions", append(texts(policy.Actions()), policy.Any), role},
	} {
		t.Run(list.path, func(t *testing.T) {
			at := slices.IndexFunc(allProperties(t), func(p property) bool { return p.path == list.path })
			if at < 0 {
				t.Fatal("the schema has no such key")
			}
			schema := allProperties(t)[at].schema
			if schema.Items != nil {
				schema = schema.Items
			}
			if !slices.Equal(schema.Enum, anys(list.values)) {
				t.Errorf("the configuration knows %v, the code %v", schema.Enum, list.values)
			}
			for _, value := range list.values {
				if list.file == nil {
					continue
				}
				if _, err := config.Parse("x", []byte(list.file(value))); err != nil {
					t.Errorf("%s: %v", value, err)
				}
			}
		})
	}
}

func texts[T ~string](values []T) []string {
	converted := make([]string, len(values))
	for i, value := range values {
		converted[i] = string(value)
	}
	return converted
}

// TestDocumentationNamesEachValue: the row of a key with a list of values has all
// of them.
func TestDocumentationNamesEachValue(t *testing.T) {
	rows := documentedRows(t)
	listeners := regexp.MustCompile(`^listen\.(grpc|http|ops)\.`)
	tried := 0
	for _, p := range allProperties(t) {
		schema := p.schema
		if schema.Items != nil {
			schema = schema.Items
		}
		row := rows[listeners.ReplaceAllString(p.path, "listen.*.")]
		for _, value := range schema.Enum {
			tried++
			if !strings.Contains(row, fmt.Sprint(value)) {
				t.Errorf("docs/configuration.md: the row of %s does not name %v: %s", p.path, value, row)
			}
		}
	}
	if tried < 70 {
		t.Errorf("only %d values were tried", tried)
	}
}

// documentedRows are the rows of docs/configuration.md by their keys.
func documentedRows(t *testing.T) map[string]string {
	t.Helper()
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
			rows[section+"."+strings.Trim(strings.TrimSpace(cells[1]), "`")] = line
		}
	}
	return rows
}

func TestEachKeyHasADescription(t *testing.T) {
	for _, p := range allProperties(t) {
		if p.schema.Description == "" {
			t.Errorf("%s has none", p.path)
		}
	}
}

// pathsOf returns the paths of all keys and items in a document, with * for an item.
func pathsOf(document any, path string) (paths []string) {
	if path != "" {
		paths = append(paths, path)
	}
	switch node := document.(type) {
	case map[string]any:
		for key, value := range node {
			paths = append(paths, pathsOf(value, strings.TrimPrefix(path+"."+key, "."))...)
		}
	case []any:
		for _, value := range node {
			paths = append(paths, pathsOf(value, path+".*")...)
		}
	}
	return paths
}

func TestExampleShowsEachKey(t *testing.T) {
	data, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`^(clients|roles|gateways\.(?:upstream|resources))\.[^.]+`)
	var shown []string
	for _, path := range pathsOf(document(t, data), "") {
		shown = append(shown, names.ReplaceAllString(path, "$1.*"))
	}
	for _, p := range allProperties(t) {
		// The two forms of a listener are shown with one listener each.
		path := p.path
		if path != "listen.http.url" {
			path = regexp.MustCompile(`^listen\.(ops|http)\.`).ReplaceAllString(path, "listen.grpc.")
		}
		if slices.Contains([]string{"store.memory", "store.bolt", "listen.http_unix.url"}, path) || strings.HasPrefix(path, "listen.tls.spiffe") {
			continue // shown in a comment: a file has but one store, one URL, and one source of certificates
		}
		if !slices.Contains(shown, path) {
			t.Errorf("%s is not shown", p.path)
		}
	}
}

// TestDocumentationHasEachKey: in the section of the key's mapping a
// row begins with the key and holds its default.
func TestDocumentationHasEachKey(t *testing.T) {
	rows := documentedRows(t)
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
		shown := strings.TrimSpace(strings.Split(row, "|")[3])
		if want := defaultText(p.schema.Default); want != "" && shown != "`"+want+"`" {
			t.Errorf("%s: the documentation has the default %s, want `%s`", path, shown, want)
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
