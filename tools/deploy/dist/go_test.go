package dist

import (
	"go/version"
	"regexp"
	"runtime"
	"testing"
)

// Releases, images and CI are built with one version of Go. The installed one may be older,
// but can build every module.
func TestVersionsOfGoAgree(t *testing.T) {
	find := func(file, pattern string) string {
		t.Helper()
		found := regexp.MustCompile(pattern).FindStringSubmatch(read(t, root, file))
		if found == nil {
			t.Fatalf("%s has no %s", file, pattern)
		}
		return "go" + found[1]
	}
	toolchain := find("go.mod", `(?m)^toolchain go(1\.\d+\.\d+)$`)
	for file, pattern := range map[string]string{
		"Dockerfile":               `golang:(1\.\d+\.\d+)-`,
		".github/workflows/ci.yml": `golang:(1\.\d+\.\d+)-`,
	} {
		if got := find(file, pattern); got != toolchain {
			t.Errorf("%s has %s, go.mod has the toolchain %s", file, got, toolchain)
		}
	}
	for _, module := range []string{".", "tools", "tools/buf", "tools/deploy", "tools/release", "tools/zitadelop"} {
		if needed := find(module+"/go.mod", `(?m)^go (1\.\d+\.\d+)$`); version.Compare(needed, runtime.Version()) > 0 {
			t.Errorf("%s needs %s, %s is installed", module, needed, runtime.Version())
		}
	}
}
