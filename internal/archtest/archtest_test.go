package archtest_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cezzis/tokenbroker/"

// levels places the packages. A package imports only packages of lower levels,
// never one of its own: what two siblings share belongs below them.
var levels = [][]string{
	{"internal/address", "internal/apierror", "internal/cache", "internal/redact", "internal/escape", "internal/tracing", "internal/yamlconf", "gen/tokenbroker/v1"},
	{"internal/audit", "internal/token", "internal/secret", "internal/jose", "internal/discovery", "internal/certs", "internal/devca", "client"},
	{"internal/policy", "internal/idp", "internal/tokenerror", "internal/tokenkeys", "internal/secretsource", "internal/urlcheck", "internal/verify/jwks", "internal/store", "internal/devidp"},
	{"internal/authz", "internal/backoff", "internal/fleet", "internal/verify", "internal/store/boltstore", "internal/store/redisinfo", "internal/store/sealed"},
	{"internal/caller", "internal/credential", "internal/epoch", "internal/revocation", "internal/statuspage", "internal/tokenmetrics", "internal/store/redisstore"},
	{"internal/lease", "internal/delegate", "internal/feed"},
	{"internal/broker", "internal/clientkeys"},
	{"internal/exchange", "internal/rotation"},
	{"internal/server", "internal/gateway"},
	{"internal/httpapi", "internal/extauthz", "internal/gatewayconf"},
	{"internal/config"},
	{"internal/storage", "internal/traceexport", "internal/policyreview"},
	{"internal/app"},
	{"internal/doctor"},
	{"cmd/broker", "client/brokertest", "internal/bench", "internal/dashboard", "internal/plot", "internal/scale", "internal/archtest", "internal/model", "internal/testreport", "examples/httpservice", "examples/grpcservice"},
	{"internal/e2e", "internal/e2e/deploy", "internal/e2e/edge", "internal/e2e/fleet"},
}

// testSupport are packages that only tests import, each at the level above the
// package that it helps to test.
var testSupport = map[string]string{
	"internal/certs/certstest":   "internal/certs",
	"internal/e2e/harness":       "internal/app",
	"internal/apitest":           "internal/server",
	"internal/jose/josetest":     "internal/jose",
	"internal/redact/redacttest": "internal/redact",
	"internal/redistest":         "internal/store",
	"internal/store/storetest":   "internal/store",
	"internal/testkit":           "internal/redact", // it imports none of ours
}

// wall says who alone may import a package and those below it.
type wall struct {
	around string
	allow  []string
	// tests says that tests anywhere may import it.
	tests bool
}

var (
	apis    = []string{"internal/caller", "internal/server", "internal/extauthz", "internal/traceexport", "internal/app", "client", "client/brokertest", "cmd/broker", "internal/bench", "internal/e2e/deploy", "internal/e2e/edge", "internal/e2e/fleet", "internal/e2e/harness", "examples/grpcservice"}
	metered = []string{"internal/audit", "internal/clientkeys", "internal/idp", "internal/verify", "internal/verify/jwks", "internal/store", "internal/credential", "internal/feed", "internal/revocation", "internal/fleet", "internal/broker", "internal/caller", "internal/tokenmetrics", "internal/server", "internal/httpapi", "internal/storage", "internal/traceexport", "internal/app"}
	// The first three ask others over HTTP; the rest serve it, or know what its statuses
	// and headers mean, are made for those who do, or are for tests.
	httpUsers = []string{"internal/clientkeys", "internal/idp", "internal/secretsource", "internal/verify", "internal/verify/jwks", "internal/discovery", "internal/devidp", "internal/gateway", "internal/gatewayconf", "internal/httpapi", "internal/extauthz", "internal/statuspage", "internal/traceexport", "internal/app", "internal/doctor", "cmd/broker", "client", "client/brokertest", "examples/httpservice", "internal/bench", "internal/e2e/deploy", "internal/e2e/edge", "internal/e2e/fleet", "internal/e2e/harness", "internal/redistest"}

	walls = []wall{
		{around: "github.com/lestrrat-go", allow: []string{"internal/jose"}},
		{around: "github.com/redis", allow: []string{"internal/store/redisstore"}},
		{around: "go.etcd.io/bbolt", allow: []string{"internal/store/boltstore"}},
		{around: "google.golang.org/grpc", allow: append([]string{"gen/tokenbroker/v1", "internal/certs/certstest"}, apis...)},
		{around: "google.golang.org/protobuf", allow: append([]string{"gen/tokenbroker/v1"}, apis...)},
		{around: "google.golang.org/genproto", allow: apis},
		{around: "github.com/envoyproxy", allow: []string{"internal/extauthz", "internal/bench", "internal/e2e/deploy", "internal/e2e/edge", "internal/e2e/fleet", "internal/e2e/harness"}, tests: true},
		{around: "github.com/grpc-ecosystem", allow: []string{"internal/server", "internal/app"}},
		{around: module + "gen", allow: apis},
		{around: module + "client", allow: []string{"cmd/broker", "client/brokertest", "internal/bench", "internal/e2e/deploy", "internal/e2e/edge", "internal/e2e/fleet", "internal/e2e/harness", "examples/httpservice", "examples/grpcservice"}, tests: true},
		{around: "github.com/prometheus", allow: metered, tests: true},
		{around: "go.opentelemetry.io/otel", allow: []string{"internal/tracing", "internal/traceexport"}, tests: true},
		{around: "go.opentelemetry.io/contrib", allow: []string{"internal/traceexport"}, tests: true},
		{around: "go.opentelemetry.io/proto", tests: true},
		{around: "golang.org/x/sys", allow: []string{"cmd/broker"}, tests: true},
		{around: "github.com/spiffe", allow: []string{"internal/certs", "internal/certs/certstest"}},
		{around: "github.com/spf13/cobra", allow: []string{"cmd/broker"}},
		{around: "go.yaml.in/yaml", allow: []string{"internal/yamlconf"}, tests: true},
		{around: "net/http", allow: httpUsers, tests: true},
		{around: "testing", allow: []string{"internal/jose/josetest", "internal/store/storetest", "internal/redistest", "internal/apitest", "internal/e2e/harness", "internal/testkit", "client/brokertest"}, tests: true},
		{around: "github.com/golang-jwt", allow: []string{"internal/e2e/fleet"}, tests: true},
		{around: "github.com/google/go-cmp", tests: true},
		{around: "github.com/invopop/jsonschema", tests: true},
		{around: "github.com/santhosh-tekuri/jsonschema", tests: true},
		{around: "go.uber.org/goleak", tests: true},
		{around: "pgregory.net/rapid", allow: []string{"internal/store/storetest"}, tests: true},
	}

	// clientMay is all that the client may lay on those who import it, beside
	// the standard library.
	clientMay = []string{module + "gen", "google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto/googleapis/rpc", "golang.org/x/oauth2"}
)

