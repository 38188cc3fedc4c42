package main

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestCompletionCompletesClients(t *testing.T) {
	isolate(t)
	b := brokertest.New(t, brokertest.OnLoopback(), brokertest.WithClients(brokertest.Client{Name: "orders-api"}, brokertest.Client{Name: "billing-api"}))
	for line, want := range map[string]string{
		"get ":                         "billing-api\norders-api\n:4\n",
		"get orders-api ":              ":4\n",
		"clients ":                     "billing-api\norders-api\n:4\n",
		"purge ":                       "billing-api\norders-api\n:4\n",
		"secret rotate ":               "billing-api\norders-api\n:4\n",
		"secret activate ":             "billing-api\norders-api\n:4\n",
		"secret rollback ":             "billing-api\norders-api\n:4\n",
		"secret retire ":               "billing-api\norders-api\n:4\n",
		"secret export ":               ":0\n",
		"secret export f orders-api ":  "billing-api\n:4\n",
		"secret import f billing-api ": "orders-api\n:4\n",
	} {
		t.Setenv("TOKENBROKER_ADDR", b.Addr())
		stdout, _, code := runCommand(t.Context(), append([]string{"__complete"}, strings.Split(line, " ")...)...)
		if code != 0 || stdout != want {
			t.Errorf("%q: exit code %d: %q, want %q", line, code, stdout, want)
		}
	}
	if stdout, _, _ := runCommand(t.Context(), "__complete", "get", "--addr", b.Addr(), ""); !strings.HasPrefix(stdout, "billing-api\n") {
		t.Errorf("the flag --addr is not used: %q", stdout)
	}
}

func TestCompletionIsSilentOnFailure(t *testing.T) {
	isolate(t)
	for _, addr := range []string{"127.0.0.1:1", serveSilence(t), "nonsense:///"} {
		stdout, stderr, code := runCommand(t.Context(), "__complete", "get", "--addr", addr, "")
		if code != 0 || stdout != ":4\n" || strings.Contains(stderr, "broker:") || strings.Contains(stderr, "rror") {
			t.Errorf("%s: exit code %d: %q%q", addr, code, stdout, stderr)
		}
	}
}

func TestCompletionScriptIsIntact(t *testing.T) {
	help, _, _ := runCommand(t.Context(), "--help")
	if !strings.Contains(help, "completion") {
		t.Error("the help does not list the command")
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		stdout, stderr, code := runCommand(t.Context(), "completion", shell)
		if code != 0 || stderr != "" || strings.Contains(stdout, `\u00`) || !strings.Contains(stdout, "__complete") {
			t.Errorf("%s: exit code %d: %s", shell, code, stderr)
		}
	}
}
