package exchange_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/exchange"
	"github.com/cezzis/tokenbroker/internal/idp"
)

func TestSubjectType(t *testing.T) {
	const prefix = "urn:ietf:params:oauth:token-type:"
	for requested, want := range map[string]string{"": idp.TypeAccessToken, idp.TypeAccessToken: idp.TypeAccessToken, idp.TypeIDToken: idp.TypeIDToken} {
		if got, err := exchange.SubjectType(requested); got != want || err != nil {
			t.Errorf("%q: %q, %v", requested, got, err)
		}
	}
	for requested, says := range map[string]string{
		prefix + "refresh_token": "is a credential of its client",
		prefix + "saml1":         "SAML",
		prefix + "saml2":         "SAML",
		idp.TypeJWTToken:         "access token or an ID token",
		prefix + "Access_Token":  "is not known",
		"access_token":           "RFC 8693 section 3",
		" " + idp.TypeIDToken:    "RFC 8693 section 3",
	} {
		if got, err := exchange.SubjectType(requested); err == nil || got != "" || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %q, %v; want an error with %q", requested, got, err, says)
		}
	}
}
