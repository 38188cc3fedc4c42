package secret

import "time"

// Supply stages a version whose value a source supplies: the source decides which value
// there should be, and may return to an older one. A version that is pending makes way only
// if drop is set: the IdP refused it. Supply returns h if the version is current or pending already, and
// ErrAnotherPending if it has to wait.
func (h History) Supply(v Version, by string, drop bool, now time.Time) (History, error) {
	record, _ := h.Find(v.ID)
	pending, staged := h.In(Pending)
	switch {
	case record.State == Current || record.State == Pending:
		next := h.withValue(v)
		if record.State == Current && staged && drop {
			return next.Discard(pending.ID, now)
		}
		return next, nil
	case staged && !drop:
		return h, ErrAnotherPending
	}
	next, err := h, error(nil)
	if staged {
		next, err = next.Discard(pending.ID, now)
	}
	if record.State == Previous && err == nil { // it is staged again
		next, err = next.Retire(record.ID, now)
	}
	if err != nil {
		return h, err
	}
	return next.Stage(v, by, now)
}

// withValue adds the value of a version that is recorded without it, as each
// version from a [Source] is.
func (h History) withValue(v Version) History {
	next := h.next()
	for i := range next.Versions {
		if r := &next.Versions[i]; r.ID == v.ID && r.Value.IsZero() {
			r.Value = v.Value
			return next
		}
	}
	return h
}
