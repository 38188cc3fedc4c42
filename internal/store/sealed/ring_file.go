package sealed

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
	"github.com/cezzis/tokenbroker/internal/store"
)

// RingFile is a ring in a file that may change while it is used. Current is
// safe for concurrent use and does no I/O.
type RingFile struct {
	path    string
	current atomic.Pointer[Ring]
	applied atomic.Int64 // when Current was read, in Unix nanoseconds

	mu     sync.Mutex
	loaded [sha256.Size]byte // digest of the file that Current was read from
	seen   [sha256.Size]byte // digest of the last read: a change counts when read twice
}

// OpenRing reads the ring of a file.
func OpenRing(path string) (*RingFile, error) {
	data, err := readRingFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	ring, err := parseRingFile(path, data)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(data)
	f := &RingFile{path: path, loaded: digest, seen: digest}
	f.use(ring)
	return f, nil
}

// ReadRing reads a file once.
func ReadRing(path string) (*Ring, error) {
	data, err := readRingFile(path)
	if err != nil {
		return nil, err
	}
	defer clear(data)
	return parseRingFile(path, data)
}

// readRingFile returns the content of the file; the caller clears it.
func readRingFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the ring of sealing keys %s does not exist: make it with `broker ring new > %s`", path, path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the ring of sealing keys %s may not be read: give it to the user that the broker runs as", path)
	case err != nil:
		return nil, fmt.Errorf("the ring of sealing keys: %w", err)
	}
	defer func() { _ = file.Close() }()
	data, err := redact.ReadAll(file, ringMaxSize+1)
	if errors.Is(err, syscall.EISDIR) {
		return nil, fmt.Errorf("the ring of sealing keys %s is a directory: name the file in it", path)
	}
	if err != nil {
		return nil, fmt.Errorf("the ring of sealing keys: %w", err)
	}
	return data, nil
}

func parseRingFile(path string, data []byte) (*Ring, error) {
	if len(data) == 0 {
		return nil, fmt.Errorf("the ring of sealing keys %s is empty: make it with `broker ring new > %s`", path, path)
	}
	ring, err := ParseRing(data)
	if err != nil {
		return nil, fmt.Errorf("the ring of sealing keys %s: %w", path, err)
	}
	return ring, nil
}

// Path returns the path of the file.
func (f *RingFile) Path() string { return f.path }

// Current returns the current ring.
func (f *RingFile) Current() *Ring { return f.current.Load() }

// Applied returns when the current ring was read.
func (f *RingFile) Applied() time.Time { return time.Unix(0, f.applied.Load()) }

func (f *RingFile) use(ring *Ring) {
	f.current.Store(ring)
	f.applied.Store(time.Now().UnixNano())
}

// Reload reads the file again and replaces the current ring once it has read the same
// change twice in a row, because a file may be seen half written. It reports whether it
// replaced the ring. On an error the old ring stays, and each later Reload returns the
// error again until the file is valid. A changed names key is an error: it would change
// the names of all keys, and the broker would no longer find anything in the store.
func (f *RingFile) Reload() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data, err := readRingFile(f.path)
	if err != nil {
		return false, err
	}
	defer clear(data)
	digest := sha256.Sum256(data)
	settled := digest == f.seen
	f.seen = digest
	if !settled || digest == f.loaded {
		return false, nil
	}
	ring, err := parseRingFile(f.path, data)
	if err != nil {
		return false, err
	}
	if !ring.names.Equal(f.Current().names) {
		return false, fmt.Errorf("the ring of sealing keys %s has another names key, under which nothing in the store would be found: restore the old one", f.path)
	}
	f.loaded = digest
	f.use(ring)
	return true, nil
}

// Warning returns a warning about the file's mode, if any. It is not an error, because a
// file that Kubernetes mounts is readable by all users, but in a mount of its own.
func (f *RingFile) Warning() string {
	info, err := os.Stat(f.path)
	if err != nil || info.Mode().Perm()&0o007 == 0 {
		return ""
	}
	return fmt.Sprintf("the ring of sealing keys %s is open to every user of this machine (mode %v): make it 0600, unless no other user can reach the directory where it is mounted", f.path, info.Mode().Perm())
}

// WriteRing writes the ring to a file with mode 0600, atomically. It replaces an
// existing file and follows a symbolic link.
func WriteRing(path string, ring *Ring) error {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".ring-*") // its mode is 0600
	if err != nil {
		return err
	}
	_, err = temp.Write(ring.Reveal())
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return err
	}
	store.SyncDirectory(filepath.Dir(path))
	return nil
}
