package token

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// formatVersion is the only version of the stored format.
const formatVersion = 1

// stored is the stored format of a token. It contains no absolute times, because the
// clocks of replicas differ. All times are distances from UsableUntil, which is the
// time at which the store drops the value.
type stored struct {
	Version       int               `json:"v"`
	Value         string            `json:"token"`
	Type          string            `json:"type"`
	Scopes        []string          `json:"scopes,omitempty"`
	Extras        map[string]string `json:"extras,omitempty"`
	IssuedType    string            `json:"issued_type,omitempty"`
	SecretVersion string            `json:"with"`
	Epoch         uint64            `json:"epoch"`

	// Distances from UsableUntil.
	Minted  time.Duration `json:"minted"`  // before
	Refresh time.Duration `json:"refresh"` // before
	Expires time.Duration `json:"expires"` // after
}

// Stored encodes the token for [FromStored]. data contains the token in the clear and
// must be sealed before it leaves the process. ttl is the lifetime of the stored value;
// it is not positive if the token is no longer usable. The fence is not in data: the
// store keeps it separately.
func (t *Token) Stored(now time.Time) (data []byte, ttl time.Duration) {
	data, err := json.Marshal(stored{
		Version:       formatVersion,
		Value:         t.Value.Reveal(),
		Type:          t.Type,
		Scopes:        t.Scopes,
		Extras:        t.Extras,
		IssuedType:    t.IssuedType,
		SecretVersion: t.SecretVersion,
		Epoch:         t.Epoch,
		Minted:        t.UsableUntil.Sub(t.MintedAt),
		Refresh:       t.UsableUntil.Sub(t.RefreshAt),
		Expires:       t.ExpiresAt.Sub(t.UsableUntil),
	})
	if err != nil {
		panic(fmt.Sprintf("token: encoding a token: %T", err)) // the error may quote the token
	}
	return data, until(t.UsableUntil, now)
}

// FromStored decodes the result of [Token.Stored]. fence is that of the stored value,
// ttl its remaining lifetime, and readAt the time just before it was read. Errors
// contain no part of data.
func FromStored(data []byte, fence uint64, readAt time.Time, ttl time.Duration) (*Token, error) {
	var s stored
	if json.Unmarshal(data, &s) != nil {
		return nil, errors.New("the stored token cannot be read")
	}
	if s.Version != formatVersion {
		return nil, fmt.Errorf("the stored token has the format version %d, and this version of the broker supports only %d", s.Version, formatVersion)
	}
	if s.Value == "" || ttl < 0 || !s.valid() {
		return nil, errors.New("the stored token is not valid")
	}
	value := redact.New(s.Value)
	end := readAt.Add(ttl)
	return &Token{
		Value:         value,
		SHA256:        value.SHA256(),
		Type:          s.Type,
		Scopes:        s.Scopes,
		Extras:        s.Extras,
		IssuedType:    s.IssuedType,
		SecretVersion: s.SecretVersion,
		Epoch:         s.Epoch,
		Fence:         fence,
		MintedAt:      end.Add(-s.Minted),
		RefreshAt:     end.Add(-s.Refresh),
		UsableUntil:   end,
		ExpiresAt:     end.Add(s.Expires),
	}, nil
}

// valid checks the order of the times, and that their sums cannot overflow.
func (s *stored) valid() bool {
	for _, distance := range []time.Duration{s.Minted, s.Refresh, s.Expires} {
		if distance < 0 || distance > MaxLifetime {
			return false
		}
	}
	return s.Refresh <= s.Minted && s.Minted+s.Expires <= MaxLifetime
}
