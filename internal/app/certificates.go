package app

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// certified is an IdP client that may authenticate by a certificate: a configured client,
// or the client of an introspection.
type certified struct {
	name   string
	client *idp.Client
}

func (s *setup) certified() []certified {
	var all []certified
	for _, c := range s.clients {
		all = append(all, certified{c.Name, c.IdP})
	}
	for issuer, i := range s.introspections {
		all = append(all, certified{"introspection at " + issuer, i.client})
	}
	return all
}

// pollCertificates reads client certificates again until ctx ends, at the same interval
// as secrets.
func (s *setup) pollCertificates(ctx context.Context, log *slog.Logger) {
	all := s.certified()
	secret.Every(ctx, func() {
		s.reloadAuthorities(log)
		for _, c := range all {
			switch changed, err := c.client.ReloadCertificate(); {
			case err != nil:
				log.Error("a client certificate cannot be reloaded; the previous one stays active", "client", c.name, "error", err)
			case changed:
				id, notAfter, _ := c.client.Certificate()
				log.Info("a new client certificate is active", "client", c.name, "version", id, "expires", notAfter)
			}
		}
	})
}

func (s *setup) reloadAuthorities(log *slog.Logger) {
	for ca, network := range s.trusting {
		switch changed, err := network.ReloadAuthorities(); {
		case err != nil:
			log.Error("the CA file of an IdP cannot be reloaded; the previous CAs stay trusted", "file", ca, "error", err)
		case changed:
			log.Info("the new CAs of an IdP are trusted", "file", ca, "expires", network.AuthoritiesExpire())
		}
	}
}

// certificateCollector shows when client certificates expire.
type certificateCollector struct{ parts *parts }

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	certificateDesc = prometheus.NewDesc("tokenbroker_client_certificate_expiry_timestamp_seconds",
		"When the certificate with which a client authenticates to its IdP expires, in seconds of the epoch.", []string{"client"}, nil)
	certificateStartDesc = prometheus.NewDesc("tokenbroker_client_certificate_start_timestamp_seconds",
		"When the validity of that certificate began, in seconds of the epoch.", []string{"client"}, nil)
	authorityDesc = prometheus.NewDesc("tokenbroker_idp_ca_expiry_timestamp_seconds",
		"When the first CA in a file (tls.ca of clients and issuers) expires, in seconds of the epoch.", []string{"file"}, nil)
)

func (c certificateCollector) Describe(out chan<- *prometheus.Desc) {
	out <- certificateDesc
	out <- certificateStartDesc
	out <- authorityDesc
}

func (c certificateCollector) Collect(out chan<- prometheus.Metric) {
	for ca, network := range c.parts.setup.Load().trusting {
		out <- prometheus.MustNewConstMetric(authorityDesc, prometheus.GaugeValue, float64(network.AuthoritiesExpire().Unix()), ca)
	}
	for _, client := range c.parts.setup.Load().clients {
		if _, notAfter, ok := client.IdP.Certificate(); ok {
			out <- prometheus.MustNewConstMetric(certificateDesc, prometheus.GaugeValue, float64(notAfter.Unix()), client.Name)
			out <- prometheus.MustNewConstMetric(certificateStartDesc, prometheus.GaugeValue, float64(client.IdP.CertificateBegins().Unix()), client.Name)
		}
	}
}
