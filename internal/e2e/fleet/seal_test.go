package fleet

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Who can write to Redis can take tokens away, but cannot pass one off as
// another.
func TestValueMovedInRedisIsRefused(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 1, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	mine, theirs := client.WithAudience(idp.Client.Audiences[1]), client.WithAudience(idp.Client.Audiences[2])
	get := func(replicas []*Replica, what string, option client.TokenOption) *client.Token {
		t.Helper()
		return askAll(t, replicas, 1, "orders", option).Good(t, what)[0].Token
	}
	get(f.Replicas, "my token", mine)
	myKey := tokenKeys(server)[0]
	first := get(f.Replicas, "their token", theirs)
	theirKey := slices.DeleteFunc(tokenKeys(server), func(key string) bool { return key == myKey })[0]

	fresh := func() []*Replica { return f.Add(t, 1, "broker", 0) }
	refused := func(r []*Replica) float64 {
		return r[0].Metric(t, `tokenbroker_store_unopened_total{cause="refused"}`)
	}
	before := fresh()
	if got := get(before, "as it was", theirs); got.Origin() != "shared" || got.AccessToken() != first.AccessToken() || refused(before) != 0 {
		t.Errorf("a new replica did not find the token as it was: origin %s, %v refused", got.Origin(), refused(before))
	}
	const renumber = "return redis.call('set', KEYS[1], (string.gsub(redis.call('get', KEYS[1]), '^%d+', '1', 1)), 'keepttl')"
	for what, tamper := range map[string][]string{
		"under another key":       {"copy", myKey, theirKey, "replace"},
		"with some bytes changed": {"setrange", theirKey, "60", "tampered"},
		"with another number":     {"eval", renumber, "1", theirKey},
	} {
		server.CLI(tamper...)
		replica, calls := fresh(), idp.Calls()
		got := get(replica, what, theirs)
		if got.Origin() != "fetched" || idp.Calls() != calls+1 {
			t.Errorf("a value %s was served: origin %s, %d calls", what, got.Origin(), idp.Calls()-calls)
		}
		if refused(replica) == 0 {
			t.Errorf("a value %s was not counted as refused", what)
		}
		again := fresh()
		if next := get(again, "what replaced a value "+what, theirs); next.AccessToken() != got.AccessToken() || refused(again) != 0 {
			t.Errorf("a value %s was not replaced: origin %s", what, next.Origin())
		}
	}
}

// A token that Redis would keep for an hour too long, because somebody prolonged it
// or the clock of Redis was set back, ends when it ends.
func TestProlongedTokenIsNotServed(t *testing.T) {
	t.Parallel()
	const life = 10 * time.Second // of which the last is not handed out
	const written = time.Second   // the most that a busy machine takes to write the token, which is added to its life
	idp := harness.SimpleIdP(t, life)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	begun := time.Now()
	first := askAll(t, f.Replicas[:1], 1, "orders").Good(t, "the first token")[0].Token
	server.CLI("PEXPIRE", tokenKeys(server)[0], "3600000")

	second := askAll(t, f.Replicas[1:2], 1, "orders").Good(t, "while the token lives")[0].Token
	if second.AccessToken() != first.AccessToken() || second.ExpiresAt().After(first.ExpiresAt().Add(written)) {
		t.Errorf("another replica shares the token: %v, until %v instead of %v", second.AccessToken() == first.AccessToken(), second.ExpiresAt(), first.ExpiresAt())
	}
	rest(t, time.Until(begun.Add(life)))
	if server.CLI("EXISTS", tokenKeys(server)[0]) != "1" {
		t.Fatal("Redis has not kept the token, so nothing was tried")
	}
	for i, next := range f.Replicas[1:] { // one that has read the token before, and one that has not
		after := askAll(t, []*Replica{next}, 1, "orders").Good(t, "after the end of the token")[0].Token
		if after.AccessToken() == first.AccessToken() {
			t.Errorf("replica %d serves the token until %v, and it expired at %v", i+1, after.ExpiresAt(), first.ExpiresAt())
		}
	}
}

// tokenKeys are the keys of tokens in Redis.
func tokenKeys(server *redistest.Server) []string {
	return slices.DeleteFunc(strings.Fields(server.CLI("--scan")), func(key string) bool { return !strings.HasSuffix(key, ":token") })
}

var ringKeyID = regexp.MustCompile(`[Kk]ey ([0-9a-f]{8})`)

// The ring of sealing keys changes as "broker ring" tells the operator, while
// callers ask all the time.
func TestSealingRingRotatesUnderLoad(t *testing.T) {
	t.Parallel()
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	config := redisConfig(t, "", server.Addr()) + harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp})
	ring := regexp.MustCompile(`sealing_keys: "file:(.*)"`).FindStringSubmatch(config)[1]
	f := startFleet(t, 3, config)
	token := askAll(t, f.Replicas, 1, "orders").Good(t, "a token").OneToken(t, "a token")
	demand := startLoad(t, f.Replicas, 3, 10*time.Millisecond, "orders")

	times := 0
	change := func(command string, ids ...string) (told []string) {
		t.Helper()
		res := harness.Run(t, append([]string{"ring", command, ring}, ids...)...)
		if res.Code != 0 {
			t.Fatalf("ring %s: %v", command, res)
		}
		times++
		for _, r := range f.Replicas {
			testkit.Eventually(t, "the changed ring is in force", func() bool {
				return strings.Count(r.Process.Output.String(), "new sealing keys are active") == times
			})
		}
		for _, match := range ringKeyID.FindAllStringSubmatch(res.Stderr, -1) {
			told = append(told, match[1])
		}
		return told
	}
	ids := change("add")
	if harness.IsLong() {
		added, old := ids[0], ids[1]
		change("promote", added)
		late := f.Add(t, 1, "broker", 0)
		if a := askAll(t, late, 1, "orders").Good(t, "a late replica")[0]; a.Token.Origin() != "shared" || a.Token.AccessToken() != token {
			t.Errorf("a late replica could not open what the old key sealed: origin %s", a.Token.Origin())
		}
		f.Replicas = f.Replicas[:3] // the late one has seen no change
		change("drop", old)
	}
	demand.Good(t, "callers during the rotation")
	t.Logf("meanwhile: %v", demand.Took)
	if got := idp.Calls(); got != 1 || len(demand.Tokens) != 1 {
		t.Errorf("the rotation cost %d calls, and callers saw %d tokens", got-1, len(demand.Tokens))
	}
}
