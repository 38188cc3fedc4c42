package gateway

import (
	"net/netip"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// A host or a path is plain if all software that receives the request after the broker
// interprets it in the same way. Rules match plain hosts and paths only. Any other one
// could be an alternative spelling of a host or path with a stricter rule.

// plainHost returns the host of a request in lower case, without its port and a final
// dot, and whether it is plain: a name of letters, digits, hyphens and underscores, or
// an IP address in its usual form.
func plainHost(host string) (name string, plain bool) {
	if strings.HasPrefix(host, "[") {
		return plainIPv6(host)
	}
	name, port, hasPort := strings.Cut(host, ":")
	if hasPort && !isPort(port) {
		return host, false
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if len(name) > 253 {
		return name, false
	}
	last := ""
	for last = range strings.SplitSeq(name, ".") {
		if !plainLabel(last) {
			return name, false
		}
	}
	if !isNumber(last) {
		return name, true
	}
	// 127.1, 0x7f.1 and 0177.0.0.1 are other spellings of 127.0.0.1.
	_, err := netip.ParseAddr(name)
	return name, err == nil
}

func plainIPv6(host string) (name string, plain bool) {
	text, rest, closed := strings.Cut(host[1:], "]")
	address, err := netip.ParseAddr(text)
	if !closed || err != nil || !address.Is6() || address.Is4In6() || address.Zone() != "" {
		return host, false
	}
	port, hasPort := strings.CutPrefix(rest, ":")
	return "[" + address.String() + "]", rest == "" || hasPort && isPort(port)
}

func isPort(text string) bool {
	return text != "" && len(text) <= 5 && strings.Trim(text, "0123456789") == ""
}

func plainLabel(label string) bool {
	if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
		return false
	}
	return !strings.ContainsFunc(label, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_'
	})
}

// isNumber reports whether the last label makes a host an IPv4 address for parsers that
// follow the URL standard of browsers.
func isNumber(label string) bool {
	if digits, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(digits, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}

// plainPath returns the decoded path of a target, and whether it is plain.
func plainPath(target string) (path string, plain bool) {
	path, _, _ = strings.Cut(target, "?")
	rest, rooted := strings.CutPrefix(path, "/")
	if !rooted {
		return path, false
	}
	// Each segment is decoded separately, so that an escaped slash is detected.
	for rest != "" {
		segment, below, _ := strings.Cut(rest, "/")
		decoded, err := url.PathUnescape(segment)
		if err != nil || !plainSegment(decoded) {
			return path, false
		}
		rest = below
	}
	path, err := url.PathUnescape(path)
	return path, err == nil
}

// plainSegment reports whether a decoded segment of a path is plain. Some software
// removes spaces and dots at its ends, control characters, invisible characters, or the
// rest after a NUL or a semicolon. Other software decodes it again, or treats a backslash
// as a slash.
func plainSegment(segment string) bool {
	if segment == "" || strings.Trim(segment, " ") != segment || strings.HasSuffix(segment, ".") {
		return false
	}
	ascii := true
	for _, c := range segment {
		if c >= utf8.RuneSelf {
			ascii = false
		}
		if !plainRune(c) {
			return false
		}
	}
	// Normalization turns full-width letters and ligatures into ASCII.
	return ascii || utf8.ValidString(segment) && norm.NFKC.IsNormalString(segment)
}

func plainRune(c rune) bool {
	if c < utf8.RuneSelf {
		return c >= ' ' && c != 0x7f && !strings.ContainsRune(`/\%;?#`, c)
	}
	visible := unicode.IsPrint(c) && !unicode.In(c, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
	// Changes of case turn the long s, the Kelvin sign and the Turkish i into ASCII.
	return visible && unicode.ToLower(c) >= utf8.RuneSelf && unicode.ToUpper(c) >= utf8.RuneSelf
}
