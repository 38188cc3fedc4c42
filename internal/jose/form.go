package jose

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Bounds of a token.
const (
	// MaxTokenSize is the maximum length of a token, in bytes.
	MaxTokenSize = 64 << 10
	// MaxHeaderSize is the maximum length of a decoded header, in bytes.
	MaxHeaderSize = 1 << 10
)

var (
	errEmpty     = errors.New("it is empty")
	errTooLong   = fmt.Errorf("it is longer than %d bytes", MaxTokenSize)
	errEmptyPart = errors.New("one of its three parts is empty")
	errBase64    = errors.New("it is not canonical base64url (RFC 7515 section 2): it has padding, line breaks, other characters or non-zero spare bits")
	errHeader    = fmt.Errorf("its header is longer than %d bytes", MaxHeaderSize)
)

// strict also refuses non-zero spare bits in the last character, so that each text has
// one encoding.
//
//nolint:gochecknoglobals // a constant that Go cannot express as such
var strict = base64.RawURLEncoding.Strict()

// Compact holds the parts of a JWS in compact form. Together they are a bearer token:
// do not store, log or forward them.
type Compact struct {
	// Header and Payload are decoded and not checked yet.
	Header, Payload []byte
	// SigningInput is the signed text: the first two parts in their encoded form.
	SigningInput []byte
	// Signature is decoded.
	Signature []byte
}

// Split parses a token in compact form: exactly three non-empty parts in canonical
// base64url (RFC 7515 sections 2 and 7.1), at most [MaxTokenSize] bytes. The error is a
// sentence about the token ("it ...") and quotes nothing of it.
func Split(token redact.String) (Compact, error) {
	text := token.Reveal()
	switch {
	case text == "":
		return Compact{}, errEmpty
	case len(text) > MaxTokenSize:
		return Compact{}, errTooLong
	}
	if parts := strings.Count(text, ".") + 1; parts != 3 {
		return Compact{}, wrongParts(parts)
	}
	// The decoder ignores line breaks. IndexByte is much faster than ContainsAny.
	if strings.IndexByte(text, '\r') >= 0 || strings.IndexByte(text, '\n') >= 0 {
		return Compact{}, errBase64
	}
	return decode(text)
}

func decode(text string) (Compact, error) {
	end := strings.LastIndexByte(text, '.')
	header, payload, _ := strings.Cut(text[:end], ".")
	signature := text[end+1:]
	switch {
	case header == "" || payload == "" || signature == "":
		return Compact{}, errEmptyPart
	case strict.DecodedLen(len(header)) > MaxHeaderSize:
		return Compact{}, errHeader
	}
	// The payload gets memory of its own, because a cache may keep it for long.
	buf := make([]byte, 0, end+strict.DecodedLen(len(header))+strict.DecodedLen(len(signature)))
	buf = append(buf, text[:end]...)
	c := Compact{SigningInput: buf}
	var errs [3]error
	c.Header, buf, errs[0] = appendDecoded(buf, header)
	c.Signature, _, errs[1] = appendDecoded(buf, signature)
	c.Payload, errs[2] = strict.DecodeString(payload)
	if errs != [3]error{} {
		return Compact{}, errBase64
	}
	return c, nil
}

func appendDecoded(buf []byte, part string) (decoded, longer []byte, err error) {
	longer, err = strict.AppendDecode(buf, []byte(part))
	return longer[len(buf):], longer, err
}

func wrongParts(parts int) error {
	switch parts {
	case 1:
		return errors.New("it has no dots: it may be an opaque token")
	case 5:
		return errors.New("it has 5 parts: encrypted tokens (JWE) are not accepted")
	default:
		return fmt.Errorf("it has %d parts separated by dots instead of 3", parts)
	}
}
