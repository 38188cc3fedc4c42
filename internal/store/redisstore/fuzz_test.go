package redisstore_test

import (
	"math"
	"strconv"
	"testing"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/redisstore"
)

// What a key holds may be anybody's: it reads as what this package would have
// written, or as nothing.
func FuzzRedisEntry(f *testing.F) {
	for _, text := range []string{
		"", ":", "0", "0:", "1", "1:", "7:value", "7:a:b", "07:a", "+7:a", "-7:a", " 7:a", "7 :a", "1_000:a", "0x7:a", "7e3",
		"9007199254740991:a", "9007199254740992:a", "18446744073709551616:a", "7:\x00\xff", "\xff", "7",
	} {
		for _, left := range []int64{math.MinInt64, -2, -1, 0, 1, 60_000, math.MaxInt64} {
			f.Add(text, left)
		}
	}
	f.Fuzz(func(t *testing.T, text string, left int64) {
		entry := redisstore.Entry(text, left)
		if entry.Number == 0 && (len(entry.Value) > 0 || entry.TTL != 0) || entry.Number > store.MaxNumber || entry.TTL < 0 {
			t.Fatalf("%q reads as %+v", text, entry)
		}
		digits := strconv.FormatUint(entry.Number, 10)
		if entry.Number > 0 && text != digits && text != digits+":"+string(entry.Value) {
			t.Fatalf("%q reads as %+v, which is not written so", text, entry)
		}
		if entry.Number > 0 && text != digits && left == 0 && entry.TTL == 0 {
			t.Fatal("what is about to expire reads as living for ever")
		}
	})
}
