package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	composeFile = "../../docker-compose.yaml"
	dockerFile  = "../../Dockerfile"
	initScript  = "../../deploy/compose/init.sh"

	// These containers are no servers: initService runs once, at the start, and
	// cliService when it is wanted.
	initService = "init"
	cliService  = "cli"
)

// composition is what docker-compose.yaml comes to, as Compose understands it:
// extensions merged, short forms written out, paths absolute.
type composition struct {
	Services map[string]service
	Networks map[string]struct{ Internal bool }
	Configs  map[string]struct{ File string }
}

type service struct {
	Image, User, Restart string
	Build                struct{ Target string }
	Entrypoint, Command  []string
	Environment          map[string]string
	ReadOnly             bool     `json:"read_only"`
	CapAdd               []string `json:"cap_add"`
	CapDrop              []string `json:"cap_drop"`
	SecurityOpt          []string `json:"security_opt"`
	Privileged           bool
	NetworkMode          string `json:"network_mode"`
	Networks             map[string]struct{ Aliases []string }
	HealthCheck          struct{ Test []string }
	Ports                []port
	Volumes              []mount
	Configs              []struct{ Source, Target string }
	DependsOn            map[string]struct{ Condition string } `json:"depends_on"`
	Deploy               struct{ Resources struct{ Limits limits } }
}

type (
	limits struct {
		CPUs   float64
		Memory string
		Pids   int
	}
	port struct {
		HostIP    string `json:"host_ip"`
		Target    int
		Published string
	}
	mount struct {
		Type, Source, Target string
		ReadOnly             bool `json:"read_only"`
	}
)

// stage is a stage of the Dockerfile with the configuration of its image.
type stage struct {
	Name, Base   string
	Instructions []string
	Config       struct {
		User                 string
		Env, Entrypoint, Cmd []string
		Healthcheck          struct{ Test []string }
	}
}

func readComposition(t *testing.T) composition {
	t.Helper()
	var found composition
	deploycheck(t, "compose", composeFile, &found)
	return found
}

// readStages returns the stages of the Dockerfile by their names, and the name of
// the last, which is what "docker build" makes.
func readStages(t *testing.T) (stages map[string]stage, last string) {
	t.Helper()
	var found []stage
	deploycheck(t, "dockerfile", dockerFile, &found)
	stages = make(map[string]stage, len(found))
	for _, s := range found {
		stages[s.Name], last = s, s.Name
	}
	return stages, last
}

func deploycheck(t *testing.T, kind, file string, into any) {
	t.Helper()
	need(t, "deploycheck")
	path, _ := filepath.Abs(file) // what is not there is found at once
	res := command{name: "deploycheck"}.run(t, kind, path)
	if err := json.Unmarshal([]byte(res.stdout), into); res.code != 0 || err != nil {
		t.Fatalf("deploycheck %s: %v, %v", kind, res, err)
	}
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

func TestComposeRunsTwoBrokersThatDifferInTheirPortsOnly(t *testing.T) {
	t.Parallel()
	c := readComposition(t)
	brokers := c.brokers()
	if len(brokers) != 2 {
		t.Fatalf("brokers: %v", brokers)
	}
	published := map[string]bool{}
	for _, name := range brokers {
		broker := c.Services[name]
		for _, p := range broker.Ports {
			published[p.Published] = true
		}
		if !slices.ContainsFunc(broker.Ports, func(p port) bool { return p.Target == 8443 }) {
			t.Errorf("%s: the gRPC port is not published: %v", name, broker.Ports)
		}
		for other, condition := range map[string]string{"init": "service_completed_successfully", "redis": "service_healthy", "idp": "service_healthy"} {
			if got := broker.DependsOn[other].Condition; got != condition {
				t.Errorf("%s waits for %s: %q, want %q", name, other, got, condition)
			}
		}
	}
	one, two := c.Services[brokers[0]], c.Services[brokers[1]]
	if len(published) != len(one.Ports)+len(two.Ports) {
		t.Errorf("the brokers share a port of the host: %v, %v", one.Ports, two.Ports)
	}
	one.Ports, two.Ports = nil, nil
	if diff := cmp.Diff(one, two); diff != "" {
		t.Errorf("the brokers differ in more than their ports:\n%s", diff)
	}
}

var numericUser = regexp.MustCompile(`^[1-9][0-9]*:[1-9][0-9]*$`)

func TestEveryContainerIsConfinedAndWatched(t *testing.T) {
	t.Parallel()
	services := readComposition(t).Services
	if len(services) < 6 {
		t.Fatalf("%d services", len(services))
	}
	for name, s := range services {
		limits, server := s.Deploy.Resources.Limits, name != initService && name != cliService
		for what, ok := range map[string]bool{
			"its user is not root, by number": numericUser.MatchString(s.User),
			"its root is read-only":           s.ReadOnly,
			"it drops all capabilities":       slices.Equal(s.CapDrop, []string{"ALL"}) && len(s.CapAdd) == 0 && !s.Privileged,
			"it gains no privileges":          slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}),
			"its resources are limited":       limits.CPUs > 0 && limits.Memory != "" && limits.Pids > 0,
			"a server is checked":             !server || len(s.HealthCheck.Test) > 1,
			"a server starts again":           !server || s.Restart == "unless-stopped",
			"another one ends for good":       server || s.Restart == "no",
			"init has no network":             name != initService || s.NetworkMode == "none",
		} {
			if !ok {
				t.Errorf("%s: not so: %s", name, what)
			}
		}
	}
}

