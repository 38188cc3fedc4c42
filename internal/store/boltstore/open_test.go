package boltstore_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/cezzis/tokenbroker/internal/store"
	"github.com/cezzis/tokenbroker/internal/store/boltstore"
	"github.com/cezzis/tokenbroker/internal/testkit"
)

// filledBolt is the path of a file with so much in it that its buckets have
// branches.
func filledBolt(t testing.TB) string {
	t.Helper()
	path := newPath(t)
	b := openBolt(t, boltstore.Config{Path: path})
	for i := range 100 {
		puts := make([]store.Put, store.MaxPuts)
		for j := range puts {
			puts[j] = sizedPut(fmt.Sprintf("a key that is long enough %d.%d", i, j), 300, time.Hour)
		}
		if err := applyPuts(t, b, puts...); err != nil {
			t.Fatal(err)
		}
	}
	closeStore(t, b)
	return path
}

func editBolt(t *testing.T, path string, edit func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(edit); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestBoltOpenErrorsSayWhatToDo(t *testing.T) {
	write := func(content string) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := newPath(t)
			testkit.WriteFile(t, path, content)
			return path
		}
	}
	cases := map[string]struct {
		path func(t *testing.T) string
		want string
	}{
		"no path":      {func(*testing.T) string { return "" }, "needs the path"},
		"no directory": {func(t *testing.T) string { return filepath.Join(t.TempDir(), "absent", "broker.db") }, "its directory does not exist. Create it"},
		"a directory":  {func(t *testing.T) string { return t.TempDir() }, "is a directory: name a file in it"},
		"a file for a directory": {func(t *testing.T) string {
			return filepath.Join(write("text")(t), "broker.db")
		}, "cannot be opened"},
		"a short text": {write("listen: {}\n"), "is not a file of a broker"},
		"a long text":  {write(strings.Repeat("listen: {}\n", 10_000)), "is not a file of a broker"},
		"zeros":        {write(strings.Repeat("\x00", 100_000)), "is not a file of a broker"},
		"open already": {func(t *testing.T) string {
			path := newPath(t)
			openBolt(t, boltstore.Config{Path: path})
			return path
		}, "is in use: another broker runs with it. Stop that one"},
		"another program's": {func(t *testing.T) string {
			path := newPath(t)
			editBolt(t, path, func(tx *bolt.Tx) error {
				_, err := tx.CreateBucket([]byte("members"))
				return err
			})
			return path
		}, "is a database of another program"},
		"a newer broker's": {func(t *testing.T) string {
			path := filledBolt(t)
			editBolt(t, path, func(tx *bolt.Tx) error {
				return tx.Bucket([]byte("meta")).Put([]byte("format"), binary.BigEndian.AppendUint64(nil, 2))
			})
			return path
		}, "was written by a newer broker (format 2; this one supports 1)"},
		"a bucket is missing": {func(t *testing.T) string {
			path := filledBolt(t)
			editBolt(t, path, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("leases")) })
			return path
		}, "is damaged: restore it from a backup, or move it away"},
		"an item is cut short": {func(t *testing.T) string {
			path := filledBolt(t)
			editBolt(t, path, func(tx *bolt.Tx) error { return tx.Bucket([]byte("values")).Put([]byte("canary"), []byte("short")) })
			return path
		}, "is damaged"},
		"cut short": {func(t *testing.T) string {
			path := filledBolt(t)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, info.Size()/3); err != nil {
				t.Fatal(err)
			}
			return path
		}, "is damaged"},
	}
	const floor = 13
	if len(cases) < floor {
		t.Fatalf("%d cases, expected at least %d", len(cases), floor)
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			path := c.path(t)
			start := time.Now()
			b, err := boltstore.Open(boltstore.Config{Path: path})
			if err == nil {
				closeStore(t, b)
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "canary") {
				t.Errorf("error %q, want %q", err, c.want)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %v to say so", took)
			}
		})
	}
}

// What a test that runs as root cannot meet.
func TestBoltSystemErrorsSayWhatToDo(t *testing.T) {
	for want, err := range map[string]error{
		"give it and its directory to the user": syscall.EACCES,
		"that is read-only":                     syscall.EROFS,
		"no space left on device":               syscall.ENOSPC,
	} {
		err = &fs.PathError{Op: "open", Path: "broker.db", Err: err}
		if got := boltstore.OpenError("broker.db", err).Error(); !strings.HasPrefix(got, "broker.db ") || !strings.Contains(got, want) {
			t.Errorf("%v: %q", err, got)
		}
	}
	if os.Getuid() == 0 {
		return
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if _, err := boltstore.Open(boltstore.Config{Path: filepath.Join(dir, "broker.db")}); err == nil || !strings.Contains(err.Error(), "give it and its directory") {
		t.Errorf("in a directory that may not be written: %v", err)
	}
}

func TestRefusedBoltFileIsUnchanged(t *testing.T) {
	path := newPath(t)
	content := []byte(strings.Repeat("somebody's notes\n", 1000))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := boltstore.Open(boltstore.Config{Path: path}); err == nil {
		t.Fatal("no error")
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, content) {
		t.Errorf("the file was changed: %v", err)
	}
}

// A page in a thousand that is damaged may go unnoticed: pages have no
// checksums. But a damaged file never ends the process, neither when it is
// opened nor later.
func TestDamagedBoltDoesNotPanic(t *testing.T) {
	const pageSize = 4096
	whole, err := os.ReadFile(filledBolt(t))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	refused, rounds := 0, more(60, 4000)
	for round := range rounds {
		data := bytes.Clone(whole)
		page := data[(2+random.IntN(len(data)/pageSize-2))*pageSize:][:pageSize]
		switch round % 4 {
		case 0: // a page that was never written
			clear(page)
		case 1: // noise
			for i := range page {
				page[i] = byte(random.Uint32())
			}
		case 2: // the wrong page
			copy(page, data[random.IntN(len(data)/pageSize)*pageSize:][:pageSize])
		case 3: // a few bits of its table of contents
			for range 4 {
				page[random.IntN(256)] ^= 1 << random.IntN(8)
			}
		}
		if useDamagedBolt(t, data) {
			refused++
		}
	}
	if refused < rounds/3 {
		t.Errorf("only %d of %d damaged files were refused", refused, rounds)
	}
}

// useDamagedBolt opens a file of these bytes and reports whether that was
// refused. If not, it uses all of it.
func useDamagedBolt(t *testing.T, data []byte) (refused bool) {
	t.Helper()
	path := newPath(t)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := boltstore.Open(boltstore.Config{Path: path})
	if err != nil {
		if !strings.HasPrefix(err.Error(), path+" is ") {
			t.Fatalf("not a sentence about the file: %v", err)
		}
		return true
	}
	defer func() { _ = b.Close() }()
	for i := range 10 {
		_, _ = b.Get(t.Context(), fmt.Sprintf("a key that is long enough %d.%d", 10*i, i%store.MaxPuts))
		_, _ = b.Apply(t.Context(), store.Change{Puts: []store.Put{{Key: fmt.Sprintf("a key that is long enough %d.0", 10*i), Number: 2, TTL: time.Hour}}})
	}
	return false
}
