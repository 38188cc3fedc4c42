package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Bounds of outgoing HTTP.
const (
	// Timeout is how long a [Get] takes at most, its body included, and how
	// long one search for an issuer's metadata takes.
	Timeout = 5 * time.Second

	maxURL = 2048
)

// CheckURL says what is wrong with a URL that the broker is to send requests
// to: it must be absolute and https, at most 2,048 bytes long, without user name,
// password or fragment. Plain http is for loopback hosts (localhost, or an
// address), and for others if allowHTTP is set. The error does not repeat the
// URL, which may hold what must not be shown.
func CheckURL(raw string, allowHTTP bool) error {
	if len(raw) > maxURL {
		return fmt.Errorf("the URL is longer than %d bytes", maxURL)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return errors.New("the URL cannot be parsed; write it as https://host/path")
	case u.Scheme != "https" && u.Scheme != "http", u.Hostname() == "":
		return errors.New("the URL must be absolute; write it as https://host/path")
	case u.User != nil:
		return errors.New("the URL must not hold a user name or password")
	case strings.Contains(raw, "#"):
		return errors.New("the URL must not have a fragment (#)")
	case u.Scheme == "http" && !allowHTTP && !loopback(u.Hostname()):
		return errors.New("the URL must be https; plain http is for loopback hosts only, unless it is allowed explicitly")
	default:
		return nil
	}
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

// Printable returns a URL as messages may show it: without user name,
// password, query and fragment.
func Printable(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "[a URL that cannot be parsed]"
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	return u.String()
}

// Get reads a JSON document of at most limit bytes within [Timeout]. Only an
// answer of 200 has one. The error is always an [*Error].
func Get(ctx context.Context, client *http.Client, from string, limit int64) ([]byte, http.Header, error) {
	return GetWithToken(ctx, client, from, redact.String{}, limit)
}

// GetWithToken is Get with a bearer token (RFC 6750), for servers that publish
// documents to known clients only. An empty token is not sent. The token goes to the
// host of the URL alone, because the clients of a [Network] follow no redirect.
func GetWithToken(ctx context.Context, client *http.Client, from string, token redact.String, limit int64) ([]byte, http.Header, error) {
	body, header, fault := get(ctx, client, from, token, limit)
	if fault != nil {
		return nil, nil, fault
	}
	return body, header, nil
}

func get(ctx context.Context, client *http.Client, from string, token redact.String, limit int64) ([]byte, http.Header, *Error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, nil, &Error{text: Printable(from) + " is not a URL that can be requested"}
	}
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	request.Header.Set("Accept-Encoding", "identity")
	request.Header.Set("User-Agent", UserAgent)
	if !token.IsZero() {
		request.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, unreachable(from, err)
	}
	defer func() { _ = response.Body.Close() }()
	// Read whatever the status is, so that the connection can be used again.
	body, err := ReadBody(response, limit)
	switch {
	case response.StatusCode != http.StatusOK:
		return nil, nil, refused(from, response.StatusCode)
	case errors.Is(err, ErrCoding), errors.Is(err, ErrCompressed):
		return nil, nil, &Error{Status: http.StatusOK, text: fmt.Sprintf("%s answers with %v", Printable(from), err)}
	case err != nil:
		return nil, nil, unreachable(from, err)
	case int64(len(body)) > limit:
		return nil, nil, &Error{Status: http.StatusOK, text: fmt.Sprintf("%s answers with more than %d bytes", Printable(from), limit)}
	}
	return body, response.Header, nil
}

// UserAgent is how the broker names itself to IdPs.
const UserAgent = "tokenbroker"

// Error says in a sentence why a document could not be had. It shows nothing
// that a peer wrote.
type Error struct {
	// Unreachable: there was no answer, or one that says to come again (408,
	// 429, 5xx). Trying again may help. Otherwise what was found is wrong, and
	// stays so until somebody changes it.
	Unreachable bool
	// Status of the HTTP answer; zero: there was none.
	Status int

	text  string
	cause error
}

func (e *Error) Error() string { return e.text }

// Unwrap returns the cause, reduced by [Cause]; may be nil.
func (e *Error) Unwrap() error { return e.cause }

func unreachable(from string, err error) *Error {
	cause := Cause(err)
	if _, refused := errors.AsType[*AddressError](cause); refused {
		return &Error{text: fmt.Sprintf("%s is not connected to: %v", Printable(from), cause), cause: cause}
	}
	if proxy, ok := errors.AsType[*ProxyError](cause); ok && proxy.Lasting() {
		return &Error{text: fmt.Sprintf("%s is not reached: %v", Printable(from), cause), cause: cause}
	}
	return &Error{Unreachable: true, text: fmt.Sprintf("%s gave no answer: %v", Printable(from), cause), cause: cause}
}

func refused(from string, status int) *Error {
	comeAgain := status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
	return &Error{Unreachable: comeAgain, Status: status, text: fmt.Sprintf("%s answered HTTP %d", Printable(from), status)}
}

var (
	errCertificate = errors.New("its certificate does not verify: check the host name, the certificate's dates and the trusted authorities")
	errBroken      = errors.New("the connection failed, or what came was not HTTP")
)

// Cause reduces an error of [http.Client.Do], or of reading an answer's body, to
// what may be printed. Such errors quote the URL with its query, and malformed
// answers, in which a peer may echo the secret that it was sent. What is left
// tells a timeout, a cancelled context, a name that does not resolve, a refused
// connection and a failed handshake apart.
func Cause(err error) error {
	var (
		dns         *net.DNSError
		op          *net.OpError
		certificate *tls.CertificateVerificationError
		timeout     interface{ Timeout() bool }
		errno       syscall.Errno
		proxy       *ProxyError
		unknown     x509.UnknownAuthorityError
	)
	switch {
	case errors.As(err, &proxy):
		return proxy
	case errors.Is(err, context.Canceled):
		return context.Canceled
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &op) && (op.Op == "dial" || op.Op == "remote error"):
		return op
	case errors.As(err, &certificate) && errors.As(err, &unknown):
		return unknownAuthority(certificate.UnverifiedCertificates)
	case errors.As(err, &certificate):
		return errCertificate
	case errors.Is(err, http.ErrSchemeMismatch):
		return http.ErrSchemeMismatch
	case errors.As(err, &timeout) && timeout.Timeout():
		return context.DeadlineExceeded
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return io.ErrUnexpectedEOF
	default:
		return errBroken
	}
}
