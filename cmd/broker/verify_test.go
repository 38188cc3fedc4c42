package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client/brokertest"
)

// A script that relies on the exit code of "broker verify" must not accept a token that is
// valid only for the holder of a key.
func TestVerifyRejectsBoundTokens(t *testing.T) {
	b := brokertest.New(t, brokertest.OnLoopback())
	for cnf, output := range map[string]string{
		"": "active", "jkt": "the DPoP key jkt=t", "x5t#S256": "the client certificate x5t#S256=t", "kid": "a key of another kind in its cnf claim",
	} {
		more := map[string]any{"cnf": map[string]any{cnf: "t"}}
		wantCode := exit(exitNegative)
		if cnf == "" {
			more, wantCode = nil, 0
		}
		var stdout strings.Builder
		root := newRoot()
		root.SetArgs([]string{"verify", "-", "--addr", b.Addr(), "--plaintext"})
		root.SetIn(strings.NewReader(b.Mint(brokertest.Claims{More: more})))
		root.SetOut(&stdout)
		code, _ := errors.AsType[exit](root.ExecuteContext(t.Context()))
		if code != wantCode || !strings.Contains(stdout.String(), output) || (cnf != "") != strings.HasPrefix(stdout.String(), "rejected: wrong_holder: ") {
			t.Errorf("cnf with %q: exit code %d, %s", cnf, code, stdout.String())
		}
	}
}
