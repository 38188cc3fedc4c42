package devidp_test

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	exchangeGrant = "urn:ietf:params:oauth:grant-type:token-exchange"
	bearerGrant   = "urn:ietf:params:oauth:grant-type:jwt-bearer"
	accessType    = "urn:ietf:params:oauth:token-type:access_token"
	bff           = "https://bff.example.com"
)

func exchangeConfig(issuer string) devidp.Config {
	registered := func(id, grant string, e devidp.Exchange) devidp.Client {
		return devidp.Client{
			ID: id, Secrets: []redact.String{redact.New(secret)}, Grant: grant, Exchange: &e,
			Scopes: []string{"read", "write"}, Audiences: []string{orders, stock},
		}
	}
	return devidp.Config{Issuer: issuer, Algorithm: "EdDSA", Clients: []devidp.Client{
		registered("bff", "", devidp.Exchange{SubjectAudiences: []string{bff}}),
		registered("acting", "", devidp.Exchange{SubjectAudiences: []string{bff}, RequireActor: true, Only: true}),
		registered("obo", bearerGrant, devidp.Exchange{}),
	}}
}

// userClaims are the claims of a user's token, with changes; nil removes one.
func userClaims(idp *devidp.Server, changes map[string]any) map[string]any {
	now := time.Now().Unix()
	claims := map[string]any{
		"iss": idp.Issuer(), "sub": "alice", "client_id": "web", "aud": bff, "scope": "openid", "iat": now, "exp": now + 600, "jti": "1",
	}
	maps.Copy(claims, changes)
	maps.DeleteFunc(claims, func(_ string, value any) bool { return value == nil })
	return claims
}

func exchangeForm(client, token string, more ...string) url.Values {
	form := url.Values{
		"grant_type": {exchangeGrant}, "client_id": {client}, "client_secret": {secret},
		"subject_token": {token}, "subject_token_type": {accessType}, "audience": {orders}, "scope": {"read"},
	}
	for pair := range slices.Chunk(more, 2) {
		if form.Set(pair[0], pair[len(pair)-1]); form.Get(pair[0]) == "" {
			form.Del(pair[0])
		}
	}
	return form
}

func claimsIn(t *testing.T, token any) jose.Object {
	t.Helper()
	text, _ := token.(string)
	compact, err := jose.Split(redact.New(text))
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jose.ParseObject(compact.Payload)
	if err != nil {
		t.Fatal(err)
	}
	return claims
}

func TestExchangeNamesSubjectAndActors(t *testing.T) {
	overBoth(t, exchangeConfig(""), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		user := idp.Mint(userClaims(idp, map[string]any{"act": map[string]any{"sub": "web"}}))
		got := send(t, client, tokenRequest(t, idp, exchangeForm("bff", user.Reveal()).Encode()))
		if got.status != http.StatusOK || got.body["issued_token_type"] != accessType || got.body["token_type"] != "Bearer" || got.body["scope"] != "read" {
			t.Fatalf("%d %v", got.status, got.body)
		}
		if life, _ := got.body["expires_in"].(float64); life < 590 || life > 600 {
			t.Errorf("the token lives %v s; the subject token ends in 600 s", life)
		}
		claims := claimsIn(t, got.body["access_token"])
		act, _, _ := claims.Object("act")
		inner, _, _ := act.Object("act")
		texts := map[string]string{}
		for name, object := range map[string]jose.Object{"sub": claims, "aud": claims, "client_id": claims} {
			texts[name], _, _ = object.Text(name)
		}
		texts["act"], _, _ = act.Text("sub")
		texts["act.act"], _, _ = inner.Text("sub")
		if diff := cmp.Diff(map[string]string{"sub": "alice", "aud": orders, "client_id": "bff", "act": "bff", "act.act": "web"}, texts); diff != "" {
			t.Error(diff)
		}
	})
}

