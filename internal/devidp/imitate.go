package devidp

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// deviations describe how an IdP differs from the RFCs. The zero value has none. They
// come from the IdPs' documentation; docs/identity-providers.md explains their
// consequences for the configuration of clients.
type deviations struct {
	// endpoint returns the token endpoint of an issuer.
	endpoint func(issuer string) string
	// audience returns the required audience of assertions. Nil accepts the issuer and
	// the token endpoint.
	audience func(s *Server) string
	// types are the accepted typ of client assertions. Nil accepts all common ones.
	types []string
	// certificate requires assertions to name a certificate.
	certificate bool
	// check enforces additional requirements on requests.
	check func(f form) *oauthError
	// adjust modifies the members of a successful response.
	adjust func(members map[string]any)
	// refuse converts an error to the response of the IdP.
	refuse func(err *oauthError) (status int, members map[string]any)
	// propagation is the time until a new secret is valid.
	propagation time.Duration
}

func (m deviations) clientTypes() []string {
	if m.types != nil {
		return m.types
	}
	return []string{"client-authentication+jwt", "JWT", ""}
}

func (m deviations) grantTypes() []string { return []string{"JWT", ""} }

// Imitations returns the names of the IdPs that a Server can imitate, sorted.
func Imitations() []string { return slices.Sorted(maps.Keys(imitations())) }

func imitations() map[string]deviations {
	return map[string]deviations{
		"auth0": auth0(), "cognito": cognito(), "entra": entra(), "entra-v1": entraV1(), "google": google(),
		"keycloak": keycloak(), "okta": okta(), "salesforce": salesforce(), "zoom": zoom(),
	}
}

// under returns a function for a token endpoint below the issuer.
func under(path string) func(string) string {
	return func(issuer string) string { return strings.TrimSuffix(issuer, "/") + path }
}

func atIssuer(s *Server) string   { return s.issuer }
func atEndpoint(s *Server) string { return s.endpoint }

func described(err *oauthError) map[string]any {
	return map[string]any{"error": err.code, "error_description": err.description}
}

// auth0 uses access_denied with 401 for a wrong secret, and with 403 for a request that
// the client may not make. A new secret is valid after up to 30 s.
func auth0() deviations {
	return deviations{
		endpoint:    under("/oauth/token"),
		audience:    atIssuer,
		types:       []string{"JWT", ""},
		propagation: 30 * time.Second,
		check: func(f form) *oauthError {
			if f.Get("audience") == "" {
				return badRequest("invalid_target", "No audience parameter was provided, and no default audience has been configured")
			}
			return nil
		},
		refuse: func(err *oauthError) (int, map[string]any) {
			switch err.code {
			case "invalid_client":
				return http.StatusUnauthorized, map[string]any{"error": "access_denied", "error_description": "Unauthorized"}
			case "invalid_target", "invalid_scope":
				return http.StatusForbidden, map[string]any{"error": "access_denied", "error_description": err.description}
			default:
				return err.status, described(err)
			}
		},
	}
}

// entra requires a single scope that ends in /.default, and its responses name no scopes.
// The response for a long-lived token has refresh_in. A new secret is valid after a few
// seconds.
func entra() deviations {
	const half = 2
	return deviations{
		endpoint:    func(issuer string) string { return strings.TrimSuffix(issuer, "/v2.0") + "/oauth2/v2.0/token" },
		audience:    atEndpoint,
		types:       []string{"JWT"},
		certificate: true,
		propagation: 10 * time.Second,
		check: func(f form) *oauthError {
			if f.Get("requested_token_use") == onBehalfOf {
				return nil // on behalf of a user, any scope
			}
			if scope := f.Get("scope"); !strings.HasSuffix(scope, "/.default") || strings.Contains(scope, " ") {
				return badRequest("invalid_scope", "AADSTS1002012: The provided value for scope is not valid. Client credential flows must have a scope value with /.default suffixed to the resource identifier.")
			}
			return nil
		},
		adjust: func(members map[string]any) {
			delete(members, "scope")
			members["ext_expires_in"] = members["expires_in"]
			if life, ok := members["expires_in"].(int64); ok && life > int64((2*time.Hour).Seconds()) {
				members["refresh_in"] = life / half
			}
		},
		refuse: func(err *oauthError) (int, map[string]any) {
			members := described(err)
			members["error_codes"] = []int{7000215}
			members["timestamp"] = time.Now().UTC().Format("2006-01-02 15:04:05Z")
			members["trace_id"], members["correlation_id"] = "0000aaaa-11bb-cccc-dd22-eeeeee333333", "aaaa0000-bb11-2222-33cc-444444dddddd"
			if err.description == unknownClient {
				members["error"], members["error_codes"] = "unauthorized_client", []int{700016}
				return http.StatusBadRequest, members
			}
			return err.status, members
		},
	}
}

