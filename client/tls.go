package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
)

// TLSFiles are files in PEM form. Fields may be empty.
type TLSFiles struct {
	// CA holds the authorities that may issue the broker's certificate. Empty: the
	// system's.
	CA string
	// Cert and Key are the caller's own certificate, with its chain, and its
	// private key. Set both or neither. Empty: no certificate is presented.
	Cert, Key string
	// ServerName is the name in the broker's certificate. Empty: the host of the
	// target.
	ServerName string
}

// reloadedTLS is TLS with files that are read for each handshake. Handshakes
// are rare, and replaced files then take effect without a file watcher.
type reloadedTLS struct {
	files TLSFiles
	// last is the last valid configuration, used while files are being replaced and
	// do not match.
	last *atomic.Pointer[tls.Config]
}

func newReloadedTLS(files TLSFiles) (credentials.TransportCredentials, error) {
	if (files.Cert == "") != (files.Key == "") {
		return nil, errors.New("a client certificate needs both cert and key: give both, or neither")
	}
	t := reloadedTLS{files, new(atomic.Pointer[tls.Config])}
	if _, err := t.read(); err != nil {
		return nil, err
	}
	return t, nil
}

func (t reloadedTLS) read() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.files.ServerName}
	if t.files.CA != "" {
		text, err := os.ReadFile(t.files.CA)
		if err != nil {
			return nil, fmt.Errorf("the authorities to trust: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("the authorities to trust: %s contains no certificate in PEM form", t.files.CA)
		}
	}
	if t.files.Cert != "" {
		cert, err := tls.LoadX509KeyPair(t.files.Cert, t.files.Key)
		if err != nil {
			return nil, fmt.Errorf("the client certificate %s with the key %s: %w", t.files.Cert, t.files.Key, err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	t.last.Store(config)
	return config, nil
}

func (t reloadedTLS) current() credentials.TransportCredentials {
	config, err := t.read()
	if err != nil {
		config = t.last.Load()
	}
	return credentials.NewTLS(config)
}

// ClientHandshake implements credentials.TransportCredentials.
func (t reloadedTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return t.current().ClientHandshake(ctx, authority, conn)
}

// ServerHandshake implements credentials.TransportCredentials.
func (t reloadedTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are credentials of a client")
}

// Info implements credentials.TransportCredentials.
func (t reloadedTLS) Info() credentials.ProtocolInfo {
	return credentials.NewTLS(t.last.Load()).Info()
}

// Clone implements credentials.TransportCredentials.
func (t reloadedTLS) Clone() credentials.TransportCredentials { return t }

// OverrideServerName implements credentials.TransportCredentials.
func (t reloadedTLS) OverrideServerName(string) error {
	return errors.New("name the server in TLSFiles")
}
