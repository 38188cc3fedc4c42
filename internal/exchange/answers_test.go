package exchange_test

import (
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/revocation"
)

// TestAnswersForSubjects has the answer for each kind of subject token. What the broker
// refuses does not reach the IdP.
func TestAnswersForSubjects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.add()
		foreign, err := devidp.New(devidp.Config{Issuer: issuer, Algorithm: "EdDSA"})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().Unix()
		revoked := w.user(map[string]any{"jti": "revoked"})
		if _, err := b.Revocations().Revoke(t.Context(), policy.Self(), revocation.Revocation{Issuer: issuer, TokenID: "revoked", ExpiresAt: time.Now().Add(time.Hour)}, "1"); err != nil {
			t.Fatal(err)
		}
		revokedOpaque, forOthers, bound := w.opaque(nil), w.opaque(map[string]any{"aud": orders}), w.opaque(map[string]any{"cnf": map[string]any{"jkt": "x"}})
		w.idp.Revoke(revokedOpaque)
		idToken := func(changes map[string]any) redact.String {
			all := map[string]any{"aud": "obo-2", "scope": nil, "client_id": nil, "at_hash": "x"}
			maps.Copy(all, changes)
			return w.userWith(map[string]any{"typ": "JWT"}, all)
		}
		access, id := idp.TypeAccessToken, idp.TypeIDToken
		for name, tt := range map[string]struct {
			client, kind string
			token        redact.String
			want         string // the rejection; empty: the IdP gets it
		}{
			"an access token":                        {"obo", access, w.user(nil), ""},
			"an opaque token":                        {"obo", access, w.opaque(nil), ""},
			"an ID token":                            {"obo-2", id, idToken(nil), ""},
			"another audience":                       {"obo", access, w.user(map[string]any{"aud": orders}), "wrong_audience"},
			"an audience of the issuer":              {"obo", access, w.user(map[string]any{"aud": "https://api.example.com"}), "wrong_audience"},
			"no audience, although there is another": {"obo", access, w.user(map[string]any{"aud": nil}), "wrong_audience"},
			"expired":                                {"obo", access, w.user(map[string]any{"exp": now}), "expired"},
			"not yet valid":                          {"obo", access, w.user(map[string]any{"nbf": now + 100}), "not_yet_valid"},
			"another issuer":                         {"obo", access, w.user(map[string]any{"iss": "https://evil.example.com"}), "unknown_issuer"},
			"another key":                            {"obo", access, foreign.Mint(map[string]any{"iss": issuer, "sub": "alice", "aud": bff, "exp": now + 60}), "unknown_key"},
			"a refresh token":                        {"obo", access, w.userWith(map[string]any{"typ": "JWT"}, map[string]any{"typ": "Refresh"}), "wrong_type"},
			"bound to a key":                         {"obo", access, w.user(map[string]any{"cnf": map[string]any{"jkt": "x"}}), "bound"},
			"revoked":                                {"obo", access, revoked, "revoked"},

			"an unknown opaque token":           {"obo", access, redact.New("2YotnFZFEjr1zCsicMWpAA"), "inactive"},
			"a revoked opaque token":            {"obo", access, revokedOpaque, "inactive"},
			"an opaque token for others":        {"obo", access, forOthers, "wrong_audience"},
			"an opaque token bound to a key":    {"obo", access, bound, "bound"},
			"an opaque refresh token":           {"obo", access, w.opaque(map[string]any{"token_type": nil, "scope": nil, "client_id": nil}), "wrong_type"},
			"an opaque token as an ID token":    {"obo-2", id, w.opaque(map[string]any{"aud": "obo-2"}), "malformed"},
			"an ID token as an access token":    {"obo-2", access, idToken(nil), "wrong_type"},
			"an ID token without marks":         {"obo", access, w.userWith(map[string]any{"typ": "JWT"}, map[string]any{"scope": nil, "client_id": nil}), "wrong_type"},
			"an access token as an ID token":    {"obo-2", id, w.user(map[string]any{"aud": "obo-2"}), "wrong_type"},
			"an ID token of another client":     {"obo-2", id, idToken(map[string]any{"aud": "web"}), "wrong_audience"},
			"an ID token for the service":       {"obo-2", id, idToken(map[string]any{"aud": bff}), "wrong_audience"},
			"an ID token to another client":     {"obo-2", id, idToken(map[string]any{"aud": []string{"obo-2", "web"}, "azp": "web"}), "wrong_audience"},
			"an ID token bound to a key":        {"obo-2", id, idToken(map[string]any{"cnf": map[string]any{"jkt": "x"}}), "bound"},
			"an ID token where it is not named": {"obo", id, idToken(map[string]any{"aud": "obo"}), "not_accepted"},
		} {
			before := w.fetches()
			_, err := w.getAs(b, "bff", broker.Ask{Client: tt.client}, idp.Subject{Token: tt.token, Type: tt.kind})
			field := "subject.token"
			if tt.want == "not_accepted" {
				field = "subject.token_type"
			}
			switch {
			case tt.want == "" && (err != nil || w.fetches() != before+1):
				t.Errorf("%s: %v, %d requests to the IdP", name, err, w.fetches()-before)
			case tt.want == "":
			case err == nil || err.Code != apierror.InvalidArgument || err.Reason != apierror.ReasonSubjectRefused || err.Metadata["rejection"] != tt.want || err.Field != field:
				t.Errorf("%s: %+v, want the rejection %s", name, err, tt.want)
			case strings.Contains(err.Message, tt.token.Reveal()):
				t.Errorf("%s: the error repeats the token", name)
			case w.fetches() != before:
				t.Errorf("%s: it reached the IdP", name)
			}
		}
	})
}

// An opaque token cannot be judged while the introspection endpoint is down: the caller can
// try again, and the token is neither refused nor exchanged.
func TestGet_opaqueWhileIntrospectionIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := w.add()
		alice := w.opaque(nil)
		w.mustGet(b, "bff", obo(), alice)
		w.idp.SetDown(true)
		before := w.fetches()
		if _, err := w.get(b, "bff", obo(), alice); err == nil || err.Code != apierror.Unavailable || w.fetches() != before {
			t.Errorf("down: %v", err)
		}
		w.idp.SetDown(false)
		time.Sleep(time.Minute)
		if got := w.mustGet(b, "bff", obo(), alice); got.Origin != broker.OriginMemory {
			t.Errorf("later: %v", got.Origin)
		}
		w.idp.Revoke(alice)
		if _, err := w.get(b, "bff", obo(), alice); err == nil || err.Metadata["rejection"] != "inactive" {
			t.Errorf("revoked: %v", err)
		}
	})
}
