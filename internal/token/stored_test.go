package token_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/token"
)

// However far the clocks of writer and reader are apart, what is read lives as
// long as what was written, less the time on the way.
func TestStoredTokenRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		asked := time.Unix(1_800_000_000, 0).Add(time.Duration(rapid.Int64Range(0, 1e9).Draw(t, "nanoseconds")))
		life := time.Duration(rapid.Int64Range(1, 86_400).Draw(t, "life")) * time.Second
		made := token.New(token.Grant{
			Value:         redact.New(rapid.StringN(1, 50, 200).Draw(t, "value")),
			Type:          "Bearer",
			Scopes:        rapid.SliceOfN(rapid.StringMatching(`[a-z:]{1,8}`), 1, 4).Draw(t, "scopes"),
			Extras:        map[string]string{"instance_url": rapid.String().Draw(t, "extra")},
			IssuedType:    rapid.SampledFrom([]string{"", "urn:ietf:params:oauth:token-type:jwt"}).Draw(t, "issued type"),
			SecretVersion: "0011aabb",
			RequestedAt:   asked,
			Lifetime:      life,
			RefreshIn:     time.Duration(rapid.Int64Range(0, 1000).Draw(t, "refresh in")) * time.Second,
		}, rapid.Uint64Max(1<<53).Draw(t, "epoch"), 0)
		age := time.Duration(rapid.Int64Range(0, int64(made.UsableUntil.Sub(asked))-1).Draw(t, "age"))
		data, ttl := made.Stored(asked.Add(age))
		if want := made.UsableUntil.Sub(asked) - age; ttl != want {
			t.Fatalf("stored for %v, want %v", ttl, want)
		}

		skew := time.Duration(rapid.Int64Range(-1e14, 1e14).Draw(t, "skew"))
		onTheWay := time.Duration(rapid.Int64Range(0, int64(ttl)).Draw(t, "on the way"))
		readAt := asked.Add(age + skew + onTheWay)
		read, err := token.FromStored(data, 7, readAt, ttl-onTheWay)
		if err != nil {
			t.Fatal(err)
		}
		want := *made
		want.Fence = 7
		for _, at := range []*time.Time{&want.MintedAt, &want.RefreshAt, &want.UsableUntil, &want.ExpiresAt} {
			*at = at.Add(skew)
		}
		if want.Value.Reveal() != read.Value.Reveal() || !reflect.DeepEqual(instants(&want), instants(read)) {
			t.Fatalf("got %v, want %v", instants(read), instants(&want))
		}
		want.Value, read.Value = redact.String{}, redact.String{}
		want.MintedAt, want.RefreshAt, want.UsableUntil, want.ExpiresAt = read.MintedAt, read.RefreshAt, read.UsableUntil, read.ExpiresAt
		if !reflect.DeepEqual(&want, read) {
			t.Fatalf("got %+v, want %+v", read, want)
		}
	})
}

func instants(tok *token.Token) [4]int64 {
	return [4]int64{tok.MintedAt.UnixNano(), tok.RefreshAt.UnixNano(), tok.UsableUntil.UnixNano(), tok.ExpiresAt.UnixNano()}
}

func TestInvalidStoredTokenIsRefused(t *testing.T) {
	const canary = "canary-token-77"
	for name, data := range map[string]string{
		"empty":                 ``,
		"no JSON":               canary,
		"another type":          `["` + canary + `"]`,
		"a later form":          `{"v":2,"token":"` + canary + `"}`,
		"no form":               `{"token":"` + canary + `"}`,
		"no token":              `{"v":1,"minted":5,"refresh":1}`,
		"minted later":          `{"v":1,"token":"` + canary + `","minted":-1}`,
		"due before it was":     `{"v":1,"token":"` + canary + `","minted":1,"refresh":2}`,
		"expires before unused": `{"v":1,"token":"` + canary + `","minted":1,"expires":-1}`,
		"lives for ever":        `{"v":1,"token":"` + canary + `","minted":86400000000000,"expires":1}`,
	} {
		tok, err := token.FromStored([]byte(data), 1, time.Now(), time.Second)
		if err == nil {
			t.Errorf("%s: accepted: %+v", name, tok)
		} else if strings.Contains(err.Error(), canary) {
			t.Errorf("%s: the error shows the token: %v", name, err)
		}
	}
}

func FuzzFromStored(f *testing.F) {
	made := token.New(token.Grant{Value: redact.New("v"), Type: "Bearer", RequestedAt: time.Unix(1_800_000_000, 0), Lifetime: time.Hour}, 3, 4)
	good, _ := made.Stored(made.MintedAt)
	f.Add(good)
	f.Add([]byte(`{"v":1,"token":"x","minted":9223372036854775807,"expires":9223372036854775807}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		now := time.Unix(1_800_000_000, 0)
		tok, err := token.FromStored(data, 1, now, time.Minute)
		if err != nil {
			return
		}
		if tok.Lifetime() > token.MaxLifetime || tok.Lifetime() < 0 || tok.Usable(now.Add(time.Minute), 0) {
			t.Errorf("%v to %v, usable until %v", tok.MintedAt, tok.ExpiresAt, tok.UsableUntil)
		}
	})
}
