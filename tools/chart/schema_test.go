package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

const (
	schemaFile = chartDir + "/values.schema.json"
	brokerFile = "../../docs/config.schema.json"
)

type schema = map[string]any

func readSchema(t *testing.T, path string) schema {
	t.Helper()
	var s schema
	if err := json.Unmarshal(read(t, path), &s); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return s
}

// member returns the schema at a path of keys.
func member(s schema, path ...string) schema {
	for _, key := range path {
		s, _ = s[key].(schema)
	}
	return s
}

// TestSchemaHasTheKeysOfTheBroker keeps config in the schema of the values equal to the
// schema of the configuration, without the keys that the chart sets itself.
func TestSchemaHasTheKeysOfTheBroker(t *testing.T) {
	of, broker := readSchema(t, schemaFile), readSchema(t, brokerFile)
	keys := member(broker, "properties")
	for _, key := range []string{"listen", "store"} {
		delete(keys, key)
	}
	for _, key := range []string{"drain_delay", "drain_timeout"} {
		delete(member(broker, "$defs", "Server", "properties"), key)
	}
	// The container has no environment variables with secrets.
	forms, _ := member(broker, "$defs", "Client", "properties", "secret")["anyOf"].([]any)
	if len(forms) == 0 {
		t.Fatal("a client's secret has no forms")
	}
	secret, _ := forms[0].(schema)
	if secret["pattern"] != "^((file|env):.+|managed)$" {
		t.Fatalf("the pattern of a client's secret is another: %v", secret["pattern"])
	}
	secret["pattern"] = "^(file:/.+|managed)$"
	member(of, "properties", "config")["properties"] = keys
	of["$defs"] = used(broker, of["properties"])
	var want bytes.Buffer
	encoder := json.NewEncoder(&want)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(of); err != nil {
		t.Fatal(err)
	}
	compare(t, schemaFile, want.Bytes())
}

// used returns the definitions to which a part of the schema refers, directly or not.
func used(s schema, part any) schema {
	found := schema{}
	var follow func(node any)
	follow = func(node any) {
		switch node := node.(type) {
		case schema:
			ref, _ := node["$ref"].(string)
			if name, ok := strings.CutPrefix(ref, "#/$defs/"); ok && found[name] == nil {
				found[name] = member(s, "$defs", name)
				follow(found[name])
			}
			for _, value := range node {
				follow(value)
			}
		case []any:
			for _, item := range node {
				follow(item)
			}
		}
	}
	follow(part)
	return found
}

// open are the parts of the schema whose keys are the user's own.
var open = []string{"global", "labels", "strings", "clients", "roles", "params", "upstream", "resources"}

// Every object in the schema has a closed set of keys, so that a misspelt value is
// refused wherever it stands and no unknown key can hold a secret.
func TestSchemaIsClosed(t *testing.T) {
	var walk func(path string, node any)
	walk = func(path string, node any) {
		switch node := node.(type) {
		case schema:
			name := path[strings.LastIndex(path, "/")+1:]
			if node["type"] == "object" && node["additionalProperties"] != false && !slices.Contains(open, name) {
				t.Errorf("%s accepts unknown keys", path)
			}
			for key, value := range node {
				walk(path+"/"+key, value)
			}
		case []any:
			for i, item := range node {
				walk(fmt.Sprint(path, "/", i), item)
			}
		}
	}
	walk("", readSchema(t, schemaFile))
}

// values.yaml shows each value that the schema knows.
func TestValuesFileShowsEveryValue(t *testing.T) {
	s := readSchema(t, schemaFile)
	resolve := func(node schema) schema {
		if ref, ok := node["$ref"].(string); ok {
			return member(s, strings.Split(strings.TrimPrefix(ref, "#/"), "/")...)
		}
		return node
	}
	var walk func(path string, node schema, given any)
	walk = func(path string, node schema, given any) {
		object, _ := given.(values)
		properties := member(resolve(node), "properties")
		for _, key := range slices.Sorted(maps.Keys(properties)) {
			inner := path + key
			if inner == "global" || inner == "config.clients" || strings.HasPrefix(path, "config.") || strings.HasPrefix(path, "resources.") {
				continue
			}
			value, shown := object[key]
			if !shown && path != "config." {
				t.Errorf("values.yaml does not show %s", inner)
			}
			walk(inner+".", properties[key].(schema), value)
		}
	}
	walk("", s, parse(t, string(read(t, chartDir+"/values.yaml"))))
}

// validator returns a function that reports whether the schema refuses values. Helm
// compiles the schema in the same way, but for each validation.
func validator(t *testing.T) (refuses func(t *testing.T, given values) bool) {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(read(t, schemaFile)))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("values.schema.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	defaults := parse(t, string(read(t, chartDir+"/values.yaml")))
	return func(t *testing.T, given values) bool {
		t.Helper()
		return compiled.Validate(merge(given, defaults)) != nil
	}
}

// merge returns values over their defaults, as Helm merges them. It changes neither.
func merge(given, defaults values) values {
	merged := maps.Clone(defaults)
	for key, value := range given {
		inner, isTable := value.(values)
		below, hasDefaults := merged[key].(values)
		if isTable && hasDefaults {
			merged[key] = merge(inner, below)
		} else {
			merged[key] = value
		}
	}
	return merged
}

