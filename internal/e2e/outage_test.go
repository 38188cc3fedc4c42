package e2e_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/testkit"
)

func TestKeyRotationAtTheIdP(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	first := idp.mint(t, es256)
	b.mustVerify(t, "a token of the first key", first, active)

	idp.rotateKeys(t, true)
	second := idp.mint(t, es256)
	testkit.Eventually(t, "a token of the second key is active", func() bool { return b.verify(t, second).code == active })
	b.mustVerify(t, "a token of the first key, which is still published", first, active)

	idp.rotateKeys(t, false)
	third := idp.mint(t, es256)
	testkit.Eventually(t, "a token of the third key is active", func() bool { return b.verify(t, third).code == active })
	for name, token := range map[string]string{"first": first, "second": second} {
		res := b.mustVerify(t, "a token of the "+name+" key, which was withdrawn", token, rejected)
		if v := verdictOf(t, res); v.Reason != "unknown_key" {
			t.Errorf("a token of the %s key: %v", name, res)
		}
	}
}

func TestAHeldTokenOutlivesTheIdP(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	held := b.get(t, "basic")
	b.mustVerify(t, "the token", held.AccessToken, active)

	idp.stop(t)
	for range 3 {
		if got := b.get(t, "basic"); got.AccessToken != held.AccessToken || got.Origin != "memory" {
			t.Errorf("IdP down: origin %s, same token: %v", got.Origin, got.AccessToken == held.AccessToken)
		}
	}
	b.mustVerify(t, "the token, IdP down", held.AccessToken, active)
	if _, res := b.tryGet(t, "post"); res.code == 0 || !strings.Contains(res.stderr, "Unavailable") {
		t.Errorf("IdP down, nothing held: %v", res)
	}

	idp.start(t)
	testkit.Eventually(t, "a token of the IdP that is back", func() bool { _, res := b.tryGet(t, "post"); return res.code == 0 })
}

func TestABrokerThatStartsBeforeTheIdPRecovers(t *testing.T) {
	t.Parallel()
	idp := startOIDCProvider(t)
	token := idp.mint(t, rs256)
	idp.stop(t)

	b := startBroker(t, idp.config(t)) // ready although the IdP is down
	b.mustVerify(t, "a token without keys to verify it by", token, undecided)
	if _, res := b.tryGet(t, "basic"); res.code == 0 || !strings.Contains(res.stderr, "Unavailable") {
		t.Errorf("get: %v", res)
	}

	idp.start(t)
	testkit.Eventually(t, "the token is active", func() bool { return b.verify(t, token).code == active })
	testkit.Eventually(t, "a token is handed out", func() bool { _, res := b.tryGet(t, "basic"); return res.code == 0 })
}

// With the IdP down a token is handed out as long as it is usable, as degraded
// once its refresh failed, and never longer.
func TestATokenIsServedToItsEndAndNoLonger(t *testing.T) {
	t.Parallel()
	const life, margin, slack = 10 * time.Second, time.Second, 500 * time.Millisecond
	idp := startOIDCProvider(t)
	b := startBroker(t, idp.config(t))
	idp.setLifetime(t, life)
	held := b.get(t, "basic")
	idp.stop(t)

	degraded := 0
	testkit.Eventually(t, "the token is not handed out any more", func() bool {
		asked := time.Now()
		got, res := b.tryGet(t, "basic")
		if res.code != 0 {
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

	idp.start(t)
	testkit.Eventually(t, "a fresh token", func() bool {
		got, res := b.tryGet(t, "basic")
		return res.code == 0 && got.AccessToken != held.AccessToken && !got.Degraded
	})
}
