package edge

import (
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestKeyRotationAtTheIdP(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	first := idp.Mint(t, harness.ES256)
	b.MustVerify(t, "a token of the first key", first, harness.Active)

	idp.RotateKeys(t, true)
	second := idp.Mint(t, harness.ES256)
	testkit.Eventually(t, "a token of the second key is active", func() bool { return b.Verify(t, second).Code == harness.Active })
	b.MustVerify(t, "a token of the first key, which is still published", first, harness.Active)

	idp.RotateKeys(t, false)
	third := idp.Mint(t, harness.ES256)
	testkit.Eventually(t, "a token of the third key is active", func() bool { return b.Verify(t, third).Code == harness.Active })
	for name, token := range map[string]string{"first": first, "second": second} {
		res := b.MustVerify(t, "a token of the "+name+" key, which was withdrawn", token, harness.Rejected)
		if v := verdictOf(t, res); v.Reason != "unknown_key" {
			t.Errorf("a token of the %s key: %v", name, res)
		}
	}
}

func TestHeldTokenOutlivesTheIdP(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	held := b.Get(t, "basic")
	b.MustVerify(t, "the token", held.AccessToken, harness.Active)

	idp.Stop(t)
	for range 3 {
		if got := b.Get(t, "basic"); got.AccessToken != held.AccessToken || got.Origin != "memory" {
			t.Errorf("IdP down: origin %s, same token: %v", got.Origin, got.AccessToken == held.AccessToken)
		}
	}
	b.MustVerify(t, "the token, IdP down", held.AccessToken, harness.Active)
	if _, res := b.TryGet(t, "post"); res.Code == 0 || !strings.Contains(res.Stderr, "Unavailable") {
		t.Errorf("IdP down, nothing held: %v", res)
	}

	idp.Start(t)
	testkit.Eventually(t, "a token of the IdP that is back", func() bool { _, res := b.TryGet(t, "post"); return res.Code == 0 })
}

func TestBrokerMayStartBeforeTheIdP(t *testing.T) {
	t.Parallel()
	idp := harness.StartOIDCProvider(t)
	token := idp.Mint(t, harness.RS256)
	idp.Stop(t)

	b := harness.StartBroker(t, idp.Config(t)) // ready although the IdP is down
	b.MustVerify(t, "a token without keys to verify it by", token, harness.Undecided)
	if _, res := b.TryGet(t, "basic"); res.Code == 0 || !strings.Contains(res.Stderr, "Unavailable") {
		t.Errorf("get: %v", res)
	}

	idp.Start(t)
	testkit.Eventually(t, "the token is active", func() bool { return b.Verify(t, token).Code == harness.Active })
	testkit.Eventually(t, "a token is handed out", func() bool { _, res := b.TryGet(t, "basic"); return res.Code == 0 })
}

// With the IdP down a token is handed out as long as it is usable, as degraded
// once its refresh failed, and never longer.
func TestTokenIsServedUntilItExpires(t *testing.T) {
	t.Parallel()
	const life, margin, slack = 10 * time.Second, time.Second, 500 * time.Millisecond
	idp := harness.StartOIDCProvider(t)
	b := harness.StartBroker(t, idp.Config(t))
	idp.SetLifetime(t, life)
	held := b.Get(t, "basic")
	idp.Stop(t)

	degraded := 0
	testkit.Eventually(t, "the token is not handed out any more", func() bool {
		asked := time.Now()
		got, res := b.TryGet(t, "basic")
		if res.Code != 0 {
			if time.Now().Before(held.ExpiresAt.Add(-margin - slack)) {
				t.Errorf("a usable token was refused %v before its end: %v", time.Until(held.ExpiresAt), res)
			}
			return true
		}
		if got.AccessToken != held.AccessToken || !asked.Before(held.ExpiresAt) {
			t.Fatalf("%v before the token's end: same token: %v", held.ExpiresAt.Sub(asked), got.AccessToken == held.AccessToken)
		}
		if got.Degraded {
			degraded++
			if asked.Before(held.RefreshAt) {
				t.Errorf("degraded %v before it is due", held.RefreshAt.Sub(asked))
			}
		}
		return false
	})
	if degraded == 0 {
		t.Error("the token was never said to be degraded")
	}

	idp.Start(t)
	testkit.Eventually(t, "a fresh token", func() bool {
		got, res := b.TryGet(t, "basic")
		return res.Code == 0 && got.AccessToken != held.AccessToken && !got.Degraded
	})
}
