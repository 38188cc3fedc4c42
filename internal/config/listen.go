package config

import (
	"io/fs"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cezzis/tokenbroker/internal/address"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/yamlconf"
)

// Listen defines the listeners.
type Listen struct {
	// The address of the gRPC API.
	GRPC Listener `yaml:"grpc" jsonschema:"default=127.0.0.1:8443"`
	// The address of the HTTP API: /verify for gateways and the OAuth endpoints. "off": no
	// listener.
	HTTP HTTPListener `yaml:"http" jsonschema:"default=off"`
	// A Unix socket that also serves the gRPC API, to processes on this host. Linux only.
	Unix *Unix `yaml:"unix"`
	// A Unix socket that also serves the HTTP API. Linux only.
	HTTPUnix *HTTPUnix `yaml:"http_unix"`
	// The listener for the public keys of clients with key, which IdPs read. Absent: another server
	// publishes them.
	PublicKeys *PublicKeys `yaml:"public_keys"`
	// The address of Prometheus metrics, /livez, /readyz and the status page over HTTP. "off": no
	// listener.
	Ops Listener `yaml:"ops" jsonschema:"default=127.0.0.1:9090"`
	// Encrypts grpc and http, and identifies callers by their certificates, with cert and key or
	// with spiffe. The files are read again when they change. Absent: nothing is encrypted.
	TLS *TLS `yaml:"tls"`
}

// Listener is one listener. In the file it is an address alone, or a
// mapping. The zero value is no listener.
type Listener struct {
	// HOST:PORT. An empty HOST is every interface; port 0 is any free port.
	Address string `yaml:"address" jsonschema:"required,minLength=1"`
	// Permit an address beyond loopback without encryption. For http it also turns
	// encryption off if tls is given.
	Plaintext bool `yaml:"plaintext" jsonschema:"default=false"`
	// For a loopback address of grpc or http: the caller, among callers, that is assumed for
	// connections without other credentials.
	Caller string `yaml:"caller" jsonschema:"minLength=1,maxLength=128"`
	// For grpc or http: the issuer, among issuers, that verifies opaque tokens presented there
	// without the name of an issuer. Required if several issuers have introspection.
	OpaqueIssuer string `yaml:"opaque_issuer" jsonschema:"minLength=1,maxLength=512"`
}

// HTTPListener is the listener of the HTTP API.
type HTTPListener struct {
	Listener

	// The URL, without a path, at which OAuth clients reach the HTTP API. If given, metadata (RFC
	// 8414) is served with this URL as the issuer. Absent: no metadata is served.
	URL string `yaml:"url" jsonschema:"minLength=1,maxLength=512"`
}

// Unix is a Unix socket. A caller is identified by the user of its process.
type Unix struct {
	// The path of the socket. The broker does not start if another file, or a socket in use,
	// exists there.
	Path string `yaml:"path" jsonschema:"required,minLength=1,maxLength=100"`
	// The mode of the socket, as for chmod. It controls which users may connect; uid identifies
	// them.
	Mode string `yaml:"mode" jsonschema:"default=0660,minLength=1,maxLength=4"`
	// The caller, among callers, that is assumed for connections without another identification.
	Caller string `yaml:"caller" jsonschema:"minLength=1,maxLength=128"`
	// The issuer, among issuers, that verifies opaque tokens presented there without the name of an
	// issuer. Required if several issuers have introspection.
	OpaqueIssuer string `yaml:"opaque_issuer" jsonschema:"minLength=1,maxLength=512"`
}

// HTTPUnix is the Unix socket of the HTTP API.
type HTTPUnix struct {
	Unix

	// The same as url in http, for OAuth clients that reach the HTTP API through a proxy that
	// connects to this socket. Give it here or in http.
	URL string `yaml:"url" jsonschema:"minLength=1,maxLength=512"`
}

// TLS defines the certificate and the trusted authorities of the listeners: from files,
// or from a SPIFFE Workload API.
type TLS struct {
	// The file with the certificate, followed by the intermediate certificates, in PEM.
	Cert string `yaml:"cert" jsonschema:"minLength=1,oneof_required=files"`
	// The file with the certificate's private key.
	Key string `yaml:"key" jsonschema:"minLength=1,oneof_required=files"`
	// The file with the authorities that issue the certificates of callers. Absent: no certificates
	// are requested from callers.
	ClientCA string `yaml:"client_ca" jsonschema:"minLength=1"`
	// The SPIFFE Workload API that provides the certificate and the authorities, in place of files.
	SPIFFE *SPIFFE `yaml:"spiffe" jsonschema:"oneof_required=spiffe"`
	// The minimum version of TLS.
	MinVersion string `yaml:"min_version" jsonschema:"default=1.3,enum=1.2,enum=1.3"`
}

