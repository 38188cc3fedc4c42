package clientkeys

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/fleet"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// Status describes the keys of a client for operators.
type Status struct {
	Client, URL string
	// Document is the JWK set at the URL, as this replica serves it.
	Document []byte
	// Keys are newest first. Retired keys that are no longer published are not among them.
	Keys []Key
	// NextAt is when the next key is to become current. Zero: as soon as possible.
	NextAt time.Time
	// Problem is why the last step of this replica failed. Empty: it did not.
	Problem string
}

// Key describes one key.
type Key struct {
	Version, ID, Algorithm string
	State                  secret.State
	Since                  time.Time
	// ShownAt is when the URL showed the key first. Zero: never yet.
	ShownAt time.Time
	// UsableFrom is when a staged key may be used. Zero: not known yet, or it is in use.
	UsableFrom time.Time
	// PublishedUntil is when a retired key is unpublished.
	PublishedUntil time.Time
}

// Status returns the keys of a client.
func (k *Keys) Status(set *credential.Set) Status {
	h, now := set.View().History, time.Now()
	s := Status{Client: set.Client, URL: set.Made.URL, Document: Document(h, now)}
	if due := stageDue(h, set.Made); !due.IsZero() {
		s.NextAt = due.Add(set.Made.PublishBefore)
	}
	if err := k.problem(set.Client); err != nil {
		s.Problem = err.Error()
	}
	for _, r := range h.Versions {
		if !published(r, now) {
			continue
		}
		key := Key{Version: r.ID, ID: keyIDOf(r.Publication), Algorithm: algorithmOf(r.Publication), State: r.State, Since: r.Since, ShownAt: r.Publication.ShownAt}
		switch {
		case r.State == secret.Retired:
			key.PublishedUntil = r.Since.Add(Linger)
		case r.State == secret.Pending && !key.ShownAt.IsZero():
			key.UsableFrom = usableFrom(r, h, set.Made)
		}
		s.Keys = append(s.Keys, key)
	}
	return s
}

// Delays returns the delay of each client's key, by client. It is nil for a client of whose
// key no step is due.
func (k *Keys) Delays(now time.Time) map[string]*fleet.Key {
	all := map[string]*fleet.Key{}
	for _, set := range k.cfg.Sets() {
		all[set.Client] = delay(set, now)
	}
	return all
}

// delay returns the delay of a client's key. Nil: no step is due, as far as is known.
func delay(set *credential.Set, now time.Time) *fleet.Key {
	due, obstacle := obstacleOf(set)
	if due.IsZero() || now.Before(due) {
		return nil
	}
	return &fleet.Key{Due: due, PublishBefore: set.Made.PublishBefore, Obstacle: obstacle}
}

// obstacleOf returns what the next key waits for, and since when it is or will be late. Zero:
// it cannot be late.
func obstacleOf(set *credential.Set) (due time.Time, obstacle fleet.Obstacle) {
	u := set.View()
	pending, staged := u.History.In(secret.Pending)
	switch {
	case !u.Loaded, staged && pending.Publication.Key == "":
		return time.Time{}, fleet.UnknownObstacle
	case !staged:
		return stageDue(u.History, set.Made), fleet.KeyNotMade
	case pending.Publication.ShownAt.IsZero():
		return pending.Since, fleet.KeyNotShown
	case !pending.Publication.Usable:
		return usableFrom(pending, u.History, set.Made), fleet.KeyNotShown
	case set.ProvesByUse && (u.Pending == nil || u.Pending.Refusal() == nil):
		return time.Time{}, fleet.KeyNotAccepted // it waits for the next user
	default:
		return usableFrom(pending, u.History, set.Made), fleet.KeyNotAccepted
	}
}

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	overdueDesc = prometheus.NewDesc("tokenbroker_key_overdue",
		"1 while a step of a key that the broker makes is late, so that the key in use cannot be replaced, else 0.", []string{"client"}, nil)
	hiddenDesc = prometheus.NewDesc("tokenbroker_key_not_shown",
		"1 while it is late because the document at the URL of the client's public keys lacks the new key, else 0.", []string{"client"}, nil)
)

type collector struct{ keys *Keys }

func (collector) Describe(out chan<- *prometheus.Desc) {
	out <- overdueDesc
	out <- hiddenDesc
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	for _, set := range c.keys.cfg.Sets() {
		if !set.View().Loaded {
			continue
		}
		late := delay(set, now)
		overdue := late.Overdue(now)
		hidden := overdue && late.Obstacle == fleet.KeyNotShown
		for desc, is := range map[*prometheus.Desc]bool{overdueDesc: overdue, hiddenDesc: hidden} {
			value := 0.0
			if is {
				value = 1
			}
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, set.Client)
		}
	}
}
