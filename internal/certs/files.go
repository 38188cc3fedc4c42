package certs

import (
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// maxFile is more than a bundle of all public authorities.
const maxFile = 1 << 20

// look is how files look from outside: by it their content need not be read to see
// that nothing changed. Symbolic links are followed.
type look [3]fs.FileInfo // nil: not to be seen

func lookAt(cfg Config) look {
	var l look
	for i, path := range cfg.paths() {
		if path != "" {
			l[i], _ = os.Stat(path) // reading it says what is wrong
		}
	}
	return l
}

func (l look) same(other look) bool {
	for i, info := range l {
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

// contents are those of the files: certificate, key, authorities.
type contents [3][]byte

// readFiles reads all files. The error has a line for each that cannot be read.
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
		return nil, errors.New("it may not be read: give it to the user that the broker runs as")
	case err != nil:
		return nil, withoutPath(err)
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
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

// withoutPath drops the path from the operating system's error: it stands in
// front of the message already.
func withoutPath(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}

// wipe forgets the private key, as text.
func (c contents) wipe() { clear(c[1]) }

func (c contents) digest() [sha256.Size]byte {
	var each []byte
	for _, data := range c {
		sum := sha256.Sum256(data)
		each = append(each, sum[:]...)
	}
	return sha256.Sum256(each)
}
