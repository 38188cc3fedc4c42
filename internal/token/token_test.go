package token_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/token"
)

func grant(life time.Duration) token.Grant {
	return token.Grant{Value: redact.New("canary-token"), Type: "Bearer", RequestedAt: time.Now(), Lifetime: life}
}

func TestTokenLifetime(t *testing.T) {
	for _, tt := range []struct {
		life, margin, earliest, latest time.Duration
	}{
		{8 * time.Second, 800 * time.Millisecond, 5600 * time.Millisecond, 6400 * time.Millisecond},
		{time.Minute, 6 * time.Second, 42 * time.Second, 48 * time.Second},
		{5 * time.Minute, 30 * time.Second, 210 * time.Second, 240 * time.Second},
		{time.Hour, time.Minute, 42 * time.Minute, 48 * time.Minute},
		{24 * time.Hour, time.Minute, 24*time.Hour - 36*time.Minute, 24*time.Hour - 24*time.Minute},
		{1000 * time.Hour, time.Minute, 24*time.Hour - 36*time.Minute, 24*time.Hour - 24*time.Minute},
	} {
		t.Run(tt.life.String(), func(t *testing.T) {
			for range 200 {
				tok := token.New(grant(tt.life), 0, 0)
				end := min(tt.life, token.MaxLifetime)
				if got := tok.Lifetime(); got != end {
					t.Fatalf("Lifetime() = %v, want %v", got, end)
				}
				if got := tok.ExpiresAt.Sub(tok.UsableUntil); got != tt.margin {
					t.Fatalf("margin = %v, want %v", got, tt.margin)
				}
				if got := tok.RefreshAt.Sub(tok.MintedAt); got < tt.earliest || got > tt.latest {
					t.Fatalf("refreshed after %v, want %v to %v", got, tt.earliest, tt.latest)
				}
			}
		})
	}
}

func TestRefreshInIsBoundedByTheLifetime(t *testing.T) {
	g := grant(time.Hour)
	g.RefreshIn = 30 * time.Minute
	if tok := token.New(g, 0, 0); tok.RefreshAt.Sub(tok.MintedAt) != 30*time.Minute {
		t.Errorf("refresh_in was not honoured: %v", tok.RefreshAt.Sub(tok.MintedAt))
	}
	g.RefreshIn = 59*time.Minute + 30*time.Second // within the margin
	if tok := token.New(g, 0, 0); tok.RefreshAt.Sub(tok.MintedAt) > 48*time.Minute {
		t.Errorf("refresh_in beyond the usable life was honoured: %v", tok.RefreshAt.Sub(tok.MintedAt))
	}
}

func TestUsableAndFreshAtTheirBounds(t *testing.T) {
	tok := token.New(grant(100*time.Second), 0, 0) // margin 10 s
	at := func(d time.Duration) time.Time { return tok.MintedAt.Add(d) }
	for _, tt := range []struct {
		at, minTTL time.Duration
		usable     bool
	}{
		{0, 0, true},
		{90*time.Second - 1, 0, true},
		{90 * time.Second, 0, false},
		{0, 100 * time.Second, false},
		{0, 100*time.Second - 1, true},
		{40 * time.Second, 59 * time.Second, true},
		{40 * time.Second, 60 * time.Second, false},
		{95 * time.Second, time.Second, false}, // a small min_ttl does not lower the margin
	} {
		if got := tok.Usable(at(tt.at), tt.minTTL); got != tt.usable {
			t.Errorf("Usable after %v with min_ttl %v = %v", tt.at, tt.minTTL, got)
		}
	}
	if !tok.Fresh(tok.RefreshAt.Add(-1)) || tok.Fresh(tok.RefreshAt) {
		t.Error("Fresh does not end at RefreshAt")
	}
}

// A reading of the wall clock alone stands for a process whose wall clock was
// stepped: Round(0) drops the monotonic reading.
func TestSteppedClockLengthensNoLifetime(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		life := time.Duration(rapid.Int64Range(1, int64(48*time.Hour)).Draw(t, "life"))
		tok := token.New(grant(life), 0, 0)
		elapsed := time.Duration(rapid.Int64Range(0, int64(72*time.Hour)).Draw(t, "elapsed"))
		minTTL := time.Duration(rapid.Int64Range(0, int64(25*time.Hour)).Draw(t, "min_ttl"))
		for _, now := range []time.Time{tok.MintedAt.Add(elapsed), tok.MintedAt.Add(elapsed).Round(0)} {
			if tok.Usable(now, minTTL) && elapsed+minTTL >= min(life, token.MaxLifetime) {
				t.Fatalf("life %v: handed out after %v with min_ttl %v", life, elapsed, minTTL)
			}
			if tok.Usable(now, minTTL) && elapsed >= tok.UsableUntil.Sub(tok.MintedAt) {
				t.Fatalf("life %v: handed out within its margin, after %v", life, elapsed)
			}
		}
		if !tok.RefreshAt.Before(tok.UsableUntil) && life > time.Microsecond {
			t.Fatalf("life %v: not refreshed before it becomes unusable", life)
		}
	})
}

func TestTokenDoesNotPrintItself(t *testing.T) {
	tok := token.New(grant(time.Hour), 0, 0)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		if out := fmt.Sprintf(verb, tok) + fmt.Sprintf(verb, *tok); strings.Contains(out, "canary") {
			t.Errorf("%s prints the token: %s", verb, out)
		}
	}
}
