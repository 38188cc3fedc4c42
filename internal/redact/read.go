package redact

import (
	"errors"
	"io"
)

// ReadAll is io.ReadAll for secrets, with a limit in bytes. It leaves no copies of the
// data in memory, which io.ReadAll does when it enlarges its buffer. The caller can
// clear the result.
func ReadAll(from io.Reader, limit int) ([]byte, error) {
	data := make([]byte, 0, min(limit, 512)) // most secrets are shorter
	for len(data) < limit {
		if len(data) == cap(data) {
			more := append(make([]byte, 0, min(2*cap(data), limit)), data...)
			clear(data)
			data = more
		}
		n, err := from.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		if errors.Is(err, io.EOF) {
			return data, nil
		}
		if err != nil {
			return data, err
		}
	}
	return data, nil
}