func TestOnlyTheBrokersArePublishedAndOnLoopbackOnly(t *testing.T) {
	t.Parallel()
	c := readComposition(t)
	brokers := c.brokers()
	for name, s := range c.Services {
		if len(s.Ports) > 0 && !slices.Contains(brokers, name) {
			t.Errorf("%s publishes %v", name, s.Ports)
		}
		for _, p := range s.Ports {
			if ip, err := netip.ParseAddr(p.HostIP); err != nil || !ip.IsLoopback() {
				t.Errorf("%s publishes %v beyond loopback", name, p)
			}
		}
		for network := range s.Networks {
			if !c.Networks[network].Internal && !slices.Contains(brokers, name) {
				t.Errorf("%s is in the network %s, which leads outside", name, network)
			}
		}
	}
}

func TestRedisIsLockedAndKeepsWhatItHolds(t *testing.T) {
	t.Parallel()
	c := readComposition(t)
	redis := c.Services["redis"]
	for flag, want := range map[string]string{"--appendonly": "yes", "--protected-mode": "yes", "--maxmemory-policy": "volatile-ttl"} {
		if got := redis.option(flag); got != want {
			t.Errorf("%s %q, want %q", flag, got, want)
		}
	}
	for _, m := range redis.Volumes {
		if keeps := m.Target == redis.option("--dir"); m.Type != "volume" || m.ReadOnly == keeps {
			t.Errorf("mounted: %+v", m)
		}
	}
	if file := c.initFile("redis", redis.option("--aclfile")); file == "" {
		t.Error("init does not write the ACL file")
	}
	stages, _ := readStages(t)
	if base := stages["init"].Base; base != redis.Image {
		t.Errorf("init is made from %s, Redis is %s: one image will do", base, redis.Image)
	}
}

func TestNoSecretIsInTheEnvironmentOrInACommand(t *testing.T) {
	t.Parallel()
	c := readComposition(t)
	stages, _ := readStages(t)
	harmless := []string{"GOMEMLIMIT", "PATH", "CGO_ENABLED", "TOKENBROKER_ADDR", "TOKENBROKER_CA", "TOKENBROKER_CERT", "TOKENBROKER_KEY"}
	for name, s := range c.Services {
		for variable := range s.Environment {
			if !slices.Contains(harmless, variable) {
				t.Errorf("%s gets %s: is it a secret?", name, variable)
			}
		}
		if slices.Contains(s.Command, "--requirepass") {
			t.Errorf("%s: its command shows a password", name)
		}
	}
	for name, s := range stages {
		for _, variable := range s.Config.Env {
			if variable, _, _ := strings.Cut(variable, "="); !slices.Contains(harmless, variable) {
				t.Errorf("the stage %s sets %s: is it a secret?", name, variable)
			}
		}
	}
}

