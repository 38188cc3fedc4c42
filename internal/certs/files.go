package certs

import (
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"syscall"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// maxFile is larger than a bundle of all public authorities, in bytes.
const maxFile = 1 << 20

// fileStat is the metadata of the files, which shows most changes without a read.
// Symbolic links are followed. An entry is nil if there is no such file.
type fileStat [3]fs.FileInfo

func statFiles(cfg Config) fileStat {
	var stat fileStat
	for i, path := range cfg.paths() {
		if path != "" {
			stat[i], _ = os.Stat(path) // readFiles reports the error
		}
	}
	return stat
}

func (s fileStat) equal(other fileStat) bool {
	for i, info := range s {
		before := other[i]
		switch {
		case info == nil && before == nil:
		case info == nil || before == nil:
			return false
		case !os.SameFile(info, before) || info.Size() != before.Size() || !info.ModTime().Equal(before.ModTime()):
			return false
		}
	}
	return true
}

func (c Config) paths() [3]string { return [3]string{c.Cert, c.Key, c.ClientCA} }

// contents are the contents of the certificate, the key and the authorities file.
type contents [3][]byte

// readFiles reads all files. The error has one line for each file that cannot be read.
func readFiles(cfg Config) (contents, error) {
	var read contents
	var problems []error
	for i, path := range cfg.paths() {
		if path == "" {
			continue
		}
		data, err := readFile(path)
		if err != nil {
			problems = append(problems, problem(path, "%w", err))
		}
		read[i] = data
	}
	return read, errors.Join(problems...)
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("there is no such file")
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.New("permission denied: give the broker's user read access")
	case err != nil:
		return nil, withoutPath(err)
	}
	defer func() { _ = file.Close() }()
	data, err := redact.ReadAll(file, maxFile+1)
	switch {
	case errors.Is(err, syscall.EISDIR):
		return nil, errors.New("it is a directory: name the file in it")
	case err != nil:
		return nil, withoutPath(err)
	case len(data) > maxFile:
		return nil, errTooLarge
	}
	return data, nil
}

// withoutPath removes the path from an error of package os, because problem adds it.
func withoutPath(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// wipe clears the private key.
func (c contents) wipe() { clear(c[1]) }

func (c contents) digest() [sha256.Size]byte {
	var each []byte
	for _, data := range c {
		sum := sha256.Sum256(data)
		each = append(each, sum[:]...)
	}
	return sha256.Sum256(each)
}
