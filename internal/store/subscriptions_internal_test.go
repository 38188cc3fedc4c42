package store

import (
	"testing"
	"testing/synctest"
)

func TestCoalescerMergesWakeUps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c Coalescer
		runs := 0
		goOn := make(chan struct{})
		tell := func() {
			c.Run(func(work func()) bool { go work(); return true }, func() { runs++; <-goOn })
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

func TestSubscriptionEndsWithClose(t *testing.T) {
	all := NewSubscriptions()
	notified := 0
	subscription := all.Subscribe(func() { notified++ }, "a", "b")
	all.Notify("a")
	all.Notify("b")
	all.Notify("c")
	subscription.Close()
	all.Notify("a")
	if notified != 2 || len(all.byKey) != 0 {
		t.Errorf("notified %d times, %d keys left", notified, len(all.byKey))
	}
}
