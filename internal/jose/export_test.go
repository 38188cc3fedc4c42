package jose

import "github.com/cezzis/tokenbroker/internal/redact"

// SignedBy reports whether the public part of a key verifies a JWT.
func SignedBy(key *SigningKey, token redact.String) bool {
	compact, err := Split(token)
	return err == nil && Verify(key.Algorithm(), key.public, compact.SigningInput, compact.Signature) == nil
}
