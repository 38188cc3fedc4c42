package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client/brokertest"
	"github.com/cezzis/tokenbroker/internal/config"
)

// execute runs a command and returns its output and its exit code.
func execute(args ...string) (out, stderr string, code int) {
	var stdout, stderrText strings.Builder
	code = runTo(context.Background(), args, strings.NewReader(""), &stdout, &stderrText)
	return stdout.String(), stderrText.String(), code
}

func TestDoctorOutput(t *testing.T) {
	for _, name := range []string{"TOKENBROKER_ADDR", "TOKENBROKER_CA", "TOKENBROKER_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "broker.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys := filepath.Join(dir, "keys.json")
	if err := os.WriteFile(keys, []byte(`{"keys":[{"kty":"EC","crv":"P-256","kid":"a","alg":"ES256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const head = "listen: {grpc: {address: '127.0.0.1:0', caller: gate}, ops: 'off'}\n"
	good := head + fmt.Sprintf("issuers: [{issuer: 'https://a', jwks_file: %q, audiences: [api]}]\ncallers: [{name: gate, roles: [all]}]\nroles: {all: {verify: [{issuer: '*'}]}}\n", keys)

	write(good)
	out, stderr, code := execute("doctor", file)
	if want := "7 checks: 0 errors, 0 warnings, 0 notes\n"; code != 0 || out != want || stderr != "" {
		t.Errorf("a good file: exit code %d, %q, %q", code, out, stderr)
	}
	if out, _, code := execute("doctor", file, "--json"); code != 0 {
		t.Errorf("exit code %d", code)
	} else {
		checkJSONLines(t, out, 1, `"errors":0,"warnings":0,"notes":0,"findings":[],"passed":[{"subject":"issuers https://a: keys","detail":"1 usable"}]`)
	}

	write(good + "clients: {x: {token_url: 'https://127.0.0.1:1/t', client_id: a, secret: 'file:" + dir + "/absent'}}\n")
	out, _, code = execute("doctor", file)
	for _, part := range []string{
		"Errors\n  " + file + ":5: clients.x: secret: open " + dir + "/absent: no such file or directory [config-unusable]\n      Correct the file",
		"\n\nWarnings\n  " + file + ":5: clock of 127.0.0.1:1: the server does not answer", "checks: 1 error, 1 warning, 0 notes\n",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in\n%s", part, out)
		}
	}
	if code != 1 || strings.Contains(out, "Notes") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if out, _, code := execute("doctor", file, "--json"); code != 1 {
		t.Errorf("exit code %d", code)
	} else {
		checkJSONLines(t, out, 1, `"errors":1`, `"severity":"error","id":"config-unusable","subject":"clients.x"`, `"line":5`)
	}
	if _, stderr, code := execute("doctor", filepath.Join(dir, "absent.yaml")); code != 2 || !strings.Contains(stderr, "cannot be read") {
		t.Errorf("no file: %d, %q", code, stderr)
	}
	write(good + "clientz: {}\n")
	if _, stderr, code := execute("doctor", file); code != 2 || !strings.Contains(stderr, file+":5: clientz") {
		t.Errorf("a bad file: %d, %q", code, stderr)
	}
}

// check-config --live exits with 1 for errors only, because health checks rely on it.
func TestCheckConfig_liveIsAnAlias(t *testing.T) {
	file := filepath.Join(t.TempDir(), "broker.yaml")
	for text, want := range map[string]int{
		"issuers: [{issuer: 'https://a', jwks_file: '/nowhere', audiences: [api]}]\n":    1,
		"clients: {x: {token_url: 'https://127.0.0.1:1/t', client_id: a, auth: none}}\n": 0, // no caller, and no answer
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, _, code := execute("check-config", file, "--live")
		if code != want || !strings.Contains(out, "Warnings\n") {
			t.Errorf("exit code %d, want %d:\n%s", code, want, out)
		}
	}
	help, _, _ := execute("check-config", "--help")
	if !strings.Contains(help, `alias of "broker doctor`) {
		t.Error(help)
	}
}

func TestDoctorComparesTheRunningFleet(t *testing.T) {
	b := brokertest.New(t, brokertest.OnLoopback())
	file := filepath.Join(t.TempDir(), "broker.yaml")
	if err := os.WriteFile(file, []byte("clients: {x: {token_url: 'https://127.0.0.1:1/t', client_id: a, auth: none}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, _ := execute("doctor", file, "--addr", b.Addr(), "--plaintext")
	if !strings.Contains(out, "1 of 1 replicas run another configuration") {
		t.Errorf("the fleet is not compared:\n%s", out)
	}
}

func TestLocalAddress(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:8443": "127.0.0.1:8443", "'{address: \":8443\", plaintext: true}'": "127.0.0.1:8443", "127.0.0.1:0": "",
	} {
		cfg, err := config.Parse("f", []byte("listen: {grpc: "+strings.Trim(text, "'")+"}\nclients: {x: {token_url: 'https://a/t', client_id: a, auth: none}}\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := localAddress(&cfg.Listen); got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}
