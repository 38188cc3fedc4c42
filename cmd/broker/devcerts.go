package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"

	"github.com/cezzis/tokenbroker/internal/devca"
)

// callerName is a name that can be that of a file and part of a SPIFFE ID.
var callerName = regexp.MustCompile(`^[A-Za-z0-9-]+$`)

// writeCertificates writes to dir the certificates of an authority, of a broker with these
// hosts and of these callers. It does not replace existing files. The authority's key is
// discarded: it issues no further certificates.
func writeCertificates(out io.Writer, dir string, hosts, callers []string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	files := []string{"ca.crt", "broker.crt", "broker.key"}
	for _, name := range callers {
		if name == "ca" || name == "broker" || !callerName.MatchString(name) {
			return fmt.Errorf("--caller %q: use a name of letters, digits and hyphens other than ca and broker", name)
		}
		files = append(files, name+".crt", name+".key")
	}
	for _, name := range files {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s already exists: choose another directory, or remove it", filepath.Join(dir, name))
		}
	}
	authority, err := devca.New("tokenbroker development")
	if err != nil {
		return err
	}
	if _, err := authority.Write(dir, "ca"); err != nil {
		return err
	}
	broker := brokerTemplate(hosts)
	if err := writeCertificate(authority, dir, "broker", broker); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, `%[1]s/ca.crt                   the authority, for broker and callers
%[1]s/broker.crt, broker.key   a broker at %[2]s
`, dir, namesIn(broker))
	for _, name := range callers {
		id := &url.URL{Scheme: "spiffe", Host: "example.com", Path: "/" + name}
		if err := writeCertificate(authority, dir, name, &x509.Certificate{URIs: []*url.URL{id}}); err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s/%-24s a caller, spiffe_id: %s\n", dir, name+".crt, "+name+".key", id)
	}
	return err
}

// brokerTemplate is for a broker on this machine that is also reached at hosts.
func brokerTemplate(hosts []string) *x509.Certificate {
	template := &x509.Certificate{DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return template
}

func writeCertificate(authority *devca.Authority, dir, name string, template *x509.Certificate) error {
	pair, err := authority.Issue(template)
	if err != nil {
		return err
	}
	_, _, err = pair.Write(dir, name)
	return err
}
