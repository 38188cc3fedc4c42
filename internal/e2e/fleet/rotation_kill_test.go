package fleet

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/e2e/harness"
	"github.com/cezzis/tokenbroker/internal/redistest"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// stepper stands between one replica and Redis, and counts what the replica sends.
// At a step of choice it has the replica killed: before Redis gets to see what was
// sent, or when Redis has answered and the replica does not know it yet.
type stepper struct {
	address string
	redis   string

	mu    sync.Mutex
	armed bool
	steps int
	at    int // the step to kill at; 0: only count
	after bool
	kill  func()
}

func newStepper(t *testing.T, redis string) *stepper {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	s := &stepper{address: listener.Addr().String(), redis: redis}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return s
}

// arm counts from now on, and kills at a step.
func (s *stepper) arm(at int, after bool, kill func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed, s.steps, s.at, s.after, s.kill = true, 0, at, after, kill
}

// disarm returns how many steps there were, and whether one of them was the last.
func (s *stepper) disarm() (steps int, killed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armed = false
	return s.steps, s.at > 0 && s.steps >= s.at
}

// next counts a step and says what is to be done with it.
func (s *stepper) next() (killBefore, killAfter bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.armed {
		return false, false
	}
	s.steps++
	return s.steps == s.at && !s.after, s.steps == s.at && s.after
}

