package secret

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// Source is where the values of a secret are read from.
type Source interface {
	// Read returns the values that are there now: first the one that is to be in
	// force, then those that it is to replace and that may still be good. There is
	// at least one, and none is empty. An error says nothing about the values that
	// were read before.
	Read(ctx context.Context) ([]redact.String, error)
}

// Source returns where to read the secret from. There is no such place for one
// that is managed.
func (r Ref) Source() (Source, error) {
	switch r.kind {
	case kindFile:
		return fileSource{r.name}, nil
	case kindEnv:
		return envSource{r.name}, nil
	case kindManaged:
		return nil, errors.New("managed is for the secrets of clients alone: give file:PATH or env:NAME")
	default:
		return nil, errors.New("no reference is given: give file:PATH or env:NAME")
	}
}

// envSource is an environment variable.
type envSource struct{ name string }

func (s envSource) Read(context.Context) ([]redact.String, error) {
	value := os.Getenv(s.name)
	if value == "" {
		return nil, fmt.Errorf("the environment variable %s is not set or empty", s.name)
	}
	return []redact.String{redact.New(value)}, nil
}

// Names of the files in a directory.
const (
	currentFile  = "current"
	previousFile = "previous"
)

// fileSource is a file with the one value, or a directory with the files
// "current" and, if there is one to fall back to, "previous".
type fileSource struct{ path string }

func (s fileSource) Read(context.Context) ([]redact.String, error) {
	value, err := readFile(s.path)
	if err == nil {
		return []redact.String{value}, nil
	}
	if !errors.Is(err, syscall.EISDIR) {
		return nil, err
	}
	if value, err = readFile(filepath.Join(s.path, currentFile)); err != nil {
		return nil, err
	}
	values := []redact.String{value}
	switch value, err = readFile(filepath.Join(s.path, previousFile)); {
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
		return redact.String{}, fmt.Errorf("%s holds more than %d bytes: is it a secret?", path, MaxSize)
	}
	if data = TrimLineEnd(data); len(data) == 0 {
		return redact.String{}, fmt.Errorf("%s is empty", path)
	}
	return redact.New(string(data)), nil
}

// TrimLineEnd takes away one line end, which is what editors and "echo" append;
// anything more is the secret's own.
func TrimLineEnd(data []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(data, []byte("\n")), []byte("\r"))
}
