package config_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/cezzis/tokenbroker/internal/config"
)

// otherYAML are the first keys of examples that are not for the broker.
var otherYAML = []string{
	"http_filters", "volumes", "volumeMounts", "spring.security.oauth2", "typed_per_filter_config", "spec", "rules", "http", "middlewares", "scrape_configs", // Envoy, Kubernetes, Spring, Istio, Traefik, Prometheus
}

// chartPage shows values of the Helm chart, which have tests of their own.
const chartPage = "../../docs/kubernetes.md"

type example struct{ place, text string }

// documentedYAML returns the YAML examples of all documents.
func documentedYAML(t *testing.T) (examples []example) {
	t.Helper()
	block := regexp.MustCompile("(?ms)^```ya?ml\n(.*?)^```")
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if entry.IsDir() && (entry.Name() == "node_modules" || strings.HasPrefix(entry.Name(), ".") && path != "../..") {
			return filepath.SkipDir
		}
		if err != nil || !strings.HasSuffix(path, ".md") || path == chartPage {
			return err
		}
		page, err := os.ReadFile(path)
		for _, at := range block.FindAllSubmatchIndex(page, -1) {
			place := fmt.Sprintf("%s:%d", strings.TrimPrefix(path, "../../"), 1+strings.Count(string(page[:at[2]]), "\n"))
			examples = append(examples, example{place, string(page[at[2]:at[3]])})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return examples
}

// Each YAML example in the documents is a configuration, or a part of one that lacks only the
// roles of its callers, or an IdP; or it is of another program.
func TestDocumentedConfigurationIsValid(t *testing.T) {
	parts := 0
	for _, one := range documentedYAML(t) {
		var keys map[string]yaml.Node
		if err := yaml.Unmarshal([]byte(one.text), &keys); err != nil {
			t.Errorf("%s: %v", one.place, err)
			continue
		}
		if len(keys) == 0 || anyKey(keys, otherYAML) {
			continue // a comment for editors, or another program
		}
		parts++
		if _, err := config.Parse(one.place, []byte(completed(one.text, keys))); err != nil {
			t.Errorf("%s: %v", one.place, err)
		}
	}
	if parts < 20 {
		t.Errorf("only %d examples of a configuration", parts)
	}
}

func anyKey(keys map[string]yaml.Node, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { _, ok := keys[name]; return ok })
}

// completed adds what a part of a configuration leaves out.
func completed(text string, keys map[string]yaml.Node) string {
	if !anyKey(keys, []string{"clients", "issuers"}) {
		text += "issuers: [{issuer: 'https://login.example.com', audiences: [a]}]\n"
	}
	if anyKey(keys, []string{"roles"}) {
		return text
	}
	roles := map[string]bool{}
	for _, list := range regexp.MustCompile(`roles: \[([^]]*)\]`).FindAllStringSubmatch(text, -1) {
		for name := range strings.SplitSeq(list[1], ",") {
			roles[strings.TrimSpace(name)] = true
		}
	}
	if len(roles) > 0 {
		text += "roles:\n"
	}
	for name := range roles {
		text += "  " + name + ": {verify: [{issuer: '*'}]}\n"
	}
	return text
}

// A reader takes these as they are: they are valid and have callers.
func TestExampleFilesAreComplete(t *testing.T) {
	whole := map[string]string{}
	for _, file := range []string{"broker.example.yaml", "examples/gateways/broker.yaml", "deploy/compose/broker.yaml"} {
		text, err := os.ReadFile(filepath.Join("../..", file))
		if err != nil {
			t.Fatal(err)
		}
		whole[file] = string(text)
	}
	for _, first := range []struct{ page, after string }{{"docs/configuration.md", "a useful file also has a caller"}} {
		page, err := os.ReadFile(filepath.Join("../..", first.page))
		if err != nil {
			t.Fatal(err)
		}
		_, text, _ := strings.Cut(string(page), first.after)
		_, text, _ = strings.Cut(text, "```yaml\n")
		whole[first.page], _, _ = strings.Cut(text, "```")
	}
	for name, text := range whole {
		read, err := config.Parse(name, []byte(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, warning := range read.Warnings {
			t.Errorf("%s: %s", name, warning)
		}
	}
}