func (s *stepper) serve(down net.Conn) {
	defer func() { _ = down.Close() }()
	up, err := net.Dial("tcp", s.redis)
	if err != nil {
		return
	}
	defer func() { _ = up.Close() }()
	withhold := make(chan bool, 1) // the next answer is not to arrive
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, err := up.Read(buffer)
			select {
			case <-withhold:
				s.kill()
			default:
			}
			if err != nil {
				return
			}
			if _, err := down.Write(buffer[:n]); err != nil {
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := down.Read(buffer)
		if err != nil {
			return
		}
		before, after := s.next()
		if before {
			s.kill()
			return
		}
		if after {
			withhold <- true
		}
		if _, err := up.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// victim is the replica that is killed, and those that go on.
type victim struct {
	*Replica

	idp     *harness.CountingIdP
	stepper *stepper
	others  []*Replica
	round   int
	secrets []string
	found   map[string]int // the states after a kill
}

func startVictim(t *testing.T) *victim {
	t.Helper()
	idp := harness.SimpleIdP(t, 5*time.Second)
	redis := redistest.Start(t, redisOptions())
	f := startFleet(t, 2, redisConfig(t, "", redis.Addr())+idp.Managed("orders"))
	v := &victim{idp: idp, stepper: newStepper(t, redis.Addr()), others: f.Replicas, found: map[string]int{}}
	v.Replica = f.AddWith(t, strings.Replace(f.Config, redis.Addr(), v.stepper.address, 1))
	v.secrets = []string{"secret-0"}
	idp.Takes(v.secrets...)
	v.others[0].Rotate(t, "secret-0")
	return v
}

// killPoint is where the replica is killed during a rotation.
type killPoint struct {
	name        string
	compromised bool
	// arm has it killed there.
	arm func(v *victim, kill func())
}

func atStep(at int, after bool) func(v *victim, kill func()) {
	return func(v *victim, kill func()) { v.stepper.arm(at, after, kill) }
}

// atIdP kills when the proof has arrived at the IdP, which issues a token for it or
// never sees it.
func atIdP(issued bool) func(v *victim, kill func()) {
	return func(v *victim, kill func()) {
		fresh := v.secrets[len(v.secrets)-1]
		v.idp.SetAnswer(func(_ http.ResponseWriter, r *http.Request) bool {
			if _, sent, _ := r.BasicAuth(); sent != fresh {
				return false
			}
			kill()
			return !issued
		})
	}
}

// rotateAndDie rotates by a call to the victim, which is killed at the point, and
// starts it again.
func (v *victim) rotateAndDie(t *testing.T, point killPoint) {
	t.Helper()
	v.round++
	fresh := fmt.Sprintf("secret-%d", v.round)
	v.secrets = append(v.secrets, fresh)
	v.idp.Takes(v.secrets...)
	before := current(v.others[0].Client(t, "orders"))
	args := []string{"secret", "rotate", "orders", "--request-id", fresh}
	if point.compromised {
		args = append(args, "--compromised")
	}
	dying, once := v.Process, sync.Once{}
	kill := func() {
		once.Do(func() {
			_ = dying.Cmd.Process.Kill()
			<-dying.Exited
		})
	}
	point.arm(v, kill)
	res := v.Bring(t, fresh, args...)
	if _, killed := v.stepper.disarm(); !killed && res.Code == 0 {
		t.Logf("%s: the call was over before", point.name)
		return
	}
	v.idp.SetAnswer(nil)
	testkit.Eventually(t, "the replica is dead", func() bool {
		select {
		case <-dying.Exited:
			return true
		default:
			return false
		}
	})

	state := func(r *Replica) string {
		c := r.Client(t, "orders")
		if inState(c, tokenbrokerv1.SecretState_SECRET_STATE_PENDING) != "" {
			return current(c) + " and another one staged"
		}
		return current(c)
	}
	found := state(v.others[0])
	if res.Code == 0 && (found == before || strings.Contains(found, "staged")) {
		t.Errorf("%s: the call succeeded, and the state is %s, as before", point.name, found)
	}
	if strings.Contains(found, "staged") && !strings.HasPrefix(found, before) {
		t.Errorf("%s: in force is %s, before it was %s", point.name, found, before)
	}
	v.found[strings.Replace(found, before, "the old one", 1)]++
	v.Launch(t, "broker")
	v.Await(t)
	v.Connect(t)
	for _, r := range append([]*Replica{v.Replica}, v.others...) {
		testkit.Eventually(t, "all replicas say the same", func() bool { return state(r) == found })
	}
	// The same call again goes on where it was.
	if res := v.Bring(t, fresh, args...); res.Code != 0 {
		t.Fatalf("%s: the call made again: %v", point.name, res)
	}
	want := state(v.Replica)
	if want == before || strings.Contains(want, "staged") {
		t.Errorf("%s: made again it came to %q, before it was %q", point.name, want, before)
	}
	for _, r := range v.others {
		testkit.Eventually(t, "all replicas have the new secret", func() bool { return state(r) == want })
	}
	if point.compromised && inState(v.others[1].Client(t, "orders"), tokenbrokerv1.SecretState_SECRET_STATE_PREVIOUS) != "" {
		t.Errorf("%s: the compromised secret is there to fall back to", point.name)
	}
}

// A replica is killed at each step of a rotation: at each word that it says to Redis,
// before Redis hears it and after, and at the IdP. After its restart the state is one
// of the legal ones, the same on all replicas, the call goes on where it was, and the
// callers of the other replicas have not noticed.
func TestRotation_replicaIsKilled(t *testing.T) {
	t.Parallel()
	v := startVictim(t)

	// How many steps a rotation has.
	v.round++
	v.secrets = append(v.secrets, "secret-1")
	v.idp.Takes(v.secrets...)
	v.stepper.arm(0, false, nil)
	if res := v.Bring(t, "secret-1", "secret", "rotate", "orders", "--compromised"); res.Code != 0 {
		t.Fatalf("secret rotate: %v", res)
	}
	steps, _ := v.stepper.disarm()
	if steps < 10 {
		t.Fatalf("a rotation has %d steps: the stepper does not see them", steps)
	}

	stride := 5
	if harness.IsLong() {
		stride = 1
	}
	points := []killPoint{
		{"at the IdP, before it sees the proof", false, atIdP(false)},
		{"at the IdP, when it has issued a token for the proof", false, atIdP(true)},
	}
	for at := 1; at <= steps-2; at++ { // the last ones may be of a poll
		for _, after := range []bool{false, true} {
			if (2*at+map[bool]int{true: 1}[after])%stride == 0 {
				points = append(points, killPoint{fmt.Sprintf("step %d, after %v", at, after), at%2 == 0, atStep(at, after)})
			}
		}
	}
	load := startLoad(t, v.others, 5, 50*time.Millisecond, "orders")
	for _, point := range points {
		v.rotateAndDie(t, point)
	}
	load.Good(t, "load on the others")
	last := startLoad(t, append(v.others, v.Replica), 5, 20*time.Millisecond, "orders")
	rest(t, 6*time.Second) // more than a token's life
	last.Good(t, "load on all, afterwards")
	told := 0
	for state, times := range v.found {
		if !strings.Contains(state, "the old one") {
			told += times
		}
	}
	t.Logf("a rotation has %d steps; killed at %d points of it, after which the old secret was in force %d times, with the new one staged %d times, and the new one %d times; %v",
		steps, len(points), v.found["the old one"], v.found["the old one and another one staged"], told, load.Took)
}