// SPIFFE names a SPIFFE Workload API.
type SPIFFE struct {
	// The agent's socket: unix:// and its absolute path.
	Socket string `yaml:"socket" jsonschema:"required,minLength=1,maxLength=120"`
	// The trust domains of workloads that may be callers, such as example.org. Absent: the trust
	// domain of the broker's own certificate.
	TrustDomains []string `yaml:"trust_domains" jsonschema:"minItems=1,maxItems=64,uniqueItems=true,minLength=1,maxLength=255"`
}

// verifiesCallers reports whether the listener requests certificates from callers.
func (c *TLS) verifiesCallers() bool { return c.ClientCA != "" || c.SPIFFE != nil }

// FileMode is the mode of the socket.
func (c *Unix) FileMode() (mode fs.FileMode, ok bool) {
	bits, err := strconv.ParseUint(c.Mode, 8, 32)
	return fs.FileMode(bits), err == nil && bits <= 0o777
}

// ServesStatusPage reports whether the ops listener serves the status page.
func (c *Config) ServesStatusPage() bool {
	return c.Server.StatusPage == "always" || c.Server.StatusPage == "loopback" && address.OnLoopback(c.Listen.Ops.Address)
}

// Encrypted reports whether the gRPC listener speaks TLS.
func (c *Listen) Encrypted() bool { return c.TLS != nil && !c.GRPC.Plaintext }

// EncryptedHTTP reports whether the HTTP listener speaks TLS.
func (c *Listen) EncryptedHTTP() bool { return c.Encrypted() && !c.HTTP.Plaintext }

// UnixHTTP is the Unix socket of the HTTP API; nil if there is none.
func (c *Listen) UnixHTTP() *Unix {
	if c.HTTPUnix == nil {
		return nil
	}
	return &c.HTTPUnix.Unix
}

// HTTPURL is the URL under which OAuth clients reach the HTTP API; empty if none is given.
func (c *Listen) HTTPURL() string {
	if c.HTTP.URL == "" && c.HTTPUnix != nil {
		return c.HTTPUnix.URL
	}
	return c.HTTP.URL
}

// ServesHTTP reports whether anything is served over HTTP to gateways and OAuth clients.
func (c *Listen) ServesHTTP() bool { return c.HTTP.Address != "" || c.HTTPUnix != nil }

func checkListen(c *Config, findings *yamlconf.Findings) {
	const grpc, ops, http = "listen.grpc", "listen.ops", "listen.http"
	if c.Listen.GRPC.Address == "" {
		findings.Addf(grpc, "the gRPC listener cannot be off: give an address such as 127.0.0.1:8443")
	}
	checkListener(c.Listen.GRPC, grpc, findings.Given("listen.tls"), findings)
	checkListener(c.Listen.Ops, ops, false, findings)
	checkListener(c.Listen.HTTP.Listener, http, findings.Given("listen.tls"), findings)
	checkApart(grpc, c.Listen.GRPC, ops, c.Listen.Ops, findings)
	checkApart(grpc, c.Listen.GRPC, http, c.Listen.HTTP.Listener, findings)
	checkApart(ops, c.Listen.Ops, http, c.Listen.HTTP.Listener, findings)
	if c.Server.Pprof && !address.OnLoopback(c.Listen.Ops.Address) {
		findings.Addf("server.pprof", "profiles are served on loopback only: give listen.ops a loopback address, or remove pprof")
	}
	if findings.Given("listen.tls") && c.Listen.GRPC.Plaintext {
		findings.Addf("listen.tls", "listen.grpc has plaintext, so TLS is not used: remove one of the two")
	}
	checkTLS(c.Listen.TLS, findings)
	checkUnix(c.Listen.Unix, "listen.unix", findings)
	checkUnix(c.Listen.UnixHTTP(), "listen.http_unix", findings)
	if a, b := c.Listen.Unix, c.Listen.HTTPUnix; a != nil && b != nil && a.Path == b.Path {
		findings.Addf("listen.http_unix.path", "the same path as listen.unix: give each socket one of its own")
	}
	checkHTTPURL(&c.Listen, findings)
	checkPublicKeys(c, findings)
	checkProofs(c, findings)
	checkOpaqueIssuers(c, findings)
}

