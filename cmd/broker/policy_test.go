package main

import (
	"context"
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
	if err != nil || !strings.HasPrefix(out, "caller checkout (line 3), identified by the SPIFFE ID") || !strings.HasSuffix(out, "\nand nothing else.\n") {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := explain(file, "nobody"); err == nil || out != "" || !strings.Contains(err.Error(), `no caller "nobody"`) || !strings.Contains(err.Error(), "checkout") {
		t.Errorf("an unknown caller: %q, %v", out, err)
	}
	if all, err := explain(file); err != nil || all != out {
		t.Errorf("all callers: %q, %v", all, err)
	}
	if _, err := explain(); err == nil {
		t.Error("a call without a file succeeds")
	}
	_, err = explain(bad, "checkout")
	if _, ok := errors.AsType[*yamlconf.Error](err); !ok {
		t.Errorf("a bad file: %v", err)
	}
}

// policyRun runs a policy command and returns its output and its exit code.
func policyRun(stdin string, args ...string) (stdout, stderr string, code int) {
	var out, errOut strings.Builder
	code = runTo(context.Background(), append([]string{"policy"}, args...), strings.NewReader(stdin), &out, &errOut)
	return out.String(), errOut.String(), code
}

func TestPolicyDiff(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const text = `
clients: {orders: {issuer: "https://login.example.com", client_id: abc, secret: "env:A", scopes: [read, write]}}
callers: [{name: checkout, spiffe_id: "spiffe://example.com/checkout", roles: [orders]}]
roles: {orders: {get: [{client: orders}]}}
`
	old, updated := write("old.yaml", text), write("new.yaml", strings.Replace(text, "{client: orders}", "{client: orders, scopes: [read]}", 1))
	const line = `{"v":1,"replica":"r","time":"2026-11-25T21:49:05.123456Z","event":"token","outcome":"ok","caller":"checkout","client":"orders","scopes":["write"],"granted_scopes":["write"]}` + "\n"
	log, badLog := write("audit.jsonl", line+line), write("bad.jsonl", line+"{\n"+line)
	for name, test := range map[string]struct {
		stdin  string
		args   []string
		code   int
		stdout []string
		stderr string
	}{
		"no difference": {"", []string{old, old}, 0, []string{"no difference: "}, ""},
		"a difference":  {"", []string{old, updated}, 1, []string{"- tokens of client orders: scopes write  (" + old + ":4)"}, ""},
		"json":          {"", []string{old, updated, "--json"}, 1, []string{`{"type":"permission","effect":"loss","caller":"checkout","kind":"get","client":"orders","scopes":["write"],"lines":["` + old + `:4"]}` + "\n"}, ""},
		"a log": {"", []string{old, updated, "--audit", log, "--audit", log}, 1, []string{
			"recorded requests that " + updated + " denies: 4\n       4x caller checkout: tokens of client orders; scopes write\n",
			"last 2026-11-25 21:49:05Z; no grant allows the scopes write; allowed by " + old + ":4\n", "log: 4 lines, 4 requests from 2026-11-25 21:49:05Z to",
		}, ""},
		"a log on stdin": {line, []string{old, updated, "--audit", "-", "--json"}, 1, []string{
			`{"type":"request","count":1,"last":"2026-11-25T21:49:05.123456Z","caller":"checkout","kind":"get","recorded":"allowed","before":"allowed","after":"denied",`,
			`{"type":"log","lines":1,"bad_lines":0,"requests":1,`,
		}, ""},
		"a bad line":     {"", []string{old, old, "--audit", badLog}, 2, []string{"not judged: 1 bad lines"}, "broker: " + badLog + ":2: the line is not a JSON object"},
		"a bad file":     {"", []string{old, write("bad.yaml", "clientz: {}\n")}, 2, nil, "bad.yaml:1: clientz: no such key"},
		"no file":        {"", []string{filepath.Join(dir, "none"), old}, 2, nil, "no such file"},
		"no log":         {"", []string{old, old, "--audit", filepath.Join(dir, "none")}, 2, nil, "no such file"},
		"no gzip":        {"\x1f\x8bx", []string{old, old, "--audit", "-"}, 2, nil, "standard input cannot be read: "},
		"one argument":   {"", []string{old}, 2, nil, "accepts 2 arg(s)"},
		"a wrong option": {"", []string{old, old, "--wrong"}, 2, nil, "unknown flag"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := policyRun(test.stdin, append([]string{"diff"}, test.args...)...)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if !strings.Contains(stderr, test.stderr) || test.stderr == "" && stderr != "" {
				t.Errorf("stderr: %q", stderr)
			}
			for _, want := range test.stdout {
				if !strings.Contains(stdout, want) {
					t.Errorf("%s\nwant: %s", stdout, want)
				}
			}
		})
	}
	out, _, code := policyRun("", "usage", updated, "--audit", log)
	if code != 0 || !strings.HasPrefix(out, updated+": 0 of 1 grants were never needed\n") || !strings.Contains(out, "may deny: 2\n") {
		t.Errorf("usage: %d: %s", code, out)
	}
	if out, _, code := policyRun(line, "usage", old, "--audit", "-", "--json"); code != 0 || !strings.HasPrefix(out, `{"type":"grant","role":"orders","kind":"get","line":"`+old+`:4","grant":"get client orders","count":1,`) {
		t.Errorf("usage: %d: %s", code, out)
	}
	if _, stderr, code := policyRun("", "usage", old); code != 2 || !strings.Contains(stderr, "--audit is missing") {
		t.Errorf("usage without a log: %d, %q", code, stderr)
	}
}
