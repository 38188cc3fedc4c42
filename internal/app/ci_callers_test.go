package app_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// The claims of the JWTs that CI jobs and workloads get, as the products document them.
var (
	githubClaims = map[string]any{
		"sub": "repo:octo-org/octo-repo:environment:prod", "environment": "prod", "ref": "refs/heads/main", "sha": "example-sha",
		"repository": "octo-org/octo-repo", "repository_owner": "octo-org", "actor_id": "12", "repository_visibility": "private",
		"repository_id": "74", "repository_owner_id": "65", "run_id": "example-run-id", "run_number": "10", "run_attempt": "2",
		"actor": "octocat", "workflow": "example-workflow", "head_ref": "", "base_ref": "", "event_name": "workflow_dispatch",
		"ref_type": "branch", "job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main", "runner_environment": "github-hosted",
	}
	gitlabClaims = map[string]any{
		"sub": "project_path:my-group/my-project:ref_type:branch:ref:feature-branch-1", "namespace_id": "72", "namespace_path": "my-group",
		"project_id": "20", "project_path": "my-group/my-project", "user_id": "1", "user_login": "sample-user", "user_access_level": "developer",
		"pipeline_id": "574", "pipeline_source": "push", "job_id": "302", "ref": "feature-branch-1", "ref_type": "branch", "ref_protected": "false",
		"groups_direct": []string{"mygroup/mysubgroup", "myothergroup/myothersubgroup"}, "runner_id": 1, "runner_environment": "self-hosted",
	}
	svidClaims = map[string]any{"sub": "spiffe://example.org/ns/shop/sa/checkout"}
)

func TestCIJobsAndJWTSVIDsAreCallers(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	testkit.WriteFile(t, secret, "right")
	idp := devIDP(t)
	broker, _ := run(t, parsed(t, fmt.Sprintf(`listen: {grpc: "127.0.0.1:0", ops: "off"}
clients: {orders: {issuer: %[1]q, client_id: abc, secret: %[2]q, audience: "https://orders.example.com"}}
issuers: [{issuer: %[1]q, audiences: ["https://orders.example.com"], types: [JWT, JOSE]}]
callers:
  - {name: github, issuer: %[1]q, claims: [{path: [repository_id], value: "74"}, {path: [environment], value: prod}], roles: [all]}
  - {name: gitlab, issuer: %[1]q, claims: [{path: [project_id], value: "20"}, {path: [groups_direct], value: mygroup/*}], roles: [all]}
  - {name: any-gitlab, issuer: %[1]q, claims: [{path: [pipeline_source], value: web}], roles: [all]}
  - {name: checkout, issuer: %[1]q, subject: "spiffe://example.org/ns/shop/sa/checkout", roles: [all]}
roles: {all: {get: [{client: orders, scopes: [read]}], verify: [{issuer: "*"}]}}
`, idpIssuer, "file:"+secret)), idp)
	conn, err := grpc.NewClient(broker.GRPCAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	api := tokenbrokerv1.NewTokenBrokerServiceClient(conn)
	mint := func(header, like, change map[string]any) string {
		claims := map[string]any{"iss": idpIssuer, "aud": "tokenbroker", "jti": "1", "iat": time.Now().Unix(), "exp": time.Now().Add(5 * time.Minute).Unix()}
		maps.Copy(claims, like)
		maps.Copy(claims, change)
		return idp.MintWith(header, claims).Reveal()
	}
	jwt, jose, none := map[string]any{"typ": "JWT"}, map[string]any{"typ": "JOSE"}, map[string]any{"typ": nil}
	for name, tt := range map[string]struct {
		token string
		says  string // of the refusal; empty: it is a caller
	}{
		"GitHub":                       {mint(jwt, githubClaims, nil), ""},
		"GitHub, another repository":   {mint(jwt, githubClaims, map[string]any{"repository_id": "75"}), "matches no caller"},
		"GitHub, another environment":  {mint(jwt, githubClaims, map[string]any{"environment": "test"}), "matches no caller"},
		"GitHub, for somebody else":    {mint(jwt, githubClaims, map[string]any{"aud": "https://github.com/octo-org"}), "It must be for the audience"},
		"GitLab":                       {mint(jwt, gitlabClaims, nil), ""},
		"GitLab, another group":        {mint(jwt, gitlabClaims, map[string]any{"groups_direct": []string{"other/x"}}), "matches no caller"},
		"GitLab, two callers":          {mint(jwt, gitlabClaims, map[string]any{"pipeline_source": "web"}), "matches several callers"},
		"a JWT-SVID":                   {mint(jwt, svidClaims, nil), ""},
		"a JWT-SVID of typ JOSE":       {mint(jose, svidClaims, nil), ""},
		"a JWT-SVID without typ":       {mint(none, svidClaims, nil), ""},
		"a JWT-SVID of somebody else":  {mint(jwt, svidClaims, map[string]any{"sub": "spiffe://example.org/ns/shop/sa/cart"}), "matches no caller"},
		"a JWT-SVID of a foreign typ":  {mint(map[string]any{"typ": "dpop+jwt"}, svidClaims, nil), "typ is"},
		"an ID token":                  {mint(jwt, svidClaims, map[string]any{"at_hash": "x"}), "an ID token"},
		"a logout token":               {mint(jwt, svidClaims, map[string]any{"events": map[string]any{}}), "a security event"},
		"a token for another use":      {mint(jwt, svidClaims, map[string]any{"token_use": "id"}), "for another use"},
		"a refresh token of Keycloak":  {mint(jwt, svidClaims, map[string]any{"typ": "Refresh"}), "for another use"},
		"a proof of possession (DPoP)": {mint(jwt, svidClaims, map[string]any{"htm": "GET"}), "a DPoP proof"},
	} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+tt.token)
		_, err := api.GetToken(ctx, &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
		if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// As an access token, a JWT without a claim that only access tokens have is still refused.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+mint(jwt, githubClaims, nil))
	for name, claims := range map[string]map[string]any{"GitHub": githubClaims, "GitLab": gitlabClaims, "SVID": svidClaims} {
		resp, err := api.VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{Token: mint(jwt, claims, map[string]any{"aud": "https://orders.example.com"})})
		if err != nil || resp.GetActive() || resp.GetRejection().GetReason() != tokenbrokerv1.RejectionReason_REJECTION_REASON_WRONG_TYPE {
			t.Errorf("%s: %v, %v", name, resp, err)
		}
	}
}
