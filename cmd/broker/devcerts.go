package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"github.com/cezzis/tokenbroker/internal/devca"
)

// demoID is the SPIFFE ID in the certificate of the sample caller.
const demoID = "spiffe://example.com/demo"

// writeCertificates writes to dir the certificates of an authority, of a broker with these
// names and of a caller. It does not replace existing files. The authority's key is
// discarded: it issues no further certificates.
func writeCertificates(out io.Writer, dir string, hosts []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range []string{"ca.crt", "broker.crt", "broker.key", "demo.crt", "demo.key"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s already exists: choose another directory, or remove it", filepath.Join(dir, name))
		}
	}
	authority, err := devca.New("tokenbroker development")
	if err != nil {
		return err
	}
	id, err := url.Parse(demoID)
	if err != nil {
		return err
	}
	broker := &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			broker.IPAddresses = append(broker.IPAddresses, ip)
		} else {
			broker.DNSNames = append(broker.DNSNames, host)
		}
	}
	_, err = authority.Write(dir, "ca")
	for name, template := range map[string]*x509.Certificate{"broker": broker, "demo": {URIs: []*url.URL{id}}} {
		pair, errIssue := authority.Issue(template)
		if errIssue != nil {
			return errIssue
		}
		_, _, errWrite := pair.Write(dir, name)
		err = errors.Join(err, errWrite)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, `%[1]s/ca.crt                   the authority, for broker and callers
%[1]s/broker.crt, broker.key   a broker at %[2]s
%[1]s/demo.crt, demo.key       a caller, spiffe_id: %[3]s
`, dir, namesIn(broker), demoID)
	return err
}
