package secret

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Doubt names bytes of a client secret that are seldom meant to be part of it: they
// come from an editor, a copy from a web page or a second "echo". It returns "" if
// there are none. A secret is never changed because of it: the IdP may have issued
// it like that. The text shows no character of the secret.
func Doubt(value redact.String) string {
	text := value.Reveal()
	var doubts []string
	for _, d := range []struct {
		found bool
		text  string
	}{
		{strings.HasPrefix(text, "\ufeff") || strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff"), "begins with a byte order mark"},
		{strings.ContainsRune(text, 0), "contains a NUL byte"},
		{strings.ContainsAny(text, "\r\n"), "contains a line end"},
		{surrounded(text, unicode.IsSpace), "begins or ends with white space"},
		{strings.ContainsFunc(strings.TrimPrefix(text, "\ufeff"), invisible), "contains a control or invisible character"},
		{quoted(text), "is enclosed in quotation marks"},
	} {
		if d.found {
			doubts = append(doubts, d.text)
		}
	}
	return strings.Join(doubts, ", ")
}

// surrounded reports whether the first or the last character is of a kind.
func surrounded(text string, is func(rune) bool) bool {
	first, _ := utf8.DecodeRuneInString(text)
	last, _ := utf8.DecodeLastRuneInString(text)
	return text != "" && (is(first) || is(last))
}

// invisible characters are those that the other doubts do not name.
func invisible(r rune) bool {
	return r != 0 && r != '\r' && r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.In(r, unicode.Cf))
}

func quoted(text string) bool {
	if len(text) < 2 {
		return false
	}
	first, last := text[0], text[len(text)-1]
	return first == last && (first == '"' || first == '\'')
}
