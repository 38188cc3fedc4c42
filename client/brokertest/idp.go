package brokertest

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/devidp"
)

// Claims are the claims of a token to present to a service. With zero fields
// the token is valid for the broker.
type Claims struct {
	// Subject. Empty: "somebody".
	Subject string
	// ClientID. Empty: the subject.
	ClientID string
	// Audience. Empty: that of the broker's first client.
	Audience []string
	// Scopes. Empty: the token has no scopes.
	Scopes []string
	// Lifetime from now. Zero: 1 h. Negative: the token expired this long ago.
	Lifetime time.Duration
	// Issuer. Empty: [Issuer], which the broker trusts.
	Issuer string
	// More claims, which take precedence over the others.
	More map[string]any
}

// Mint returns an access token, issued by the identity provider, of a caller of
// a service.
func (b *Broker) Mint(c Claims) string {
	now := time.Now()
	expires := now.Add(time.Hour)
	if c.Lifetime != 0 {
		expires = now.Add(c.Lifetime)
	}
	issued := now
	if expires.Before(now) {
		issued = expires.Add(-time.Minute)
	}
	claims := map[string]any{
		"iss": cmp.Or(c.Issuer, Issuer), "sub": cmp.Or(c.Subject, "somebody"), "client_id": cmp.Or(c.ClientID, c.Subject, "somebody"),
		"aud": []string{b.opts.clients[0].Audiences[0]}, "iat": issued.Unix(), "exp": expires.Unix(), "jti": rand.Text(),
	}
	if len(c.Audience) > 0 {
		claims["aud"] = c.Audience
	}
	if len(c.Scopes) > 0 {
		claims["scope"] = strings.Join(c.Scopes, " ")
	}
	maps.Copy(claims, c.More)
	return b.idp.Mint(claims).Reveal()
}

// SetToken makes the identity provider return this text as the token of a
// client, instead of minting one. An empty text restores minting.
func (b *Broker) SetToken(clientName, token string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fixed[clientName] = token
}

// respondFixed responds for clients with a token from SetToken, and reports
// whether it did.
func (b *Broker) respondFixed(w http.ResponseWriter, r *http.Request) bool {
	b.mu.Lock()
	token := b.fixed[r.PostForm.Get("client_id")]
	b.mu.Unlock()
	if token == "" {
		return false
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat)) // as servers do: an old JWT has less time left
	_ = json.NewEncoder(w).Encode(map[string]any{
		"access_token": token, "token_type": "Bearer", "expires_in": int(b.opts.lifetime.Seconds()),
	})
	return true
}

// SetLifetime sets the lifetime of tokens minted from now on, in whole seconds.
func (b *Broker) SetLifetime(d time.Duration) { b.idp.SetLifetime(d) }

// SetIdPDown takes the identity provider down, or up again.
func (b *Broker) SetIdPDown(down bool) { b.idp.SetDown(down) }

// SetIdPDelay makes the identity provider wait before it returns a token.
func (b *Broker) SetIdPDelay(d time.Duration) { b.idp.SetDelay(d) }

// FailIdP makes the next n token requests at the identity provider fail with
// this HTTP status and, unless it is empty, this error code of RFC 6749.
func (b *Broker) FailIdP(n, status int, oauthError string) {
	b.idp.FailNext(n, status, oauthError, nil)
}

// IdPRequests returns how many token requests the identity provider received so
// far.
func (b *Broker) IdPRequests() int { return b.idp.Requests(devidp.TokenPath) }

// RotateKeys makes the identity provider sign with a new key. The old keys are
// withdrawn unless keepOld is true.
func (b *Broker) RotateKeys(keepOld bool) { b.idp.RotateKeys(keepOld) }

// adminTimeout bounds operator calls made for the test.
const adminTimeout = 30 * time.Second

// Purge drops the tokens of a client, as an operator does: the broker fetches
// another.
func (b *Broker) Purge(clientName string) {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	_, err := tokenbrokerv1.NewAdminServiceClient(b.admin.Conn()).PurgeTokens(ctx, &tokenbrokerv1.PurgeTokensRequest{
		ClientName: clientName, RequestId: rand.Text(),
	}, grpc.WaitForReady(true)) // the broker may have just restarted
	must(err)
}

// Revoke makes the broker refuse a token that is valid otherwise, as an
// operator does.
func (b *Broker) Revoke(token string) {
	ctx, cancel := context.WithTimeout(context.Background(), adminTimeout)
	defer cancel()
	claims, err := b.admin.Verify(ctx, token)
	must(err)
	_, err = tokenbrokerv1.NewAdminServiceClient(b.admin.Conn()).RevokeTokens(ctx, &tokenbrokerv1.RevokeTokensRequest{
		RequestId: rand.Text(),
		Revocation: &tokenbrokerv1.Revocation{
			Issuer: claims.Issuer, Target: &tokenbrokerv1.Revocation_TokenId{TokenId: claims.TokenID}, ExpiresAt: timestamppb.New(claims.ExpiresAt),
		},
	}, grpc.WaitForReady(true))
	must(err)
}
