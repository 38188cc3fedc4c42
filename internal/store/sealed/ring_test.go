package sealed_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/sealed"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// ringKey is a key in base64, of the byte b over and over.
func ringKey(b byte, size int) string {
	return base64.StdEncoding.EncodeToString(slices.Repeat([]byte{b}, size))
}

// ringText is a ring as JSON, for the format's %s: names, primary, keys.
func ringText(names, primary, keys string) string {
	return fmt.Sprintf(`{"names": %q, "primary": %q, "keys": {%s}}`, names, primary, keys)
}

var (
	namesKey = ringKey('N', 32)
	keyOne   = ringKey('1', 32)
	keyTwo   = ringKey('2', 32)
	goodKeys = fmt.Sprintf(`"0a1b2c3d": %q, "1f2e3d4c": %q`, keyOne, keyTwo)
	goodRing = ringText(namesKey, "0a1b2c3d", goodKeys)
)

func TestParseRing(t *testing.T) {
	ring, err := sealed.ParseRing([]byte(goodRing))
	if err != nil {
		t.Fatal(err)
	}
	if ring.Primary() != "0a1b2c3d" || fmt.Sprint(ring.IDs()) != "[0a1b2c3d 1f2e3d4c]" {
		t.Errorf("read as %v", ring)
	}
	again, err := sealed.ParseRing(ring.Reveal())
	if err != nil || string(again.Reveal()) != string(ring.Reveal()) {
		t.Errorf("it does not read what it wrote: %v", err)
	}
}

