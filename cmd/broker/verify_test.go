package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/client/brokertest"
)

// Whoever lets in by the exit code of "broker verify" lets in no token that is
// good only for the holder of a key.
func TestVerifyRejectsBoundTokens(t *testing.T) {
	b := brokertest.New(t, brokertest.OnLoopback())
	for cnf, says := range map[string]string{
		"": "active", "jkt": "the DPoP key jkt=t", "x5t#S256": "the client certificate x5t#S256=t", "kid": "a key of another kind in its cnf claim",
	} {
		more := map[string]any{"cnf": map[string]any{cnf: "t"}}
		want := exit(exitRejected)
		if cnf == "" {
			more, want = nil, 0
		}
		var stdout strings.Builder
		root := newRoot()
		root.SetArgs([]string{"verify", "-", "--addr", b.Addr(), "--plaintext"})
		root.SetIn(strings.NewReader(b.Mint(brokertest.Claims{More: more})))
		root.SetOut(&stdout)
		code, _ := errors.AsType[exit](root.ExecuteContext(t.Context()))
		if code != want || !strings.Contains(stdout.String(), says) || (cnf != "") != strings.HasPrefix(stdout.String(), "rejected: wrong_holder: ") {
			t.Errorf("cnf with %q: exit code %d, %s", cnf, code, stdout.String())
		}
	}
}
