package policy_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/policy"
)

func TestIsSPIFFEID(t *testing.T) {
	domain, path := strings.Repeat("d", 255), strings.Repeat("p", 2048-len("spiffe://e/"))
	for _, good := range []string{
		"spiffe://example.com/ns/shop/sa/checkout", "spiffe://a_b-c.1/A.b_c-9/...", "spiffe://az09/azAZ09", "spiffe://" + domain + "/x", "spiffe://e/" + path,
	} {
		if !policy.IsSPIFFEID(good) {
			t.Errorf("%q is refused", good)
		}
	}
	for _, bad := range []string{
		"", "spiffe:", "spiffe:/", "spiffe://", "spiffe:///x", "spiffe://example.com", "spiffe://example.com/", "spiffe://example.com/x/",
		"spiffe://example.com//x", "spiffe://example.com/x//y", "spiffe://example.com/.", "spiffe://example.com/x/..", "spiffe://example.com/./x", "spiffe://example.com/../x",
		"Spiffe://example.com/x", "spiffe://Example.com/x", "spiffe://example.com:1/x", "spiffe://u@example.com/x", "spiffe://ex%61mple.com/x", "spiffe://[::1]/x",
		"spiffe://example.com/%41", "spiffe://example.com/x?", "spiffe://example.com/x?y", "spiffe://example.com/x#", "spiffe://example.com/x#y", "spiffe://example.com?/x",
		"spiffe://example.com/é", "spiffe://exämple.com/x", "spiffe://example.com/x y", "spiffe://example.com/x\n", "spiffe://example.com/x;y", "spiffe://example.com/x:y", "spiffe://example.com/*", `spiffe://example.com/x\y`,
		"example.com/x", "spiffe://eA/x", "spiffe://eZ/x",
		" spiffe://example.com/x", "https://example.com/x", "spiffe://" + domain + "d/x", "spiffe://e/" + path + "p",
	} {
		if policy.IsSPIFFEID(bad) {
			t.Errorf("%q is accepted", bad)
		}
	}
}