// checkHTTPURL checks the URL of the HTTP API, which has one URL for all its listeners.
func checkHTTPURL(c *Listen, findings *yamlconf.Findings) {
	const tcp, socket = "listen.http.url", "listen.http_unix.url"
	if findings.Given(tcp) && findings.Given(socket) {
		findings.Addf(socket, "contradicts listen.http.url in line %d: the HTTP API has one URL, give it once", findings.Line(tcp))
		return
	}
	at := tcp
	if findings.Given(socket) {
		at = socket
	}
	if httpURL := c.HTTPURL(); httpURL != "" && !isOrigin(httpURL) {
		findings.Addf(at, "expected https://HOST or https://HOST:PORT without a path")
	}
}

// isOrigin reports whether a URL is a scheme and a host: https, or http on loopback.
func isOrigin(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return false
	}
	return u.Scheme == "https" || u.Scheme == "http" && address.OnLoopback(u.Hostname()+":1")
}

// checkOpaqueIssuers checks the issuers that listeners name for opaque tokens.
func checkOpaqueIssuers(c *Config, findings *yamlconf.Findings) {
	issuers := map[string]string{"listen.grpc": c.Listen.GRPC.OpaqueIssuer, "listen.http": c.Listen.HTTP.OpaqueIssuer}
	if c.Listen.Unix != nil {
		issuers["listen.unix"] = c.Listen.Unix.OpaqueIssuer
	}
	if c.Listen.HTTPUnix != nil {
		issuers["listen.http_unix"] = c.Listen.HTTPUnix.OpaqueIssuer
	}
	for listener, issuer := range issuers {
		introspects := func(c Issuer) bool { return c.Issuer == issuer && c.Introspection != nil }
		if issuer != "" && !slices.ContainsFunc(c.Issuers, introspects) {
			findings.Addf(yamlconf.Join(listener, "opaque_issuer"), "no issuer of this name has introspection: name an issuer with introspection, spelled exactly as under issuers")
		}
	}
	if c.Listen.Ops.OpaqueIssuer != "" {
		findings.Addf("listen.ops.opaque_issuer", "no token is presented to this listener: remove it")
	}
}

func checkTLS(c *TLS, findings *yamlconf.Findings) {
	const tls, spiffe = "listen.tls", "listen.tls.spiffe"
	files := []string{"cert", "key", "client_ca"}
	switch {
	case c == nil:
	case c.SPIFFE == nil:
		for _, file := range files[:2] {
			if !findings.Given(yamlconf.Join(tls, file)) {
				findings.Addf(tls, "%s is missing", file)
			}
		}
	default:
		for _, file := range files {
			if findings.Given(yamlconf.Join(tls, file)) {
				findings.Addf(yamlconf.Join(tls, file), "contradicts spiffe in line %d: the certificate and the CAs come from files or from the SPIFFE Workload API, remove one of them", findings.Line(spiffe))
			}
		}
		if err := certs.CheckSocket(c.SPIFFE.Socket); err != nil && c.SPIFFE.Socket != "" {
			findings.Addf(yamlconf.Join(spiffe, "socket"), "%v", err)
		}
		for i, name := range c.SPIFFE.TrustDomains {
			if err := certs.CheckTrustDomain(name); err != nil && name != "" {
				findings.Addf(yamlconf.Item(yamlconf.Join(spiffe, "trust_domains"), i), "%v", err)
			}
		}
	}
}

// checkApart reports two listeners with conflicting addresses.
func checkApart(first string, a Listener, second string, b Listener, findings *yamlconf.Findings) {
	if !address.Collide(a.Address, b.Address) {
		return
	}
	if findings.Line(second) < findings.Line(first) {
		first, second = second, first
	}
	findings.Addf(second, "the same address as %s: give each listener a port of its own", first)
}

func checkListener(l Listener, path string, encrypted bool, findings *yamlconf.Findings) {
	if l.Address == "" {
		return
	}
	_, port, err := net.SplitHostPort(l.Address)
	_, badPort := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || badPort != nil:
		findings.Addf(path, "expected HOST:PORT with a numeric port, such as 127.0.0.1:8443, or :8443 for every interface")
	case encrypted || l.Plaintext || address.OnLoopback(l.Address):
	case path == "listen.ops":
		findings.Addf(path, "listens beyond loopback without encryption: use a loopback address such as 127.0.0.1:%s, "+
			"or accept it with {address: ..., plaintext: true}", port)
	default:
		findings.Addf(path, "listens beyond loopback without encryption: give listen.tls, use a loopback address such as 127.0.0.1:%s, "+
			"or accept it with {address: ..., plaintext: true}", port)
	}
}

