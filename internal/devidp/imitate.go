package devidp

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// manners are how an IdP differs from what the RFCs lead to expect. The zero value
// has none. They are taken from the IdPs' documentation; docs/identity-providers.md
// says what they mean for whoever configures a client.
type manners struct {
	// endpoint is where an issuer has its token endpoint.
	endpoint func(issuer string) string
	// audience is the one that assertions must be for. Nil: the issuer or the token
	// endpoint.
	audience func(s *Server) string
	// types are the typ that client assertions may have. Nil: any of those that are
	// usual.
	types []string
	// certificate: assertions name one.
	certificate bool
	// demand is what the IdP wants of a request beyond the RFCs.
	demand func(f form) *problem
	// dress adds to a good answer, and takes away from it.
	dress func(answer map[string]any)
	// refuse puts a problem into the IdP's own words.
	refuse func(p *problem) (status int, members map[string]any)
	// propagation is how long a new secret takes to be good.
	propagation time.Duration
}

func (m manners) clientTypes() []string {
	if m.types != nil {
		return m.types
	}
	return []string{"client-authentication+jwt", "JWT", ""}
}

func (m manners) grantTypes() []string { return []string{"JWT", ""} }

// Imitations returns the names of the IdPs that a Server can imitate, sorted.
func Imitations() []string { return slices.Sorted(maps.Keys(imitations())) }

func imitations() map[string]manners {
	return map[string]manners{
		"auth0": auth0(), "cognito": cognito(), "entra": entra(), "entra-v1": entraV1(), "google": google(),
		"keycloak": keycloak(), "okta": okta(), "salesforce": salesforce(), "zoom": zoom(),
	}
}

// under is a token endpoint below the issuer.
func under(path string) func(string) string {
	return func(issuer string) string { return strings.TrimSuffix(issuer, "/") + path }
}

func atIssuer(s *Server) string   { return s.issuer }
func atEndpoint(s *Server) string { return s.endpoint }

func described(p *problem) map[string]any {
	return map[string]any{"error": p.code, "error_description": p.description}
}

// auth0 says access_denied of a wrong secret, with 401, and of whatever the client
// may not have, with 403. A client has one secret; a new one takes up to 30 s.
func auth0() manners {
	return manners{
		endpoint:    under("/oauth/token"),
		audience:    atIssuer,
		types:       []string{"JWT", ""},
		propagation: 30 * time.Second,
		demand: func(f form) *problem {
			if f.Get("audience") == "" {
				return bad("invalid_target", "No audience parameter was provided, and no default audience has been configured")
			}
			return nil
		},
		refuse: func(p *problem) (int, map[string]any) {
			switch p.code {
			case "invalid_client":
				return http.StatusUnauthorized, map[string]any{"error": "access_denied", "error_description": "Unauthorized"}
			case "invalid_target", "invalid_scope":
				return http.StatusForbidden, map[string]any{"error": "access_denied", "error_description": p.description}
			default:
				return p.status, described(p)
			}
		},
	}
}

// entra wants one scope, which ends in /.default, and never names scopes in its
// answer. Its tokens that live for long say when to refresh them. A new secret takes
// a handful of seconds.
func entra() manners {
	const half = 2
	return manners{
		endpoint:    func(issuer string) string { return strings.TrimSuffix(issuer, "/v2.0") + "/oauth2/v2.0/token" },
		audience:    atEndpoint,
		types:       []string{"JWT"},
		certificate: true,
		propagation: 10 * time.Second,
		demand: func(f form) *problem {
			if scope := f.Get("scope"); !strings.HasSuffix(scope, "/.default") || strings.Contains(scope, " ") {
				return bad("invalid_scope", "AADSTS1002012: The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier.")
			}
			return nil
		},
		dress: func(answer map[string]any) {
			delete(answer, "scope")
			answer["ext_expires_in"] = answer["expires_in"]
			if life, ok := answer["expires_in"].(int64); ok && life > int64((2*time.Hour).Seconds()) {
				answer["refresh_in"] = life / half
			}
		},
		refuse: func(p *problem) (int, map[string]any) {
			members := described(p)
			members["error_codes"] = []int{7000215}
			members["timestamp"] = time.Now().UTC().Format("2006-01-02 15:04:05Z")
			members["trace_id"], members["correlation_id"] = "0000aaaa-11bb-cccc-dd22-eeeeee333333", "aaaa0000-bb11-2222-33cc-444444dddddd"
			if p.description == unknownClient {
				members["error"], members["error_codes"] = "unauthorized_client", []int{700016}
				return http.StatusBadRequest, members
			}
			return p.status, members
		},
	}
}

