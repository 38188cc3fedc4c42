package app_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
)

// mintLong makes a token as mint does that has the given length, or up to 3 bytes less.
func (w *boundWorld) mintLong(length int) string {
	w.t.Helper()
	now := time.Now()
	mint := func(pad int) string {
		return w.idp.Mint(map[string]any{
			"iss": idpIssuer, "sub": "robot", "aud": []string{"https://orders.example.com", "tokenbroker"}, "client_id": "robot", "scope": "read",
			"iat": now.Unix(), "exp": now.Add(time.Hour).Unix(), "groups": []string{strings.Repeat("g", pad)},
		}).Reveal()
	}
	made := mint((length - len(mint(0))) * 3 / 4)
	if len(made) > length || len(made) < length-3 {
		w.t.Fatalf("the token has %d bytes, want %d", len(made), length)
	}
	return made
}

func TestTokenSizeLimitInEveryAPI(t *testing.T) {
	for config, kib := range map[string]int{"": 16, "limits: {token_kib: 4}": 4, "limits: {token_kib: 64, header_kib: 4, message_kib: 16}": 64} {
		t.Run(fmt.Sprintf("%d KiB", kib), func(t *testing.T) {
			w := newBoundWorld(t, config)
			fits, tooLong := w.mintLong(kib<<10), w.mintLong(kib<<10+8)
			for _, api := range w.apis() {
				if !api.admits(fits, nil) {
					t.Errorf("%s: a token of %d bytes is refused", api.name, len(fits))
				}
				if kib < 64 && api.admits(tooLong, nil) {
					t.Errorf("%s: a token of %d bytes is accepted", api.name, len(tooLong))
				}
			}
			if got := w.verified(fits); got != "bearer" {
				t.Error("VerifyToken:", got)
			}
			if got, _ := w.introspected(fits); got != "Bearer" {
				t.Error("introspection:", got)
			}
			if got := w.verified(tooLong); got != "REJECTION_REASON_MALFORMED" {
				t.Error("VerifyToken:", got)
			}
			if got, _ := w.introspected(tooLong); got != "inactive" {
				t.Error("introspection:", got)
			}
			for _, token := range []string{fits, tooLong} {
				w.idp.SetAnswer(func(rw http.ResponseWriter, _ *http.Request) bool {
					rw.Header().Set("Content-Type", "application/json")
					_, _ = io.WriteString(rw, fmt.Sprintf(`{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, token))
					return true
				})
				resp, err := tokenbrokerv1.NewTokenBrokerServiceClient(w.gate).GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{"read"}})
				if (err == nil) != (token == fits) || err == nil && resp.GetAccessToken() != token {
					t.Errorf("GetToken with %d bytes: %v", len(token), err)
				}
				if _, err := tokenbrokerv1.NewAdminServiceClient(w.gate).PurgeTokens(t.Context(), &tokenbrokerv1.PurgeTokensRequest{ClientName: "orders", RequestId: "purge"}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
