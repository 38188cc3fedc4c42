package caller_test

import (
	"crypto/x509"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/cezzis/tokenbroker/internal/apitest"
	"github.com/cezzis/tokenbroker/internal/caller"
	"github.com/cezzis/tokenbroker/internal/devca"
	"github.com/cezzis/tokenbroker/internal/policy"
)

// recognisers recognise the calls of a caller with a certificate, and of one with a
// JWT.
func recognisers(t testing.TB) (byCertificate, byJWT func() error) {
	t.Helper()
	limits := &policy.Limits{PerSecond: 1e9, Burst: 1e9, Concurrent: 1000, Watches: 1000}
	f := apitest.NewFor(t, policy.New(policy.Config{Callers: []policy.CallerConfig{
		{Name: apitest.Gate, Match: policy.Match{DNSSAN: "gate.example.com"}, Limits: limits},
		{Name: apitest.Shop, Match: policy.Match{Issuer: apitest.Issuer, Subject: apitest.Shop}, Limits: limits},
	}}))
	cfg := caller.Config{Broker: f.Broker}
	authority, err := devca.New("ca")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Issue(&x509.Certificate{DNSNames: []string{"gate.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	header := metadata.Pairs("authorization", "Bearer "+f.CallerJWT(apitest.Shop))
	return caller.Recogniser(cfg, []*x509.Certificate{pair.Certificate()}, metadata.MD{}), caller.Recogniser(cfg, nil, header)
}

// Recognising a caller and holding it to its limits is on the way of every hit.
func TestIdentifyAllocatesNothing(t *testing.T) {
	byCertificate, byJWT := recognisers(t)
	for name, tt := range map[string]struct {
		call func() error
		most float64
	}{"by a certificate": {byCertificate, 0}, "by a JWT": {byJWT, 10}} { // 6, and more where the race detector makes pools forget
		if err := tt.call(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if allocs := testing.AllocsPerRun(1000, func() { _ = tt.call() }); allocs > tt.most {
			t.Errorf("%s: %v allocations", name, allocs)
		} else {
			t.Logf("%s: %v allocations", name, allocs)
		}
	}
}

func BenchmarkIdentify(b *testing.B) {
	byCertificate, byJWT := recognisers(b)
	for name, call := range map[string]func() error{"certificate": byCertificate, "JWT": byJWT} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := call(); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