// entraV1 is the older endpoint, which has a resource in place of scopes, and
// numbers as texts.
func entraV1() manners {
	m := entra()
	m.endpoint = func(issuer string) string { return strings.TrimSuffix(issuer, "/") + "/oauth2/token" }
	m.demand = nil
	m.dress = func(answer map[string]any) {
		life, _ := answer["expires_in"].(int64)
		delete(answer, "scope")
		answer["expires_in"], answer["ext_expires_in"] = strconv.FormatInt(life, 10), strconv.FormatInt(life, 10)
		answer["expires_on"] = strconv.FormatInt(time.Now().Unix()+life, 10)
		answer["not_before"] = strconv.FormatInt(time.Now().Unix(), 10)
	}
	return m
}

// okta's org authorization server takes signed assertions alone, which are for its
// token endpoint.
func okta() manners {
	return manners{
		endpoint: under("/oauth2/v1/token"),
		audience: atEndpoint,
		types:    []string{"JWT", ""},
		refuse:   func(p *problem) (int, map[string]any) { return p.status, described(p) },
	}
}

// cognito has its token endpoint on another host than its issuer, explains no
// refusal, and names no scopes.
func cognito() manners {
	return manners{
		endpoint: func(string) string { return "https://shop.auth.eu-west-1.amazoncognito.com/oauth2/token" },
		dress:    func(answer map[string]any) { delete(answer, "scope") },
		refuse: func(p *problem) (int, map[string]any) {
			return http.StatusBadRequest, map[string]any{"error": p.code}
		},
	}
}

// keycloak says unauthorized_client of a wrong secret.
func keycloak() manners {
	return manners{
		endpoint: under("/protocol/openid-connect/token"),
		audience: atIssuer,
		types:    []string{"JWT", ""},
		dress: func(answer map[string]any) {
			answer["refresh_expires_in"], answer["not-before-policy"] = 0, 0
		},
		refuse: func(p *problem) (int, map[string]any) {
			if p.code == "invalid_client" {
				return http.StatusUnauthorized, map[string]any{"error": "unauthorized_client", "error_description": "Invalid client or Invalid client credentials"}
			}
			return p.status, described(p)
		},
	}
}

// google says invalid_grant of an assertion that it does not take, and knows no
// client authentication. A sub asks to act for a user, which few may.
func google() manners {
	return manners{
		endpoint: under("/token"),
		audience: atEndpoint,
		demand: func(f form) *problem {
			switch {
			case f.Has("client_id"):
				return bad("invalid_request", "client_id is no parameter of this grant")
			case f.grant.scope == "":
				return bad("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
			case f.grant.subject != "":
				return &problem{status: http.StatusUnauthorized, code: "unauthorized_client",
					description: "Client is unauthorized to retrieve access tokens using this method, or client not authorized for any of the scopes requested."}
			}
			return nil
		},
		dress: func(answer map[string]any) { delete(answer, "scope") },
		refuse: func(p *problem) (int, map[string]any) {
			if p.code == "invalid_client" {
				return http.StatusBadRequest, map[string]any{"error": "invalid_grant", "error_description": "Invalid grant: account not found"}
			}
			return p.status, described(p)
		},
	}
}

// salesforce does not say how long a token lives, and has codes of its own.
func salesforce() manners {
	return manners{
		endpoint: under("/services/oauth2/token"),
		dress: func(answer map[string]any) {
			delete(answer, "expires_in")
			answer["instance_url"] = "https://shop.my.salesforce.com"
			answer["id"] = "https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS"
			answer["issued_at"] = strconv.FormatInt(time.Now().UnixMilli(), 10)
			answer["signature"] = "SSSbLO/gBhmmyNUvN18ODBDFYHzakxOMgqYtu+hDPsc="
		},
		refuse: func(p *problem) (int, map[string]any) {
			switch {
			case p.description == unknownClient:
				return http.StatusBadRequest, map[string]any{"error": "invalid_client_id", "error_description": "client identifier invalid"}
			case p.code == "invalid_client":
				return http.StatusBadRequest, map[string]any{"error": "invalid_client", "error_description": "invalid client credentials"}
			default:
				return p.status, described(p)
			}
		},
	}
}

// zoom has a grant of its own, and a reason in place of a description.
func zoom() manners {
	return manners{
		endpoint: under("/oauth/token"),
		dress: func(answer map[string]any) {
			answer["token_type"], answer["api_url"] = "bearer", "https://api.zoom.us"
		},
		refuse: func(p *problem) (int, map[string]any) {
			reason := p.description
			if p.code == "invalid_client" {
				reason = "Invalid client_id or client_secret"
			}
			return http.StatusBadRequest, map[string]any{"reason": reason, "error": p.code}
		},
	}
}
