package audit_test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cezzis/tokenbroker/internal/audit"
)

// stuck returns a Log whose writer is blocked and has taken all lines out of the
// buffer: its output is a pipe that nobody reads.
func stuck(t *testing.T, cfg audit.Config) *book {
	t.Helper()
	const capacity = 4096
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(write.Fd(), unix.F_SETPIPE_SZ, capacity); err != nil {
		t.Fatal(err)
	}
	before := os.Stdout
	os.Stdout = write
	defer func() { os.Stdout = before }()
	cfg.File = audit.Stdout
	b := open(t, cfg)
	t.Cleanup(func() { _, _ = read.Close(), write.Close() }) // ends the writer before Close waits for it
	for size := 0; size <= capacity; size += len(audit.Line("a", everything(), time.Now())) {
		b.Record(everything())
	}
	for range 60_000 {
		if n, err := unix.IoctlGetInt(int(read.Fd()), unix.TIOCINQ); err != nil {
			t.Fatal(err)
		} else if n == capacity {
			return b
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the writer does not write")
	return nil
}

func TestFullBufferKeepsRoomForOutcomes(t *testing.T) {
	const buffer, tries = 1 << 20, 20_000
	size := len(audit.Line("a", everything(), time.Now())) // but for the name of the replica
	atBound := func(what string, lines, most int) {
		t.Helper()
		if least := lines * size; least > most+8*(size+200) {
			t.Errorf("%s: %d lines, %d bytes or more, were kept of at most %d", what, lines, least, most)
		}
		if bytes := lines * (size + 200); bytes < most {
			t.Errorf("%s: only %d lines, less than %d bytes, were kept of %d", what, lines, bytes, most)
		}
	}
	for _, refuse := range []bool{true, false} {
		t.Run(fmt.Sprint("refuse ", refuse), func(t *testing.T) {
			b := stuck(t, audit.Config{Refuse: refuse}.WithBuffer(buffer))
			if err := b.Ready(); err != nil {
				t.Fatalf("the buffer is empty: %v", err)
			}
			var permitted int
			for range tries {
				switch err := b.Permit(everything()); {
				case err == nil:
					permitted++
				case !refuse || !errors.Is(err, audit.ErrUnwritten):
					t.Fatal(err)
				}
			}
			lost := int(b.metric(t, "tokenbroker_audit_lost_total"))
			atBound("acts", permitted-lost, buffer)
			if refuse && lost > 0 {
				t.Errorf("%d permitted acts were lost", lost)
			}
			if err := b.Ready(); errors.Is(err, audit.ErrUnwritten) != refuse {
				t.Errorf("the buffer is full: %v", err)
			}
			for range tries {
				b.Record(everything())
			}
			lostOutcomes := int(b.metric(t, "tokenbroker_audit_lost_total")) - lost
			atBound("outcomes", tries-lostOutcomes, buffer)
			if got := b.Status(); got.Failing || int(got.Lost) != lost+lostOutcomes || time.Since(got.LostAt) > time.Minute {
				t.Errorf("%d lines were lost, and the status is %+v", lost+lostOutcomes, got)
			}
			if b.metric(t, "tokenbroker_audit_failing") != 0 {
				t.Error("writing failed, so this test did not test the buffer")
			}
		})
	}
}

func TestRefusalLimitRenewsEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := open(t, audit.Config{})
		for second := range 3 {
			for range 2 * audit.RefusalsPerSecond {
				b.Record(&audit.Event{Event: audit.Token, Outcome: audit.Denied, Caller: "mallory"})
			}
			if got, want := len(b.lines(t)), (second+1)*audit.RefusalsPerSecond; got != want {
				t.Errorf("%d lines after second %d, want %d", got, second+1, want)
			}
			time.Sleep(time.Second)
		}
	})
}
