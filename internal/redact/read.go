package redact

import "io"

// ReadAll reads what must not be seen, at most limit bytes of it, and is io.ReadAll
// otherwise. It reads into one place, where io.ReadAll leaves copies behind as it
// grows, so that the caller can wipe what it read with clear.
func ReadAll(from io.Reader, limit int) ([]byte, error) {
	data := make([]byte, limit)
	n, err := io.ReadFull(from, data)
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // as io.ReadFull promises
		err = nil
	}
	return data[:n], err
}
