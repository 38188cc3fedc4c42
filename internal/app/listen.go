package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/config"
)

// listeners are the broker's open listeners.
type listeners struct {
	grpc     net.Listener
	certs    *certs.Source // for grpc and http; nil: plaintext
	unix     net.Listener  // nil: off
	http     net.Listener  // nil: off
	httpUnix net.Listener  // nil: off
	ops      net.Listener  // nil: off
	keys     net.Listener  // nil: off
}

// open opens the configured listeners; given, if it is not nil, replaces that of grpc.
// After an error no listener is left open.
func (l *listeners) open(config *config.Listen, given net.Listener) (err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.grpc = given; l.grpc == nil {
		l.grpc, err = listen("grpc", config.GRPC.Address)
	}
	if err != nil {
		return err
	}
	if l.unix, err = listenUnix("unix", config.Unix); err != nil {
		return err
	}
	if l.httpUnix, err = listenUnix("http_unix", config.UnixHTTP()); err != nil {
		return err
	}
	if config.HTTP.Address != "" {
		if l.http, err = listen("http", config.HTTP.Address); err != nil {
			return err
		}
	}
	if config.Ops.Address != "" {
		if l.ops, err = listen("ops", config.Ops.Address); err != nil {
			return err
		}
	}
	if config.PublicKeys != nil {
		l.keys, err = listen("public_keys", config.PublicKeys.Address)
	}
	return err
}

func (l *listeners) close() {
	for _, open := range []net.Listener{l.grpc, l.unix, l.http, l.httpUnix, l.ops, l.keys} {
		if open != nil {
			_ = open.Close()
		}
	}
}

func listen(name, address string) (net.Listener, error) {
	var network net.ListenConfig
	listener, err := network.Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen.%s: %w; is another process using the address?", name, err)
	}
	return listener, nil
}

// openCerts opens the certificates of listen.tls. It returns nil for plaintext.
func openCerts(ctx context.Context, config *config.Listen, registerer prometheus.Registerer) (*certs.Source, error) {
	if !config.Encrypted() {
		return nil, nil //nolint:nilnil // plaintext
	}
	opened, err := openTLS(ctx, config.TLS)
	if err != nil {
		return nil, inSection("listen.tls", err)
	}
	registerer.MustRegister(certsCollector{opened})
	return opened, nil
}

// inSection prefixes each error of a list with its section.
func inSection(section string, err error) error {
	if list, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range list.Unwrap() {
			all = append(all, inSection(section, one))
		}
		return errors.Join(all...)
	}
	return fmt.Errorf("%s: %w", section, err)
}

// certsChanged handles the result of a reload of the certificates.
func (a *App) certsChanged(err error) {
	if err != nil {
		a.log.Error("the certificates cannot be reloaded; the previous ones stay active", "error", err, "expires", a.listen.certs.Status().Expires.Format(time.RFC3339))
		return
	}
	status := a.listen.certs.Status()
	a.log.Info("new certificates are active", "name", status.Name, "expires", status.Expires.Format(time.RFC3339), "authorities", len(status.Authorities))
	a.logCerts()
	a.parts.broker.Rejudge()
}

func (a *App) logCerts() {
	for _, warning := range a.listen.certs.Status().Warnings {
		a.log.Warn("listen.tls: " + warning)
	}
}

// reloadCerts reads the certificates immediately.
func (a *App) reloadCerts() {
	if a.listen.certs == nil {
		return
	}
	if changed, err := a.listen.certs.Reload(); changed || err != nil {
		a.certsChanged(err)
	}
}

// certsCollector exports the state of the certificates at collection time.
type certsCollector struct{ source *certs.Source }

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	certExpiryDesc = prometheus.NewDesc("tokenbroker_tls_certificate_expiry_timestamp_seconds",
		"When the first certificate of the listener's chain expires, in seconds of the epoch.", nil, nil)
	certStartDesc = prometheus.NewDesc("tokenbroker_tls_certificate_start_timestamp_seconds",
		"When the validity of that certificate began, in seconds of the epoch.", nil, nil)
	authorityExpiryDesc = prometheus.NewDesc("tokenbroker_tls_client_ca_expiry_timestamp_seconds",
		"When a CA of callers' certificates expires, in seconds of the epoch.", []string{"authority"}, nil)
	authorityStartDesc = prometheus.NewDesc("tokenbroker_tls_client_ca_start_timestamp_seconds",
		"When the validity of that CA began, in seconds of the epoch.", []string{"authority"}, nil)
	certReloadsDesc = prometheus.NewDesc("tokenbroker_tls_reloads_total",
		"Changes of the certificates, by result: applied or refused.", []string{"result"}, nil)
	certFailingDesc = prometheus.NewDesc("tokenbroker_tls_reload_failing",
		"1 while the certificate files are invalid, so that the previous certificates stay active, or while the SPIFFE agent is unavailable; else 0.", nil, nil)
)

func (c certsCollector) Describe(out chan<- *prometheus.Desc) {
	out <- certExpiryDesc
	out <- certStartDesc
	out <- authorityExpiryDesc
	out <- authorityStartDesc
	out <- certReloadsDesc
	out <- certFailingDesc
}

func (c certsCollector) Collect(out chan<- prometheus.Metric) {
	status := c.source.Status()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(certExpiryDesc, float64(status.Expires.Unix()))
	gauge(certStartDesc, float64(status.Begins.Unix()))
	for _, authority := range callerAuthorities(status.Authorities) {
		gauge(authorityExpiryDesc, float64(authority.Ends.Unix()), string(authority.Name))
		gauge(authorityStartDesc, float64(authority.Begins.Unix()), string(authority.Name))
	}
	failing := 0.0
	if status.Failing {
		failing = 1
	}
	gauge(certFailingDesc, failing)
	out <- prometheus.MustNewConstMetric(certReloadsDesc, prometheus.CounterValue, float64(status.Applied), "applied")
	out <- prometheus.MustNewConstMetric(certReloadsDesc, prometheus.CounterValue, float64(status.Refused), "refused")
}

// openTLS reads the files, or waits for the first certificate of the Workload API.
func openTLS(ctx context.Context, c *config.TLS) (*certs.Source, error) {
	minVersion := uint16(tls.VersionTLS13)
	if c.MinVersion == "1.2" {
		minVersion = tls.VersionTLS12
	}
	if c.SPIFFE != nil {
		return certs.OpenSPIFFE(ctx, certs.SPIFFE{Socket: c.SPIFFE.Socket, TrustDomains: c.SPIFFE.TrustDomains, MinVersion: minVersion})
	}
	return certs.Open(certs.Config{Cert: c.Cert, Key: c.Key, ClientCA: c.ClientCA, MinVersion: minVersion})
}
