package policy

import "strings"

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
