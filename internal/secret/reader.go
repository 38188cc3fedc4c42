package secret

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// reader reads the values of a secret.
type reader interface {
	// read returns the current value and then previous values that the IdP may still
	// accept. It returns at least one value, and no empty one. An error does not
	// invalidate values that were read before.
	read() ([]redact.String, error)
}

// reader returns an error for a managed secret.
func (r Ref) reader() (reader, error) {
	switch r.kind {
	case kindFile:
		return fileReader{r.name}, nil
	case kindEnv:
		return envReader{r.name}, nil
	case kindManaged:
		return nil, errors.New("managed is for the secrets of clients only: give file:PATH or env:NAME")
	default:
		return nil, errors.New("no reference is given: give file:PATH or env:NAME")
	}
}

// envReader reads an environment variable.
type envReader struct{ name string }

func (r envReader) read() ([]redact.String, error) {
	value := os.Getenv(r.name)
	if value == "" {
		return nil, fmt.Errorf("the environment variable %s is not set or empty", r.name)
	}
	return []redact.String{redact.New(value)}, nil
}

// Names of the files in a directory.
const (
	currentFile  = "current"
	previousFile = "previous"
)

// fileReader reads a file with one value, or a directory with the file "current"
// and, optionally, the file "previous".
type fileReader struct{ path string }

func (r fileReader) read() ([]redact.String, error) {
	value, err := readFile(r.path)
	if err == nil {
		return []redact.String{value}, nil
	}
	if !errors.Is(err, syscall.EISDIR) {
		return nil, err
	}
	if value, err = readFile(filepath.Join(r.path, currentFile)); err != nil {
		return nil, err
	}
	values := []redact.String{value}
	switch value, err = readFile(filepath.Join(r.path, previousFile)); {
	case err == nil:
		return append(values, value), nil
	case errors.Is(err, os.ErrNotExist):
		return values, nil
	default:
		return nil, err
	}
}

func readFile(path string) (redact.String, error) {
	file, err := os.Open(path)
	if err != nil {
		return redact.String{}, err
	}
	defer func() { _ = file.Close() }()
	data, err := redact.ReadAll(file, MaxSize+1)
	defer clear(data)
	switch {
	case err != nil:
		return redact.String{}, fmt.Errorf("reading %s: %w", path, err)
	case len(data) > MaxSize:
		return redact.String{}, fmt.Errorf("%s contains more than %d bytes: is it a secret?", path, MaxSize)
	}
	if data = TrimLineEnd(data); len(data) == 0 {
		return redact.String{}, fmt.Errorf("%s is empty", path)
	}
	return redact.New(string(data)), nil
}

// TrimLineEnd removes one line end, which editors and "echo" append. Any further
// white space belongs to the secret.
func TrimLineEnd(data []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
}
