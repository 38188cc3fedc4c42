package audit

import (
	"encoding/hex"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/cezzis/tokenbroker/internal/escape"
)

// formVersion is the version of the format. It changes when a field is removed or changes
// its meaning; new fields do not change it.
const formVersion = 1

// appendHead appends the members that all lines of a replica share.
func appendHead(dst []byte, replica string) []byte {
	dst = append(dst, `{"v":`...)
	dst = strconv.AppendInt(dst, formVersion, 10)
	dst = append(dst, `,"replica":`...)
	return appendString(dst, replica)
}

// appendEvent appends the rest of a line. It allocates nothing if dst has enough capacity.
func appendEvent(dst []byte, e *Event, now time.Time) []byte {
	at := e.Time
	if at.IsZero() {
		at = now
	}
	dst = appendTime(dst, "time", at)
	dst = appendString(appendName(dst, "event"), string(e.Event))
	dst = appendText(dst, "outcome", string(e.Outcome))
	dst = appendText(dst, "caller", e.Caller)
	dst = appendText(dst, "peer", e.Peer)
	dst = appendText(dst, "action", e.Action)
	dst = appendText(dst, "request_id", e.RequestID)
	dst = appendText(dst, "reason", e.Reason)
	dst = appendText(dst, "rejection", e.Rejection)
	dst = appendText(dst, "detail", e.Detail)
	dst = appendText(dst, "comment", e.Comment)
	dst = appendText(dst, "client", e.Client)
	dst = appendTexts(dst, "audiences", e.Audiences)
	dst = appendTexts(dst, "resources", e.Resources)
	dst = appendTexts(dst, "scopes", e.Scopes)
	dst = appendTexts(dst, "granted_scopes", e.GrantedScopes)
	dst = appendDigest(dst, "token_sha256", &e.TokenSHA256)
	dst = appendTime(dst, "expires_at", e.ExpiresAt)
	dst = appendTime(dst, "issued_before", e.IssuedBefore)
	dst = appendText(dst, "origin", e.Origin)
	if e.Degraded {
		dst = append(appendName(dst, "degraded"), "true"...)
	}
	dst = appendText(dst, "issuer", e.Issuer)
	dst = appendText(dst, "subject", e.Subject)
	dst = appendText(dst, "subject_type", e.SubjectType)
	dst = appendTexts(dst, "actors", e.Actors)
	dst = appendText(dst, "client_id", e.ClientID)
	dst = appendText(dst, "token_id", e.TokenID)
	dst = appendText(dst, "revocation", e.Revocation)
	dst = appendText(dst, "secret_version", e.SecretVersion)
	dst = appendText(dst, "step", e.Step)
	dst = appendText(dst, "version", e.Version)
	dst = appendDigest(dst, "config_sha256", &e.ConfigSHA256)
	if e.Count > 0 {
		dst = strconv.AppendUint(appendName(dst, "count"), e.Count, 10)
	}
	dst = appendTime(dst, "since", e.Since)
	return append(dst, '}', '\n')
}

func appendName(dst []byte, name string) []byte {
	dst = append(dst, ',', '"')
	dst = append(dst, name...)
	return append(dst, '"', ':')
}

func appendText(dst []byte, name, text string) []byte {
	if text == "" {
		return dst
	}
	return appendString(appendName(dst, name), text)
}

func appendTexts(dst []byte, name string, texts []string) []byte {
	if len(texts) == 0 {
		return dst
	}
	dst = append(appendName(dst, name), '[')
	for i, text := range texts {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, text)
	}
	return append(dst, ']')
}

func appendTime(dst []byte, name string, t time.Time) []byte {
	if t.IsZero() {
		return dst
	}
	return appendInstant(appendName(dst, name), t.UTC())
}

// appendInstant replaces Time.AppendFormat, which takes most of the time of a line. The
// format has a fixed width, so that lines sort as texts.
func appendInstant(dst []byte, t time.Time) []byte {
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	dst = appendDigits(append(dst, '"'), year, 4)
	dst = appendDigits(append(dst, '-'), int(month), 2)
	dst = appendDigits(append(dst, '-'), day, 2)
	dst = appendDigits(append(dst, 'T'), hour, 2)
	dst = appendDigits(append(dst, ':'), minute, 2)
	dst = appendDigits(append(dst, ':'), second, 2)
	dst = appendDigits(append(dst, '.'), t.Nanosecond()/1000, 6)
	return append(dst, 'Z', '"')
}

// appendDigits appends the last digits of a number.
func appendDigits(dst []byte, n, width int) []byte {
	dst = append(dst, "000000"[:width]...)
	for at := len(dst) - 1; width > 0; at, width = at-1, width-1 {
		dst[at] = byte('0' + n%10)
		n /= 10
	}
	return dst
}

func appendDigest(dst []byte, name string, digest *[32]byte) []byte {
	if *digest == [32]byte{} {
		return dst
	}
	dst = append(appendName(dst, name), '"')
	return append(hex.AppendEncode(dst, digest[:]), '"')
}

// appendString appends a JSON string (RFC 8259 section 7) and escapes invisible characters.
// Each byte that is not UTF-8 becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	begin := 0 // start of the part that is copied unchanged
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c < 0x7f {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			if broken := r == utf8.RuneError && size == 1; !broken && !escape.Hidden(r) {
				i += size
				continue
			}
			dst = escape.Append(append(dst, s[begin:i]...), r)
			i += size
			begin = i
			continue
		}
		dst = append(dst, s[begin:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = escape.Append(dst, rune(c))
		}
		i++
		begin = i
	}
	return append(append(dst, s[begin:]...), '"')
}
