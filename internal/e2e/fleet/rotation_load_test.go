package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/client"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// Up to 200 callers on 3 replicas, tokens of 5 s, an IdP that takes the old and the new
// secret while it is rotated and the new one alone right after: no call fails, and
// the IdP hardly sees a dead secret.
func TestRotationUnderLoad_overlap(t *testing.T) {
	t.Parallel()
	rotations, lasts := 5, 15*time.Second
	if harness.IsLong() {
		rotations, lasts = 20, time.Minute
	}
	idp := harness.SimpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", redis.Addr())+idp.Managed("orders"))
	idp.Takes("secret-0")
	f.Replicas[0].Rotate(t, "secret-0")
	load := startLoad(t, f.Replicas, 34, 100*time.Millisecond, "orders")
	// The proofs of a rotation do not refresh this one.
	other := startLoad(t, f.Replicas, 33, 100*time.Millisecond, "orders", client.WithAudience(idp.Client.Audiences[1]))
	ends := time.Now().Add(lasts)
	for i := 1; i <= rotations; i++ {
		old, fresh := fmt.Sprintf("secret-%d", i-1), fmt.Sprintf("secret-%d", i)
		idp.Takes(old, fresh)
		f.Replicas[i%3].Rotate(t, fresh)
		idp.Takes(fresh)
		rest(t, time.Until(ends)/time.Duration(rotations-i+1))
	}
	load.Good(t, "load")
	other.Good(t, "load for another audience")
	dead, tokens := 0, 0
	for i := range rotations + 1 {
		good, refused := idp.Attempts("abc", redact.New(fmt.Sprintf("secret-%d", i)))
		dead += refused
		tokens += good
	}
	t.Logf("%d rotations in %v: %v; %d calls to the IdP, %d of them with a dead secret", rotations, lasts, append(load.Took, other.Took...), idp.Calls(), dead)
	// A fetch that was under way when the old secret died may have sent it.
	if dead > rotations {
		t.Errorf("the IdP saw %d attempts with a dead secret in %d rotations", dead, rotations)
	}
	if tokens < rotations {
		t.Errorf("only %d tokens", tokens)
	}
}

// An IdP that has one secret: the new one is staged, then changed there, and for 3 s
// the IdP takes neither. Tokens live 60 s; those of 20 audiences become due one after
// the other, so that some always hit the gap. Every second rotation is left to the
// brokers, which find the change by themselves.
func TestRotationUnderLoad_singleSecret(t *testing.T) {
	long(t)
	t.Parallel()
	const rotations, audiences = 10, 20
	idp := harness.SimpleIdP(t, time.Minute)
	redis := redistest.Start(t, redisOptions())
	f := startFleet(t, 3, redisConfig(t, "", redis.Addr())+idp.Managed("orders"))
	idp.Takes("secret-0")
	f.Replicas[0].Rotate(t, "secret-0")
	var loads []*Load
	for i := range audiences {
		loads = append(loads, startLoad(t, f.Replicas, 200/3/audiences+1, 100*time.Millisecond, "orders", client.WithAudience(idp.Client.Audiences[i])))
		rest(t, 40*time.Second/time.Duration(audiences))
	}
	begun := time.Now()
	for i := 1; i <= rotations; i++ {
		fresh := fmt.Sprintf("secret-%d", i)
		before := current(f.Replicas[0].Client(t, "orders"))
		f.Replicas[i%3].Rotate(t, fresh, "--stage-only")
		idp.Takes()
		time.AfterFunc(3*time.Second, func() { idp.Takes(fresh) })
		if i%2 == 1 {
			if res := f.Replicas[0].Run(t, "secret", "activate", "orders", "--wait", "1m"); res.Code != 0 {
				t.Fatalf("secret activate: %v", res)
			}
		}
		for _, r := range f.Replicas {
			testkit.Eventually(t, "the new secret is in force", func() bool { return current(r.Client(t, "orders")) != before })
		}
	}
	took := time.Since(begun).Round(time.Second)
	calls := 0
	for _, l := range loads {
		l.Good(t, "load")
		calls += len(l.Took)
	}
	most, dead := 0, 0
	for i := range rotations + 1 {
		refused := idp.Refused(fmt.Sprintf("secret-%d", i))
		dead += refused
		most = max(most, refused)
	}
	t.Logf("%d rotations in %v: %d calls, none failed; %d calls to the IdP, %d of them with a secret that it did not take, at most %d with one",
		rotations, took, calls, idp.Calls(), dead, most)
	// As new: at its proof or in its place after the one in force, at most every 5 s.
	// As old: at 0, 5 and 15 s until the new one is proved, and as the previous one of
	// the next rotation once for each of those.
	if most > 8 {
		t.Errorf("the IdP saw one secret %d times that it did not take", most)
	}
}
