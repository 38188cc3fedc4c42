// Package jose parses signed tokens and keys and verifies signatures: the compact form
// of a JWS and its header (RFC 7515), JSON objects, JWK sets (RFC 7517), and signatures
// (RFC 7518, RFC 8037). It does not judge claims. It also signs the assertions with
// which the broker authenticates itself (RFC 7523).
//
// It accepts less than the RFCs allow, so that a token has one encoding and every
// parser reads the same content:
//
//   - the compact form only, at most 64 KiB, in canonical base64url;
//   - no header parameter that changes the signed content or the key (crit, b64, zip,
//     enc, jwk), and no nested content (cty); jku and x5u are ignored;
//   - JSON objects without repeated names, in valid UTF-8, of bounded size and depth,
//     with nothing after them;
//   - RSA, ECDSA and Ed25519 signatures only: no symmetric algorithm, no "none";
//   - keys of bounded size, each with the algorithms that its type allows.
//
// The library jwx parses public keys, from which all other members are removed before.
// No other package imports it. The standard library parses private keys, and creates
// and verifies signatures.
package jose

// UnsupportedError means that a token uses a feature that is never accepted. Any other
// error about the form of a token means that it is malformed. Neither quotes anything
// of the token.
type UnsupportedError string

func (e UnsupportedError) Error() string { return string(e) }
