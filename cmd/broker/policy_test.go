package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

func TestPolicyExplain(t *testing.T) {
	dir := t.TempDir()
	file, bad := filepath.Join(dir, "broker.yaml"), filepath.Join(dir, "bad.yaml")
	for path, text := range map[string]string{
		file: `
clients: {orders: {issuer: "https://login.example.com", client_id: abc, secret: "env:A", scopes: [read]}}
callers: [{name: checkout, spiffe_id: "spiffe://example.com/checkout", roles: [orders]}]
roles: {orders: {get: [{client: orders}]}}
`,
		bad: "clientz: {}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	explain := func(args ...string) (string, error) {
		var out strings.Builder
		root := newRoot()
		root.SetArgs(append([]string{"policy", "explain"}, args...))
		root.SetOut(&out)
		err := root.Execute()
		return out.String(), err
	}
	out, err := explain(file, "checkout")
	if err != nil || !strings.HasPrefix(out, "caller checkout, identified by the SPIFFE ID") || !strings.HasSuffix(out, "\nand nothing else.\n") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := explain(file, "nobody"); err == nil || out != "" || !strings.Contains(err.Error(), `no caller "nobody"`) || !strings.Contains(err.Error(), "checkout") {
		t.Errorf("an unknown caller: %q, %v", out, err)
	}
	if _, err := explain(file); err == nil {
		t.Error("a call without a caller succeeds")
	}
	_, err = explain(bad, "checkout")
	if _, ok := errors.AsType[*yamlconf.Error](err); !ok {
		t.Errorf("a bad file: %v", err)
	}
}
