package app_test

import (
	stdcmp "cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/app"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// productAPI is the audience of tokens whose product lets an administrator choose it.
const productAPI = "https://orders.example.com"

// product is a product's documents, keys, answers and access tokens in the shape that
// its documentation shows. Members that are nil are left out.
type product struct {
	issuer string
	// iss is the issuer of the tokens, if it is another than that of the metadata.
	iss string
	// audience is the audience of the tokens. Empty: productAPI.
	audience string
	// client, settings and kept are further settings of the client and of the issuer.
	// Without the settings, but with those that are kept, the token is rejected.
	client, settings, kept string
	// jwks is the path of the keys. Empty: /jwks.
	jwks string
	// token is what the server demands for the keys. Empty: nothing.
	token string
	// metadata are further members of the metadata.
	metadata josetest.JSON
	// algorithm signs tokens. Empty: RS256.
	algorithm string
	// jwk are further members of the key, keys further keys of the set.
	jwk  josetest.JSON
	keys []josetest.JSON
	// header and claims are further members of the access token.
	header, claims josetest.JSON
	// answer are further members of the answer of the token endpoint.
	answer josetest.JSON
	// opaque is an access token that is not verified with keys.
	opaque string
	want   seenOf
	// without is the reason for which the token is rejected without the settings.
	without tokenbrokerv1.RejectionReason
	// refused are further tokens of the product, by name, which are rejected with the
	// settings.
	refused map[string]refusedToken
}

// refusedToken is how a token differs from the accepted token.
type refusedToken struct {
	claims josetest.JSON
	reason tokenbrokerv1.RejectionReason
}

// seenOf is what callers get of a product's tokens.
type seenOf struct {
	Subject, ClientID string
	Scopes            []string
	Lifetime          time.Duration
}

func merged(base josetest.JSON, more ...josetest.JSON) josetest.JSON {
	out := maps.Clone(base)
	for _, members := range more {
		for name, value := range members {
			if out[name] = value; value == nil {
				delete(out, name)
			}
		}
	}
	return out
}

// productServer answers as the product.
type productServer struct {
	product

	signer *josetest.Signer
}

// RoundTrip implements http.RoundTripper without a network.
func (s productServer) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := httptest.NewRecorder()
	s.ServeHTTP(answer, r)
	return answer.Result(), nil
}

