package fleet

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
)

// phase is a time in which the IdP's tokens live for so long.
type phase struct{ life, lasts time.Duration }

var phases = []phase{{20 * time.Second, 100 * time.Second}, {6 * time.Second, 30 * time.Second}}

func TestReplicasFetchOncePerLifetime(t *testing.T) {
	long(t)
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := startFleet(t, 20, redisConfig(t, "", server.Addr())+harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp}))
	livesThrough(t, f, idp)
}

// livesThrough checks that the fleet makes the IdP calls that there must be in
// the phases, and hands out no token that is not good.
func livesThrough(t *testing.T, f *Fleet, idp *harness.CountingIdP) {
	t.Helper()
	calls := idp.Calls()
	idp.SetLifetime(phases[0].life)
	askAll(t, f.Replicas, 1, "orders").Good(t, "at first")
	demand := startLoad(t, f.Replicas, 5, 20*time.Millisecond, "orders")
	for _, phase := range phases {
		idp.SetLifetime(phase.life)
		before := max(idp.Calls()-1, 0) // the call that a lifetime began with
		rest(t, phase.lasts)
		requests := idp.TokenRequests()[before:]
		if before > 0 {
			requests = requests[1:] // that was the last of the phase before
		}
		first, last, lives := requests[0].At, requests[len(requests)-1].At, len(requests)-1
		// A token is refreshed a quarter of its life before its end, on average.
		ideal := phase.life - phase.life/4
		apart := last.Sub(first) / time.Duration(max(lives, 1))
		t.Logf("tokens that live %v: %d calls in %v, %v apart, ideally %v", phase.life, len(requests), phase.lasts, apart.Round(time.Millisecond), ideal)
		if off := math.Abs(apart.Seconds()/ideal.Seconds() - 1); off > .15 || lives < int(phase.lasts/ideal)-2 {
			t.Errorf("tokens that live %v: calls %v apart, ideally %v", phase.life, apart, ideal)
		}
	}
	demand.Good(t, "callers")
	if calls := idp.Calls() - calls; len(demand.Tokens) != calls {
		t.Errorf("%d calls, and callers saw %d tokens", calls, len(demand.Tokens))
	}
	t.Logf("the callers: %v; %d times degraded", demand.Took, demand.Degraded)
}

// Replicas whose clocks differ by 90 s share purges, and tokens that live longer than
// that. Of shorter tokens those whose clock is ahead fetch their own: no call fails.
func TestClocksThatDifferShareTokens(t *testing.T) {
	long(t)
	const apart = 90 * time.Second
	binary := clockBroker(t)
	idp := harness.SimpleIdP(t, time.Hour)
	server := redistest.Start(t, redisOptions())
	f := &Fleet{Config: redisConfig(t, "", server.Addr()) + harness.ClientsConfig(t, map[string]*harness.CountingIdP{"orders": idp})}
	on, ahead := f.Add(t, 2, binary, 0), f.Add(t, 2, binary, apart)

	// The token is put by a replica whose clock is ahead, so that the others go by the
	// lifetime that Redis counts, and each tells the end by its own clock.
	answers := append(askAll(t, ahead, 1, "orders"), askAll(t, on, 1, "orders")...).Good(t, "at first")
	answers.OneToken(t, "at first")
	if drift := answers[0].Token.ExpiresAt().Sub(answers[3].Token.ExpiresAt()); (drift - apart).Abs() > time.Second {
		t.Fatalf("by their clocks a token ends %v apart, so the clocks are not %v apart", drift, apart)
	}
	for _, by := range []*Replica{on[0], ahead[0], on[1], ahead[1]} {
		old := askAll(t, f.Replicas, 5, "orders").Good(t, "before a purge")
		by.Purge(t, "orders")
		rest(t, 5*time.Second) // what a purge may take
		before := old.OneToken(t, "before a purge")
		if after := askAll(t, f.Replicas, 5, "orders").Good(t, "after a purge").OneToken(t, "after a purge"); after == before {
			t.Error("a token was served after its purge")
		}
	}
	if got := idp.Calls(); got != 5 {
		t.Errorf("5 tokens for all cost %d calls", got)
	}
	on[0].Purge(t, "orders") // of a token that lives too long for what follows
	rest(t, 5*time.Second)
	idp.SetLifetime(20 * time.Second)
	before := idp.Calls()
	demand := startLoad(t, f.Replicas, 5, 20*time.Millisecond, "orders")
	rest(t, time.Minute)
	demand.Good(t, "callers")
	if got := idp.Calls() - before; got > 2*6 { // a token is refreshed after 15 s, 14 s at the earliest
		t.Errorf("a minute of tokens that live 20 s cost %d calls", got)
	}
}

// clockBroker builds a broker whose clock can be set ahead, with a time.Now that
// adds what an environment variable says.
func clockBroker(t *testing.T) (binary string) {
	t.Helper()
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	const declaration, reading = "\nfunc Now() Time {\n", "\tsec, nsec, mono := runtimeNow()\n"
	text := string(source)
	if strings.Count(text, declaration+reading) != 1 || strings.Count(text, "import (\n") != 1 {
		t.Fatalf("time.Now in %s is not as this test knows it: it cannot be replaced by one that runs ahead", original)
	}
	text = strings.Replace(text, declaration+reading, declaration+reading+"\tsec += clockAhead\n", 1)
	text = strings.Replace(text, "import (\n", "import (\n\t\"syscall\"\n", 1)
	text += `
var clockAhead = func() (seconds int64) {
	text, _ := syscall.Getenv("` + clockVariable + `")
	for _, digit := range []byte(text) {
		seconds = 10*seconds + int64(digit-'0')
	}
	return seconds
}()
`
	patched, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: patched}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{patched: []byte(text), overlay: replace} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	binary = filepath.Join(dir, "broker")
	build := exec.Command("go", "build", "-overlay", overlay, "-o", binary, "./cmd/broker")
	build.Dir = filepath.Join("..", "..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building a broker whose clock is ahead: %v\n%s", err, out)
	}
	return binary
}
