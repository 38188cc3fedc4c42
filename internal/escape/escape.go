// Package escape escapes characters that could mislead a reader of the audit log, the
// log or the terminal. Some of the texts there, such as the subject of a token, are
// chosen by others.
package escape

import (
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Hidden reports whether a character is invisible, moves the cursor, ends a line or
// reorders the text after it: control characters, format characters such as the
// bidirectional controls, line and paragraph separators, variation selectors and
// default ignorable characters.
func Hidden(r rune) bool {
	if r < utf8.RuneSelf {
		return r < ' ' || r == 0x7f
	}
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// Append appends a character as \uXXXX, as in JSON. A character beyond the basic plane
// becomes a surrogate pair (RFC 8259 section 7).
func Append(dst []byte, r rune) []byte {
	const digits = "0123456789abcdef"
	if r > 0xffff {
		r -= 0x10000
		return Append(Append(dst, 0xd800+r>>10), 0xdc00+r&0x3ff)
	}
	return append(dst, '\\', 'u', digits[r>>12&15], digits[r>>8&15], digits[r>>4&15], digits[r&15])
}

// Text escapes the hidden characters of a text, including line ends and tabs.
func Text(text string) string {
	if !strings.ContainsFunc(text, Hidden) && utf8.ValidString(text) {
		return text
	}
	return string(escaped(nil, []byte(text), Hidden))
}

// Writer escapes hidden characters except line ends and tabs, which the program itself
// writes. Valid JSON remains valid with the same meaning. A call of Write must not end
// within a character.
type Writer struct{ to io.Writer }

// NewWriter returns a Writer that writes to another one.
func NewWriter(to io.Writer) *Writer { return &Writer{to} }

// Unwrap returns the underlying writer.
func (w *Writer) Unwrap() io.Writer { return w.to }

// Write writes text.
func (w *Writer) Write(text []byte) (int, error) {
	if _, err := w.to.Write(escaped(make([]byte, 0, len(text)), text, hiddenInLines)); err != nil {
		return 0, err
	}
	return len(text), nil
}

func hiddenInLines(r rune) bool { return r != '\n' && r != '\t' && Hidden(r) }

// escaped appends text to dst. Bytes that are not UTF-8 become \xXX.
func escaped(dst, text []byte, hidden func(rune) bool) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r == utf8.RuneError && size == 1:
			dst = append(dst, `\x`...)
			if text[0] < 0x10 {
				dst = append(dst, '0')
			}
			dst = strconv.AppendUint(dst, uint64(text[0]), 16)
		case hidden(r):
			dst = Append(dst, r)
		default:
			dst = append(dst, text[:size]...)
		}
		text = text[size:]
	}
	return dst
}
