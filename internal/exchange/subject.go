// Package exchange has the rules of tokens on behalf of a subject: which subject tokens
// a request may carry, what identifies the token that the IdP issues for one, and when it
// ends. It does no I/O. Package broker verifies subject tokens and obtains the tokens.
package exchange

import (
	"fmt"
	"strings"

	"github.com/cezzis/tokenbroker/internal/idp"
)

const typePrefix = "urn:ietf:params:oauth:token-type:"

// SubjectType returns the type of a subject token that a request names. It defaults to
// idp.TypeAccessToken. The error is the predicate of a sentence about the type.
func SubjectType(requested string) (string, error) {
	switch requested {
	case "", idp.TypeAccessToken:
		return idp.TypeAccessToken, nil
	case idp.TypeIDToken:
		return idp.TypeIDToken, nil
	case idp.TypeJWTToken:
		return "", fmt.Errorf("does not say whether the token is an access token or an ID token: send %s or %s", idp.TypeAccessToken, idp.TypeIDToken)
	case typePrefix + "refresh_token":
		return "", fmt.Errorf("is not accepted: a refresh token is a credential of its client; send the user's access token (%s)", idp.TypeAccessToken)
	case typePrefix + "saml1", typePrefix + "saml2":
		return "", fmt.Errorf("is not accepted: the broker cannot verify SAML assertions; send the user's access token (%s)", idp.TypeAccessToken)
	}
	if strings.HasPrefix(requested, typePrefix) {
		return "", fmt.Errorf("is not known: send %s or %s", idp.TypeAccessToken, idp.TypeIDToken)
	}
	return "", fmt.Errorf("is not an identifier of RFC 8693 section 3: send %s or %s", idp.TypeAccessToken, idp.TypeIDToken)
}
