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
	// MaxTokenSize is how long a token may be in any case, in bytes.
	MaxTokenSize = 64 << 10
	// MaxHeaderSize is how long its header may be once decoded, in bytes.
	MaxHeaderSize = 1 << 10
)

var (
	errEmpty     = errors.New("it is empty")
	errTooLong   = fmt.Errorf("it is longer than %d bytes", MaxTokenSize)
	errEmptyPart = errors.New("one of its three parts is empty")
	errBase64    = errors.New("it is not base64url as RFC 7515 section 2 writes it: without padding, line breaks, other characters and spare bits")
	errHeader    = fmt.Errorf("its header is longer than %d bytes", MaxHeaderSize)
)

// strict also refuses bits that the last character has to spare.
//
//nolint:gochecknoglobals // a constant that Go cannot express as such
var strict = base64.RawURLEncoding.Strict()

// Compact is a JWS taken apart. It holds what a bearer token is made of: it is
// not to be kept, logged or passed on.
type Compact struct {
	// Header and Payload are decoded; what they say is not checked yet.
	Header, Payload []byte
	// SigningInput is what was signed: the first two parts as they came.
	SigningInput []byte
	// Signature is decoded.
	Signature []byte
}

// Split takes a token apart that is in compact form: exactly three parts, none
// of them empty, each in canonical base64url (RFC 7515 sections 2 and 7.1).
// Nothing of it is read before its length was found good.
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
	// The decoder skips line breaks wherever they are, and refuses all else
	// that is not in the alphabet.
	if strings.ContainsAny(text, "\r\n") {
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
	// The payload may be kept for long, and has memory of its own.
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
		return errors.New("it has no parts divided by dots: an opaque token, perhaps")
	case 5:
		return errors.New("it has 5 parts: encrypted tokens (JWE) are not accepted")
	default:
		return fmt.Errorf("it has %d parts divided by dots, and not 3", parts)
	}
}
