package credential

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cezzis/tokenbroker/internal/backoff"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/secret"
	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/token"
)

const (
	// FetchTimeout bounds a fetch of a token, including all of its waits.
	FetchTimeout = 25 * time.Second
	// proofLasts is how long a secret counts as good after it obtained a token, and
	// proofKept how long the store remembers that. After proofLasts the secret may
	// have been revoked, so only a few fetches use it until one of them succeeds.
	proofLasts = time.Minute
	proofKept  = 7 * 24 * time.Hour

	// noProof is stored in place of a version after a refusal or a throttling.
	noProof = "-"
)

// proof is the last version that obtained a token and was not refused since. Without one,
// fetches go one at a time; after until, a few go together until one of them succeeds.
type proof struct {
	mu      sync.Mutex
	version string
	until   time.Time
	fence   uint64 // of the fetch that proved it
	alone   uint64 // number of fetches without a lease since then
	// verdict is fired when a secret obtained a token or was refused.
	verdict store.Signal
	probe   chan struct{} // closed at the end of the fetch that tries the secret; nil: no such fetch
}

// Verdict returns a channel that is closed when a version next obtains a token or is
// refused.
func (s *Set) Verdict() <-chan struct{} { return s.proof.verdict.Next() }

// Proven reports whether a version was the last to obtain a token and was not refused
// since, and whether it did so recently, so that any number of fetches may use it.
func (s *Set) Proven(version string) (ever, recently bool) {
	p := &s.proof
	p.mu.Lock()
	defer p.mu.Unlock()
	ever = p.version == version
	return ever, ever && time.Now().Before(p.until)
}

// ProvenRecently reports whether a version obtained a token so recently that any number of
// fetches may use it.
func (s *Set) ProvenRecently(v *Version) bool {
	_, recently := s.Proven(v.ID)
	return recently
}

// Bounds of the fetches with a secret that was proved so long ago that the IdP may have
// revoked it since. They count by fences, so they hold for the fleet.
const (
	// unconfirmedAtOnce fetches start at once. Each further one waits unconfirmedPause
	// longer than the one before it, so that a quick refusal by the IdP stops the rest.
	unconfirmedAtOnce = 8
	unconfirmedPause  = 25 * time.Millisecond
	// maxUnconfirmed fetches may run without a response to any of them; it is also the
	// number of connections from a replica to an IdP.
	maxUnconfirmed = 32
)

// Unconfirmed is the number of a fetch among those since the last proof.
type Unconfirmed uint64

// SinceProof numbers a fetch by its fence in the fleet, or by a count of this replica if it
// has no fence.
func (s *Set) SinceProof(fence uint64) Unconfirmed {
	p := &s.proof
	p.mu.Lock()
	defer p.mu.Unlock()
	if fence > 0 {
		return Unconfirmed(max(fence, p.fence) - p.fence)
	}
	p.alone++
	return Unconfirmed(p.alone)
}

// Wait returns how long the fetch waits for the result of an earlier one.
func (n Unconfirmed) Wait() time.Duration {
	if n <= unconfirmedAtOnce {
		return 0
	}
	return time.Duration(min(n-unconfirmedAtOnce, 1000)) * unconfirmedPause
}

// Alone reports whether the fetch must be the only one, as with a secret that was never
// proved.
func (n Unconfirmed) Alone() bool { return n >= maxUnconfirmed }

// TryProbe takes the turn to try the secret in this replica and returns nil, or returns a
// channel that is closed at the end of the running probe.
func (s *Set) TryProbe() (running <-chan struct{}) {
	p := &s.proof
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.probe != nil {
		return p.probe
	}
	p.probe = make(chan struct{})
	return nil
}

// EndProbe ends the turn.
func (s *Set) EndProbe() {
	p := &s.proof
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.probe)
	p.probe = nil
}

// set records that a version obtained a token in a fetch of this fence, or with noProof
// that the IdP throttles. Results of older fetches are ignored.
func (p *proof) set(version string, until time.Time, fence uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fence >= p.fence {
		p.version, p.until, p.fence, p.alone = version, until, fence, 0
		p.verdict.Fire()
	}
}

// refuse records that a version was refused, and reports whether no proven version is
// left.
func (p *proof) refuse(version string, fence uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verdict.Fire()
	another := p.version != version && p.version != noProof && p.version != ""
	if another || fence < p.fence {
		return false
	}
	p.version, p.fence = noProof, fence
	return true
}

func (s *Set) noProofPut(fence uint64) store.Put {
	return store.Put{Key: s.Keys.Proof, Number: fence, Value: []byte(noProof), TTL: proofKept}
}

// adoptProof adopts the fleet's proof, if it is newer.
func (s *Set) adoptProof(stored store.Entry, requested time.Time) {
	if v := s.View().Named(string(stored.Value)); v != nil {
		atLeast(&v.usedAt, requested.Add(stored.TTL-proofKept).UnixNano())
	}
	p := &s.proof
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(stored.Value) > 0 && stored.Number > p.fence {
		p.version, p.until, p.fence = string(stored.Value), requested.Add(stored.TTL-proofKept+proofLasts), stored.Number
		p.verdict.Fire()
	}
}

// Use is one use of a version at the token endpoint.
type Use struct {
	Version *Version
	// Fence orders the result among those of other fetches.
	Fence uint64
	Begun time.Time
	// refusal is the one remembered at the start: a success ends only this one.
	refusal *backoff.Failure
}

// Begin begins a use of a version.
func Begin(v *Version, fence uint64) Use {
	return Use{Version: v, Fence: fence, Begun: time.Now(), refusal: v.refused.Load()}
}

