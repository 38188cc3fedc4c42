package clientkeys

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/cezzis/tokenbroker/internal/credential"
	"github.com/cezzis/tokenbroker/internal/secret"
)

// tolerance is how late a step may be before the metrics report it.
const tolerance = 10 * time.Minute

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

// overdue reports whether the key in use should have been replaced.
func overdue(h secret.History, m credential.Made, now time.Time) bool {
	due := stageDue(h, m)
	if due.IsZero() {
		pending, staged := h.In(secret.Pending)
		return staged && now.After(pending.Since.Add(tolerance))
	}
	return now.After(due.Add(m.PublishBefore + tolerance))
}

// hidden reports whether the URL does not show a staged key that it should show.
func hidden(h secret.History, now time.Time) bool {
	pending, staged := h.In(secret.Pending)
	return staged && pending.Publication.ShownAt.IsZero() && now.After(pending.Since.Add(tolerance))
}

//nolint:gochecknoglobals // descriptors are constants that Go cannot express as such
var (
	overdueDesc = prometheus.NewDesc("tokenbroker_key_overdue",
		"1 while a client should already sign with a newer key that the broker makes, but does not, else 0.", []string{"client"}, nil)
	hiddenDesc = prometheus.NewDesc("tokenbroker_key_not_shown",
		"1 while the document at the URL of a client's public keys has lacked a new key for more than ten minutes, else 0.", []string{"client"}, nil)
)

type collector struct{ keys *Keys }

func (collector) Describe(out chan<- *prometheus.Desc) {
	out <- overdueDesc
	out <- hiddenDesc
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	now := time.Now()
	for _, set := range c.keys.cfg.Sets() {
		u := set.View()
		if !u.Loaded {
			continue
		}
		for desc, is := range map[*prometheus.Desc]bool{overdueDesc: overdue(u.History, set.Made, now), hiddenDesc: hidden(u.History, now)} {
			value := 0.0
			if is {
				value = 1
			}
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, set.Client)
		}
	}
}
