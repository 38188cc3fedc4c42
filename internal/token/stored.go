package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// storedVersion is the version of the stored form that this package writes, and
// the only one that it reads.
const storedVersion = 1

// stored is a token as replicas share it. It names no instant, because the
// clocks of replicas differ: all times are distances from the end of the
// token's use, which the store counts as the value's lifetime.
type stored struct {
	Version       int               `json:"v"`
	Value         string            `json:"token"`
	Type          string            `json:"type"`
	Scopes        []string          `json:"scopes,omitempty"`
	Extras        map[string]string `json:"extras,omitempty"`
	SecretVersion string            `json:"with"`
	Epoch         uint64            `json:"epoch"`

	// Distances from UsableUntil.
	Minted  time.Duration `json:"minted"`  // before
	Refresh time.Duration `json:"refresh"` // before
	Expires time.Duration `json:"expires"` // after
}

// Stored returns what [FromStored] makes the token of again: the bytes, which
// show the token and so must be sealed before they leave the process, and the
// lifetime to store them with, zero or less if it is over. The fence is not
// among the bytes: it is the number that the store orders them by.
func (t *Token) Stored(now time.Time) (data []byte, ttl time.Duration) {
	data, err := json.Marshal(stored{
		Version:       storedVersion,
		Value:         t.Value.Reveal(),
		Type:          t.Type,
		Scopes:        t.Scopes,
		Extras:        t.Extras,
		SecretVersion: t.SecretVersion,
		Epoch:         t.Epoch,
		Minted:        t.UsableUntil.Sub(t.MintedAt),
		Refresh:       t.UsableUntil.Sub(t.RefreshAt),
		Expires:       t.ExpiresAt.Sub(t.UsableUntil),
	})
	if err != nil {
		panic(fmt.Sprintf("token: strings and numbers that JSON cannot hold: %T", err))
	}
	return data, until(t.UsableUntil, now)
}

// FromStored makes a token of what [Token.Stored] returned, the fence that it
// was stored with and what was left of its lifetime when it was read, counted
// from before the reading began. A form that it does not know is an error that
// shows nothing of it.
func FromStored(data []byte, fence uint64, readAt time.Time, left time.Duration) (*Token, error) {
	var s stored
	if json.Unmarshal(data, &s) != nil {
		return nil, errors.New("the stored token cannot be read")
	}
	if s.Version != storedVersion {
		return nil, fmt.Errorf("the stored token has the form %d, and this version of the broker knows only %d", s.Version, storedVersion)
	}
	if s.Value == "" || left < 0 || !s.sane() {
		return nil, errors.New("the stored token makes no sense")
	}
	value := redact.New(s.Value)
	end := readAt.Add(left)
	return &Token{
		Value:         value,
		SHA256:        value.SHA256(),
		Type:          s.Type,
		Scopes:        s.Scopes,
		Extras:        s.Extras,
		SecretVersion: s.SecretVersion,
		Epoch:         s.Epoch,
		Fence:         fence,
		MintedAt:      end.Add(-s.Minted),
		RefreshAt:     end.Add(-s.Refresh),
		UsableUntil:   end,
		ExpiresAt:     end.Add(s.Expires),
	}, nil
}

// sane keeps the distances in order, and so small that adding them is safe.
func (s *stored) sane() bool {
	for _, distance := range []time.Duration{s.Minted, s.Refresh, s.Expires} {
		if distance < 0 || distance > MaxLifetime {
			return false
		}
	}
	return s.Refresh <= s.Minted && s.Minted+s.Expires <= MaxLifetime
}
