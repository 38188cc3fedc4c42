package fleet

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// differences reports replicas that disagree.
func (f *findings) differences() {
	f.clocks()
	f.rings()
	f.configurations()
	f.versions()
	f.secrets()
}

// clocks compares each clock with the median of all.
func (f *findings) clocks() {
	all := make([]time.Duration, 0, len(f.members))
	for _, m := range f.members {
		all = append(all, m.clock)
	}
	slices.Sort(all)
	if all[len(all)-1]-all[0] <= ClockLimit {
		return
	}
	median := all[(len(all)-1)/2]
	var off []string
	for _, m := range f.members {
		switch d := m.clock - median; {
		case d > ClockLimit:
			off = append(off, string(m.replica.ID)+" is "+Span(d)+" ahead")
		case -d > ClockLimit:
			off = append(off, string(m.replica.ID)+" is "+Span(-d)+" behind")
		}
	}
	if off == nil { // both sides of the median are within the limit
		off = append(off, "they are up to "+Span(all[len(all)-1]-all[0])+" apart")
	}
	f.addFleetf(ClockDiffers, "", f.now, "The clocks of the replicas differ: %s", strings.Join(off, ", "))
}

// rings reports a replica that seals with a key which another one does not have, or rings
// that differ in another way for some time.
func (f *findings) rings() {
	if f.ringDiffers() {
		return
	}
	groups := map[string][]Name{}
	var newest time.Time
	for _, m := range f.rung() {
		ring := m.record.Ring
		text := fmt.Sprintf("%s of %s", ring.Primary, slices.Sorted(slices.Values(ring.IDs)))
		groups[text] = append(groups[text], m.replica.ID)
		newest = later(newest, ring.Applied.Add(-m.clock))
	}
	if len(groups) < 2 {
		return
	}
	for _, writer := range f.rung() {
		for _, reader := range f.rung() {
			if !slices.Contains(reader.record.Ring.IDs, writer.record.Ring.Primary) {
				f.addFleetf(RingDiffers, "", f.now, "Replica %s seals with key %s, which replica %s does not have", writer.replica.ID, writer.record.Ring.Primary, reader.replica.ID)
				return
			}
		}
	}
	if f.now.Sub(newest) > RingSettle {
		f.addFleetf(RingRollout, "", newest, "The replicas have different rings of sealing keys: %s", grouped(groups))
	}
}

// rung returns the replicas with a ring.
func (f *findings) rung() (some []member) {
	for _, m := range f.members {
		if m.record != nil && m.record.Ring != nil {
			some = append(some, m)
		}
	}
	return some
}

func (f *findings) configurations() {
	groups := map[string][]Name{}
	var newest time.Time
	for _, m := range f.members {
		if m.record == nil {
			continue
		}
		digest := m.record.Config.Digest.Short()
		groups[digest] = append(groups[digest], m.replica.ID)
		newest = later(newest, m.record.Config.Applied.Add(-m.clock))
	}
	if len(groups) > 1 && f.now.Sub(newest) > ConfigSettle {
		f.addFleetf(ConfigDiffers, "", newest, "The replicas run different configurations: %s", grouped(groups))
	}
}

func (f *findings) versions() {
	groups := map[string][]Name{}
	var newest time.Time
	for _, m := range f.members {
		groups[string(m.replica.Version)] = append(groups[string(m.replica.Version)], m.replica.ID)
		newest = later(newest, m.replica.Started.Add(-m.clock))
	}
	if len(groups) > 1 && f.now.Sub(newest) > VersionSettle {
		f.addFleetf(VersionsDiffer, "", newest, "The replicas run different versions: %s", grouped(groups))
	}
}

// ringDiffers reports whether a replica is known to lack a sealing key.
func (f *findings) ringDiffers() bool {
	return slices.ContainsFunc(f.all, func(one Finding) bool { return one.ID == RingDiffers })
}

// secrets reports replicas that have not read the latest change of a client's secret. A
// missing sealing key would be the cause, and has its own finding.
func (f *findings) secrets() {
	if f.ringDiffers() {
		return
	}
	behind := map[Name][]Name{}
	for _, m := range f.members {
		for _, c := range m.clients() {
			if c.Generation < f.changes[c.Name].generation {
				behind[c.Name] = append(behind[c.Name], m.replica.ID)
			}
		}
	}
	for _, client := range slices.Sorted(maps.Keys(behind)) {
		if at := f.changes[client].at; f.now.Sub(at) > SecretsSettle {
			f.addFleetf(SecretsDiffer, client, at, "The latest change of the secret of client %s has not reached %s", client, list(behind[client]))
		}
	}
}

// latestChanges records the latest change of each client's secret.
func (f *findings) latestChanges() {
	for _, m := range f.members {
		for _, c := range m.clients() {
			if before, ok := f.changes[c.Name]; !ok || c.Generation > before.generation {
				f.changes[c.Name] = change{c.Generation, c.Changed.Add(-m.clock)}
			}
		}
	}
}

// outdated reports whether a replica wrote this about an earlier secret than the latest,
// and may not have had time to read the change.
func (f *findings) outdated(c *Client) bool {
	latest := f.changes[c.Name]
	return c.Generation < latest.generation && f.now.Sub(latest.at) <= SecretsSettle
}

// change is a change of a client's secret.
type change struct {
	generation uint64
	at         time.Time
}

func (m *member) clients() []Client {
	if m.record == nil {
		return nil
	}
	return m.record.Clients
}

// grouped describes which replicas have which value.
func grouped(groups map[string][]Name) string {
	var parts []string
	for _, value := range slices.Sorted(maps.Keys(groups)) {
		parts = append(parts, value+" on "+list(groups[value]))
	}
	return strings.Join(parts, "; ")
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
