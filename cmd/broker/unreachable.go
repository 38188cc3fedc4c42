package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cezzis/tokenbroker/client"
)

// probeTimeout bounds each attempt to connect that finds the cause of a failure.
const probeTimeout = 3 * time.Second

// notGRPC is the beginning of gRPC's message about a response of a plain HTTP/2 server.
const notGRPC = "unexpected HTTP status code received from server"

// clientPreface is what a client of HTTP/2 sends first: a magic text and a frame with no
// settings (RFC 9113, section 3.4).
const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// unreachable says in a sentence why a call did not reach a broker and what to do. It
// returns "" if the call did reach one. gRPC's error is a chain of texts, so this connects
// once more, without credentials other than the client certificate, and looks at the
// errors themselves.
func (c *connection) unreachable(ctx context.Context, st *status.Status) string {
	if strings.HasPrefix(st.Message(), notGRPC) {
		return wrongPort(c.addr)
	}
	if st.Code() != codes.Unavailable && st.Code() != codes.DeadlineExceeded {
		return ""
	}
	for address := range strings.SplitSeq(c.addr, ",") {
		p := probe{c, strings.TrimSpace(address)}
		if sentence := p.run(ctx); sentence != "" {
			return sentence
		}
	}
	if st.Code() == codes.DeadlineExceeded {
		return fmt.Sprintf("the broker at %s did not respond within %s: try again, or wait longer with --timeout", c.addr, c.timeout)
	}
	return fmt.Sprintf("the broker at %s closed the connection: try again, and look at its log if this persists", c.addr)
}

func wrongPort(address string) string {
	return address + " serves HTTP and not gRPC: give the address of the broker's gRPC listener (listen.grpc, by default port 8443) with --addr"
}

// probe connects to one address of a broker.
type probe struct {
	*connection

	address string
}

// run returns "" if the connection works.
func (p *probe) run(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	network, address := dialTarget(p.address)
	if proxy := proxyOf(network, address); proxy != "" {
		return fmt.Sprintf("the broker at %s cannot be reached through the proxy %s of the environment: correct HTTPS_PROXY, or name the broker's host in NO_PROXY", address, proxy)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return p.dialFailed(err)
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if p.usesTLS() {
		return p.handshake(ctx, conn)
	}
	return p.plain(ctx, conn)
}

// dialTarget returns the network and the address of a gRPC target.
func dialTarget(target string) (network, address string) {
	for _, prefix := range []string{"unix://", "unix:"} {
		if path, ok := strings.CutPrefix(target, prefix); ok {
			return "unix", path
		}
	}
	for _, prefix := range []string{"dns:///", "passthrough:///"} {
		target = strings.TrimPrefix(target, prefix)
	}
	if _, _, err := net.SplitHostPort(target); err != nil {
		target = net.JoinHostPort(strings.Trim(target, "[]"), "443") // the default of gRPC
	}
	return "tcp", target
}

// proxyOf returns the host of the proxy that gRPC uses for an address, or "".
func proxyOf(network, address string) string {
	if network != "tcp" {
		return ""
	}
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	if err != nil || proxy == nil {
		return ""
	}
	return proxy.Host
}

func (p *probe) dialFailed(err error) string {
	_, address := dialTarget(p.address)
	dns, isDNS := errors.AsType[*net.DNSError](err)
	switch {
	case isDNS:
		return fmt.Sprintf("the host %q cannot be resolved (%s): correct --addr or TOKENBROKER_ADDR, or the DNS of this machine", dns.Name, dns.Err)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, os.ErrNotExist):
		return fmt.Sprintf("no broker listens at %s: start it, or give the address of a broker with --addr or TOKENBROKER_ADDR; \"broker dev\" runs one to try", address)
	case errors.Is(err, os.ErrPermission):
		return fmt.Sprintf("this user may not connect to %s: run the command as a user who may", address)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return fmt.Sprintf("nothing answers at %s: check the address (--addr), the network and the firewalls on the way", address)
	default:
		return fmt.Sprintf("%s cannot be reached (%s): check the address (--addr) and the network", address, rootCause(err))
	}
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// rootCause returns the innermost error's text.
func rootCause(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err.Error()
		}
		err = inner
	}
}

// plain finds out which protocol a server speaks that a client without TLS connected to.
func (p *probe) plain(ctx context.Context, conn net.Conn) string {
	begin, err := greet(conn)
	switch {
	case bytes.HasPrefix(begin, []byte("HTTP/")):
		return wrongPort(p.address)
	case err == nil && !isTLSRecord(begin):
		return ""
	}
	network, address := dialTarget(p.address)
	again, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return ""
	}
	defer func() { _ = again.Close() }()
	secure := tls.Client(again, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // finds out whether the server speaks TLS; nothing is sent
	if secure.HandshakeContext(ctx) != nil {
		return ""
	}
	return fmt.Sprintf("the broker at %s requires TLS: give the file with its CA by --ca, or --plaintext=false if the system trusts its CA", p.address)
}

