package redact_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// watched notes where what is read is put.
type watched struct {
	io.Reader

	places [][]byte
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.places = append(w.places, p[:n])
	return n, err
}

func TestReadAllLeavesNoCopies(t *testing.T) {
	text := strings.Repeat("secret", 1000)
	from := &watched{Reader: iotest.HalfReader(strings.NewReader(text))}
	data, err := redact.ReadAll(from, 16<<10)
	if err != nil || string(data) != text || len(from.places) < 2 {
		t.Fatalf("%d bytes in %d reads, %v", len(data), len(from.places), err)
	}
	clear(data)
	for i, place := range from.places {
		if bytes.ContainsFunc(place, func(r rune) bool { return r != 0 }) {
			t.Errorf("read %d is still there: %.20q", i, place)
		}
	}
}

func TestReadAllIsBounded(t *testing.T) {
	for length, want := range map[int]int{0: 0, 9: 9, 10: 10, 11: 10} {
		data, err := redact.ReadAll(strings.NewReader(strings.Repeat("x", length)), 10)
		if err != nil || len(data) != want {
			t.Errorf("of %d bytes %d were read, %v", length, len(data), err)
		}
	}
	if _, err := redact.ReadAll(iotest.ErrReader(errors.New("broken")), 10); err == nil || err.Error() != "broken" {
		t.Errorf("error: %v", err)
	}
}
