package clientkeys

import (
	"time"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/jose"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// step is one step in the life of a key. Each step is stored before the next one begins, so
// that any replica can continue after any of them.
type step int

const (
	wait    step = iota
	stage        // make a key and publish it
	discard      // retire a staged version that the broker did not make
	show         // check that the document at the URL contains the key
	release      // check it again, and permit the use of the key
	prove        // obtain a token with the key, and make it current
	retire       // retire the previous key
)

// next returns the next step for a history.
func next(h secret.History, m credential.Made, now time.Time) step {
	pending, staged := h.In(secret.Pending)
	switch {
	case retireDue(h, m, now):
		return retire
	case !staged && !now.Before(stageDue(h, m)):
		return stage
	case !staged:
		return wait
	case pending.Publication.Key == "":
		return discard
	case pending.Publication.Usable:
		return prove
	case pending.Publication.ShownAt.IsZero():
		return show
	case !now.Before(usableFrom(pending, h, m)):
		return release
	default:
		return wait
	}
}

// stageDue returns when the next key is to be made. Zero: at once, because there is no key,
// or the current one was not made by the broker or is for another algorithm.
func stageDue(h secret.History, m credential.Made) time.Time {
	current, _ := h.In(secret.Current)
	if current.Value.IsZero() || algorithmOf(current.Publication) != m.Algorithm {
		return time.Time{}
	}
	return current.Since.Add(m.RotateEvery - m.PublishBefore)
}

// usableFrom returns when a staged key that its URL shows may be used. Without a key in
// use it is usable at once: waiting would only prolong the outage. So it is if the one in
// use has leaked.
func usableFrom(pending secret.Record, h secret.History, m credential.Made) time.Time {
	if current, _ := h.In(secret.Current); current.Value.IsZero() || pending.Publication.Urgent {
		return pending.Publication.ShownAt
	}
	return pending.Publication.ShownAt.Add(m.PublishBefore)
}

// retireDue reports whether the previous key has been a fallback for long enough.
func retireDue(h secret.History, m credential.Made, now time.Time) bool {
	current, _ := h.In(secret.Current)
	_, fallback := h.In(secret.Previous)
	return fallback && !now.Before(current.Since.Add(m.PublishBefore))
}

// algorithmOf returns the algorithm of a published key; empty if there is none.
func algorithmOf(p secret.Publication) string {
	object, err := jose.ParseObject([]byte(p.Key))
	if err != nil {
		return ""
	}
	algorithm, _, _ := object.Text("alg")
	return algorithm
}

// keyIDOf returns the kid of a published key; empty if there is none.
func keyIDOf(p secret.Publication) string {
	object, err := jose.ParseObject([]byte(p.Key))
	if err != nil {
		return ""
	}
	id, _, _ := object.Text("kid")
	return id
}