// SuccessPuts returns the store entries for a token that was obtained.
func (s *Set) SuccessPuts(u Use) []store.Put {
	puts := []store.Put{{Key: s.Keys.Proof, Number: u.Fence, Value: []byte(u.Version.ID), TTL: proofKept}}
	if u.refusal != nil {
		puts = append(puts, backoff.EndPut(u.Version.key, u.Fence, FetchTimeout))
	}
	return puts
}

// Succeeded records that a use obtained a token.
func (s *Set) Succeeded(u Use) {
	s.proof.set(u.Version.ID, time.Now().Add(proofLasts), u.Fence)
	u.Version.refused.CompareAndSwap(u.refusal, nil)
}

// Throttled records that the IdP throttles the client, and returns the store entry for it.
func (s *Set) Throttled(u Use) store.Put {
	s.proof.set(noProof, time.Now(), u.Fence)
	return s.noProofPut(u.Fence)
}

// Issue describes a token that the IdP issued.
type Issue struct {
	Fence   uint64
	At      time.Time
	Version string // of the secret
}

// Issued records a token that the IdP issued to any replica. It reports whether no newer
// one is known.
func (s *Set) Issued(tok *token.Token) (newest bool) {
	if v := s.View().Named(tok.SecretVersion); v != nil {
		v.refused.Succeeded(tok.Fence)
		atLeast(&v.usedAt, tok.MintedAt.UnixNano())
	}
	for {
		before := s.newest.Load()
		if before != nil && before.Fence >= tok.Fence {
			return false
		}
		if s.newest.CompareAndSwap(before, &Issue{tok.Fence, tok.MintedAt, tok.SecretVersion}) {
			return true
		}
	}
}

// Newest describes the newest token that any replica obtained, as far as this one knows;
// nil: no token.
func (s *Set) Newest() *Issue { return s.newest.Load() }

// Fallback reports whether the newest token was obtained with a version other than the
// current one, although the current one has had time to propagate.
func (s *Set) Fallback() bool {
	newest := s.Newest()
	if newest == nil {
		return false
	}
	current, recorded := s.View().History.In(secret.Current)
	return recorded && newest.Version != current.ID && newest.At.Sub(current.Since) >= propagation
}

func atLeast(to *atomic.Int64, value int64) {
	for {
		before := to.Load()
		if before >= value || to.CompareAndSwap(before, value) {
			return
		}
	}
}

// Refused records that the IdP refused a version and the time to retry it. held is the
// usable token that the fetch was to replace, or nil. Refused returns the failure and the
// store entries for it. Concurrent uses count as one try: the failure is nil if another
// one has recorded it.
func (s *Set) Refused(use Use, err error, held *token.Token) (*backoff.Failure, []store.Put) {
	v, now := use.Version, time.Now()
	standing := v.refused.Load()
	if standing != nil && standing.At.After(use.Begun) {
		return nil, nil
	}
	u := s.View()
	next := &backoff.Failure{
		Class: idp.CredentialRefused, Err: backoff.ErrorOf(s.Client, v.ID, err), At: now, Fence: use.Fence,
		Tries: standing.TriesBefore(idp.CredentialRefused) + 1,
	}
	wait := backoff.SecretDelay(next.Tries, v == u.Current && u.rotating(now))
	next.Until = now.Add(wait)
	v.refused.Record(next)
	s.fleet.Log.Warn("the IdP refuses a secret", "client", s.Client, "secret_version", v.ID, "state", u.stateOf(v).String(), "error", err,
		"tries", next.Tries, "next_try_in", wait.Round(time.Millisecond))
	puts := []store.Put{next.Put(v.key, use.Fence, now)}
	switch {
	case v == u.Current && u.Pending != nil:
		// The IdP may have switched to the pending secret.
		puts = append(puts, u.Pending.hasten(now, now, use.Fence)...)
	case v != u.Current && u.Current != nil && held != nil && u.Next(now, nil) == nil:
		// No other secret is left: retry this one before the token ends.
		puts = append(puts, u.Current.hasten(now.Add(max(backoff.LeastPause, held.UsableUntil.Sub(now)/3)), now, use.Fence)...)
	}
	if s.proof.refuse(v.ID, use.Fence) {
		puts = append(puts, s.noProofPut(use.Fence))
	}
	return next, puts
}

// hasten moves the retry of a refused version forward to at.
func (v *Version) hasten(at, now time.Time, fence uint64) []store.Put {
	standing := v.refused.Load()
	if !standing.Active(at) {
		return nil
	}
	next := *standing
	next.Until, next.Fence = at, fence
	v.refused.Record(&next)
	return []store.Put{next.Put(v.key, fence, now)}
}

// Look is a read of a Set's state in the store.
type Look struct {
	// Keys are the keys to read.
	Keys []string

	set      *Set
	versions []*Version
}

// Look returns the keys with the Set's state in the store, and adopts their values.
func (s *Set) Look() Look {
	l := Look{Keys: []string{s.Keys.History, s.Keys.Proof}, set: s, versions: s.View().All()}
	for _, v := range l.versions {
		l.Keys = append(l.Keys, v.key)
	}
	return l
}

// Adopt applies the newer parts of the values of Keys, which the store sent between
// requested and responded. It returns the highest fence of these.
func (l Look) Adopt(ctx context.Context, values []store.Entry, requested, responded time.Time) (fence uint64) {
	history, proof, refusals := values[0], values[1], values[2:]
	if l.set.Kept() {
		l.set.adoptHistory(history)
	}
	for i, v := range l.versions {
		v.refused.AdoptStored(refusals[i], responded)
		fence = max(fence, refusals[i].Number)
	}
	l.set.adoptProof(proof, requested)
	l.set.begin(ctx)
	return max(fence, proof.Number)
}
