package deploy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

const (
	composeFile = "../../../docker-compose.yaml"
	initScript  = "../../../deploy/compose/init.sh"

	initService  = "init"
	cliService   = "cli"
	adminService = "admin"
)

// composition is the part of docker-compose.yaml that these tests run as plain
// processes. The tests of the module tools/deploy read the whole file as Compose does.
type composition struct {
	Services map[string]service
	Configs  map[string]struct{ File string }
}

type service struct {
	Entrypoint, Command []string
	Environment         map[string]string
	Ports               []string
	Volumes             []volume
	Configs             []struct{ Source, Target string }
}

type volume struct{ Source, Target string }

// UnmarshalYAML reads the short form, source:target or source:target:ro.
func (v *volume) UnmarshalYAML(node *yaml.Node) error {
	parts := strings.Split(node.Value, ":")
	if len(parts) < 2 {
		return fmt.Errorf("line %d: a volume is not source:target", node.Line)
	}
	v.Source, v.Target = parts[0], parts[1]
	return nil
}

func readComposition(t *testing.T) (c composition) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(readText(t, composeFile)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// brokers are the names of the services that run "broker serve", in order.
func (c composition) brokers() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.Services)), func(name string) bool {
		return !slices.Contains(c.Services[name].Command, "serve")
	})
}

// initFile returns where init puts the file that a service finds at path, below
// the folder that init is given; "" if it is in none of the service's volumes.
func (c composition) initFile(name, path string) string {
	for _, theirs := range c.Services[name].Volumes {
		rest, inside := strings.CutPrefix(path, theirs.Target+"/")
		if !inside {
			continue
		}
		for _, its := range c.Services[initService].Volumes {
			if at, ok := strings.CutPrefix(its.Target, "/secrets/"); ok && its.Source == theirs.Source {
				return filepath.Join(at, rest)
			}
		}
	}
	return ""
}

// option returns what follows a flag in a service's command.
func (s service) option(flag string) string {
	if at := slices.Index(s.Command, flag); at >= 0 && at+1 < len(s.Command) {
		return s.Command[at+1]
	}
	return ""
}

// The version in the binary tells the truth only if git sees what is there.
func TestDockerBuildSeesTrackedFiles(t *testing.T) {
	t.Parallel()
	ignored := strings.Fields(readText(t, "../../../.gitignore"))
	for line := range strings.Lines(readText(t, "../../../.dockerignore")) {
		pattern := strings.TrimSpace(line)
		if pattern == "" || strings.HasPrefix(pattern, "#") {
			continue
		}
		anywhere, deep := strings.CutPrefix(pattern, "**/")
		if !deep {
			anywhere = "/" + pattern
		}
		if !slices.Contains(ignored, anywhere) {
			t.Errorf(".dockerignore leaves out %s, which git does not ignore", pattern)
		}
	}
}

// makeSecrets runs the init of docker-compose.yaml on a folder.
func makeSecrets(t *testing.T, folder string) {
	t.Helper()
	script, _ := filepath.Abs(initScript) // what is not there is found at once
	if res := (harness.Command{Name: "sh"}).Run(t, script, folder); res.Code != 0 {
		t.Fatalf("init: %v", res)
	}
}

func TestInitCreatesPrivateSecretsOnce(t *testing.T) {
	t.Parallel()
	folder, other := t.TempDir(), t.TempDir()
	makeSecrets(t, folder)
	makeSecrets(t, other)
	files := readFolder(t, folder)
	for name, text := range files {
		if text == "" {
			t.Errorf("%s is empty", name)
		}
		if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is not for its owner only, %v", name, err)
		}
	}
	password := files["redis/password"]
	if len(password) != 64 || password != files["broker/redis-password"] {
		t.Error("the broker's password for Redis is not the one that Redis knows, or it is short")
	}
	hash := sha256.Sum256([]byte(password))
	rights := strings.Replace(redisstore.ACLExample, ">PASSWORD", "#"+hex.EncodeToString(hash[:]), 1)
	if got, want := files["redis/users.acl"], "user default on resetpass ~* &* +@all\n"+rights+" +info +wait\n"; got != want {
		t.Errorf("the ACL file is not what the store needs: got\n%s, want\n%s", got, want)
	}
	for _, name := range []string{"redis/password", "broker/ring.json", "clients/orders-api", "clients/billing-api", "broker/broker.key", "caller/demo.key", "operator/operator.key"} {
		if files[name] == readFolder(t, other)[name] {
			t.Errorf("%s is the same in two places", name)
		}
	}
	makeSecrets(t, folder)
	if again := readFolder(t, folder); !maps.Equal(files, again) {
		t.Errorf("a second start changed something: %v", slices.Sorted(maps.Keys(again)))
	}
}

func readFolder(t *testing.T, folder string) map[string]string {
	t.Helper()
	paths, _ := filepath.Glob(folder + "/*/*") // the pattern is a good one
	files := map[string]string{}
	for _, path := range paths {
		files[strings.TrimPrefix(path, folder+"/")] = readText(t, path)
	}
	return files
}

// configuration returns the file that a broker's --config names, as it is on the
// host.
func (c composition) configuration(t *testing.T, name string) string {
	t.Helper()
	s := c.Services[name]
	for _, config := range s.Configs {
		if config.Target == s.option("--config") {
			path, err := filepath.Abs(filepath.Join(filepath.Dir(composeFile), c.Configs[config.Source].File))
			if err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	t.Fatalf("%s: its configuration is not mounted at %q: %v", name, s.option("--config"), s.Configs)
	return ""
}

func TestComposeConfigurationIsValid(t *testing.T) {
	t.Parallel()
	secrets := t.TempDir()
	makeSecrets(t, secrets)
	c := readComposition(t)
	for _, name := range c.brokers() {
		if res := harness.Run(t, "check-config", c.configuration(t, name)); res.Code != 0 {
			t.Errorf("check-config: %v", res)
		}
		text := readText(t, c.configuration(t, name))
		references := fileReferences(text)
		if len(references) < 6 {
			t.Errorf("%s: only %d files are named", name, len(references))
		}
		for _, path := range references {
			made := c.initFile(name, path)
			if info, err := os.Stat(filepath.Join(secrets, made)); err != nil || !info.Mode().IsRegular() {
				t.Errorf("%s: init does not make %s: %v", name, path, err)
			}
		}
		for _, published := range c.Services[name].Ports {
			target := published[strings.LastIndexByte(published, ':')+1:]
			if !strings.Contains(text, `":`+target+`"`) {
				t.Errorf("%s: nothing listens on port %s", name, target)
			}
		}
	}
}

// fileReferences are the files that a configuration names as places of secrets and
// of certificates.
func fileReferences(text string) []string {
	var paths []string
	for _, reference := range regexp.MustCompile(`(?:file:|cert: |key: |client_ca: )(/[^\s,}]+)`).FindAllStringSubmatch(text, -1) {
		paths = append(paths, reference[1])
	}
	return paths
}

func TestComposePrometheusReadsItsConfiguration(t *testing.T) {
	t.Parallel()
	harness.Need(t, "promtool")
	const file = "../../../deploy/compose/prometheus.yaml"
	if out, err := exec.CommandContext(t.Context(), "promtool", "check", "config", "--syntax-only", file).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	text := readText(t, file)
	for _, broker := range readComposition(t).brokers() {
		if !strings.Contains(text, `"`+broker+`:9090"`) {
			t.Errorf("%s is not scraped", broker)
		}
	}
}
