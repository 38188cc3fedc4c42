package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

func someClients() *fakeAdmin {
	return &fakeAdmin{clients: []*tokenbrokerv1.Client{
		{Name: "fine", State: tokenbrokerv1.ClientState_CLIENT_STATE_OK},
		{Name: "unused", State: tokenbrokerv1.ClientState_CLIENT_STATE_IDLE},
		{
			Name: "refused", State: tokenbrokerv1.ClientState_CLIENT_STATE_REFUSED, LastFailureAt: timestamppb.New(time.Now().Add(-3 * time.Minute)),
			LastError: "the IdP refuses the secret " + strings.Repeat("for a long reason ", 20) + "and the end",
		},
		{Name: "failing", State: tokenbrokerv1.ClientState_CLIENT_STATE_FAILING},
		{Name: "throttled", State: tokenbrokerv1.ClientState_CLIENT_STATE_THROTTLED},
		{Name: "missing", State: tokenbrokerv1.ClientState_CLIENT_STATE_NO_SECRET},
		{Name: "fallback", State: tokenbrokerv1.ClientState_CLIENT_STATE_OK, SecretFallback: true},
	}}
}

func TestClientsFailing(t *testing.T) {
	addr := someClients().serve(t)
	for _, flags := range [][]string{nil, {"--json"}} {
		stdout, stderr, code := runCommand(t.Context(), append([]string{"clients", "--failing", "--plaintext", "--addr", addr}, flags...)...)
		if code != 0 {
			t.Fatalf("%d: %s", code, stderr)
		}
		for name, want := range map[string]bool{"fine": false, "unused": false, "refused": true, "failing": true, "throttled": true, "missing": true, "fallback": true} {
			if got := strings.Contains(stdout, "\n"+name+" ") || strings.Contains(stdout, `"name":"`+name+`"`); got != want {
				t.Errorf("%v: %s is listed: %v\n%s", flags, name, got, stdout)
			}
		}
	}
	if _, stderr, code := runCommand(t.Context(), "clients", "refused", "--failing", "--plaintext", "--addr", addr); code != exitTrouble || !strings.Contains(stderr, "leave out the flag or the name") {
		t.Errorf("%d: %s", code, stderr)
	}
}

func TestClientsCutsLongErrors(t *testing.T) {
	t.Setenv("COLUMNS", "100")
	addr := someClients().serve(t)
	list, _, _ := runCommand(t.Context(), "clients", "--plaintext", "--addr", addr)
	for line := range strings.Lines(list) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 100 || strings.HasPrefix(line, "refused ") != strings.HasSuffix(line, "…\n") {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if !strings.Contains(list, "3m ago: the IdP refuses") {
		t.Error(list)
	}
	if one, _, _ := runCommand(t.Context(), "clients", "refused", "--plaintext", "--addr", addr); !strings.Contains(one, "and the end") {
		t.Errorf("the error is cut: %s", one)
	}
}