func (s productServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json;charset=UTF-8")
	switch {
	case r.Method == http.MethodPost:
		_, _ = w.Write(josetest.Marshal(s.tokenAnswer()))
	case r.URL.Path == s.keysPath() && s.token != "" && r.Header.Get("Authorization") != "Bearer "+s.token:
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == s.keysPath():
		keys := append([]josetest.JSON{s.signer.JWK(s.jwk)}, s.keys...)
		_, _ = w.Write(josetest.Set(keys...))
	case strings.Contains(r.URL.Path, "/.well-known/"):
		_, _ = w.Write(josetest.Marshal(s.document()))
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (s productServer) keysPath() string {
	if s.jwks != "" {
		return s.jwks
	}
	return "/jwks"
}

func (s productServer) document() josetest.JSON {
	address, err := url.Parse(s.issuer)
	if err != nil {
		panic(err)
	}
	base := "https://" + address.Host
	return merged(josetest.JSON{"issuer": s.issuer, "token_endpoint": base + "/token", "jwks_uri": base + s.keysPath()}, s.metadata)
}

func (s productServer) tokenAnswer() josetest.JSON {
	token := s.opaque
	if token == "" {
		token = s.mint(nil)
	}
	return merged(josetest.JSON{"access_token": token, "token_type": "Bearer", "expires_in": 3600}, s.answer)
}

// mint returns an access token of the product with some claims replaced.
func (s productServer) mint(change josetest.JSON) string {
	now := time.Now().Unix()
	claims := josetest.JSON{"iss": s.tokenIssuer(), "aud": s.tokenAudience(), "iat": now, "exp": now + 3600}
	return s.signer.Token(s.signer.Header(s.header), merged(claims, s.claims, change))
}

func (s productServer) tokenIssuer() string { return stdcmp.Or(s.iss, s.issuer) }

func (s productServer) tokenAudience() string { return stdcmp.Or(s.audience, productAPI) }

// start runs a broker for the product and returns its API.
func (s productServer) start(t *testing.T, settings string) tokenbrokerv1.TokenBrokerServiceClient {
	t.Helper()
	file := t.TempDir() + "/secret"
	testkit.WriteFile(t, file, "right")
	text := fmt.Sprintf("listen: {grpc: {address: \"127.0.0.1:0\", caller: everybody}, ops: off}\n%sclients:\n  orders: {issuer: %q, client_id: orders, secret: %q%s}\n",
		everybody, s.issuer, "file:"+file, s.client)
	if s.opaque == "" {
		text += fmt.Sprintf("issuers:\n  - {issuer: %q, audiences: [%q]%s}\n", s.tokenIssuer(), s.tokenAudience(), s.kept+settings)
	}
	broker, err := app.New(parsed(t, text), app.Options{Logger: quiet(), Transport: s})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- broker.Run(ctx) }()
	conn, err := grpc.NewClient(broker.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return tokenbrokerv1.NewTokenBrokerServiceClient(conn)
}

// TestProducts runs a token of each product through a broker: it is obtained from the
// token endpoint that the metadata names and verified with the product's keys.
func TestProducts(t *testing.T) {
	for name, p := range products(t) {
		t.Run(name, func(t *testing.T) {
			server := productServer{product: p, signer: josetest.New(t, stdcmp.Or(p.algorithm, "RS256"), "key-1")}
			api := server.start(t, p.settings)
			given, err := api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
			if err != nil {
				t.Fatal(err)
			}
			if left := time.Until(given.GetExpiresAt().AsTime()); left > p.want.Lifetime || left < p.want.Lifetime-5*time.Minute || given.GetTokenType() != "Bearer" {
				t.Errorf("the token is a %s for %v, want Bearer for %v", given.GetTokenType(), left, p.want.Lifetime)
			}
			if p.opaque != "" {
				return
			}
			server.verify(t, api, given.GetAccessToken())
		})
	}
}

// verify shows that a token is active with the settings and is rejected without them.
func (s productServer) verify(t *testing.T, api tokenbrokerv1.TokenBrokerServiceClient, token string) {
	t.Helper()
	got, err := api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: token})
	if err != nil || !got.GetActive() {
		t.Fatalf("verify: %v, %v", err, got.GetRejection())
	}
	seen := seenOf{got.GetSubject(), got.GetClientId(), got.GetScopes(), s.want.Lifetime}
	subjectType := tokenbrokerv1.SubjectType_SUBJECT_TYPE_SUB
	if s.claims["sub"] == nil {
		subjectType = tokenbrokerv1.SubjectType_SUBJECT_TYPE_CLIENT_ID
	}
	if got.GetSubjectType() != subjectType {
		t.Errorf("the subject type is %v, want %v", got.GetSubjectType(), subjectType)
	}
	if diff := cmp.Diff(s.want, seen); diff != "" {
		t.Errorf("verify: %s", diff)
	}
	if other, err := api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: token, Audiences: []string{"https://other.example.com"}}); err != nil || other.GetActive() {
		t.Errorf("verify for another audience: %v, active %v", err, other.GetActive())
	}
	for name, other := range s.refused {
		rejects(t, api, name, s.mint(other.claims), other.reason)
	}
	if s.without != 0 {
		rejects(t, s.start(t, ""), "without the settings", token, s.without)
	}
}

func rejects(t *testing.T, api tokenbrokerv1.TokenBrokerServiceClient, what, token string, reason tokenbrokerv1.RejectionReason) {
	t.Helper()
	got, err := api.VerifyToken(t.Context(), &tokenbrokerv1.VerifyTokenRequest{Token: token})
	if err != nil || got.GetActive() || got.GetRejection().GetReason() != reason {
		t.Errorf("%s: %v, %v, want %v", what, err, got.GetRejection(), reason)
	}
}

// TestProductsMatchTheDocumentation compares the table of the documentation with the tests.
func TestProductsMatchTheDocumentation(t *testing.T) {
	page, err := os.ReadFile(providersFile)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n## Products\n")
	table, _, _ = strings.Cut(table, "\n## ")
	var listed []string
	for line := range strings.Lines(table) {
		_, test, found := strings.Cut(line, "`TestProducts/")
		if name, _, closed := strings.Cut(test, "`"); found && closed {
			listed = append(listed, name)
		}
	}
	slices.Sort(listed)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(products(t))), listed); diff != "" {
		t.Errorf("rows of docs/identity-providers.md: %s", diff)
	}
	if len(listed) < 14 {
		t.Errorf("%d products are listed", len(listed))
	}
}

