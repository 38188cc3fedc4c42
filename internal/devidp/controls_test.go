package devidp_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cezzis/tokenbroker/internal/devidp"
	"github.com/cezzis/tokenbroker/internal/redact"
)

func TestLifetimeCanBeChanged(t *testing.T) {
	cfg := config()
	cfg.Lifetime = time.Minute
	overBoth(t, cfg, func(t *testing.T, idp *devidp.Server, client *http.Client) {
		if got := ask(t, idp, client, ""); got.body["expires_in"] != 60.0 {
			t.Errorf("configured: %v", got.body["expires_in"])
		}
		idp.SetLifetime(5500 * time.Millisecond)
		got := ask(t, idp, client, "")
		claims := claimsOf(t, got)
		if life := claims["exp"].(float64) - claims["iat"].(float64); got.body["expires_in"] != 5.0 || life != 5 {
			t.Errorf("changed: expires_in %v, life %v", got.body["expires_in"], life)
		}
	})
}

func TestDelayHoldsTheTokenEndpointAlone(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		const delay = 100 * time.Millisecond
		idp.SetDelay(delay)
		start := time.Now()
		if got := ask(t, idp, client, ""); got.status != http.StatusOK || time.Since(start) < delay {
			t.Errorf("%d after %v", got.status, time.Since(start))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Issuer = "https://idp.example.com"
		idp := newServer(t, cfg)
		idp.SetDelay(time.Hour)
		start := time.Now()
		client := &http.Client{Transport: idp.RoundTripper()}
		get(t, client, idp.Issuer()+devidp.JWKSPath)
		if time.Since(start) != 0 {
			t.Errorf("the keys came after %v", time.Since(start))
		}
		ask(t, idp, client, "")
		if time.Since(start) != time.Hour {
			t.Errorf("the token came after %v", time.Since(start))
		}
	})
}

func TestCanceledRequestDoesNotWait(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		idp.SetDelay(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		response, err := client.Do(tokenRequest(t, idp, "grant_type=client_credentials&client_id=any&client_secret="+secret).WithContext(ctx))
		if err == nil {
			_ = response.Body.Close()
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error: %v", err)
		}
		requests := idp.TokenRequests()
		if len(requests) != 1 || requests[0].OK {
			t.Errorf("on record: %+v", requests)
		}
	})
}

func TestCanceledRequestInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.Issuer = "https://idp.example.com"
		idp := newServer(t, cfg)
		idp.SetAnswer(func(http.ResponseWriter, *http.Request) bool { time.Sleep(time.Minute); return false })
		start := time.Now()
		client := &http.Client{Transport: idp.RoundTripper(), Timeout: time.Second}
		response, err := client.Do(tokenRequest(t, idp, "grant_type=client_credentials"))
		if err == nil {
			_ = response.Body.Close()
		}
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		time.Sleep(time.Hour) // the handler is done when the bubble ends
	})
}

func TestFailNext(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		idp.FailNext(2, http.StatusTooManyRequests, "temporarily_unavailable", http.Header{"Retry-After": {"7"}})
		for range 2 {
			got := ask(t, idp, client, "")
			if got.status != http.StatusTooManyRequests || got.body["error"] != "temporarily_unavailable" || got.header.Get("Retry-After") != "7" {
				t.Errorf("%d %v %v", got.status, got.body, got.header)
			}
		}
		if got := ask(t, idp, client, ""); got.status != http.StatusOK || got.header.Get("Retry-After") != "" {
			t.Errorf("the third: %d %v", got.status, got.header)
		}
		idp.FailNext(1, http.StatusServiceUnavailable, "", nil)
		if got := ask(t, idp, client, ""); got.status != http.StatusServiceUnavailable || got.body != nil {
			t.Errorf("without an error: %d %v", got.status, got.body)
		}
	})
}

func TestSetAnswerStandsBeforeTheTokenEndpoint(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		idp.SetAnswer(func(w http.ResponseWriter, r *http.Request) bool {
			switch r.PostForm.Get("audience") {
			case "teapot":
				w.WriteHeader(http.StatusTeapot)
				return true
			case "abort":
				panic(http.ErrAbortHandler)
			}
			return false
		})
		if got := ask(t, idp, client, "audience=teapot"); got.status != http.StatusTeapot {
			t.Errorf("taken over: %d", got.status)
		}
		if got := ask(t, idp, client, ""); got.status != http.StatusOK {
			t.Errorf("passed on: %d", got.status)
		}
		response, err := client.Do(tokenRequest(t, idp, "audience=abort"))
		if err == nil {
			_ = response.Body.Close()
			t.Errorf("aborted: %d", response.StatusCode)
		}
		idp.SetAnswer(nil)
		if got := ask(t, idp, client, "audience=teapot"); got.body["error"] != "invalid_target" {
			t.Errorf("taken away: %d %v", got.status, got.body)
		}
	})
}

