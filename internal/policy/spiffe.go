package policy

import (
	"net/url"
	"strings"
)

// Bounds of a SPIFFE ID in bytes (SPIFFE-ID section 2).
const (
	maxSPIFFEID    = 2048
	maxTrustDomain = 255
)

const spiffePrefix = "spiffe://"

// spiffeScheme reports whether a URI has the scheme of SPIFFE IDs, regardless of case.
func spiffeScheme(uri string) bool {
	const scheme = "spiffe:"
	return len(uri) >= len(scheme) && strings.EqualFold(uri[:len(scheme)], scheme)
}

// IsSPIFFEID reports whether text is the SPIFFE ID of a workload in its canonical
// form (SPIFFE-ID section 2): scheme and trust domain in lower case, and a path of
// segments of letters, digits, dots, dashes and underscores that are not empty, "."
// or "..". It rejects user information, port, percent-encoding, query and fragment.
func IsSPIFFEID(text string) bool {
	rest, ok := strings.CutPrefix(text, spiffePrefix)
	domain, path, hasPath := strings.Cut(rest, "/")
	if !ok || !hasPath || len(text) > maxSPIFFEID || domain == "" || len(domain) > maxTrustDomain || strings.ContainsFunc(domain, notOfTrustDomain) {
		return false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if segment == "" || segment == "." || segment == ".." || strings.ContainsFunc(segment, notOfPath) {
			return false
		}
	}
	return true
}

func notOfTrustDomain(r rune) bool { return notOfPath(r) || r >= 'A' && r <= 'Z' }

func notOfPath(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
}

// ProblemOfURI returns what is wrong with a URI in a certificate, or with a pattern of
// them, or "". With the scheme spiffe it must be a SPIFFE ID.
func ProblemOfURI(text, scheme string) string {
	body, pattern := strings.CutSuffix(text, "/*")
	parsed, err := url.Parse(body)
	switch {
	case err != nil || parsed.Scheme == "" || parsed.Host == "" && scheme != "":
		return "expected a whole URI, such as spiffe://example.com/ns/shop/sa/checkout"
	case scheme != "" && (parsed.Scheme != scheme || parsed.RawQuery != "" || parsed.Fragment != "" || parsed.User != nil || parsed.Port() != "" || parsed.Host != strings.ToLower(parsed.Host)):
		return "expected a SPIFFE ID, spiffe://TRUST-DOMAIN/PATH, with the trust domain in lower case and without port, query and fragment"
	case scheme == "" && strings.EqualFold(parsed.Scheme, "spiffe"):
		return "this is a SPIFFE ID: use spiffe_id"
	case strings.Contains(body, "*"):
		return "* stands for a path at the end, after a slash: the rest is written out, the trust domain above all"
	case !pattern && scheme != "" && (parsed.Path == "" || strings.HasSuffix(parsed.Path, "/")):
		return "a SPIFFE ID of a workload has a path and no slash at its end: write it out, or end it in /* for any path below"
	case scheme != "" && !IsSPIFFEID(body) && !(pattern && IsSPIFFEID(body+"/x")):
		return "not a valid SPIFFE ID: the trust domain consists of lower-case letters, digits and ._-, the path of segments of letters, digits and ._-, without percent-encoding and empty segments"
	}
	return ""
}