func checkUnix(c *Unix, path string, findings *yamlconf.Findings) {
	if c == nil {
		return
	}
	if c.Path != "" && !filepath.IsAbs(c.Path) {
		findings.Addf(yamlconf.Join(path, "path"), "expected an absolute path, because clients may have another working directory")
	}
	if _, ok := c.FileMode(); !ok {
		findings.Addf(yamlconf.Join(path, "mode"), `expected a mode in octal digits, such as "0660"`)
	}
}

// overflowUID is the UID that Linux reports for users without a mapping in the namespace.
const overflowUID = 65534

// checkProofs reports callers that no listener can identify or distinguish from others,
// and credentials that are sent unencrypted.
func checkProofs(c *Config, findings *yamlconf.Findings) {
	requestsCertificates := c.Listen.Encrypted() && c.Listen.TLS.verifiesCallers()
	bySPIFFE := c.Listen.Encrypted() && c.Listen.TLS.SPIFFE != nil
	for i := range c.Callers {
		caller, path := &c.Callers[i], yamlconf.Item("callers", i)
		switch {
		case caller.certified() && !requestsCertificates:
			findings.Warn(path, "is identified by a certificate, which no listener requests: give listen.tls with client_ca")
		case bySPIFFE && caller.DNSSAN != "":
			findings.Warn(path, "is identified by a DNS name, but listen.tls.spiffe uses only the SPIFFE ID of a certificate: give spiffe_id")
		case bySPIFFE && !c.Listen.TLS.SPIFFE.covers(caller.SPIFFEID):
			findings.Warn(path, "belongs to a trust domain whose certificates are refused: add it to listen.tls.spiffe.trust_domains")
		case caller.UID != nil && *caller.UID == overflowUID:
			findings.Addf(yamlconf.Join(path, "uid"), "%d stands for every user that is unknown to the broker's system, as in a container: run the caller as another user", overflowUID)
		case caller.UID != nil && c.Listen.Unix == nil && c.Listen.HTTPUnix == nil:
			findings.Warn(path, "is identified by the user of a process, which needs a Unix socket: give listen.unix or listen.http_unix")
		}
	}
	presentsJWT := func(caller Caller) bool { return caller.Subject != "" }
	for _, path := range []string{"listen.grpc", "listen.http"} {
		listener := map[string]Listener{"listen.grpc": c.Listen.GRPC, "listen.http": c.Listen.HTTP.Listener}[path]
		if listener.Plaintext && !address.OnLoopback(listener.Address) && slices.ContainsFunc(c.Callers, presentsJWT) {
			findings.Warn(path, "the JWTs of callers cross the network unencrypted, and a stolen JWT is valid until it expires: give listen.tls in place of plaintext, unless a mesh encrypts")
		}
	}
}

// covers reports whether a SPIFFE ID may belong to a configured trust domain.
func (c *SPIFFE) covers(id string) bool {
	domain, _, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	return id == "" || len(c.TrustDomains) == 0 || slices.Contains(c.TrustDomains, domain)
}

// certified reports whether the caller is identified by a certificate.
func (c *Caller) certified() bool { return c.SPIFFEID != "" || c.URISAN != "" || c.DNSSAN != "" }

// checkBound checks the callers that listeners are bound to.
func checkBound(c *Config, findings *yamlconf.Findings) {
	for _, listener := range []struct {
		path string
		Listener
	}{{"listen.grpc.caller", c.Listen.GRPC}, {"listen.http.caller", c.Listen.HTTP.Listener}} {
		if listener.Caller == "" {
			continue
		}
		checkBoundTo(c, listener.Caller, listener.path, findings)
		if !address.OnLoopback(listener.Address) {
			findings.Addf(listener.path, "every client of the listener would be this caller: bind a listener to a caller on loopback only")
		}
	}
	for path, socket := range map[string]*Unix{"listen.unix.caller": c.Listen.Unix, "listen.http_unix.caller": c.Listen.UnixHTTP()} {
		if socket != nil && socket.Caller != "" {
			checkBoundTo(c, socket.Caller, path, findings)
		}
	}
	if c.Listen.Ops.Caller != "" {
		findings.Addf("listen.ops.caller", "the ops listener does not identify callers: remove it")
	}
}

func checkBoundTo(c *Config, bound, path string, findings *yamlconf.Findings) {
	if !slices.ContainsFunc(c.Callers, func(caller Caller) bool { return caller.Name == bound }) {
		findings.Addf(path, "no such caller: add it to callers")
	}
}

// bound reports whether a listener is bound to the named caller.
func (c *Listen) bound(name string) bool {
	for _, socket := range []*Unix{c.Unix, c.UnixHTTP()} {
		if socket != nil && name == socket.Caller {
			return true
		}
	}
	return name == c.GRPC.Caller || name == c.HTTP.Caller
}
