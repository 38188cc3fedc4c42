package verify_test

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/cezzis/tokenbroker/internal/discovery"
	"github.com/cezzis/tokenbroker/internal/jose/josetest"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/verify"
)

// D20 K13: log and metrics show keys, and never tokens.
func TestLogAndMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, fresh := josetest.New(t, "ES256", "old"), josetest.New(t, "ES256", "fresh")
		web := serve(josetest.Set(old.JWK(), jsonObject{"kty": "AKP", "kid": "new"}))
		var log bytes.Buffer
		registry := prometheus.NewRegistry()
		v, err := verify.New(verify.Config{
			Issuers: []verify.IssuerConfig{configOf(issuerA)}, HTTP: discovery.NewHTTPClient(web),
			Logger: slog.New(slog.NewTextHandler(&log, nil)), Registerer: registry,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		count := func(line string) int { return strings.Count(log.String(), line) }
		refresh := func() { _ = v.Refresh(ctx, issuerA) }
		const added, removed, skipped = "is trusted from now on", "is no longer trusted", "is not used"

		refresh()
		refresh()
		if count(added) != 1 || count(removed) != 0 || count(skipped) != 1 || !strings.Contains(log.String(), "thumbprint=") {
			t.Errorf("after two fetches of the same:\n%s", &log)
		}
		log.Reset()
		web.publish(fresh.JWK(), jsonObject{"kty": "oct", "kid": "secret", "k": "canary7f3a"})
		refresh()
		if count(added) != 1 || count(removed) != 1 || count("level=ERROR") != 1 || count("canary7f3a") != 0 {
			t.Errorf("after a rotation and the publication of a secret:\n%s", &log)
		}
		success := time.Now()
		time.Sleep(time.Minute)
		web.set(respond(http.StatusServiceUnavailable, []byte("canary7f3a"), nil))
		refresh()
		if status := v.Status()[0]; status.Keys != 1 || status.Skipped != 1 || status.Err == nil || !status.LoadedAt.Equal(success) {
			t.Errorf("%+v", status)
		}
		if err := testutil.GatherAndCompare(registry, strings.NewReader(`
# HELP tokenbroker_jwks_fetches_total Fetches of an issuer's JWK set by result: success or failure.
# TYPE tokenbroker_jwks_fetches_total counter
tokenbroker_jwks_fetches_total{issuer="https://a.example",result="failure"} 1
tokenbroker_jwks_fetches_total{issuer="https://a.example",result="success"} 3
# HELP tokenbroker_jwks_keys Usable keys of an issuer.
# TYPE tokenbroker_jwks_keys gauge
tokenbroker_jwks_keys{issuer="https://a.example"} 1
# HELP tokenbroker_jwks_keys_skipped Unusable entries of an issuer's JWK set.
# TYPE tokenbroker_jwks_keys_skipped gauge
tokenbroker_jwks_keys_skipped{issuer="https://a.example"} 1
# HELP tokenbroker_jwks_last_success_timestamp_seconds Time of the last successful fetch of an issuer's keys, in Unix seconds; 0 if none.
# TYPE tokenbroker_jwks_last_success_timestamp_seconds gauge
tokenbroker_jwks_last_success_timestamp_seconds{issuer="https://a.example"} 9.46684800e+08
`), "tokenbroker_jwks_fetches_total", "tokenbroker_jwks_keys", "tokenbroker_jwks_keys_skipped", "tokenbroker_jwks_last_success_timestamp_seconds"); err != nil {
			t.Error(err)
		}

		for _, token := range []string{
			fresh.Token(fresh.Header(), claims()), old.Token(old.Header(), claims()), old.Token(fresh.Header(), claims()),
			fresh.Token(fresh.Header(), claims(jsonObject{"iss": "canary7f3a"})), fresh.Token(fresh.Header(jsonObject{"kid": "canary7f3a"}), claims()),
		} {
			result, err := v.Verify(ctx, redact.New(token), verify.Request{})
			output := log.String()
			if err != nil {
				output += err.Error()
			}
			if result.Rejection != nil {
				output += result.Rejection.Message
			}
			for part := range strings.SplitSeq(token, ".") {
				for i := 0; i+16 <= len(part); i += 8 {
					if strings.Contains(output, part[i:i+16]) {
						t.Fatalf("a part of a token was shown: %s", output)
					}
				}
			}
			if strings.Contains(output, "canary7f3a") {
				t.Errorf("what an attacker wrote was shown: %s", output)
			}
		}
	})
}

func TestNew_continuesMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	key := josetest.New(t, "EdDSA", "k")
	for range 2 {
		v, err := verify.New(verify.Config{
			Issuers: []verify.IssuerConfig{configOf(issuerA)}, HTTP: discovery.NewHTTPClient(serve(josetest.Set(key.JWK()))), Registerer: registry,
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		load(t, v)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "tokenbroker_jwks_fetches_total" && family.GetMetric()[1].GetCounter().GetValue() != 2 {
			t.Errorf("%v", family)
		}
	}
	rival := prometheus.NewRegistry()
	rival.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "tokenbroker_jwks_keys", Help: "Another."}))
	if _, err := verify.New(verify.Config{Registerer: rival}, nil); err == nil {
		t.Error("a metric that somebody else has is no error")
	}
}

func TestPanicOfALoadIsLoggedWithItsStack(t *testing.T) {
	var log bytes.Buffer
	web := new(site)
	web.set(outages["makes the client panic"])
	v, err := verify.New(verify.Config{
		Issuers: []verify.IssuerConfig{configOf(issuerA)}, HTTP: discovery.NewHTTPClient(web), Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Refresh(context.Background(), issuerA); err == nil || strings.Contains(err.Error(), "a defect of a library") {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "RoundTrip") {
		t.Error("no stack was logged")
	}
}
