package secret

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Warning describes bytes of a client secret that are probably not part of it: they
// come from an editor, a web page or "echo". It returns "" if there are none, else
// the predicate of a sentence about the secret, which contains no character of it.
// The broker never removes such bytes, because an IdP may have issued them.
func Warning(value redact.String) string {
	text := value.Reveal()
	var warnings []string
	for _, check := range []struct {
		applies bool
		warning string
	}{
		{strings.HasPrefix(text, "\ufeff") || strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff"), "begins with a byte order mark"},
		{strings.ContainsRune(text, 0), "contains a NUL byte"},
		{strings.ContainsAny(text, "\r\n"), "contains a line end"},
		{surrounded(text, unicode.IsSpace), "begins or ends with white space"},
		{strings.ContainsFunc(strings.TrimPrefix(text, "\ufeff"), invisible), "contains a control or invisible character"},
		{quoted(text), "is enclosed in quotation marks"},
	} {
		if check.applies {
			warnings = append(warnings, check.warning)
		}
	}
	return strings.Join(warnings, ", ")
}

// surrounded reports whether is holds for the first or the last character.
func surrounded(text string, is func(rune) bool) bool {
	first, _ := utf8.DecodeRuneInString(text)
	last, _ := utf8.DecodeLastRuneInString(text)
	return text != "" && (is(first) || is(last))
}

// invisible reports whether a character is invisible and has no warning of its own.
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
