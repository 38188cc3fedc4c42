package verify

import (
	"errors"
	"net/url"
	"slices"
	"strings"
)

// tenantPlaceholder is replaced by the name of a tenant in a pattern.
const tenantPlaceholder = "{tenant}"

const maxTenant = 128 // bytes

// CheckTenantPattern checks a URL pattern such as
// https://login.microsoftonline.com/{tenant}/v2.0: it must contain the placeholder once,
// as a whole segment of its path. Elsewhere a tenant's name could change the host.
func CheckTenantPattern(pattern string) error {
	u, err := url.Parse(pattern)
	if err != nil || !slices.Contains(strings.Split(u.Path, "/"), tenantPlaceholder) || strings.Count(pattern, "{") != 1 || strings.Count(pattern, "}") != 1 {
		return errors.New("the pattern must contain " + tenantPlaceholder + " once, as a whole segment of its path, and no other braces")
	}
	return nil
}

// CheckTenant checks the name of a tenant: 1 to 128 bytes that cannot change the
// structure of a URL.
func CheckTenant(tenant string) error {
	switch {
	case tenant == "" || len(tenant) > maxTenant || strings.Trim(tenant, ".") == "" || strings.ContainsFunc(tenant, notInTenant):
		return errors.New("the name of a tenant must be 1 to 128 letters, digits, dots, underscores and hyphens")
	case slices.Contains([]string{"common", "organizations", "consumers"}, strings.ToLower(tenant)):
		return errors.New("this name means any tenant, and no token contains it: list the tenants by their IDs")
	}
	return nil
}

func notInTenant(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}

// TenantURL inserts a tenant into a pattern, both of which must have been checked. Like
// any issuer, the result is compared byte by byte with the iss of tokens.
func TenantURL(pattern, tenant string) string {
	return strings.Replace(pattern, tenantPlaceholder, tenant, 1)
}