func TestAllThatIsMountedIsThere(t *testing.T) {
	t.Parallel()
	c := readComposition(t)
	mounts := 0
	for name, s := range c.Services {
		for _, config := range s.Configs {
			mounts++
			if info, err := os.Stat(c.Configs[config.Source].File); err != nil || !info.Mode().IsRegular() {
				t.Errorf("%s: %s is not a file: %v", name, config.Target, err)
			}
		}
		for _, m := range s.Volumes {
			mounts++
			if m.Type != "volume" {
				t.Errorf("%s: %s is not a volume: %+v", name, m.Target, m)
			}
			// A volume gets its owner from init, which mounts it first.
			if !slices.ContainsFunc(c.Services[initService].Volumes, func(its mount) bool { return its.Source == m.Source && !its.ReadOnly }) {
				t.Errorf("%s: init does not mount %s", name, m.Source)
			}
		}
	}
	if mounts < 10 {
		t.Errorf("only %d mounts were found", mounts)
	}
	stages, _ := readStages(t)
	made := strings.Join(stages["init"].Instructions, " ")
	for _, m := range c.Services[initService].Volumes {
		if !slices.Contains(strings.Fields(made), m.Target) {
			t.Errorf("the image of init has no %s to take the owner from", m.Target)
		}
	}
}

func TestTheImageIsTheBrokerAlone(t *testing.T) {
	t.Parallel()
	stages, last := readStages(t)
	image := stages[last]
	for what, ok := range map[string]bool{
		"it is made from scratch":         image.Base == "scratch",
		"its user is not root, by number": numericUser.MatchString(image.Config.User),
		"it runs the broker":              slices.Equal(image.Config.Entrypoint, []string{"/broker"}),
		"it serves unless told otherwise": len(image.Config.Cmd) > 0 && image.Config.Cmd[0] == "serve",
		"it needs no shell to be checked": slices.Equal(image.Config.Healthcheck.Test, []string{"CMD", "/broker", "healthcheck"}),
		"it knows the public CAs":         slices.ContainsFunc(image.Instructions, func(s string) bool { return strings.HasSuffix(s, " /etc/ssl/certs/ca-certificates.crt") }),
		"its binary is static":            slices.Contains(stages["build"].Config.Env, "CGO_ENABLED=0"),
	} {
		if !ok {
			t.Errorf("not so: %s: %+v", what, image)
		}
	}
	c := readComposition(t)
	for _, name := range append(c.brokers(), "idp", cliService) {
		s := c.Services[name]
		if s.Build.Target != last || s.User != image.Config.User || len(s.Entrypoint) > 0 {
			t.Errorf("%s runs the stage %q as %s with entrypoint %q", name, s.Build.Target, s.User, s.Entrypoint)
		}
		if slices.Contains(c.brokers(), name) && !slices.Equal(s.HealthCheck.Test, image.Config.Healthcheck.Test) {
			t.Errorf("%s is checked by %q", name, s.HealthCheck.Test)
		}
	}
	if s := c.Services[initService]; s.Build.Target != "init" || s.User != stages["init"].Config.User {
		t.Errorf("init runs the stage %q as %s", s.Build.Target, s.User)
	}
}

