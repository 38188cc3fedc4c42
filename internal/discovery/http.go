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
	// Timeout bounds one [GetWithToken], including its body, and one search for an issuer's
	// metadata.
	Timeout = 5 * time.Second

	maxURL = 2048 // bytes
)

// CheckURL checks a URL for the broker's requests: it must be absolute and https, at
// most 2,048 bytes long, without user name, password and fragment. Plain http is
// accepted for loopback hosts (localhost or an address), and for all hosts if allowHTTP
// is set. The error does not quote the URL, which may contain a secret.
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
		return errors.New("the URL must not contain a user name or password")
	case strings.Contains(raw, "#"):
		return errors.New("the URL must not have a fragment (#)")
	case u.Scheme == "http" && !allowHTTP && !loopback(u.Hostname()):
		return errors.New("the URL must be https; plain http is allowed for loopback hosts only, unless the configuration allows it")
	default:
		return nil
	}
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return strings.EqualFold(host, "localhost") || err == nil && addr.Unmap().IsLoopback()
}

// Printable returns a URL without user name, password, query and fragment, so that it is
// safe in messages.
func Printable(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "[a URL that cannot be parsed]"
	}
	u.User, u.RawQuery, u.ForceQuery, u.Fragment, u.RawFragment = nil, "", false, "", ""
	return u.String()
}

// GetWithToken fetches a JSON document of at most limit bytes within [Timeout]. Any status
// except 200 is an error. The error is always an [*Error]. The bearer token (RFC 6750) is
// for servers that publish documents to known clients only. An empty token is not sent.
// Only the host of the URL gets the token, because the clients of a [Network] follow no
// redirects.
func GetWithToken(ctx context.Context, client *http.Client, url string, token redact.String, limit int64) ([]byte, http.Header, error) {
	body, header, err := get(ctx, client, url, token, limit)
	if err != nil { // a nil *Error must not become a non-nil error
		return nil, nil, err
	}
	return body, header, nil
}

func get(ctx context.Context, client *http.Client, url string, token redact.String, limit int64) ([]byte, http.Header, *Error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, nil, &Error{text: Printable(url) + " is not a valid URL for a request"}
	}
	request.Header.Set("Accept", "application/json, application/jwk-set+json")
	request.Header.Set("Accept-Encoding", "identity")
	request.Header.Set("User-Agent", UserAgent)
	if !token.IsZero() {
		request.Header.Set("Authorization", "Bearer "+token.Reveal())
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, nil, connectionError(url, err)
	}
	defer func() { _ = response.Body.Close() }()
	// The body is read for every status, so that the connection can be reused.
	body, err := ReadBody(response, limit)
	switch {
	case response.StatusCode != http.StatusOK:
		return nil, nil, statusError(url, response.StatusCode)
	case errors.Is(err, ErrCoding), errors.Is(err, ErrCompressed):
		return nil, nil, &Error{Status: http.StatusOK, text: fmt.Sprintf("%s answers with %v", Printable(url), err)}
	case err != nil:
		return nil, nil, connectionError(url, err)
	case int64(len(body)) > limit:
		return nil, nil, &Error{Status: http.StatusOK, text: fmt.Sprintf("%s answers with more than %d bytes", Printable(url), limit)}
	}
	return body, response.Header, nil
}

// UserAgent is the User-Agent of the broker's requests to IdPs.
const UserAgent = "tokenbroker"

// Error states in a sentence why a document could not be fetched or used. It quotes
// nothing from a peer.
type Error struct {
	// Unreachable is true if there was no response, or one with a temporary status (408,
	// 429, 5xx): a later attempt may succeed. Otherwise the failure lasts until the
	// issuer or the configuration changes.
	Unreachable bool
	// Status is the status of the HTTP response; zero if there was none.
	Status int

	text  string
	cause error
}

func (e *Error) Error() string { return e.text }

// Unwrap returns the cause, reduced by [Cause]; may be nil.
func (e *Error) Unwrap() error { return e.cause }

func connectionError(url string, err error) *Error {
	cause := Cause(err)
	if _, ok := errors.AsType[*AddressError](cause); ok {
		return &Error{text: fmt.Sprintf("the broker does not connect to %s: %v", Printable(url), cause), cause: cause}
	}
	if proxy, ok := errors.AsType[*ProxyError](cause); ok && proxy.Permanent() {
		return &Error{text: fmt.Sprintf("%s cannot be reached: %v", Printable(url), cause), cause: cause}
	}
	return &Error{Unreachable: true, text: fmt.Sprintf("%s did not answer: %v", Printable(url), cause), cause: cause}
}

func statusError(url string, status int) *Error {
	temporary := status == http.StatusRequestTimeout || status == http.StatusTooManyRequests || status >= 500
	return &Error{Unreachable: temporary, Status: status, text: fmt.Sprintf("%s answered HTTP %d", Printable(url), status)}
}

var (
	errCertificate = errors.New("its certificate does not verify: check the host name, the certificate's dates and the trusted authorities")
	errBroken      = errors.New("the connection failed, or the response was not HTTP")
)

// Cause reduces an error of [http.Client.Do], or of reading a response's body, to an
// error that is safe to print. The original may quote the URL with its query and a
// malformed response, in which a peer may echo a secret from the request. The result
// still distinguishes a timeout, a canceled context, a name that does not resolve, a
// refused connection and a failed handshake.
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

// Problem is CheckURL with the way out for a configuration.
func Problem(raw string, allowHTTP bool) error {
	err := CheckURL(raw, allowHTTP)
	if err != nil && CheckURL(raw, true) == nil {
		return errors.New("http:// beyond loopback is not encrypted: use https://, or accept it with allow_http: true")
	}
	return err
}