// products returns the products by the name of their test.
func products(t *testing.T) map[string]product {
	t.Helper()
	plainJWT := josetest.JSON{"typ": "JWT"}
	noType := josetest.JSON{"typ": nil}
	const jwt = ", types: [JWT]"
	const tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	const object = "9f1a0c5e-3a51-4b4f-8d7a-3f6c6f1d2b11"
	scopes := []string{"read", "write"}
	return map[string]product{
		"auth0": {
			issuer: "https://shop.eu.auth0.com/", jwks: "/.well-known/jwks.json", settings: jwt, without: wrongType,
			client: ", preset: auth0, audience: \"" + productAPI + "\"",
			header: plainJWT,
			claims: josetest.JSON{"sub": "orders@clients", "azp": "orders", "gty": "client-credentials", "scope": "read write", "permissions": scopes},
			answer: josetest.JSON{"scope": "read write", "expires_in": 86400},
			jwk:    josetest.JSON{"x5t": "dGVzdA", "x5c": []string{"MIIC"}},
			want:   seenOf{"orders@clients", "orders", scopes, time.Hour}, // the JWT expires before expires_in
		},
		"entra": {
			issuer: "https://login.microsoftonline.com/" + tenant + "/v2.0", settings: jwt + ", scope_claim: roles", without: wrongType,
			client: ", preset: entra, scopes: [api://orders/.default]",
			header: merged(plainJWT, josetest.JSON{"x5t": "dGVzdA"}),
			claims: josetest.JSON{"sub": object, "oid": object, "azp": "orders", "azpacr": "1", "tid": tenant, "ver": "2.0", "roles": []string{"Orders.Read"}, "idtyp": "app"},
			answer: josetest.JSON{"ext_expires_in": 3600},
			jwk:    josetest.JSON{"issuer": "https://login.microsoftonline.com/" + tenant + "/v2.0", "cloud_instance_name": "microsoftonline.com"},
			want:   seenOf{object, "orders", []string{"Orders.Read"}, time.Hour},
		},
		"entra-v1": {
			issuer: "https://sts.windows.net/" + tenant + "/", settings: jwt + ", scope_claim: roles", without: wrongType,
			client: ", preset: entra, resources: [api://orders]",
			header: plainJWT,
			claims: josetest.JSON{"sub": object, "oid": object, "appid": "orders", "appidacr": "1", "tid": tenant, "ver": "1.0", "roles": []string{"Orders.Read"}},
			answer: josetest.JSON{"expires_in": "3599", "ext_expires_in": "3599", "expires_on": "1795996823", "not_before": "1795996523", "resource": "api://orders"},
			want:   seenOf{object, "orders", []string{"Orders.Read"}, time.Hour},
		},
		"okta": {
			issuer: "https://shop.okta.com/oauth2/default", settings: jwt + ", scope_claim: scp", without: wrongType,
			client: ", scopes: [read, write]",
			header: noType,
			claims: josetest.JSON{"sub": "orders", "cid": "orders", "ver": 1, "jti": "AT.x1", "scp": scopes},
			answer: josetest.JSON{"scope": "read write"},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
		},
		"keycloak": {
			issuer: "https://login.example.com/realms/shop", settings: jwt + ", scope_claim: [realm_access, roles]", without: wrongType,
			client:   ", preset: keycloak",
			header:   plainJWT,
			claims:   josetest.JSON{"sub": object, "azp": "orders", "client_id": "orders", "typ": "Bearer", "acr": "1", "scope": "email profile", "aud": []string{productAPI, "account"}, "realm_access": josetest.JSON{"roles": []string{"reader"}}},
			answer:   josetest.JSON{"expires_in": 300, "refresh_expires_in": 0, "not-before-policy": 0, "scope": "email profile"},
			keys:     []josetest.JSON{josetest.New(t, "RS256", "encrypts").JWK(josetest.JSON{"use": "enc", "alg": "RSA-OAEP"})},
			metadata: josetest.JSON{"mtls_endpoint_aliases": josetest.JSON{"introspection_endpoint": "http://login.example.com/introspect"}},
			want:     seenOf{object, "orders", []string{"reader"}, 5 * time.Minute},
		},
		"keycloak-without-aud": {
			issuer: "https://login.example.com/realms/shop", audience: "orders", kept: jwt, settings: ", missing_aud: {claim: azp}", without: wrongAudience,
			client: ", preset: keycloak",
			header: plainJWT,
			claims: josetest.JSON{"aud": nil, "sub": object, "azp": "orders", "client_id": "orders", "typ": "Bearer", "acr": "1", "scope": "email profile"},
			answer: josetest.JSON{"expires_in": 300, "refresh_expires_in": 0, "not-before-policy": 0, "scope": "email profile"},
			want:   seenOf{object, "orders", []string{"email", "profile"}, 5 * time.Minute},
			refused: map[string]refusedToken{
				"a token of another client":            {josetest.JSON{"azp": "web", "client_id": "web"}, wrongAudience},
				"a token of a client with other roles": {josetest.JSON{"aud": "account"}, wrongAudience},
				"an ID token":                          {josetest.JSON{"aud": "orders", "typ": "ID"}, wrongType},
			},
		},
		"cognito": {
			issuer: "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_EXAMPLE", jwks: "/eu-west-1_EXAMPLE/.well-known/jwks.json",
			audience: "orders", settings: ", preset: cognito", without: wrongType,
			client:   ", preset: cognito, scopes: [orders/read]",
			metadata: josetest.JSON{"token_endpoint": "https://shop.auth.eu-west-1.amazoncognito.com/oauth2/token"},
			header:   noType,
			claims:   josetest.JSON{"aud": nil, "sub": "orders", "client_id": "orders", "token_use": "access", "scope": "orders/read", "auth_time": time.Now().Unix(), "version": 2, "jti": object},
			jwk:      josetest.JSON{"alg": "RS256"},
			want:     seenOf{"orders", "orders", []string{"orders/read"}, time.Hour},
			refused: map[string]refusedToken{
				"a token of another client of the pool": {josetest.JSON{"sub": "web", "client_id": "web"}, wrongAudience},
				"an ID token":                           {josetest.JSON{"aud": "orders", "token_use": "id", "client_id": nil, "scope": nil, "cognito:username": "alice"}, wrongType},
			},
		},
		"dex": {
			issuer: "https://dex.example.com", jwks: "/keys", audience: "orders", settings: ", preset: dex", without: wrongType,
			header: noType,
			claims: josetest.JSON{"sub": "CgZvcmRlcnM", "at_hash": "bcCpXNOtQPCKIolbBKVrWg"},
			answer: josetest.JSON{"token_type": "bearer", "expires_in": 86399},
			jwk:    josetest.JSON{"alg": "RS256"},
			want:   seenOf{"CgZvcmRlcnM", "", nil, time.Hour},
			refused: map[string]refusedToken{
				"a token of another client": {josetest.JSON{"aud": "web"}, wrongAudience},
				"an ID token for a code":    {josetest.JSON{"c_hash": "xsZZrUssMXjL3FBlzoSh2g"}, wrongType},
			},
		},
		"adfs": {
			issuer: "https://adfs.example.com/adfs", iss: "http://adfs.example.com/adfs/services/trust", jwks: "/adfs/discovery/keys",
			audience: "microsoft:identityserver:orders-api", kept: ", jwks_url: https://adfs.example.com/adfs/discovery/keys",
			settings: jwt + ", scope_claim: scp", without: wrongType,
			client:   ", resources: [orders-api]",
			metadata: josetest.JSON{"access_token_issuer": "http://adfs.example.com/adfs/services/trust"},
			header:   merged(plainJWT, josetest.JSON{"x5t": "dGVzdA"}),
			claims: josetest.JSON{
				"sub": "orders", "appid": "orders", "apptype": "Confidential", "scp": "read write", "ver": "1.0", "auth_time": "2026-11-30T01:00:00.000Z",
				"authmethod": "http://schemas.microsoft.com/ws/2008/06/identity/authenticationmethod/password",
			},
			answer: josetest.JSON{"token_type": "bearer"},
			jwk:    josetest.JSON{"alg": "RS256", "x5t": "dGVzdA", "x5c": []string{"MIIC"}},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
			refused: map[string]refusedToken{
				"a token without sub": {josetest.JSON{"sub": nil}, badClaims},
				"an ID token":         {josetest.JSON{"iss": "https://adfs.example.com/adfs", "aud": "orders"}, tokenbrokerv1.RejectionReason_REJECTION_REASON_UNKNOWN_ISSUER},
			},
		},
		"pingone": {
			issuer: "https://auth.pingone.com/" + tenant + "/as", jwks: "/" + tenant + "/as/jwks", kept: jwt, settings: ", missing_sub: client_id", without: badClaims,
			client: ", scopes: [read, write]",
			header: noType,
			claims: josetest.JSON{"client_id": "orders", "aud": []string{productAPI}, "scope": "read write"},
			answer: josetest.JSON{"scope": "read write"},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
			refused: map[string]refusedToken{
				"a token without client_id": {josetest.JSON{"client_id": nil, "azp": "orders"}, badClaims},
			},
		},
		"duende": {
			issuer: "https://identity.example.com", jwks: "/.well-known/openid-configuration/jwks", settings: ", missing_sub: client_id", without: badClaims,
			client: ", scopes: [read, write]",
			claims: josetest.JSON{"client_id": "orders", "scope": scopes, "nbf": time.Now().Unix(), "jti": "1D736303BBF4AFCA27BC661E307F697B"},
			answer: josetest.JSON{"scope": "read write"},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
		},
		"ory-hydra": {
			issuer: "https://hydra.example.com", jwks: "/.well-known/jwks.json", settings: jwt + ", scope_claim: scp", without: wrongType,
			client: ", audience: \"" + productAPI + "\", scopes: [read, write]",
			header: plainJWT,
			claims: josetest.JSON{"sub": "orders", "client_id": "orders", "aud": []string{productAPI}, "ext": josetest.JSON{}, "scp": scopes, "nbf": time.Now().Unix()},
			answer: josetest.JSON{"token_type": "bearer", "scope": "read write", "expires_in": 3599},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
		},
		"pingam": {
			issuer: "https://am.example.com/am/oauth2", settings: jwt, without: wrongType,
			client: ", scopes: [read, write]",
			header: plainJWT,
			claims: josetest.JSON{"sub": "(age!orders)", "subname": "orders", "client_id": "orders", "tokenName": "access_token", "token_type": "Bearer", "grant_type": "client_credentials", "realm": "/", "expires_in": 3600, "scope": scopes},
			answer: josetest.JSON{"scope": "read write", "expires_in": 3599},
			want:   seenOf{"(age!orders)", "orders", scopes, time.Hour},
		},
		"wso2": {
			issuer: "https://wso2.example.com/oauth2/token", settings: jwt, // at+jwt or jwt, depending on the version
			header: merged(plainJWT, josetest.JSON{"x5t": "dGVzdA"}), without: wrongType,
			claims: josetest.JSON{"sub": object, "aut": "APPLICATION", "azp": "orders", "client_id": "orders", "scope": "read write", "nbf": time.Now().Unix()},
			answer: josetest.JSON{"scope": "read write "},
			want:   seenOf{object, "orders", scopes, time.Hour},
		},
		"curity": {
			issuer: "https://curity.example.com/oauth/v2/oauth-anonymous", algorithm: "PS256", settings: jwt + ", algorithms: [PS256]", without: tokenbrokerv1.RejectionReason_REJECTION_REASON_ALGORITHM_NOT_ALLOWED,
			client: ", scopes: [read, write]",
			header: plainJWT,
			claims: josetest.JSON{"sub": "orders", "client_id": "orders", "delegationId": object, "purpose": "access_token", "scope": "read write", "nbf": time.Now().Unix()},
			answer: josetest.JSON{"token_type": "bearer", "scope": "read write", "expires_in": 299},
			want:   seenOf{"orders", "orders", scopes, 5 * time.Minute},
		},
		"sap-xsuaa": {
			issuer: "https://shop.authentication.eu10.hana.ondemand.com/oauth/token", jwks: "/token_keys", without: wrongType,
			settings: jwt, client: ", auth: client_secret_post",
			header: merged(plainJWT, josetest.JSON{"jku": "https://shop.authentication.eu10.hana.ondemand.com/token_keys"}),
			claims: josetest.JSON{"sub": "orders", "client_id": "orders", "cid": "orders", "azp": "orders", "grant_type": "client_credentials", "zid": tenant, "aud": []string{productAPI, "uaa"}, "scope": scopes},
			answer: josetest.JSON{"token_type": "bearer", "expires_in": 43199, "jti": "x1", "scope": "read write"},
			jwk:    josetest.JSON{"alg": "RS256", "value": "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----"},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
		},
		"spring": {
			issuer: "https://auth.example.com", jwks: "/oauth2/jwks", settings: jwt, without: wrongType,
			client: ", scopes: [read, write]",
			header: noType,
			claims: josetest.JSON{"sub": "orders", "client_id": "orders", "scope": scopes, "nbf": time.Now().Unix()},
			answer: josetest.JSON{"scope": "read write", "expires_in": 299},
			want:   seenOf{"orders", "orders", scopes, 5 * time.Minute},
		},
		"zitadel": {
			issuer: "https://shop.zitadel.cloud", jwks: "/oauth/v2/keys", settings: jwt, without: wrongType,
			header: plainJWT,
			claims: josetest.JSON{"sub": "234567890123456789", "client_id": "orders", "aud": []string{productAPI}, "nbf": time.Now().Unix()},
			answer: josetest.JSON{"expires_in": 43199},
			jwk:    josetest.JSON{"alg": "RS256"},
			want:   seenOf{"234567890123456789", "orders", nil, time.Hour},
		},
		"glewlwyd": {
			issuer: "https://glewlwyd.example.com/api/oidc", algorithm: "ES256",
			client: ", scopes: [read, write], resources: [\"" + productAPI + "\"]",
			claims: josetest.JSON{"sub": "orders", "client_id": "orders", "type": "access_token", "scope": "read write", "nbf": time.Now().Unix()},
			answer: josetest.JSON{"token_type": "bearer", "scope": "read write"},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
		},
		"oidc-provider": {
			issuer: "https://idp.example.com", algorithm: "EdDSA",
			client: ", resources: [\"" + productAPI + "\"]",
			claims: josetest.JSON{"sub": "orders", "client_id": "orders", "scope": "read write"},
			answer: josetest.JSON{"scope": "read write"},
			want:   seenOf{"orders", "orders", scopes, time.Hour},
		},
		"kubernetes": {
			issuer: "https://kubernetes.default.svc.cluster.local", jwks: "/openid/v1/jwks", token: "token-of-the-pod",
			settings: fmt.Sprintf(", preset: kubernetes, tls: {ca: %q}, jwks_token_file: %q", fileWithAuthority(t), fileWith(t, "token-of-the-pod\n")),
			header:   noType,
			claims:   josetest.JSON{"sub": "system:serviceaccount:shop:orders", "aud": []string{productAPI}, "nbf": time.Now().Unix(), "kubernetes.io": josetest.JSON{"namespace": "shop", "serviceaccount": josetest.JSON{"name": "orders", "uid": object}}},
			jwk:      josetest.JSON{"alg": "RS256"},
			want:     seenOf{"system:serviceaccount:shop:orders", "", nil, time.Hour},
		},
		"salesforce": {
			issuer: "https://shop.my.salesforce.com", client: ", preset: salesforce", opaque: "00D5e000001N20Q!AQEAQ",
			answer: josetest.JSON{"expires_in": nil, "instance_url": "https://shop.my.salesforce.com", "id": "https://login.salesforce.com/id/00D/005", "issued_at": "1795996523000", "signature": "dGVzdA="},
			want:   seenOf{Lifetime: 10 * time.Minute},
		},
		"servicenow": {
			issuer: "https://shop.service-now.com", client: ", auth: client_secret_post", opaque: "JRYBnMqPVz1bcA",
			answer: josetest.JSON{"scope": "useraccount", "expires_in": 1799},
			want:   seenOf{Lifetime: 30 * time.Minute},
		},
		"django-oauth-toolkit": {
			issuer: "https://django.example.com/o", opaque: "ODb0MZh4LdMZjEaqEgTRszCfCUpB7e",
			answer: josetest.JSON{"scope": "read write", "expires_in": 36000},
			want:   seenOf{Lifetime: 10 * time.Hour},
		},
	}
}

const (
	wrongType     = tokenbrokerv1.RejectionReason_REJECTION_REASON_WRONG_TYPE
	wrongAudience = tokenbrokerv1.RejectionReason_REJECTION_REASON_WRONG_AUDIENCE
	badClaims     = tokenbrokerv1.RejectionReason_REJECTION_REASON_BAD_CLAIMS
)

// fileWith writes a file and returns its path.
func fileWith(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// fileWithAuthority writes the certificate of a new CA into a file.
func fileWithAuthority(t *testing.T) string {
	t.Helper()
	made, err := devca.New("ca")
	if err != nil {
		t.Fatal(err)
	}
	return fileWith(t, string(made.PEM()))
}
