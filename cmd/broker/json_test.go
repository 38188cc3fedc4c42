package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/cezzis/tokenbroker/client/brokertest"
	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// checkJSONLines fails the test unless each line is a compact object with names in
// snake_case.
func checkJSONLines(t *testing.T, text string, lines int, contains ...string) {
	t.Helper()
	got := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(got) != lines {
		t.Errorf("%d lines, want %d: %s", len(got), lines, text)
	}
	for _, line := range got {
		var members map[string]any
		if err := json.Unmarshal([]byte(line), &members); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		for name := range members {
			if strings.ToLower(name) != name {
				t.Errorf("the name %s in %s", name, line)
			}
		}
		var compact bytes.Buffer // protojson adds white space in some builds
		if err := json.Compact(&compact, []byte(line)); err != nil || compact.String() != line {
			t.Errorf("white space in %s", line)
		}
	}
	for _, part := range contains {
		if !strings.Contains(text, part) {
			t.Errorf("no %s in %s", part, text)
		}
	}
}

func TestJSONOfMessages_sameFormAsGet(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 11, 30, 1, 2, 3, 0, time.UTC))
	var out strings.Builder
	version := &tokenbrokerv1.SecretVersion{Version: "81aa0e11", State: tokenbrokerv1.SecretState_SECRET_STATE_CURRENT, StateSince: at}
	clients := []*tokenbrokerv1.Client{
		{Name: "orders", State: tokenbrokerv1.ClientState_CLIENT_STATE_OK, TokenExpiresAt: at, SecretInUse: "81aa0e11", SecretVersions: []*tokenbrokerv1.SecretVersion{version}},
		{Name: "billing"},
	}
	if err := printClients(&out, clients, time.Now(), true, 0); err != nil {
		t.Fatal(err)
	}
	checkJSONLines(t, out.String(), 2, `"token_expires_at":"2026-11-30T01:02:03Z"`, `"secret_in_use":"81aa0e11"`, `"known_here":false`, `"name":"billing"`)

	out.Reset()
	if err := printRevocations(&out, []*tokenbrokerv1.Revocation{{Id: "r1", IssuedBefore: at}, {Id: "r2"}}, true); err != nil {
		t.Fatal(err)
	}
	checkJSONLines(t, out.String(), 2, `"issued_before":"2026-11-30T01:02:03Z"`)

	steps := []*tokenbrokerv1.RotationStep{{Name: "stage", Ok: true, Took: durationpb.New(time.Second)}}
	out.Reset()
	if err := (&secretFlags{asJSON: true}).printSteps(&out, &tokenbrokerv1.RotateSecretResponse{Version: version, Steps: steps}); err != nil {
		t.Fatal(err)
	}
	checkJSONLines(t, out.String(), 1, `"state_since":"2026-11-30T01:02:03Z"`, `"steps":[{"name":"stage","ok":true`)

	out.Reset()
	if err := printImported(&out, "orders", &tokenbrokerv1.ImportSecretResponse{Version: version, Steps: steps}); err != nil {
		t.Fatal(err)
	}
	checkJSONLines(t, out.String(), 1, `"client_name":"orders"`, `"state_since"`, `"steps"`)
}

func TestJSONOfVerifyIsOneLine(t *testing.T) {
	b := brokertest.New(t, brokertest.OnLoopback())
	for name, tt := range map[string]struct{ token, contains string }{
		"a good token": {b.Mint(brokertest.Claims{}), `"active":true`},
		"a bad one":    {"x.y.z", `"active":false`},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			root := newRoot()
			root.SetArgs([]string{"verify", "-", "--json", "--addr", b.Addr(), "--plaintext"})
			root.SetIn(strings.NewReader(tt.token))
			root.SetOut(&out)
			if _, rejected := errors.AsType[exit](root.ExecuteContext(t.Context())); rejected != strings.Contains(tt.contains, "false") {
				t.Errorf("rejected: %v", rejected)
			}
			checkJSONLines(t, out.String(), 1, tt.contains)
		})
	}
}

func TestJSONFlagIsTheSameEverywhere(t *testing.T) {
	usages := map[string][]string{}
	var visit func(cmd *cobra.Command)
	visit = func(cmd *cobra.Command) {
		if flag := cmd.Flags().Lookup("json"); flag != nil {
			usages[flag.Usage] = append(usages[flag.Usage], cmd.CommandPath())
		}
		for _, child := range cmd.Commands() {
			visit(child)
		}
	}
	visit(newRoot())
	if len(usages) != 1 {
		t.Errorf("the flag --json has several descriptions: %v", usages)
	}
}

func TestJSONOfGetHasNoNull(t *testing.T) {
	b := brokertest.New(t, brokertest.OnLoopback())
	for _, args := range [][]string{{"get", "orders-api"}, {"verify", b.Mint(brokertest.Claims{})}} {
		stdout, stderr, code := runCommand(t.Context(), append(args, "--json", "--addr", b.Addr(), "--plaintext")...)
		if code != 0 || strings.Contains(stdout, "null") || strings.Contains(stdout, "0001-01-01") {
			t.Errorf("%v: %d %s%s", args[0], code, stdout, stderr)
		}
	}
}

func TestJSONIsNotEscapedForHTML(t *testing.T) {
	var out strings.Builder
	if err := printJSON(&out, map[string]string{"reason": "a & b <c>"}); err != nil {
		t.Fatal(err)
	}
	if err := printTyped(&out, "grant", []map[string]string{{"reason": "a & b <c>"}}); err != nil {
		t.Fatal(err)
	}
	if err := printMessage(&out, &tokenbrokerv1.Revocation{Reason: "a & b <c>"}); err != nil {
		t.Fatal(err)
	}
	if strings.Count(out.String(), `"reason":"a & b <c>"`) != 3 {
		t.Error(out.String())
	}
}