// imports are what a package imports, and what its tests do beyond that.
type imports struct{ code, tests []string }

func TestEachPackageHasALevel(t *testing.T) {
	for pkg := range packages(t) {
		if level(pkg) < 0 && testSupport[pkg] == "" {
			t.Errorf("%s has no place: give it a level in this test, by what it may know and who may know it", pkg)
		}
	}
}

func TestImportsPointDownwards(t *testing.T) {
	for pkg, imports := range packages(t) {
		own := level(pkg)
		if helped, ok := testSupport[pkg]; ok {
			own = level(helped) + 1
		}
		for _, path := range imports.code {
			imported, ours := strings.CutPrefix(path, module)
			switch {
			case !ours:
			case testSupport[imported] != "" && testSupport[pkg] == "":
				t.Errorf("%s imports %s, which is for tests only", pkg, imported)
			case level(imported) >= own:
				t.Errorf("%s imports %s, which is not below it", pkg, imported)
			}
		}
	}
}

func TestWallsHold(t *testing.T) {
	for pkg, imports := range packages(t) {
		for _, w := range walls {
			if slices.Contains(w.allow, pkg) {
				continue
			}
			paths := imports.code
			if !w.tests {
				paths = slices.Concat(imports.code, imports.tests)
			}
			for _, path := range paths {
				if within(path, w.around) && !within(module+pkg, w.around) {
					t.Errorf("%s imports %s; only %q may", pkg, path, w.allow)
				}
			}
		}
	}
}

func TestClientHasFewDependencies(t *testing.T) {
	for _, path := range packages(t)["client"].code {
		standard := !strings.Contains(strings.Split(path, "/")[0], ".")
		allowed := slices.ContainsFunc(clientMay, func(root string) bool { return within(path, root) })
		if !standard && !allowed {
			t.Errorf("client imports %s; beside the standard library it may import only %q", path, clientMay)
		}
	}
}

// level is the place of a package in levels, -1 if it has none.
func level(pkg string) int {
	return slices.IndexFunc(levels, func(level []string) bool { return slices.Contains(level, pkg) })
}

func within(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

// packages reads the imports of every package of the module, whatever its build
// tags. It reads the files itself instead of asking "go list", so that go test
// knows what the result depends on and does not answer from its cache.
func packages(t *testing.T) map[string]imports {
	t.Helper()
	const root = "../.."
	const floor = 10
	found := make(map[string]imports)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && foreign(path):
			return fs.SkipDir
		case entry.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := found[filepath.ToSlash(dir)]
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if strings.HasSuffix(path, "_test.go") {
				pkg.tests = append(pkg.tests, imported)
			} else {
				pkg.code = append(pkg.code, imported)
			}
		}
		found[filepath.ToSlash(dir)] = pkg
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) < floor {
		t.Fatalf("only %d packages were found", len(found))
	}
	return found
}

// foreign reports whether a directory holds no packages of this module.
func foreign(dir string) bool {
	name := filepath.Base(dir)
	if name == "testdata" || name == "node_modules" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") {
		return true
	}
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}