func TestParseRing_errorsShowNoKey(t *testing.T) {
	canary := "canary" + ringKey('C', 32)
	one := fmt.Sprintf(`"0a1b2c3d": %q`, keyOne)
	cases := map[string]struct{ ring, want string }{
		"empty":               {"", "it is not JSON"},
		"cut short":           {goodRing[:100], "it is not JSON"},
		"two of them":         {goodRing + goodRing, "it is not JSON"},
		"another form":        {`["` + canary + `"]`, "it is not of the form"},
		"a key for a name":    {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`%q: "0a1b2c3d"`, canary)), "a key's id must be 8 hexadecimal digits"},
		"a number for a key":  {ringText(namesKey, "0a1b2c3d", `"0a1b2c3d": 1`), "it is not of the form"},
		"unknown member":      {strings.Replace(goodRing, "{", fmt.Sprintf(`{%q: 1, `, canary), 1), "has an unknown member"},
		"wrong case":          {strings.Replace(goodRing, "primary", "Primary", 1), "has an unknown member"},
		"repeated member":     {strings.Replace(goodRing, "{", `{"primary": "0a1b2c3d", `, 1), "has a member twice"},
		"repeated id":         {ringText(namesKey, "0a1b2c3d", one+","+one), "has a member twice"},
		"no names key":        {strings.Replace(goodRing, `"names": "`+namesKey+`", `, "", 1), "the names key is missing: make a ring with `broker ring new`"},
		"names key too short": {ringText(ringKey('N', 31), "0a1b2c3d", goodKeys), "the names key has 31 bytes: it must have 32"},
		"no primary":          {strings.Replace(goodRing, `"primary": "0a1b2c3d", `, "", 1), "which key seals"},
		"unknown primary":     {ringText(namesKey, "00000000", goodKeys), "there is no key 00000000 in the ring: it has [0a1b2c3d 1f2e3d4c]"},
		"a key for primary":   {ringText(namesKey, canary, goodKeys), "the primary: the id of a key must be 8"},
		"no keys":             {ringText(namesKey, "0a1b2c3d", ""), "it has no keys: make a ring"},
		"keys left out":       {fmt.Sprintf(`{"names": %q, "primary": "0a1b2c3d"}`, namesKey), "it has no keys: make a ring"},
		"key too short":       {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3d": %q`, ringKey('C', 16))), "key 0a1b2c3d has 16 bytes: it must have 32"},
		"key too long":        {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3d": %q`, ringKey('C', 33))), "key 0a1b2c3d has 33 bytes: it must have 32"},
		"key missing":         {ringText(namesKey, "0a1b2c3d", `"0a1b2c3d": ""`), "key 0a1b2c3d is missing"},
		"key not base64":      {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3d": %q`, canary)), "key 0a1b2c3d is not standard base64"},
		"key with line end":   {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3d": %q`, keyOne+"\n")), "key 0a1b2c3d is not standard base64"},
		"key without padding": {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3d": %q`, strings.TrimRight(keyOne, "="))), "key 0a1b2c3d is not standard base64"},
		"key not canonical":   {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3d": %q`, keyOne[:42]+"F=")), "key 0a1b2c3d is not standard base64"},
		"same key twice":      {ringText(namesKey, "0a1b2c3d", one+fmt.Sprintf(`, "1f2e3d4c": %q`, keyOne)), "keys 0a1b2c3d and 1f2e3d4c are the same"},
		"names key seals":     {ringText(keyTwo, "0a1b2c3d", goodKeys), "key 1f2e3d4c is the names key as well"},
		"id in upper case":    {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0A1B2C3D": %q`, keyOne)), "8 hexadecimal digits in lower case"},
		"id too long":         {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3d0": %q`, keyOne)), "8 hexadecimal digits in lower case"},
		"id too short":        {ringText(namesKey, "0a1b2c3d", fmt.Sprintf(`"0a1b2c3": %q`, keyOne)), "8 hexadecimal digits in lower case"},
		"too large":           {goodRing + strings.Repeat(" ", 64<<10), "is it a ring?"},
	}
	const floor = 30
	if len(cases) < floor {
		t.Fatalf("%d cases, expected at least %d", len(cases), floor)
	}
	for name, c := range cases {
		ring, err := sealed.ParseRing([]byte(c.ring))
		switch {
		case err == nil || ring != nil:
			t.Errorf("%s: read as %v, %v", name, ring, err)
		case !strings.Contains(err.Error(), c.want):
			t.Errorf("%s: %q, want %q", name, err, c.want)
		case strings.Contains(err.Error(), "canary") || strings.Contains(err.Error(), keyOne[:10]) || strings.Contains(err.Error(), ringKey('C', 9)):
			t.Errorf("%s: the error shows a key: %v", name, err)
		}
	}
}

func TestRingDoesNotPrintItsKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ring.json")
	writeFile(t, path, goodRing)
	file, err := sealed.OpenRing(path)
	if err != nil {
		t.Fatal(err)
	}
	outer := sealed.New(store.NewMemory(store.MemoryConfig{}), file)
	var printed strings.Builder
	for _, value := range []any{file.Current(), file, outer, []any{file.Current()}, struct{ r *sealed.Ring }{file.Current()}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&printed, verb+"\n", value)
		}
		slog.New(slog.NewTextHandler(&printed, nil)).Error("text", "value", value)
		slog.New(slog.NewJSONHandler(&printed, nil)).Error("json", "value", value)
		data, _ := json.Marshal(value)
		printed.Write(data)
	}
	out := printed.String()
	if !strings.Contains(out, "a ring of the keys [0a1b2c3d 1f2e3d4c], primary 0a1b2c3d") {
		t.Error("a ring does not say which keys it has")
	}
	for _, key := range []string{"NNNNNNNN", "11111111", "22222222"} {
		for _, form := range []string{key, fmt.Sprintf("%x", key), base64.StdEncoding.EncodeToString([]byte(key))[:8], strings.Trim(fmt.Sprint([]byte(key)), "[]"), strings.TrimPrefix(fmt.Sprintf("%#v", []byte(key)), "[]byte")[1:20]} {
			if strings.Contains(out, form) {
				t.Errorf("a key was printed: %s", form)
			}
		}
	}
}

func TestGeneratedRingsAreValidAndDiffer(t *testing.T) {
	seen := make(map[string]bool)
	for range 20 {
		text := string(sealed.GenerateRing().Reveal())
		ring, err := sealed.ParseRing([]byte(text))
		if err != nil || len(ring.IDs()) != 1 {
			t.Fatalf("generated %v, %v", ring, err)
		}
		var file struct {
			Names string
			Keys  map[string]string
		}
		if err := json.Unmarshal([]byte(text), &file); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{file.Names, file.Keys[ring.Primary()]} {
			if seen[key] {
				t.Fatal("a key was generated twice")
			}
			seen[key] = true
		}
	}
}

func TestRing_rotationSteps(t *testing.T) {
	first, err := sealed.ParseRing([]byte(goodRing))
	if err != nil {
		t.Fatal(err)
	}
	added, id := first.Add()
	if len(added.IDs()) != 3 || !slices.Contains(added.IDs(), id) || added.Primary() != first.Primary() {
		t.Errorf("a key was added: %v", added)
	}
	if _, err := added.Drop(first.Primary()); err == nil || !strings.Contains(err.Error(), "promote another one first") {
		t.Errorf("dropping the primary: %v", err)
	}
	promoted, err := added.Promote(id)
	if err != nil || promoted.Primary() != id || len(promoted.IDs()) != 3 {
		t.Errorf("promoted: %v, %v", promoted, err)
	}
	dropped, err := promoted.Drop(first.Primary())
	if err != nil || slices.Contains(dropped.IDs(), first.Primary()) || len(dropped.IDs()) != 2 {
		t.Errorf("dropped: %v, %v", dropped, err)
	}
	for _, bad := range []string{"", "x", "0A1B2C3D", first.Primary()} {
		if _, err := dropped.Promote(bad); err == nil {
			t.Errorf("promoted %q", bad)
		}
		if _, err := dropped.Drop(bad); err == nil {
			t.Errorf("dropped %q", bad)
		}
	}
	if _, err := promoted.Promote(id); err == nil || !strings.Contains(err.Error(), "nothing to do") {
		t.Errorf("promoted again: %v", err)
	}
	if first.Primary() != "0a1b2c3d" || len(first.IDs()) != 2 {
		t.Errorf("the ring itself was changed: %v", first)
	}
	data := []byte("data")
	if dropped.MAC(data) != first.MAC(data) {
		t.Error("names changed with the sealing keys")
	}
}

func TestMACDependsOnItsInputs(t *testing.T) {
	ring, err := sealed.ParseRing([]byte(goodRing))
	if err != nil {
		t.Fatal(err)
	}
	// printf data | openssl dgst -sha256 -mac HMAC -macopt hexkey:4e4e...
	const want = "cef2b6239eb6052f55542f4165ca9a783988739ce638f590379747923599d194"
	if got := fmt.Sprintf("%x", ring.MAC([]byte("data"))); got != want {
		t.Errorf("MAC is %s", got)
	}
	if ring.MAC([]byte("data")) == ring.MAC([]byte("Data")) || ring.MAC(nil) == sealed.GenerateRing().MAC(nil) {
		t.Error("the MAC does not depend on what it should")
	}
}

func writeFile(t testing.TB, path, content string) {
	t.Helper()
	testkit.WriteFile(t, path, content)
}

func FuzzParseRing(f *testing.F) {
	seeds := []string{goodRing, string(sealed.GenerateRing().Reveal()), "{}", "", ringText(namesKey, "", ""), strings.ToUpper(goodRing), strings.ReplaceAll(goodRing, "=", "")}
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		ring, err := sealed.ParseRing(data)
		if err != nil {
			if ring != nil || err.Error() == "" {
				t.Errorf("refused with a ring: %v", err)
			}
			return
		}
		if !slices.Contains(ring.IDs(), ring.Primary()) {
			t.Error("the primary is not in the ring")
		}
		again, err := sealed.ParseRing(ring.Reveal())
		if err != nil || string(again.Reveal()) != string(ring.Reveal()) || again.MAC(data) != ring.MAC(data) {
			t.Errorf("not read as it was written: %v", err)
		}
	})
}

func TestBackupOpensOnlyWithItsName(t *testing.T) {
	ring := sealed.GenerateRing()
	backup := ring.SealBackup("orders", []byte("canary"))
	if bytes.Contains(backup, []byte("canary")) {
		t.Fatal("it is not sealed")
	}
	added, id := ring.Add()
	newer, err := added.Promote(id)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if value, err := newer.OpenBackup("orders", backup); err != nil || string(value) != "canary" {
			t.Fatalf("%q, %v", value, err)
		}
	}
	altered := bytes.Clone(backup)
	altered[len(altered)-1] ^= 1
	for name, attempt := range map[string]func() ([]byte, error){
		"of another client": func() ([]byte, error) { return ring.OpenBackup("billing", backup) },
		"altered":           func() ([]byte, error) { return ring.OpenBackup("orders", altered) },
		"with another ring": func() ([]byte, error) { return sealed.GenerateRing().OpenBackup("orders", backup) },
		"not sealed":        func() ([]byte, error) { return ring.OpenBackup("orders", []byte("canary")) },
		"nothing":           func() ([]byte, error) { return ring.OpenBackup("orders", nil) },
	} {
		if value, err := attempt(); err == nil || len(value) > 0 {
			t.Errorf("%s: %q, %v", name, value, err)
		}
	}
}
