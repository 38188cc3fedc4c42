package app_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/config"
	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/policyreview"
	"github.com/cezzis/tokenbroker/internal/redact"
)

const (
	reviewOrders = "https://orders.example.com"
	reviewLedger = "https://ledger.example.com"
)

// reviewRoles are the roles of the caller of the reviewed requests.
const reviewRoles = `roles:
  shop:
    get:
      - {client: orders, scopes: [read, write]}
      - {client: orders, audiences: ["https://ledger.example.com"], scopes: [read]}
    verify:
      - {issuer: "https://idp.example.com", audiences: ["https://orders.example.com"]}
    admin:
      - {actions: [list_clients, get_client, list_revocations]}
`

func reviewConfig(roles, audit string) string {
	return `callers: [{name: everybody, roles: [shop], limits: {per_second: 0, concurrent: 0, watches: 0}}]
clients: {orders: {issuer: "https://idp.example.com", client_id: abc, secret: "file:SECRET", audience: "https://orders.example.com", scopes: [read, write]}}
issuers: [{issuer: "https://idp.example.com", audiences: ["https://orders.example.com", "https://ledger.example.com"]}]
audit: {file: ` + audit + `, verifications: all}
` + roles
}

// reviewCall is a call, and the recorded request by which its line can be recognized.
type reviewCall struct {
	request string
	do      func(ctx context.Context, r *reloadable, token string) error
}

func getting(request *tokenbrokerv1.GetTokenRequest, recorded ...[]string) reviewCall {
	return reviewCall{fmt.Sprintf("get %s %q", request.GetClientName(), recorded), func(ctx context.Context, r *reloadable, _ string) error {
		_, err := tokenbrokerv1.NewTokenBrokerServiceClient(dial(r.t, r.GRPCAddr())).GetToken(ctx, request)
		return err
	}}
}

func verifying(issuer string, audiences ...string) reviewCall {
	return reviewCall{fmt.Sprintf("verify %s %q", idpIssuer, [][]string{audiences, nil}), func(ctx context.Context, r *reloadable, token string) error {
		response, err := tokenbrokerv1.NewTokenBrokerServiceClient(dial(r.t, r.GRPCAddr())).
			VerifyToken(ctx, &tokenbrokerv1.VerifyTokenRequest{Token: token, Issuer: issuer, Audiences: audiences})
		if err == nil && !response.GetActive() {
			return status.Error(codes.PermissionDenied, "rejected")
		}
		return err
	}}
}

func administering(action string, do func(context.Context, tokenbrokerv1.AdminServiceClient) error) reviewCall {
	return reviewCall{"admin " + action + " []", func(ctx context.Context, r *reloadable, _ string) error {
		return do(ctx, tokenbrokerv1.NewAdminServiceClient(dial(r.t, r.GRPCAddr())))
	}}
}

func reviewCalls() []reviewCall {
	read, both := []string{"read"}, []string{"read", "write"}
	return []reviewCall{
		getting(&tokenbrokerv1.GetTokenRequest{ClientName: "orders"}, []string{reviewOrders}, both),
		getting(&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: read}, []string{reviewOrders}, read),
		getting(&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Scopes: []string{"admin"}}, []string{reviewOrders}, []string{"admin"}),
		getting(&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Audience: reviewLedger, Scopes: read}, []string{reviewLedger}, read),
		getting(&tokenbrokerv1.GetTokenRequest{ClientName: "orders", Audience: reviewLedger, Scopes: both}, []string{reviewLedger}, both),
		getting(&tokenbrokerv1.GetTokenRequest{ClientName: "billing"}, nil, nil),
		verifying(idpIssuer, reviewOrders),
		verifying(idpIssuer),
		verifying(idpIssuer, reviewOrders, reviewLedger),
		administering("list_clients", func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
			_, err := admin.ListClients(ctx, &tokenbrokerv1.ListClientsRequest{})
			return err
		}),
		administering("get_client orders", func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
			_, err := admin.GetClient(ctx, &tokenbrokerv1.GetClientRequest{ClientName: "orders"})
			return err
		}),
		administering("purge_tokens orders", func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
			_, err := admin.PurgeTokens(ctx, &tokenbrokerv1.PurgeTokensRequest{ClientName: "orders", RequestId: "1"})
			return err
		}),
		administering("list_revocations", func(ctx context.Context, admin tokenbrokerv1.AdminServiceClient) error {
			_, err := admin.ListRevocations(ctx, &tokenbrokerv1.ListRevocationsRequest{})
			return err
		}),
	}
}

// recordedRequest names a request as reviewCall.request does.
func recordedRequest(r *policyreview.Request) string {
	switch r.Kind {
	case policyreview.Get:
		return fmt.Sprintf("get %s %q", r.Client, [][]string{r.Audiences, r.Scopes})
	case policyreview.Verify:
		return fmt.Sprintf("verify %s %q", r.Issuer, [][]string{r.Audiences, nil})
	default:
		return strings.TrimSpace("admin "+r.Action+" "+r.Client) + " []"
	}
}

