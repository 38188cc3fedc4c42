package client_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// Programs that use this package link its modules: they are few, and none is only for the
// broker.
func TestPackageLinksFewModules(t *testing.T) {
	allowed := []string{
		modulePath,
		"google.golang.org/grpc", "google.golang.org/protobuf", "golang.org/x/oauth2",
		"google.golang.org/genproto/googleapis/rpc", "golang.org/x/net", "golang.org/x/sys", "golang.org/x/text", // needs of gRPC
	}
	list := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", ".")
	output, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := strings.Fields(string(output))
	if !slices.Contains(modules, "google.golang.org/grpc") {
		t.Fatalf("go list printed %q", output)
	}
	for _, module := range slices.Compact(slices.Sorted(slices.Values(modules))) {
		if !slices.Contains(allowed, module) {
			t.Errorf("the package links %s: remove the import, or justify it in docs/dependencies.md and allow it here", module)
		}
	}
	packages, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(packages)) {
		if strings.HasPrefix(name, modulePath+"/internal/") {
			t.Errorf("the package links %s of the broker", name)
		}
	}
}

const modulePath = "github.com/cezzis/tokenbroker"