// greet begins HTTP/2 and returns the beginning of the response.
func greet(conn io.ReadWriter) ([]byte, error) {
	if _, err := io.WriteString(conn, clientPreface); err != nil {
		return nil, err
	}
	begin := make([]byte, 9)
	n, err := io.ReadFull(conn, begin)
	return begin[:n], err
}

// isTLSRecord reports whether text begins as a TLS alert.
func isTLSRecord(text []byte) bool { return bytes.HasPrefix(text, []byte{21, 3}) }

// handshake finds out why TLS, or what follows it, fails.
func (p *probe) handshake(ctx context.Context, conn net.Conn) string {
	config, err := p.tlsConfig()
	if err != nil {
		return err.Error()
	}
	requested := false
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		requested = true
		if len(config.Certificates) == 0 {
			return new(tls.Certificate), nil
		}
		return &config.Certificates[0], nil
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" && requested {
			return p.certificateRefused()
		}
		return p.handshakeFailed(err)
	}
	if secure.ConnectionState().NegotiatedProtocol != "h2" {
		return wrongPort(p.address)
	}
	switch _, err := greet(secure); { // in TLS 1.3 the server checks the certificate after the handshake
	case err == nil || !requested || isTimeout(err):
		return ""
	default:
		return p.certificateRefused()
	}
}

func (p *probe) certificateRefused() string {
	if p.files.Cert == "" {
		return fmt.Sprintf("the broker at %s requires a client certificate: give the files by --cert and --key", p.address)
	}
	return fmt.Sprintf("the broker at %s refuses the client certificate %s: give one, by --cert and --key, that has not expired and that a CA in its listen.tls.client_ca has issued", p.address, p.files.Cert)
}

func (p *probe) handshakeFailed(err error) string {
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if bytes.HasPrefix(record.RecordHeader[:], []byte("HTTP/")) {
			return wrongPort(p.address)
		}
		return fmt.Sprintf("the broker at %s does not use TLS: add --plaintext if you trust the network to it, or configure listen.tls at the broker", p.address)
	}
	if name, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("the certificate of the broker at %s is for %s and not for %q: connect by a name in it, or give one by --server-name", p.address, namesIn(name.Certificate), name.Host)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		trusted := "that this system trusts: give the file with the broker's CA by --ca"
		if p.files.CA != "" {
			trusted = "in " + p.files.CA + ": give the file with the broker's CA by --ca"
		}
		return fmt.Sprintf("the certificate of the broker at %s is not issued by a CA %s", p.address, trusted)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return fmt.Sprintf("the certificate of the broker at %s is valid from %s to %s only: renew it, or correct the clock of this machine", p.address,
			invalid.Cert.NotBefore.UTC().Format(time.RFC3339), invalid.Cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if isTimeout(err) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("the server at %s does not complete a TLS handshake: check the address (--addr)", p.address)
	}
	return fmt.Sprintf("TLS with the broker at %s fails (%s): check --addr, --ca, --cert and --key", p.address, rootCause(err))
}

// namesIn lists the names in a certificate.
func namesIn(cert *x509.Certificate) string {
	names := append([]string{}, cert.DNSNames...)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return cmp.Or(strings.Join(names, ", "), "no name")
}

// tlsConfig returns the configuration for TLS with the files of the flags.
func (p *probe) tlsConfig() (*tls.Config, error) {
	_, address := dialTarget(p.address)
	host, _, _ := net.SplitHostPort(address) // dialTarget returns a port
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}, ServerName: cmp.Or(p.files.ServerName, host)}
	if p.files.CA != "" {
		text, err := os.ReadFile(p.files.CA)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		config.RootCAs.AppendCertsFromPEM(text)
	}
	if p.files.Cert != "" {
		pair, err := tls.LoadX509KeyPair(p.files.Cert, p.files.Key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// usesTLS reports whether the command connects with TLS, as client.FromEnv decides it.
func (c *connection) usesTLS() bool {
	plaintext, err := strconv.ParseBool(os.Getenv("TOKENBROKER_PLAINTEXT"))
	switch {
	case c.plaintextSet:
		return !c.plaintext
	case c.files != (client.TLSFiles{}):
		return true
	case err == nil:
		return !plaintext
	default:
		return !onThisHost(c.addr)
	}
}

// onThisHost reports whether all addresses of a target are on loopback or sockets.
func onThisHost(target string) bool {
	for address := range strings.SplitSeq(target, ",") {
		network, address := dialTarget(strings.TrimSpace(address))
		host, _, _ := net.SplitHostPort(address)
		if network != "unix" && host != "localhost" && !net.ParseIP(host).IsLoopback() {
			return false
		}
	}
	return true
}
