package broker

import (
	"testing"
	"testing/synctest"
)

func TestChaserWorksOnceMoreHoweverOftenItIsToldMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c chaser
		runs := 0
		goOn := make(chan struct{})
		tell := func() {
			c.tell(func(work func()) bool { go work(); return true }, func() { runs++; <-goOn })
		}
		tell()
		synctest.Wait()
		for range 5 {
			tell()
		}
		goOn <- struct{}{}
		synctest.Wait()
		goOn <- struct{}{}
		synctest.Wait()
		if runs != 2 {
			t.Errorf("the work was done %d times", runs)
		}
		tell()
		goOn <- struct{}{}
		synctest.Wait()
		if runs != 3 {
			t.Errorf("told again, the work was done %d times in all", runs)
		}
	})
}

func TestBellRingsForItsKeysUntilItIsTaken(t *testing.T) {
	b := newBells()
	rung := 0
	bell := b.hang(func() { rung++ }, "a", "b")
	b.ring("a")
	b.ring("b")
	b.ring("c")
	b.take(bell)
	b.ring("a")
	if rung != 2 || len(b.hung) != 0 {
		t.Errorf("rung %d times, %d keys left", rung, len(b.hung))
	}
}
