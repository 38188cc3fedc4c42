package verify

import (
	"slices"

	"github.com/cezzis/tokenbroker/internal/jose"
)

// judgeIDToken rejects a token that is not an ID token for the client clientID (OpenID
// Connect Core section 3.1.3.7). It refuses access tokens, although an issuer may name the
// client in their aud: an ID token says that a user has signed in at the client.
func judgeIDToken(f *Facts, c *IssuerConfig, clientID string) error {
	claims, err := jose.ParseObject(f.Claims)
	if err != nil {
		return reject(BadClaims, "The token has an invalid claim: its payload %v.", err)
	}
	if typ := mediaType(f.typ); typ != "" && typ != "jwt" {
		return reject(WrongType, "The token's typ is %s; an ID token has the typ JWT, or none.", quote(f.typ))
	}
	if purpose := purposeBesidesID(claims); purpose != "" {
		return reject(WrongType, "The token is %s, not an ID token.", purpose)
	}
	if f.hasAccessClaim && !slices.ContainsFunc(c.IDTokenClaims, claims.Has) {
		return reject(WrongType, "The token has a claim that only access tokens have, such as scope, and none that only ID tokens have, such as at_hash: it may be an access token.")
	}
	if f.SubjectType != SubjectSub || f.IssuedAt.IsZero() {
		return reject(BadClaims, "The token has no sub or no iat, which an ID token needs.")
	}
	if f.noAudience || !slices.Contains(f.Audience, clientID) {
		return reject(WrongAudience, "The ID token is for %s; it must be for the client that exchanges it, %s.", quoteList(f.Audience), quote(clientID))
	}
	if party, present, err := claims.Text("azp"); err != nil || present && party != clientID {
		return reject(WrongAudience, "The ID token was issued to another client (azp) than the client that exchanges it, %s.", quote(clientID))
	}
	return nil
}

// purposeBesidesID describes a token that states a purpose other than that of an ID token,
// and returns "" for any other. Cognito (token_use) and Keycloak (typ) state the purpose.
func purposeBesidesID(claims jose.Object) string {
	use, hasUse, err := claims.Text("token_use")
	if hasUse && (err != nil || use != "id") {
		return "for another use (token_use)"
	}
	typ, hasType, err := claims.Text("typ")
	if hasType && (err != nil || typ != "ID") {
		return "for another use (the claim typ)"
	}
	return noToken(claims)
}