func TestSecretsCanBeReplaced(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		with := func(secret string) int {
			return send(t, client, tokenRequest(t, idp, "grant_type=client_credentials&client_id=any&client_secret="+secret)).status
		}
		for _, tt := range []struct {
			secrets  []redact.String
			old, two int
		}{
			{[]redact.String{redact.New(secret), redact.New("two")}, 200, 200},
			{[]redact.String{redact.New("two")}, 401, 200},
			{nil, 401, 401},
		} {
			idp.SetSecrets("any", tt.secrets...)
			if old, two := with(secret), with("two"); old != tt.old || two != tt.two {
				t.Errorf("with %d secrets: old %d, two %d", len(tt.secrets), old, two)
			}
		}
		if with("") != http.StatusUnauthorized {
			t.Error("a client without secrets is let in with an empty one")
		}
	})
}

func TestSetSecretsOfUnknownClientPanics(t *testing.T) {
	cfg := config()
	cfg.Issuer = "https://idp.example.com"
	idp := newServer(t, cfg)
	defer func() {
		if recover() == nil {
			t.Error("a mistyped client goes unnoticed")
		}
	}()
	idp.SetSecrets("nobody")
}

func TestRotateKeys(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		verified := func(token redact.String) bool {
			_, err := jwt.Parse(token.Reveal(), keyOf(t, idp, client))
			return err == nil
		}
		first := idp.Mint(map[string]any{})
		idp.RotateKeys(true)
		second := idp.Mint(map[string]any{})
		if !verified(first) || !verified(second) {
			t.Errorf("old kept: first %v, second %v", verified(first), verified(second))
		}
		idp.RotateKeys(false)
		third := idp.Mint(map[string]any{})
		if verified(first) || verified(second) || !verified(third) {
			t.Errorf("old withdrawn: first %v, second %v, third %v", verified(first), verified(second), verified(third))
		}
	})
}

func TestTokenRequestsAreOnRecordAsTheyWereSent(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		before := time.Now()
		ask(t, idp, client, "scope=write+read&audience=plain&resource="+stock+"&resource="+orders)
		r := tokenRequest(t, idp, "grant_type=client_credentials&scope=none")
		r.SetBasicAuth("basic", secret)
		send(t, client, r)
		send(t, client, tokenRequest(t, idp, "grant_type=client_credentials"))

		got := idp.TokenRequests()
		want := []devidp.TokenRequest{
			{ClientID: "any", Scopes: []string{"write", "read"}, Audience: "plain", Resources: []string{stock, orders}, Auth: "post", OK: true},
			{ClientID: "basic", Scopes: []string{"none"}, Auth: "basic"},
			{},
		}
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(devidp.TokenRequest{}, "At"), cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
		for _, request := range got {
			if request.At.Before(before) || request.At.After(time.Now()) {
				t.Errorf("arrived at %v", request.At)
			}
		}
	})
}

func TestRecordsAreBounded(t *testing.T) {
	cfg := config()
	cfg.Issuer = "https://idp.example.com"
	idp := newServer(t, cfg)
	idp.SetAnswer(func(http.ResponseWriter, *http.Request) bool { return true })
	client := &http.Client{Transport: idp.RoundTripper()}
	const sent = 1<<15 + 1
	for range sent {
		send(t, client, tokenRequest(t, idp, ""))
	}
	if n := len(idp.TokenRequests()); n != 1<<14+1 {
		t.Errorf("%d requests are kept", n)
	}
	if n := idp.Requests(devidp.TokenPath); n != sent {
		t.Errorf("%d requests were counted", n)
	}
}

func TestControlsMayBeUsedWhileRequestsRun(t *testing.T) {
	overBoth(t, config(), func(t *testing.T, idp *devidp.Server, client *http.Client) {
		var callers sync.WaitGroup
		for range 8 {
			callers.Go(func() {
				for range 20 {
					response, err := client.Do(tokenRequest(t, idp, "grant_type=client_credentials&client_id=any&client_secret="+secret))
					if err != nil {
						t.Error(err)
						return
					}
					_ = response.Body.Close()
				}
			})
		}
		for i := range 20 {
			idp.SetLifetime(time.Duration(i+1) * time.Minute)
			idp.SetDelay(time.Duration(i) * time.Microsecond)
			idp.SetSecrets("any", redact.New(secret))
			idp.FailNext(1, http.StatusServiceUnavailable, "", nil)
			idp.RotateKeys(i%2 == 0)
			_ = idp.TokenRequests()
		}
		callers.Wait()
		if n := idp.Requests(devidp.TokenPath); n != 160 {
			t.Errorf("%d requests were counted", n)
		}
	})
}
