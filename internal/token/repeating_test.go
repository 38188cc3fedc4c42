package token_test

import (
	"testing"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/token"
)

func TestRepeatedTokenKeepsItsExpiry(t *testing.T) {
	begun := time.Now()
	grant := func(value string, after, life time.Duration) token.Grant {
		return token.Grant{Value: redact.New(value), RequestedAt: begun.Add(after), Lifetime: life}
	}
	held := token.New(grant("same", 0, time.Hour), 1, 1)
	for name, tt := range map[string]struct {
		grant token.Grant
		want  time.Duration // its end
	}{
		"exactly":                  {grant("same", 50*time.Minute, 10*time.Minute), time.Hour},
		"earlier":                  {grant("same", 50*time.Minute, 9*time.Minute), 59 * time.Minute},
		"rounded up":               {grant("same", 50*time.Minute+100*time.Millisecond, 10*time.Minute), time.Hour},
		"rounded up after the end": {grant("same", time.Hour+100*time.Millisecond, time.Second), time.Hour},
		"prolonged":                {grant("same", 50*time.Minute, time.Hour), 110 * time.Minute},
		"another one":              {grant("other", 50*time.Minute+100*time.Millisecond, 10*time.Minute), time.Hour + 100*time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			if got := token.New(tt.grant.Repeating(held), 1, 2).ExpiresAt.Sub(begun); got != tt.want {
				t.Errorf("it ends after %v, want %v", got, tt.want)
			}
			if got := token.New(tt.grant.Repeating(nil), 1, 2).ExpiresAt; !got.Equal(tt.grant.RequestedAt.Add(tt.grant.Lifetime)) {
				t.Errorf("with none held it ends at %v", got)
			}
		})
	}
}
