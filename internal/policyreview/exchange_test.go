package policyreview_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cezzis/tokenbroker/internal/audit"
	"github.com/cezzis/tokenbroker/internal/policyreview"
)

const exchangeFile = `clients:
  orders: {issuer: "https://idp", client_id: orders, secret: file:x, audience: "https://orders", scopes: [read, write], exchange: {}}
issuers: [{issuer: "https://idp", audiences: [shop]}]
callers: [{name: shop, spiffe_id: "spiffe://example.com/shop", roles: [shop]}]
roles:
  shop:
    exchange:
      - GRANT
`

// A change of a grant to exchange tokens shows which tokens of users it concerns.
func TestCompare_exchangeGrants(t *testing.T) {
	const grant = `{client: orders, from: {issuers: ["https://idp"], audiences: [shop, web]}}`
	for name, test := range map[string]struct {
		to   string
		want []string
	}{
		"the same in other words": {`{client: orders, from: {issuers: ["https://idp"], audiences: [web, shop]}, audiences: ["https://orders"], scopes: [write, read]}`, nil},
		"fewer scopes": {strings.Replace(grant, "]}}", "]}, scopes: [read]}", 1), []string{
			"- tokens of client orders on behalf of users with tokens of issuer https://idp for shop or issuer https://idp for web: scopes write  (old:8)",
			"~ tokens of client orders on behalf of users with tokens of issuer https://idp for shop or issuer https://idp for web, if the request names no scopes: scopes read, write -> scopes read",
		}},
		"another audience of the user's token": {strings.Replace(grant, "web", "admin", 1), []string{
			"+ tokens of client orders on behalf of users with tokens of issuer https://idp for admin: audiences https://orders; scopes read, write  (new:8)",
			"- tokens of client orders on behalf of users with tokens of issuer https://idp for web: audiences https://orders; scopes read, write  (old:8)",
		}},
		"a scope that the user's token needs": {strings.Replace(grant, "]}}", "], scopes: [openid]}}", 1), []string{
			"- tokens of client orders on behalf of users with tokens of issuer https://idp for shop or issuer https://idp for web: audiences https://orders; scopes read, write  (old:8)",
		}},
		"a wildcard among the get grants": {grant + `
    get: [{client: "*"}]`, nil},
	} {
		old, updated := parse(t, "old", strings.Replace(exchangeFile, "GRANT", grant, 1)), parse(t, "new", strings.Replace(exchangeFile, "GRANT", test.to, 1))
		var text strings.Builder
		if err := policyreview.Compare(old, updated).Text(&text); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(text.String()) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "+ ") || strings.HasPrefix(line, "- ") || strings.HasPrefix(line, "~ ") {
				got = append(got, line)
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s\n%s", name, diff, text.String())
		}
	}
}

// The log does not say which grant admitted the token of a user, so neither the grant nor
// its role counts as unneeded, and no recorded exchange counts as denied.
func TestUsage_exchangeGrantsAreUnknown(t *testing.T) {
	file := parse(t, "f", strings.Replace(exchangeFile, "GRANT", `{client: orders, from: {issuers: ["https://idp"], audiences: [shop]}}`, 1))
	log := logOf(t, audit.Event{Event: audit.Token, Outcome: audit.OK, Caller: "shop", Client: "orders", Audiences: []string{"https://orders"}, Issuer: "https://idp", Subject: "alice", Count: 3})
	usage := file.Usage(log)
	if len(usage.Grants) != 1 || !usage.Grants[0].Unknown || usage.Grants[0].Kind != policyreview.Exchange || usage.Grants[0].Line != "f:8" || len(usage.Roles) > 0 {
		t.Errorf("%+v", usage)
	}
	const unjudged = "for tokens on behalf of users, of whose tokens the log does not name the audiences"
	if summary := log.Summary(file, 0); summary.NotJudged[unjudged] != 3 || summary.Requests != 0 {
		t.Errorf("%+v", summary)
	}
}
