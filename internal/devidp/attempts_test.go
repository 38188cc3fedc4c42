package devidp_test

import (
	"net/http"
	"testing"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

func TestAttemptsAreCountedBySecret(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		ask(t, idp, client, "")
		ask(t, idp, client, "scope=nonsense") // the client is let in all the same
		idp.SetSecrets("any", redact.New("another"))
		ask(t, idp, client, "")
		idp.FailNext(1, http.StatusServiceUnavailable, "", nil)
		ask(t, idp, client, "")
		for value, want := range map[string][2]int{secret: {2, 1}, "another": {0, 0}} {
			if good, refused := idp.Attempts("any", redact.New(value)); good != want[0] || refused != want[1] {
				t.Errorf("%d good and %d refused, want %v", good, refused, want)
			}
		}
	})
}
