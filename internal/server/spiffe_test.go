package server_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/certs"
	"github.com/cezzis/tokenbroker/internal/certs/certstest"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/server"
)

// A federated trust domain could put the DNS name of anybody into its certificates.
func TestTrustDomainCertificatesCountByID(t *testing.T) {
	own, partner := must(devca.New("own")), must(devca.New("partner"))
	agent := must(certstest.New())
	t.Cleanup(agent.Close)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	agent.Send(certstest.Update{
		SVID: must(certstest.Issue(own, "example.org", "/broker", template("broker"))), Bundle: []*devca.Authority{own},
		Federated: map[string][]*devca.Authority{"partner.org": {partner}},
	})
	source := must(certs.OpenSPIFFE(t.Context(), certs.SPIFFE{Socket: agent.Socket(), TrustDomains: []string{"example.org", "partner.org"}}))
	known := allowing(
		policy.CallerConfig{Name: "gateway", Match: policy.Match{DNSSAN: gateway}},
		policy.CallerConfig{Name: "partner", Match: policy.Match{SPIFFEID: "spiffe://partner.org/checkout"}})
	w := newWorldOf(t, known, func(c *server.Config) { c.TLS = source })
	for name, tt := range map[string]struct {
		path string
		code codes.Code
		says string
	}{
		"a SPIFFE ID of a caller":           {"/checkout", codes.OK, ""},
		"a DNS name of a caller beside one": {"/other", codes.Unauthenticated, `the client certificate (URI "spiffe://partner.org/other") matches no caller`},
	} {
		t.Run(name, func(t *testing.T) {
			pair := must(certstest.Issue(partner, "partner.org", tt.path, &x509.Certificate{DNSNames: []string{gateway}}))
			api := w.api(&tls.Config{RootCAs: own.Pool(), ServerName: "broker", Certificates: []tls.Certificate{pair.TLS()}})
			_, err := api.GetToken(t.Context(), &tokenbrokerv1.GetTokenRequest{ClientName: "orders"})
			if status.Code(err) != tt.code || !strings.Contains(status.Convert(err).Message(), tt.says) {
				t.Error(err)
			}
		})
	}
}