// entraV1 is the older endpoint. It uses a resource instead of scopes, and strings instead
// of numbers.
func entraV1() deviations {
	m := entra()
	m.endpoint = func(issuer string) string { return strings.TrimSuffix(issuer, "/") + "/oauth2/token" }
	m.check = nil
	m.adjust = func(members map[string]any) {
		life, _ := members["expires_in"].(int64)
		delete(members, "scope")
		members["expires_in"], members["ext_expires_in"] = strconv.FormatInt(life, 10), strconv.FormatInt(life, 10)
		members["expires_on"] = strconv.FormatInt(time.Now().Unix()+life, 10)
		members["not_before"] = strconv.FormatInt(time.Now().Unix(), 10)
	}
	return m
}

// okta is the org authorization server. It accepts only signed assertions, with its token
// endpoint as their audience.
func okta() deviations {
	return deviations{
		endpoint: under("/oauth2/v1/token"),
		audience: atEndpoint,
		types:    []string{"JWT", ""},
		refuse:   func(err *oauthError) (int, map[string]any) { return err.status, described(err) },
	}
}

// cognito has its token endpoint on a host other than the issuer's. Its errors have no
// description, and its responses name no scopes.
func cognito() deviations {
	return deviations{
		endpoint: func(string) string { return "https://shop.auth.eu-west-1.amazoncognito.com/oauth2/token" },
		adjust:   func(members map[string]any) { delete(members, "scope") },
		refuse: func(err *oauthError) (int, map[string]any) {
			return http.StatusBadRequest, map[string]any{"error": err.code}
		},
	}
}

// keycloak uses unauthorized_client for a wrong secret.
func keycloak() deviations {
	return deviations{
		endpoint: under("/protocol/openid-connect/token"),
		audience: atIssuer,
		types:    []string{"JWT", ""},
		adjust: func(members map[string]any) {
			members["refresh_expires_in"], members["not-before-policy"] = 0, 0
		},
		refuse: func(err *oauthError) (int, map[string]any) {
			if err.code == "invalid_client" {
				return http.StatusUnauthorized, map[string]any{"error": "unauthorized_client", "error_description": "Invalid client or Invalid client credentials"}
			}
			return err.status, described(err)
		},
	}
}

// google uses invalid_grant for a refused assertion and has no client authentication. A
// sub means delegation by a user, which is refused here.
func google() deviations {
	return deviations{
		endpoint: under("/token"),
		audience: atEndpoint,
		check: func(f form) *oauthError {
			switch {
			case f.Has("client_id"):
				return badRequest("invalid_request", "client_id is not a parameter of this grant")
			case f.grant.scope == "":
				return badRequest("invalid_scope", "Invalid OAuth scope or ID token audience provided.")
			case f.grant.subject != "":
				return &oauthError{status: http.StatusUnauthorized, code: "unauthorized_client",
					description: "Client is unauthorized to retrieve access tokens using this method, or client not authorized for any of the scopes requested."}
			}
			return nil
		},
		adjust: func(members map[string]any) { delete(members, "scope") },
		refuse: func(err *oauthError) (int, map[string]any) {
			if err.code == "invalid_client" {
				return http.StatusBadRequest, map[string]any{"error": "invalid_grant", "error_description": "Invalid grant: account not found"}
			}
			return err.status, described(err)
		},
	}
}

// salesforce declares no lifetime and uses error codes of its own.
func salesforce() deviations {
	return deviations{
		endpoint: under("/services/oauth2/token"),
		adjust: func(members map[string]any) {
			delete(members, "expires_in")
			members["instance_url"] = "https://shop.my.salesforce.com"
			members["id"] = "https://login.salesforce.com/id/00Dxx0000001gPLEAY/005xx000001SwiUAAS"
			members["issued_at"] = strconv.FormatInt(time.Now().UnixMilli(), 10)
			members["signature"] = "SSSbLO/gBhmmyNUvN18ODBDFYHzakxOMgqYtu+hDPsc="
		},
		refuse: func(err *oauthError) (int, map[string]any) {
			switch {
			case err.description == unknownClient:
				return http.StatusBadRequest, map[string]any{"error": "invalid_client_id", "error_description": "client identifier invalid"}
			case err.code == "invalid_client":
				return http.StatusBadRequest, map[string]any{"error": "invalid_client", "error_description": "invalid client credentials"}
			default:
				return err.status, described(err)
			}
		},
	}
}

// zoom has a grant type of its own, and its errors have a reason instead of a
// description.
func zoom() deviations {
	return deviations{
		endpoint: under("/oauth/token"),
		adjust: func(members map[string]any) {
			members["token_type"], members["api_url"] = "bearer", "https://api.zoom.us"
		},
		refuse: func(err *oauthError) (int, map[string]any) {
			reason := err.description
			if err.code == "invalid_client" {
				reason = "Invalid client_id or client_secret"
			}
			return http.StatusBadRequest, map[string]any{"reason": reason, "error": err.code}
		},
	}
}