func TestExchangeRefusals(t *testing.T) {
	overBoth(t, exchangeConfig(""), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		mint := func(changes map[string]any) string { return idp.Mint(userClaims(idp, changes)).Reveal() }
		good := mint(nil)
		foreign := newServer(t, exchangeConfig(idp.Issuer()))
		for name, tt := range map[string]struct {
			form url.Values
			want string
		}{
			"no subject":          {exchangeForm("bff", ""), "invalid_request"},
			"no type":             {exchangeForm("bff", good, "subject_token_type", ""), "invalid_request"},
			"refresh token":       {exchangeForm("bff", good, "subject_token_type", "urn:ietf:params:oauth:token-type:refresh_token"), "invalid_request"},
			"access as ID token":  {exchangeForm("bff", good, "subject_token_type", "urn:ietf:params:oauth:token-type:id_token"), "invalid_request"},
			"ID as access token":  {exchangeForm("bff", idp.MintWith(map[string]any{"typ": "JWT"}, userClaims(idp, nil)).Reveal()), "invalid_request"},
			"wrong audience":      {exchangeForm("bff", mint(map[string]any{"aud": orders})), "invalid_request"},
			"expired":             {exchangeForm("bff", mint(map[string]any{"exp": time.Now().Unix()})), "invalid_request"},
			"foreign issuer":      {exchangeForm("bff", mint(map[string]any{"iss": "https://other.example.com"})), "invalid_request"},
			"foreign key":         {exchangeForm("bff", foreign.Mint(userClaims(idp, nil)).Reveal()), "invalid_request"},
			"bound to a key":      {exchangeForm("bff", mint(map[string]any{"cnf": map[string]any{"jkt": "x"}})), "invalid_request"},
			"unknown opaque":      {exchangeForm("bff", "opaque"), "invalid_request"},
			"type of the result":  {exchangeForm("bff", good, "requested_token_type", "urn:ietf:params:oauth:token-type:saml2"), "invalid_request"},
			"target":              {exchangeForm("bff", good, "audience", "https://other.example.com"), "invalid_target"},
			"scope":               {exchangeForm("bff", good, "scope", "admin"), "invalid_scope"},
			"secret":              {exchangeForm("bff", good, "client_secret", "wrong"), "invalid_client"},
			"no actor":            {exchangeForm("acting", good), "invalid_request"},
			"actor without type":  {exchangeForm("acting", good, "actor_token", good), "invalid_request"},
			"type without actor":  {exchangeForm("bff", good, "actor_token_type", accessType), "invalid_request"},
			"only exchanges":      {exchangeForm("acting", "", "grant_type", "client_credentials"), "unsupported_grant_type"},
			"other client":        {exchangeForm("obo", good), "unsupported_grant_type"},
			"assertion alone":     {exchangeForm("obo", "", "grant_type", bearerGrant, "assertion", good), "invalid_request"},
			"assertion elsewhere": {exchangeForm("obo", "", "grant_type", bearerGrant, "assertion", good, "requested_token_use", "on_behalf_of"), "invalid_grant"},
		} {
			got := send(t, client, tokenRequest(t, idp, tt.form.Encode()))
			if got.body["error"] != tt.want || got.status < 400 {
				t.Errorf("%s: %d %v, want %s", name, got.status, got.body, tt.want)
			}
		}
	})
}

func TestExchangeAccepts(t *testing.T) {
	overBoth(t, exchangeConfig(""), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		good := idp.Mint(userClaims(idp, nil)).Reveal()
		forOBO := idp.Mint(userClaims(idp, map[string]any{"aud": []string{"x", "obo"}})).Reveal()
		for name, form := range map[string]url.Values{
			"opaque subject":   exchangeForm("bff", idp.MintOpaque(userClaims(idp, nil)).Reveal()),
			"ID token":         exchangeForm("bff", idp.MintWith(map[string]any{"typ": "JWT"}, userClaims(idp, nil)).Reveal(), "subject_token_type", "urn:ietf:params:oauth:token-type:id_token"),
			"actor":            exchangeForm("acting", good, "actor_token", good, "actor_token_type", accessType),
			"own token":        exchangeForm("bff", "", "grant_type", "client_credentials"),
			"on behalf of":     exchangeForm("obo", "", "grant_type", bearerGrant, "assertion", forOBO, "requested_token_use", "on_behalf_of"),
			"token type named": exchangeForm("bff", good, "requested_token_type", accessType),
		} {
			got := send(t, client, tokenRequest(t, idp, form.Encode()))
			if got.status != http.StatusOK || got.body["access_token"] == nil {
				t.Errorf("%s: %d %v", name, got.status, got.body)
			}
		}
	})
}

// An assertion must never count as a user's token for a client that signs its own.
func TestExchangeParameterDoesNotReplaceTheAssertion(t *testing.T) {
	cfg := exchangeConfig("")
	cfg.Clients = append(cfg.Clients, devidp.Client{ID: "signing", Grant: bearerGrant, Auth: devidp.AuthNone})
	overBoth(t, cfg, func(t *testing.T, idp *devidp.Server, client *http.Client) {
		form := url.Values{"grant_type": {bearerGrant}, "client_id": {"signing"}, "requested_token_use": {"on_behalf_of"}}
		if got := send(t, client, tokenRequest(t, idp, form.Encode())); got.status == http.StatusOK {
			t.Errorf("a token without any assertion: %v", got.body)
		}
	})
}
