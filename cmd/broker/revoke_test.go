package main

import (
	"context"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/client/brokertest"
)

func TestRevokeTakesTheToken(t *testing.T) {
	isolate(t)
	b := brokertest.New(t, brokertest.OnLoopback())
	revoked, other := b.Mint(brokertest.Claims{}), b.Mint(brokertest.Claims{})
	root := newRoot()
	root.SetArgs([]string{"revoke", "-", "--addr", b.Addr(), "--reason", "in a bug report"})
	root.SetIn(strings.NewReader(revoked + "\n"))
	var out strings.Builder
	root.SetOut(&out)
	if err := root.ExecuteContext(t.Context()); err != nil || strings.TrimSpace(out.String()) == "" {
		t.Fatalf("%q, %v", out.String(), err)
	}
	c := b.Client()
	if _, err := c.Verify(context.Background(), revoked); err == nil || !strings.Contains(err.Error(), string(client.ReasonRevoked)) {
		t.Errorf("the revoked token: %v", err)
	}
	if _, err := c.Verify(context.Background(), other); err != nil {
		t.Errorf("another token: %v", err)
	}
	if list, _, _ := runCommand(t.Context(), "revocations", "list", "--addr", b.Addr()); !strings.Contains(list, "in a bug report") {
		t.Error(list)
	}
}

func TestRevokeRefusesOtherText(t *testing.T) {
	for text, want := range map[string]string{
		"opaque-canary":             "is not a JWT",
		"a.canary!.c":               "is not a valid JWT",
		"a.eyJpc3MiOiJpIn0.canary":  "has no claim iss or jti",
		"a.eyJqdGkiOiJpIn0.canary":  "has no claim iss or jti",
		"a.eyJqdGkiOiJpIn0x.canary": "is not a valid JWT",
	} {
		_, stderr, code := runCommand(t.Context(), "revoke", text)
		if code != exitTrouble || !strings.Contains(stderr, want) || strings.Contains(stderr, "canary") {
			t.Errorf("%s: exit code %d: %s", text, code, stderr)
		}
	}
}
