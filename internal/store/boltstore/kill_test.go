package boltstore_test

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/boltstore"
)

// killedBolt is where the process that is to be killed finds its file.
const killedBolt = "TOKENBROKER_TEST_KILLED_BOLT"

// TestKilledBoltWriter is no test but the process that is to be killed. Each of
// its writers takes a lease, puts a value with its fence and raises an epoch,
// and tells what was acknowledged.
func TestKilledBoltWriter(t *testing.T) {
	path := os.Getenv(killedBolt)
	if path == "" {
		return
	}
	b := openBolt(t, boltstore.Config{Path: path})
	for writer := range 4 {
		go func() {
			for {
				if err := writeAndTell(t, b, writer); err != nil {
					panic(err)
				}
			}
		}()
	}
	select {} // until it is killed
}

func writeAndTell(t *testing.T, b *boltstore.Store, writer int) error {
	claim := store.Claim{Key: fmt.Sprint("lease ", writer), Owner: rand.Text(), Counter: "fences", TTL: 100 * time.Millisecond}
	lease, acquired, err := claimLease(t.Context(), b, claim)
	if err != nil || !acquired { // a predecessor was killed while it held it
		return err
	}
	fmt.Printf("fence %d %d\n", writer, lease.Fence)
	puts := []store.Put{
		{Key: fmt.Sprint("value ", lease.Fence), Number: lease.Fence, Value: []byte(lease.Owner), TTL: time.Hour},
		{Key: fmt.Sprint("latest ", writer), Number: lease.Fence, Value: []byte(lease.Owner)},
	}
	applied, err := b.Apply(t.Context(), store.Change{Puts: puts, Release: lease})
	if err != nil || !applied[0] || !applied[1] {
		return fmt.Errorf("applied %v, %w", applied, err)
	}
	fmt.Printf("put %d %d\n", writer, lease.Fence)
	epoch, err := b.Raise(t.Context(), fmt.Sprint("epoch ", writer), 0, 1)
	if err != nil {
		return err
	}
	fmt.Printf("epoch %d %d\n", writer, epoch)
	return nil
}

func TestBoltKeepsAcknowledgedWrites(t *testing.T) {
	rounds := more(10, 200)
	path := newPath(t)
	var told acknowledged
	for round := range rounds {
		told.listen(t, path, round%2 == 1)
		b := openBolt(t, boltstore.Config{Path: path})
		told.check(t, b)
		closeStore(t, b)
	}
	t.Logf("%d changes were acknowledged and found", len(told.expected))
	if len(told.expected) < rounds {
		t.Error("hardly anything was acknowledged: the test does not test what it should")
	}
}

// acknowledged is what the killed processes told.
type acknowledged struct {
	expected map[string]uint64 // the number that a key has at least
	fence    uint64            // the highest
}

// listen runs a writer for a while and kills it: early, which may be while it
// opens the file, or after it wrote something.
func (a *acknowledged) listen(t *testing.T, path string, early bool) {
	t.Helper()
	writer := exec.Command(os.Args[0], "-test.run=^TestKilledBoltWriter$")
	writer.Env = append(os.Environ(), killedBolt+"="+path)
	writer.Stderr = os.Stderr
	out, err := writer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	kill := func() {
		time.AfterFunc(mathrand.N(200*time.Millisecond), func() { _ = writer.Process.Kill() })
	}
	if early {
		once.Do(kill)
	}
	for lines := bufio.NewReader(out); ; once.Do(kill) {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) { // the last line may be cut
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		a.note(t, line)
	}
	if _ = writer.Wait(); writer.ProcessState.Exited() {
		t.Fatalf("the writer ended by itself: %v", writer.ProcessState)
	}
}

func (a *acknowledged) note(t *testing.T, line string) {
	t.Helper()
	var what string
	var writer int
	var number uint64
	if _, err := fmt.Sscan(line, &what, &writer, &number); err != nil {
		t.Fatalf("the writer said %q", line)
	}
	if a.expected == nil {
		a.expected = make(map[string]uint64)
	}
	switch what {
	case "fence":
		a.fence = max(a.fence, number)
		a.expected["fences"] = a.fence
	case "put":
		a.expected[fmt.Sprint("value ", number)] = number
		a.expected[fmt.Sprint("latest ", writer)] = number
	case "epoch":
		a.expected[fmt.Sprint("epoch ", writer)] = number
	default:
		t.Fatalf("the writer said %q", line)
	}
}

func (a *acknowledged) check(t *testing.T, b *boltstore.Store) {
	t.Helper()
	for key, number := range a.expected {
		entries, err := b.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if entries[0].Number < number {
			t.Fatalf("%s has the number %d, acknowledged was %d", key, entries[0].Number, number)
		}
	}
	lease, acquired, err := claimLease(t.Context(), b, store.Claim{Key: "newcomer", Owner: rand.Text(), Counter: "fences", TTL: time.Millisecond})
	if err != nil || !acquired || lease.Fence <= a.fence {
		t.Fatalf("fence %d after %d, %v", lease.Fence, a.fence, err)
	}
}