// runReviewed makes all calls to a real broker with a configuration. It returns which calls
// were allowed, the configuration and the audit log.
func runReviewed(t *testing.T, name, roles string) (allowed map[string]bool, file *policyreview.File, log []byte) {
	t.Helper()
	audit := filepath.Join(t.TempDir(), "audit.jsonl")
	idp, err := devidp.New(devidp.Config{Issuer: idpIssuer, Clients: []devidp.Client{
		{ID: "abc", Secrets: []redact.String{redact.New("right")}, Scopes: []string{"read", "write"}, Audiences: []string{reviewOrders, reviewLedger}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	allowed = map[string]bool{}
	t.Run("broker with "+name, func(t *testing.T) {
		r := startReloadable(t, idp, reviewConfig(roles, audit))
		text, err := os.ReadFile(r.file)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := config.Parse(name+".yaml", text)
		if err != nil {
			t.Fatal(err)
		}
		file = policyreview.NewFile(name+".yaml", parsed)
		token := idp.Mint(map[string]any{
			"iss": idpIssuer, "sub": "user", "aud": reviewOrders, "client_id": "abc", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		}).Reveal()
		for _, call := range reviewCalls() {
			err := call.do(t.Context(), r, token)
			if code := status.Code(err); err != nil && code != codes.PermissionDenied {
				t.Fatalf("%s: %v", call.request, err)
			}
			allowed[call.request] = err == nil
		}
	})
	log, err = os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	return allowed, file, log
}

// The audit log of a real broker, replayed under another configuration, predicts which of
// the same calls a real broker with that configuration denies.
func TestPolicyReviewPredictsTheBroker(t *testing.T) {
	before, old, text := runReviewed(t, "old", reviewRoles)
	log := policyreview.NewLog()
	if err := log.Read("audit.jsonl", bytes.NewReader(text)); err != nil || log.Bad > 0 || int(log.Requests()) != len(reviewCalls()) {
		t.Fatalf("%v, %q, %d requests:\n%s", err, log.BadLines, log.Requests(), text)
	}
	if differ, undecidable := old.Judge(log); len(differ) > 0 || undecidable > 0 {
		t.Errorf("its own configuration decides otherwise: %+v, and %d undecidable", differ, undecidable)
	}
	if summary := log.Summary(old, 0); summary.OtherConfig || summary.OtherEvents["start"] != 1 {
		t.Errorf("%+v", summary)
	}
	for name, change := range map[string][]string{
		"fewer scopes":   {"scopes: [read, write]", "scopes: [write]"},
		"no ledger":      {"      - {client: orders, audiences: [\"https://ledger.example.com\"], scopes: [read]}\n", ""},
		"more scopes":    {"ledger.example.com\"], scopes: [read]", "ledger.example.com\"], scopes: [read, write]"},
		"other verify":   {`audiences: ["https://orders.example.com"]}`, `audiences: ["https://ledger.example.com"]}`},
		"no verify":      {"    verify:\n      - {issuer: \"https://idp.example.com\", audiences: [\"https://orders.example.com\"]}\n", ""},
		"all audiences":  {`audiences: ["https://orders.example.com"]}`, `audiences: ["*"]}`},
		"other actions":  {"[list_clients, get_client, list_revocations]", "[purge_tokens, get_client]"},
		"actions by one": {"list_revocations]}", "list_revocations], clients: [orders]}"},
	} {
		t.Run(name, func(t *testing.T) {
			roles := strings.Replace(reviewRoles, change[0], change[1], 1)
			if roles == reviewRoles {
				t.Fatal("the change changes nothing")
			}
			after, updated, _ := runReviewed(t, "new", roles)
			requests, undecidable := policyreview.Compare(old, updated).Replay(log)
			if undecidable > 0 {
				t.Errorf("%d undecidable", undecidable)
			}
			predicted := map[string]policyreview.Verdict{}
			for i := range requests {
				predicted[recordedRequest(&requests[i])] = requests[i].After
			}
			var different []string
			for request, was := range before {
				verdict, found := predicted[request]
				if !found {
					verdict = policyreview.Denied
					if was {
						verdict = policyreview.Allowed
					}
				}
				if is := after[request]; verdict == policyreview.Allowed != is && verdict != policyreview.Depends {
					t.Errorf("%s: allowed %t, predicted %s: %+v", request, is, verdict, requests)
				}
				if was != after[request] {
					different = append(different, request)
				}
			}
			if len(different) == 0 {
				t.Error("the broker decides about all requests as before")
			}
			if slices.Sort(different); len(policyreview.Compare(old, updated).Permissions) == 0 {
				t.Errorf("no difference, but the broker decides differently: %q", different)
			}
		})
	}
}