// eachKey calls a function with the path of each key in values. Items of lists are not
// visited.
func eachKey(given values, path string, visit func(path string, value any)) {
	for key, value := range given {
		visit(path+key, value)
		if inner, ok := value.(values); ok {
			eachKey(inner, path+key+".", visit)
		}
	}
}

// A key beside one that exists, spelt with a letter more, is refused at every level, and
// so is a value of another type.
func TestSchemaRefusesMisspeltValues(t *testing.T) {
	own := []string{ // keys of these are the user's
		"config.clients", "config.clients.*.params", "config.roles", "podLabels", "podAnnotations", "nodeSelector", "service.annotations",
		"serviceAccount.annotations", "serviceMonitor.labels", "prometheusRule.labels",
	}
	refused := validator(t)
	tried := 0
	check := func(t *testing.T, given values) {
		t.Helper()
		if refused(t, with(t, given, "nameOverride", "")) {
			t.Fatal("the values themselves are refused")
		}
		eachKey(given, "", func(path string, value any) {
			if strings.Contains(path, ".com") || strings.Contains(path, ".io") {
				return // with keys that contain a dot
			}
			parent := path[:max(strings.LastIndex(path, "."), 0)]
			if !slices.Contains(own, parent) {
				tried++
				if !refused(t, with(t, given, path+"s", value)) {
					t.Errorf("%ss is accepted", path)
				}
			}
			_, text := value.(string)
			quantity := strings.HasPrefix(path, "resources.") || path == "store.bolt.size" // a number is one as well
			if text && !quantity && !slices.Contains(own, parent) && !refused(t, with(t, given, path, 7)) {
				t.Errorf("a number is accepted for the text %s", path)
			}
			if !refused(t, with(t, given, path, []any{[]any{}})) {
				t.Errorf("a list of lists is accepted for %s", path)
			}
		})
	}
	t.Run("defaults", func(t *testing.T) { check(t, parse(t, string(read(t, chartDir+"/values.yaml")))) })
	forEachFile(t, check)
	if tried < 200 {
		t.Errorf("only %d keys were tried", tried)
	}
}

// A secret itself is refused wherever the values expect the name of a Secret or the
// place of a file.
func TestSchemaRefusesSecrets(t *testing.T) {
	refused := validator(t)
	for _, secret := range []string{
		"hunter2 is my password", "Zm9vYmFyIGlzIG15IHNlY3JldA==", "env:SECRET", "8e0bD71b~c.4f60_a95b",
		"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n", `{"names":"c2VjcmV0"}`,
	} {
		for path, file := range map[string]string{
			"config.clients.orders-api.secret":               "redis",
			"store.redis.password":                           "redis",
			"store.redis.password.secret":                    "redis",
			"store.redis.password.value":                     "redis",
			"store.redis.sentinelPassword":                   "production",
			"store.redis.sentinelPassword.secret":            "production",
			"store.redis.tls.clientCertificate":              "redis",
			"store.redis.tls.clientCertificate.key":          "redis",
			"store.sealingKeys":                              "redis",
			"store.sealingKeys.secret":                       "redis",
			"store.sealingKeys.keys":                         "redis",
			"tls.secret":                                     "redis",
			"tls.key":                                        "redis",
			"config.clients.orders-api.client_secret":        "redis",
			"config.clients.orders-api.params.client_secret": "redis",
			"config.clients.orders-api.params.password":      "redis",
			"config.clients.orders-api.assertion.assertion":  "redis",
			"config.clients.orders-api.tls.password":         "redis",
			"config.store":                                   "redis",
			"config.store.redis.password":                    "redis",
			"env.SECRET":                                     "redis",
			"secrets.orders-api":                             "redis",
			"mounts.secrets.orders-api":                      "redis",
			"image.pullSecrets":                              "redis",
		} {
			given := parse(t, string(read(t, examplesDir+"/"+file+".yaml")))
			if !refused(t, with(t, given, path, secret)) {
				t.Errorf("%s: %q is accepted", path, secret)
			}
		}
	}
}

// Private keys, JWTs and URLs with a password are refused in place of any text, also of
// those that the user is free to choose.
func TestSchemaRefusesSecrets_everywhere(t *testing.T) {
	refused := validator(t)
	tried := 0
	forEachFile(t, func(t *testing.T, given values) {
		eachKey(given, "", func(path string, value any) {
			_, text := value.(string)
			list, _ := value.([]any)
			if !text && len(list) == 0 || strings.Contains(path, ".com") || strings.Contains(path, ".io") {
				return
			}
			for _, secret := range []string{
				"-----BEGIN RSA PRIVATE KEY-----\nMC4C\n-----END RSA PRIVATE KEY-----\n",
				"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln",
				"https://user:password@login.example.com", "redis://:password@redis:6379",
			} {
				tried++
				replaced := any(secret)
				if !text {
					replaced = append(slices.Clone(list), secret)
				}
				if !refused(t, with(t, given, path, replaced)) {
					t.Errorf("%s: %q is accepted", path, secret)
				}
			}
		})
	})
	for _, path := range []string{"podAnnotations.a", "podLabels.a", "service.annotations.a", "config.clients.orders-api.params.a", "config.clients.orders-api.client_id"} {
		given := parse(t, string(read(t, examplesDir+"/redis.yaml")))
		if !refused(t, with(t, given, path, "https://user:password@login.example.com")) {
			t.Errorf("%s: a URL with a password is accepted", path)
		}
	}
	if tried < 200 {
		t.Errorf("only %d texts were tried", tried)
	}
}
