package idp

import "github.com/cezzis/tokenbroker/internal/redact"

// Types of tokens (RFC 8693 section 3).
const (
	TypeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	TypeIDToken     = "urn:ietf:params:oauth:token-type:id_token"
	TypeJWTToken    = "urn:ietf:params:oauth:token-type:jwt"
)

// Subject is the token of a user or a service on whose behalf a token is requested.
type Subject struct {
	Token redact.String
	// Type is one of the types of tokens.
	Type string
}
