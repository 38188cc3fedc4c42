package broker

import (
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/policy"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// A caller finds no token, a flight lands, and only then the caller gets the lock:
// it must look again, or it would force another fetch.
func TestFlight_resultBeforeTheLock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const issuer, audience = "https://idp.example.com", "https://orders.example.com"
		server, err := devidp.New(devidp.Config{Issuer: issuer, Lifetime: 100 * time.Second, Algorithm: "EdDSA", Clients: []devidp.Client{
			{ID: "abc", Secrets: []redact.String{redact.New("right")}, Audiences: []string{audience}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "secret")
		testkit.WriteFile(t, path, "right")
		ref, err := secret.ParseRef("file:" + path)
		if err != nil {
			t.Fatal(err)
		}
		source, err := secret.Open(ref)
		if err != nil {
			t.Fatal(err)
		}
		client, err := idp.New(idp.Config{TokenURL: issuer + devidp.TokenPath, ClientID: "abc", HTTP: discovery.NewHTTPClient(server.RoundTripper())})
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(Config{
			Setup:  Setup{Clients: []ClientConfig{{Name: "orders", IdP: client, Secret: source, Audience: audience}}},
			Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(b.Close)
		ask := Ask{Client: "orders"}
		landed, err := b.Get(t.Context(), policy.Self(), ask)
		if err != nil {
			t.Fatal(err)
		}
		for what, missed := range map[string]Ask{"any token": ask, "a token that lives long": {Client: "orders", MinTTL: 50 * time.Second}} {
			answer, err := b.miss(t.Context(), b.client("orders").entry, missed)
			if err != nil || answer.Token != landed.Token || answer.Origin != OriginMemory || answer.Degraded {
				t.Errorf("%s: %+v, %v", what, answer, err)
			}
		}
		time.Sleep(time.Second)
		if got := server.Requests(devidp.TokenPath); got != 1 {
			t.Errorf("the IdP was asked %d times", got)
		}
	})
}
