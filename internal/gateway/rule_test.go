package gateway_test

import (
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/gateway"
)

const denied = -1

// Rules of which the last asks for less than those before it.
var strictThenBroad = []gateway.Rule{
	{Host: "admin.example.com"},              // 0
	{Host: "*.Staff.example.com"},            // 1
	{Host: "10.0.0.1"},                       // 2
	{Host: "[2001:DB8::1]"},                  // 3
	{Path: "/admin/"},                        // 4
	{Path: "/panel/x"},                       // 5
	{Path: "/Büro/", IgnoreCase: true},       // 6
	{Path: "/class/exact", IgnoreCase: true}, // 7
	{},                                       // 8
}

const broad = 8

func TestRuleForHost(t *testing.T) {
	for host, want := range map[string]int{
		"admin.example.com": 0, "ADMIN.example.COM": 0, "admin.example.com.": 0, "admin.example.com:443": 0, "admin.example.com.:8443": 0,
		"a.staff.example.com": 1, "a.b.staff.example.com.": 1, "A_1.STAFF.example.com:80": 1,
		"10.0.0.1": 2, "10.0.0.1:80": 2, "10.0.0.1.": 2,
		"[2001:db8::1]": 3, "[2001:DB8:0:0::1]:443": 3,
		// A wildcard stands for whole labels.
		"staff.example.com": broad, "evilstaff.example.com": broad, "a.staff.example.com.evil": broad, "a.staff.example.co": broad,
		"superadmin.example.com": broad, "admin.example.com.evil.com": broad, "localhost": broad, "xn--bcher-kva.example": broad, "10.0.0.2:8080": broad, "[::1]": broad, "0xcafe.example.com": broad,

		"": denied, ".": denied, ":443": denied, "admin.example.com..": denied, ".admin.example.com": denied, "admin..example.com": denied, "admin.example.com...": denied,
		".staff.example.com": denied, "a..staff.example.com": denied, "*.staff.example.com": denied,
		"admin.example.com:443:443": denied, "admin.example.com:": denied, "admin.example.com:x": denied, "admin.example.com:+443": denied, "admin.example.com:443.": denied, "admin.example.com.:": denied, "admin.example.com:123456": denied,
		"user@admin.example.com": denied, "user:pass@admin.example.com": denied, "admin.example.com@evil.com": denied, "http://admin.example.com": denied, "admin.example.com/": denied, "admin.example.com/x": denied, "admin.example.com?": denied, "admin.example.com#": denied, `admin.example.com\`: denied,
		"admin%2eexample.com": denied, "%61dmin.example.com": denied, "admin.example.com%00": denied, "admin.example.com%20": denied,
		" admin.example.com": denied, "admin.example.com ": denied, "admin.example.com\t": denied, "admin.example.com\x00": denied, "admin.example.com\x00.evil.com": denied, "admin.\nexample.com": denied, "\u00a0admin.example.com": denied, "admin.example.com,evil.com": denied, "evil.com, admin.example.com": denied, "evil.com admin.example.com": denied,
		"admin。example.com": denied, "admin．example.com": denied, "ａdmin.example.com": denied, "adm\u0131n.example.com": denied, "admin\u00ad.example.com": denied, "admin\u200b.example.com": denied, "bücher.example": denied, "xn--admin-.example.com": denied, "-admin.example.com": denied, "admin-.example.com": denied, "\xffadmin.example.com": denied,
		"010.0.0.1": denied, "10.0.1": denied, "10.1": denied, "167772161": denied, "0xa.0.0.1": denied, "0xa000001": denied, "012.0.0.1": denied, "10.0.0.0x1": denied, "10.0.0.1:80:80": denied, "10.0.0.256": denied, "10.0.0.1..": denied, "a.10.0.0.1": denied,
		"[::ffff:10.0.0.1]": denied, "[::ffff:a00:1]": denied, "[2001:db8::1": denied, "[2001:db8::1]443": denied, "[2001:db8::1]:": denied, "[2001:db8::1]:443:443": denied, "[2001:db8::1%25eth0]": denied, "[2001:db8::1]]": denied, "2001:db8::1": denied, "[[2001:db8::1]]": denied, "[admin.example.com]": denied, "[10.0.0.1]": denied, "[]": denied, "[": denied, "[2001:db8::1].": denied,
		strings.Repeat("a", 64) + ".example.com": denied, strings.Repeat("a.", 127) + "example.com": denied,
	} {
		if got := gateway.RuleFor(strictThenBroad, host, "/x"); got != want {
			t.Errorf("%q: rule %d, want %d", host, got, want)
		}
	}
}

func TestRuleForPath(t *testing.T) {
	for target, want := range map[string]int{
		"/admin": 4, "/admin/": 4, "/admin/x": 4, "/%61dmin": 4, "/admin?x=/../y": 4, "/adm%69n/%20y%C3%A9%20z?": denied, "/admin/y%20z": 4, "/panel/x": 5, "/panel/x?": 5,
		"/b%C3%BCro/": 6, "/BÜRO": 6, "/B%C3%9Cro/x": 6, "/class/exact": 7, "/CLASS/Exact": 7, "/cla%C3%9F/exact": 7,
		// Another case is another path, and so is a suffix.
		"/Admin": broad, "/panel/X": broad, "/admin.json": broad, "/adminx": broad, "/panel": broad, "/panel/x/y": broad, "/class/exactly": broad,
		"/": broad, "/x/": broad, "/.well-known/x": broad, "/a..b/...c": broad, "/files/my%20report.pdf": broad, "/caf%C3%A9": broad, "/\u65e5/~x/a+b/c:d@e/!$&'()*,=": broad, "/x?a=%20;b//../": broad, "/c++": broad, "/%E2%82%AC5": broad,

		// A final slash means nothing to most routers.
		"/panel/x/": denied, "/class/EXACT/": denied,
		"": denied, "*": denied, "admin": denied, "http://x/admin": denied, "?": denied,
		"/admin%20": denied, "/admin%09": denied, "/admin%a0": denied, "/admin%C2%A0": denied, "/%20admin": denied, "/admin /x": denied, "/admin%0a": denied, "/admin%0d%0a": denied, "/admin%00": denied, "/admin%00.png": denied, "/admin\x00": denied, "/ad%09min": denied, "/admin%7f": denied, "/admin%C2%85": denied, "/admin%E3%80%80": denied, "/admin%E2%80%A8": denied,
		"/panel./x": denied, "/admin.": denied, "/admin...": denied, "/admin%2e": denied, "/admin.%20": denied, "/panel%2E/x": denied, "/admin/.": denied, "/admin/..": denied,
		"//": denied, "//admin": denied, "/./admin": denied, "/x/../admin": denied, "/%2e/admin": denied, "/x/%2e%2e/admin": denied, "/x/.%2e/admin": denied, "/panel//x": denied, "/admin//": denied, "/x/..": denied, "/.": denied, "/..": denied,
		"/admin;x": denied, "/admin;": denied, "/;/admin": denied, "/x/..;/admin": denied, "/admin%3b": denied, "/admin;x=1/y": denied,
		`/x\admin`: denied, `\admin`: denied, `/\admin`: denied, "/x/..%5cadmin": denied, "/x%2f..%2fadmin": denied, "/x%2Fadmin": denied, "/%2fadmin": denied, "/admin%2f": denied, "/admin%5C": denied,
		"/%2561dmin": denied, "/admin%2520": denied, "/admin%25": denied, "/%zz": denied, "/admin%": denied, "/admin%2": denied, "/admin%u0061": denied, "/%c1%a1dmin": denied, "/admin%c0%af": denied, "/admin%ff": denied, "/admin\xff": denied, "/%ed%a0%80": denied,
		"/admin#": denied, "/admin#x": denied, "/admin%23": denied, "/admin%3f": denied, "/admin%3Fx": denied,
		"/%EF%BD%81dmin": denied, "/ａdmin": denied, "/ⓐdmin": denied, "/x／admin": denied, "/x/．．/admin": denied, "/admin\u200b": denied, "/admin\ufeff": denied, "/ad\u00admin": denied, "/adm\u0131n": denied, "/adm\u0130n": denied, "/cla\u017fs": denied, "/\u212aelvin": denied, "/admin\ufe0f": denied, "/admin\u034f": denied, "/admin\u3164": denied, "/admi\u006e\u0303": denied, "/admin\u202e": denied, "/admin\ue000": denied, "/ﬁle": denied,
	} {
		if got := gateway.RuleFor(strictThenBroad, "api.example.com", target); got != want {
			t.Errorf("%q: rule %d, want %d", target, got, want)
		}
	}
}

// Where no rule looks at the host or the path, it may have any form.
func TestRuleFor_unusedPartsMayBeInvalid(t *testing.T) {
	for name, tt := range map[string]struct {
		rules        []gateway.Rule
		host, target string
		want         int
	}{
		"no rule has a path":          {[]gateway.Rule{{Host: "a.example.com"}, {Host: "b.example.com"}}, "b.example.com", "/x%2fy//z;a", 1},
		"no rule has a host":          {[]gateway.Rule{{Path: "/a/"}, {Path: "/b/"}}, "a@b..", "/b/x", 1},
		"a rule of another host":      {[]gateway.Rule{{Host: "a.example.com", Path: "/x"}, {Host: "b.example.com"}}, "b.example.com", "//x", 1},
		"the first rule is broad":     {[]gateway.Rule{{}, {Host: "a.example.com", Path: "/x"}}, "..", "..", 0},
		"nothing matches":             {[]gateway.Rule{{Path: "/a/"}}, "b.example.com", "/b", denied},
		"host matches, path does not": {[]gateway.Rule{{Host: "a.example.com", Path: "/a/"}, {}}, "a.example.com", "/b", 1},
	} {
		if got := gateway.RuleFor(tt.rules, tt.host, tt.target); got != tt.want {
			t.Errorf("%s: rule %d, want %d", name, got, tt.want)
		}
	}
}

// folds are what usual frameworks, servers and file systems do to a path before they
// look for what there is at it. All of them keep the final slash apart.
var folds = map[string]func(string) string{
	"decode":        func(p string) string { return first(url.PathUnescape(p)) },
	"clean":         func(p string) string { return path.Clean("/" + p) },
	"merge slashes": func(p string) string { return strings.ReplaceAll(p, "//", "/") },
	"backslash":     func(p string) string { return strings.ReplaceAll(p, `\`, "/") },
	"parameters":    func(p string) string { return bySegment(p, func(s string) string { return upTo(s, ";") }) },
	"NUL":           func(p string) string { return upTo(p, "\x00") },
	"query":         func(p string) string { return upTo(p, "?") },
	"fragment":      func(p string) string { return upTo(p, "#") },
	"trim":          func(p string) string { return bySegment(p, strings.TrimSpace) },
	"trim dots": func(p string) string {
		return bySegment(p, func(s string) string { return strings.TrimRight(s, ". ") })
	},
	"final slash":   func(p string) string { return strings.TrimSuffix(p, "/") },
	"tab, line end": func(p string) string { return strings.NewReplacer("\t", "", "\n", "", "\r", "").Replace(p) },
	"Latin-1 space": func(p string) string { return strings.ReplaceAll(p, "\xa0", " ") },
	"NFKC":          norm.NFKC.String,
	"invisible":     func(p string) string { return strings.Map(visible, p) },
	"overlong":      func(p string) string { return strings.NewReplacer("\xc0\xaf", "/", "\xc0\xae", ".").Replace(p) },
}

var ignoringCase = map[string]func(string) string{
	"lower": strings.ToLower, "upper and lower": func(p string) string { return strings.ToLower(strings.ToUpper(p)) }, "fold": func(p string) string { return cases.Fold().String(p) },
}

func first(text string, _ error) string { return text }

func upTo(text, mark string) string { before, _, _ := strings.Cut(text, mark); return before }

func bySegment(p string, change func(string) string) string {
	segments := strings.Split(p, "/")
	for i := range segments {
		segments[i] = change(segments[i])
	}
	return strings.Join(segments, "/")
}

func visible(c rune) rune {
	if unicode.In(c, unicode.Cf, unicode.Cc, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) {
		return -1
	}
	return c
}

// foldsTo reports whether some sequence of folds turns a path into another.
func foldsTo(from, to string, folds ...map[string]func(string) string) bool {
	seen, next := map[string]bool{from: true}, []string{from}
	for depth := 0; depth < 4 && len(next) > 0; depth++ {
		var variants []string
		for _, p := range next {
			for _, kind := range folds {
				for _, fold := range kind {
					folded := fold(p)
					if folded == to {
						return true
					}
					if !seen[folded] && len(seen) < 2000 {
						seen[folded] = true
						variants = append(variants, folded)
					}
				}
			}
		}
		next = variants
	}
	return false
}

// below are rules for the same path, which is matched exactly, in any case and as a
// prefix, each with a broad rule after it.
var below = []struct {
	rules []gateway.Rule
	at    string
	folds []map[string]func(string) string
}{
	{[]gateway.Rule{{Path: "/panel/x"}, {}}, "/panel/x", []map[string]func(string) string{folds}},
	{[]gateway.Rule{{Path: "/panel/x", IgnoreCase: true}, {}}, "/panel/x", []map[string]func(string) string{folds, ignoringCase}},
	{[]gateway.Rule{{Path: "/panel/x/"}, {}}, "/panel/x", []map[string]func(string) string{folds}},
	{[]gateway.Rule{{Path: "/kiss/", IgnoreCase: true}, {}}, "/kiss", []map[string]func(string) string{folds, ignoringCase}},
}

func neverBroad(t interface {
	Helper()
	Errorf(format string, args ...any)
}, target string) {
	t.Helper()
	bare := upTo(target, "?")
	for _, b := range below {
		if gateway.RuleFor(b.rules, "a.example.com", target) == 1 && foldsTo(bare, b.at, b.folds...) {
			t.Errorf("%q is answered by the broad rule, and some software takes it for %s (ignoring case: %v)", target, b.at, b.rules[0].IgnoreCase)
		}
	}
}

// disguises undo folds: they make another spelling of a path.
var disguises = []func(t *rapid.T, p string) string{
	func(t *rapid.T, p string) string {
		return insert(t, p, oneOf(t, " ", "%20", "\t", "%09", "%0a", "%a0", "\xa0", "%C2%A0", "\u3000", ".", "%2e", ". ", "...", "/", "//", "/./", "%2f", "%5c", `\`, ";x", ";", "%3b", "\x00", "%00", "%0d%0a", "#", "%23", "?", "%3f", "\u200b", "\u00ad", "\ufeff", "\ufe0f", "/x/../", "/..;/", "%c0%af"))
	},
	func(t *rapid.T, p string) string { // escape a byte, perhaps again
		at := rapid.IntRange(0, max(0, len(p)-1)).Draw(t, "at")
		return p[:at] + strings.ReplaceAll(url.QueryEscape(p[at:min(len(p), at+1)]), "+", "%20") + p[min(len(p), at+1):]
	},
	func(t *rapid.T, p string) string { // hex of a letter
		at := rapid.IntRange(0, max(0, len(p)-1)).Draw(t, "at")
		if at >= len(p) {
			return p
		}
		const digits = "0123456789abcdef"
		return p[:at] + "%" + string(digits[p[at]>>4]) + string(digits[p[at]&15]) + p[at+1:]
	},
	func(_ *rapid.T, p string) string { return strings.ToUpper(p) },
	func(t *rapid.T, p string) string {
		return strings.NewReplacer(oneOf(t, "x", "s", "k", "ss", "a", "/", "."), oneOf(t, "ｘ", "ſ", "\u212a", "ß", "ａ", "／", "．", "X", "ẞ")).Replace(p)
	},
	func(_ *rapid.T, p string) string { return p + "/" },
	func(_ *rapid.T, p string) string { return "/" + p },
}

func oneOf(t *rapid.T, from ...string) string { return rapid.SampledFrom(from).Draw(t, "text") }

func insert(t *rapid.T, p, text string) string {
	at := rapid.IntRange(0, len(p)).Draw(t, "at")
	return p[:at] + text + p[at:]
}

func TestRuleFor_otherSpellings(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		target := rapid.SampledFrom([]string{"/panel/x", "/kiss", "/panel/x/"}).Draw(t, "path")
		for range rapid.IntRange(1, 4).Draw(t, "disguises") {
			target = rapid.SampledFrom(disguises).Draw(t, "disguise")(t, target)
		}
		neverBroad(t, target)
	})
}

func FuzzRuleForPath(f *testing.F) {
	for _, target := range []string{"/panel/x", "/panel%2fx", "/panel./x", "/panel/x%20", "//panel/x", "/panel/x;a", "/KI\u1e9e", "/\u212aiss", "/panel/%EF%BD%98", "/x/..%5cpanel/x", "/panel/x%3fa", "/panel/x?a", "/%2570anel/x"} {
		f.Add(target)
	}
	f.Fuzz(func(t *testing.T, target string) { neverBroad(t, target) })
}

// hostFolds are what software that picks a service by its host does to it.
var hostFolds = map[string]func(string) string{
	"lower": strings.ToLower,
	"trim": func(h string) string {
		return strings.TrimFunc(h, func(c rune) bool { return c <= ' ' || unicode.IsSpace(c) })
	},
	"dots":      func(h string) string { return strings.Trim(h, ".") },
	"port":      func(h string) string { return upTo(h, ":") },
	"last port": func(h string) string { return h[:max(0, strings.LastIndexByte(h, ':'))] },
	"user":      func(h string) string { return h[strings.LastIndexByte(h, '@')+1:] },
	"before @":  func(h string) string { return upTo(h, "@") },
	"decode":    func(h string) string { return first(url.PathUnescape(h)) },
	"NUL":       func(h string) string { return upTo(h, "\x00") },
	"path":      func(h string) string { return upTo(h, "/") },
	"list":      func(h string) string { return upTo(h, ",") },
	"last":      func(h string) string { return h[strings.LastIndexByte(h, ',')+1:] },
	"NFKC":      norm.NFKC.String,
	"scheme":    func(h string) string { return strings.TrimPrefix(h, "http://") },
	"invisible": func(h string) string { return strings.Map(visible, h) },
	"full stop": func(h string) string { return strings.ReplaceAll(h, "。", ".") },
	"brackets":  func(h string) string { return strings.Trim(h, "[]") },
}

func FuzzRuleForHost(f *testing.F) {
	for _, host := range []string{"admin.example.com", "admin.example.com..", "admin.example.com:443:443", "user@admin.example.com", "admin%2eexample.com", "[admin.example.com]", "admin。example.com", "ADMIN.example.com:1", " admin.example.com", "admin.example.com,x", "admin.example.com."} {
		f.Add(host)
	}
	rules := []gateway.Rule{{Host: "admin.example.com"}, {Host: "*.staff.example.com"}, {}}
	f.Fuzz(func(t *testing.T, host string) {
		for _, name := range []string{"admin.example.com", "a.staff.example.com"} {
			if gateway.RuleFor(rules, host, "/") == 2 && foldsTo(host, name, hostFolds) {
				t.Errorf("%q is answered by the broad rule, and some software takes it for %s", host, name)
			}
		}
	})
}

func TestRuleFor_otherHosts(t *testing.T) {
	rules := []gateway.Rule{{Host: "admin.example.com"}, {}}
	rapid.Check(t, func(t *rapid.T) {
		host := "admin.example.com"
		for range rapid.IntRange(1, 3).Draw(t, "disguises") {
			host = insert(t, host, oneOf(t, ".", "..", ":443", ":", "@", "user@", "%2e", "%00", "\x00", " ", "\t", "\u00a0", ",", ", ", "/", "http://", "[", "]", "。", "．", "\u00ad", "\u200b", "%20", "A"))
		}
		if gateway.RuleFor(rules, host, "/") == 1 && foldsTo(host, "admin.example.com", hostFolds) {
			t.Errorf("%q is answered by the broad rule", host)
		}
	})
}

func TestRuleValid(t *testing.T) {
	for text, want := range map[string]bool{
		"": true, "api.example.com": true, "API.example.com": true, "*.example.com": true, "my_service": true, "10.0.0.1": true, "[::1]": true, "xn--bcher-kva.example": true,
		"api.example.com.": false, "api.example.com:443": false, "*": false, "*.": false, "*.*.example.com": false, "a.*.example.com": false, "bücher.example": false, "a b": false, "a/b": false, ".example.com": false, "[0:0:0:0:0:0:0:1]": false, "127.1": false, "a@b": false,
	} {
		if host, _ := (&gateway.Rule{Host: text}).Valid(); host != want {
			t.Errorf("host %q: %v", text, host)
		}
	}
	for text, want := range map[string]bool{
		"": true, "/": true, "/orders": true, "/orders/": true, "/Büro/": true, "/my file": true, "/.well-known/x": true, "/a:b/c,d": true,
		"orders": false, "//": false, "/a//b": false, "/a//": false, "/a/../b": false, "/.": false, "/a./b": false, "/a%20b": false, "/a?b": false, "/a#b": false, "/a;b": false, `/a\b`: false, "/ a": false, "/a ": false, "/a\tb": false, "/ａ": false, "/a\xff": false,
	} {
		if _, path := (&gateway.Rule{Path: text}).Valid(); path != want {
			t.Errorf("path %q: %v", text, path)
		}
	}
}
