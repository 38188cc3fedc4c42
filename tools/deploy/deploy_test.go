// Package deploy tests docker-compose.yaml and the Dockerfile. It reads them as Compose
// and BuildKit do, without an engine and without a network. Compose and BuildKit have so
// many dependencies that these tests are in a module of their own.
package deploy

import (
	"context"
	"encoding/json"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	composeFile = "../../docker-compose.yaml"
	dockerFile  = "../../Dockerfile"

	// These containers are no servers: initService runs once, at the start, and
	// cliService and adminService on request.
	initService  = "init"
	cliService   = "cli"
	adminService = "admin"
)

// composition is docker-compose.yaml as Compose reads it: extensions merged, short
// forms written out, paths absolute.
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

func readComposition(t *testing.T) (found composition) {
	t.Helper()
	read(t, checkCompose, composeFile, &found)
	return found
}

// readStages returns the stages of the Dockerfile by their names, and the name of
// the last, which is what "docker build" makes.
func readStages(t *testing.T) (stages map[string]stage, last string) {
	t.Helper()
	var found []stage
	read(t, checkDockerfile, dockerFile, &found)
	stages = make(map[string]stage, len(found))
	for _, s := range found {
		stages[s.Name], last = s, s.Name
	}
	return stages, last
}

// check reads a file strictly: a warning is an error.
type check func(ctx context.Context, path string) (any, error)

// read reads a file into a value with the names of its JSON.
func read(t *testing.T, check check, file string, into any) {
	t.Helper()
	path, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	found, err := check(t.Context(), path)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	text, err := json.Marshal(found)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatal(err)
	}
}

// brokers are the names of the services that run "broker serve", in order.
func (c composition) brokers() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(c.Services)), func(name string) bool {
		return !slices.Contains(c.Services[name].Command, "serve")
	})
}

// option returns the argument that follows a flag in a service's command.
func (s service) option(flag string) string {
	if at := slices.Index(s.Command, flag); at >= 0 && at+1 < len(s.Command) {
		return s.Command[at+1]
	}
	return ""
}

func TestComposeBrokersDifferInPortsOnly(t *testing.T) {
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

func TestContainersAreConfinedAndChecked(t *testing.T) {
	services := readComposition(t).Services
	if len(services) < 6 {
		t.Fatalf("%d services", len(services))
	}
	for name, s := range services {
		limits := s.Deploy.Resources.Limits
		server := !slices.Contains([]string{initService, cliService, adminService}, name)
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

// The services of the profile "monitoring" are published too, if they are started.
func TestOnlyBrokersArePublished(t *testing.T) {
	c := readComposition(t)
	brokers := append(c.brokers(), "grafana", "prometheus")
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

func TestRedisNeedsPasswordAndPersists(t *testing.T) {
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
	stages, _ := readStages(t)
	if base := stages["init"].Base; base != redis.Image {
		t.Errorf("init is made from %s, Redis is %s: one image will do", base, redis.Image)
	}
}

func TestNoSecretInEnvironmentOrCommand(t *testing.T) {
	c := readComposition(t)
	stages, _ := readStages(t)
	harmless := []string{"GOMEMLIMIT", "PATH", "CGO_ENABLED", "TOKENBROKER_ADDR", "TOKENBROKER_CA", "TOKENBROKER_CERT", "TOKENBROKER_KEY"}
	for name, s := range c.Services {
		for variable := range s.Environment {
			if !slices.Contains(harmless, variable) && !strings.HasPrefix(variable, "GF_") {
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

// ownVolume has the service with the only image that writes to a volume.
var ownVolume = map[string]string{"prometheus-data": "prometheus", "grafana-data": "grafana"}

func TestMountedFilesExist(t *testing.T) {
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
			// A volume gets its owner from init, which mounts it first, or from an image that
			// has its directory.
			if ownVolume[m.Source] == name {
				continue
			}
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

func TestImageHasOnlyTheBroker(t *testing.T) {
	stages, last := readStages(t)
	image, health := stages[last], []string{"CMD", "/broker", "healthcheck", "--config", "/etc/tokenbroker/broker.yaml"}
	for what, ok := range map[string]bool{
		"it is made from scratch":         image.Base == "scratch",
		"its user is not root, by number": numericUser.MatchString(image.Config.User),
		"it runs the broker":              slices.Equal(image.Config.Entrypoint, []string{"/broker"}),
		"it serves unless told otherwise": len(image.Config.Cmd) > 0 && image.Config.Cmd[0] == "serve",
		"it needs no shell to be checked": image.Config.Healthcheck != nil && slices.Equal(image.Config.Healthcheck.Test, health),
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
		if slices.Contains(c.brokers(), name) && !slices.Equal(s.HealthCheck.Test, health) {
			t.Errorf("%s is checked by %q", name, s.HealthCheck.Test)
		}
	}
	if s := c.Services[initService]; s.Build.Target != "init" || s.User != stages["init"].Config.User {
		t.Errorf("init runs the stage %q as %s", s.Build.Target, s.User)
	}
}

func TestBrokenFilesAreRefused(t *testing.T) {
	for name, broken := range map[string]struct {
		check                        check
		file, old, replacement, says string
	}{
		"undefined service":    {checkCompose, composeFile, "redis: {condition: service_healthy}", "rediss: {condition: service_healthy}", "undefined service"},
		"undefined volume":     {checkCompose, composeFile, "- redis-data:/var/lib/redis\n", "- redis-date:/var/lib/redis\n", "undefined volume"},
		"undefined config":     {checkCompose, composeFile, "source: idp-check", "source: idp-chekc", "undefined config"},
		"undefined network":    {checkCompose, composeFile, "networks: [backend]", "networks: [backends]", "undefined network"},
		"bad key":              {checkCompose, composeFile, "read_only: true", "readonly: true", "readonly"},
		"bad value":            {checkCompose, composeFile, "127.0.0.1:18443:8443", "127.0.0.1:18443:grpc", "Invalid containerPort"},
		"unset variable":       {checkCompose, composeFile, "GOMEMLIMIT: 200MiB", "GOMEMLIMIT: ${LIMIT}", "LIMIT"},
		"unknown instruction":  {checkDockerfile, dockerFile, "USER 65532:65532", "USR 65532:65532", "unknown instruction"},
		"undefined stage":      {checkDockerfile, dockerFile, "--from=build /out/broker /broker", "--from=biuld /out/broker /broker", "no stage"},
		"unpinned image":       {checkDockerfile, dockerFile, "golang:1.26.11-bookworm", "golang", "not pinned"},
		"shell form":           {checkDockerfile, dockerFile, `ENTRYPOINT ["/broker"]`, "ENTRYPOINT /broker", "JSONArgsRecommended"},
		"undefined variable":   {checkDockerfile, dockerFile, "WORKDIR /src", "WORKDIR $SOURCE", "UndefinedVar"},
		"secret as a variable": {checkDockerfile, dockerFile, "ENV CGO_ENABLED=0", "ENV CGO_ENABLED=0 REDIS_PASSWORD=x", "SecretsUsedInArgOrEnv"},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(broken.file)
			if err != nil {
				t.Fatal(err)
			}
			changed := strings.Replace(string(text), broken.old, broken.replacement, 1)
			if changed == string(text) {
				t.Fatalf("%q is not in %s", broken.old, broken.file)
			}
			path := filepath.Join(t.TempDir(), filepath.Base(broken.file))
			if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := broken.check(t.Context(), path); err == nil || !strings.Contains(err.Error(), broken.says) {
				t.Errorf("the error is %v, want %q", err, broken.says)
			}
		})
	}
}