// The version in the binary tells the truth only if git sees what is there.
func TestTheBuildSeesAllThatGitTracks(t *testing.T) {
	t.Parallel()
	ignored := strings.Fields(readText(t, "../../.gitignore"))
	for line := range strings.Lines(readText(t, "../../.dockerignore")) {
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

func TestDeploycheckRefusesBrokenFiles(t *testing.T) {
	t.Parallel()
	need(t, "deploycheck")
	for name, broken := range map[string]struct{ kind, file, old, replacement, says string }{
		"undefined service":    {"compose", composeFile, "redis: {condition: service_healthy}", "rediss: {condition: service_healthy}", "undefined service"},
		"undefined volume":     {"compose", composeFile, "- redis-data:/var/lib/redis\n", "- redis-date:/var/lib/redis\n", "undefined volume"},
		"undefined config":     {"compose", composeFile, "source: idp-check", "source: idp-chekc", "undefined config"},
		"undefined network":    {"compose", composeFile, "networks: [backend]", "networks: [backends]", "undefined network"},
		"bad key":              {"compose", composeFile, "read_only: true", "readonly: true", "readonly"},
		"bad value":            {"compose", composeFile, "127.0.0.1:8443:8443", "127.0.0.1:8443:grpc", "Invalid containerPort"},
		"unset variable":       {"compose", composeFile, "GOMEMLIMIT: 200MiB", "GOMEMLIMIT: ${LIMIT}", "LIMIT"},
		"unknown instruction":  {"dockerfile", dockerFile, "USER 65532:65532", "USR 65532:65532", "unknown instruction"},
		"undefined stage":      {"dockerfile", dockerFile, "--from=build /out/broker /broker", "--from=biuld /out/broker /broker", "no stage"},
		"unpinned image":       {"dockerfile", dockerFile, "golang:1.26.8-bookworm", "golang", "not pinned"},
		"shell form":           {"dockerfile", dockerFile, `ENTRYPOINT ["/broker"]`, "ENTRYPOINT /broker", "JSONArgsRecommended"},
		"undefined variable":   {"dockerfile", dockerFile, "WORKDIR /src", "WORKDIR $SOURCE", "UndefinedVar"},
		"secret as a variable": {"dockerfile", dockerFile, "ENV CGO_ENABLED=0", "ENV CGO_ENABLED=0 REDIS_PASSWORD=x", "SecretsUsedInArgOrEnv"},
	} {
		text := readText(t, broken.file)
		changed := strings.Replace(text, broken.old, broken.replacement, 1)
		if changed == text {
			t.Errorf("%s: %q is not in %s", name, broken.old, broken.file)
			continue
		}
		res := command{name: "deploycheck"}.run(t, broken.kind, writeFile(t, filepath.Base(broken.file), changed))
		if res.code != 1 || !strings.Contains(res.stderr, broken.says) {
			t.Errorf("%s, want %q: %v", name, broken.says, res)
		}
	}
}

// makeSecrets runs the init of docker-compose.yaml on a folder.
func makeSecrets(t *testing.T, folder string) {
	t.Helper()
	script, _ := filepath.Abs(initScript) // what is not there is found at once
	if res := (command{name: "sh"}).run(t, script, folder); res.code != 0 {
		t.Fatalf("init: %v", res)
	}
}

func TestInitMakesEachSecretOnceAndForItsOwnerOnly(t *testing.T) {
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
	rights := strings.Replace(store.ACLExample, ">PASSWORD", "#"+hex.EncodeToString(hash[:]), 1)
	if got, want := files["redis/users.acl"], "user default off\n"+rights+" +info +wait\n"; got != want {
		t.Errorf("the ACL file is not what the store needs: got\n%s, want\n%s", got, want)
	}
	for _, name := range []string{"redis/password", "broker/ring.json", "clients/orders-api", "clients/billing-api", "broker/broker.key", "caller/demo.key"} {
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
			return c.Configs[config.Source].File
		}
	}
	t.Fatalf("%s: its configuration is not mounted at %q: %v", name, s.option("--config"), s.Configs)
	return ""
}

func TestTheConfigurationOfComposeIsGoodAndNamesWhatInitMakes(t *testing.T) {
	t.Parallel()
	secrets := t.TempDir()
	makeSecrets(t, secrets)
	c := readComposition(t)
	for _, name := range c.brokers() {
		if res := run(t, "check-config", c.configuration(t, name)); res.code != 0 {
			t.Errorf("check-config: %v", res)
		}
		text := readText(t, c.configuration(t, name))
		references := fileReferences(text)
		if len(references) < 7 {
			t.Errorf("%s: only %d files are named", name, len(references))
		}
		for _, path := range references {
			made := c.initFile(name, path)
			if info, err := os.Stat(filepath.Join(secrets, made)); err != nil || !info.Mode().IsRegular() {
				t.Errorf("%s: init does not make %s: %v", name, path, err)
			}
		}
		for _, p := range c.Services[name].Ports {
			if !strings.Contains(text, `":`+strconv.Itoa(p.Target)+`"`) {
				t.Errorf("%s: nothing listens on port %d", name, p.Target)
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
