package exchange_test

import (
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/broker"
	"github.com/cezzis/tokenbroker/internal/exchange"
	"github.com/cezzis/tokenbroker/internal/idp"
)

// BenchmarkGet compares a cached token of a client with a cached one on behalf of a user
// whose token has 1 KiB.
func BenchmarkGet(b *testing.B) {
	w := newWorld(b)
	at := w.add()
	caller := at.Policy().Named("bff")
	user := w.user(map[string]any{"groups": strings.Repeat("g", 560)})
	subject := idp.Subject{Token: user, Type: idp.TypeAccessToken}
	for name, get := range map[string]func() error{
		"own":  func() error { _, err := at.Get(b.Context(), caller, broker.Ask{Client: "plain"}); return err },
		"user": func() error { _, err := exchange.Get(b.Context(), at, caller, obo(), subject); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(user.Reveal())))
			for b.Loop() {
				if err := get(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
