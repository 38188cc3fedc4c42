// Package jose reads what signed tokens are made of: the compact form of a JWS
// (RFC 7515), its header, the JSON in it, the keys of a JWK set (RFC 7517), and
// signatures (RFC 7518, 8037). It judges no claims. It also signs the assertions
// with which the broker itself authenticates (RFC 7523).
//
// It accepts less than the RFCs allow, so that a token has one spelling and all
// who read it read the same:
//
//   - the compact form only, at most 64 KiB, in canonical base64url;
//   - no header parameter that changes what is signed or with which key (crit,
//     b64, zip, enc, jwk), and no nested content (cty); jku and x5u are not looked at;
//   - JSON objects without repeated names, sound UTF-8, of bounded size and
//     depth, and nothing after them;
//   - RSA, ECDSA and Ed25519 signatures only: no symmetric algorithm, no "none";
//   - keys of sound size, each with the algorithms that its type allows.
//
// Public keys are parsed by jwx, which is imported nowhere else, and only after
// all that is not needed was taken away. Private keys are read, and signatures
// made and verified, by the standard library.
package jose

// UnsupportedError says that a token asks for what is never accepted. Every
// other error about a token's form means that it is malformed. Neither quotes
// anything of the token.
type UnsupportedError string

func (e UnsupportedError) Error() string { return string(e) }
