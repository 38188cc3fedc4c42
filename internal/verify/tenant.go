package verify

import (
	"errors"
	"net/url"
	"slices"
	"strings"
)

// TenantPlaceholder stands for a tenant in a pattern.
const TenantPlaceholder = "{tenant}"

const maxTenant = 128

// CheckTenantPattern says what is wrong with a URL that is to have a tenant put
// into it, such as https://login.microsoftonline.com/{tenant}/v2.0: the
// placeholder must be in it once, as a whole segment of its path. Anywhere else a
// tenant's name could make it the URL of another host.
func CheckTenantPattern(pattern string) error {
	u, err := url.Parse(pattern)
	if err != nil || !slices.Contains(strings.Split(u.Path, "/"), TenantPlaceholder) || strings.Count(pattern, "{") != 1 || strings.Count(pattern, "}") != 1 {
		return errors.New("a pattern has " + TenantPlaceholder + " in it once, as a whole segment of its path, and no other braces")
	}
	return nil
}

// CheckTenant says what is wrong with the name of a tenant.
func CheckTenant(tenant string) error {
	switch {
	case tenant == "" || len(tenant) > maxTenant || strings.Trim(tenant, ".") == "" || strings.ContainsFunc(tenant, notInTenant):
		return errors.New("a tenant's name is 1 to 128 letters, digits, dots, underscores and hyphens")
	case slices.Contains([]string{"common", "organizations", "consumers"}, strings.ToLower(tenant)):
		return errors.New("this stands for any tenant, and is in no token: name the tenants, by their IDs")
	}
	return nil
}

func notInTenant(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}

// TenantURL puts a tenant into a pattern. Both must have been checked. What comes
// of it is compared byte by byte with the iss of tokens, as any issuer is.
func TenantURL(pattern, tenant string) string {
	return strings.Replace(pattern, TenantPlaceholder, tenant, 1)
}
