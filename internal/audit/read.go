package audit

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxLine bounds a line that Reader reads. The longest lines of the broker are far
// shorter.
const maxLine = 4 << 20

// Entry is a line of the audit log that was read, without the members that describe a
// token or its subject.
type Entry struct {
	// Version is the version of the format. Current reports whether it is the present one.
	Version       int       `json:"v"`
	Time          time.Time `json:"time"`
	Event         Name      `json:"event"`
	Outcome       Outcome   `json:"outcome"`
	Caller        string    `json:"caller"`
	Action        string    `json:"action"`
	Reason        string    `json:"reason"`
	Client        string    `json:"client"`
	Issuer        string    `json:"issuer"`
	Audiences     []string  `json:"audiences"`
	Resources     []string  `json:"resources"`
	Scopes        []string  `json:"scopes"`
	GrantedScopes []string  `json:"granted_scopes"`
	ConfigSHA256  string    `json:"config_sha256"`
	Count         uint64    `json:"count"`

	// Members of builds before the first release, which had version 1 as well.
	OldAudience json.RawMessage `json:"audience"`
	OldGranted  json.RawMessage `json:"granted"`
	OldSource   json.RawMessage `json:"source"`
}

// Current reports whether the entry has the present format.
func (e *Entry) Current() bool {
	return e.Version == formVersion && e.OldAudience == nil && e.OldGranted == nil && e.OldSource == nil
}

// Times returns how many events the entry stands for.
func (e *Entry) Times() uint64 { return max(e.Count, 1) }

// LineError describes a line that is not a line of an audit log.
type LineError struct {
	Number  int
	Message string
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %s", e.Number, e.Message) }

// Reader reads an audit log, line by line. A log that is compressed by gzip, as log
// rotation does it, is decompressed.
type Reader struct {
	from   *bufio.Reader
	line   []byte
	number int
}

// NewReader returns a Reader of an audit log.
func NewReader(from io.Reader) (*Reader, error) {
	const size = 64 << 10
	buffered := bufio.NewReaderSize(from, size)
	if magic, _ := buffered.Peek(2); !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return &Reader{from: buffered}, nil
	}
	unzipped, err := gzip.NewReader(buffered)
	if err != nil {
		return nil, err
	}
	return &Reader{from: bufio.NewReaderSize(unzipped, size)}, nil
}

// Next returns the entry of the next line. The error is io.EOF after the last line, and a [*LineError]
// for a bad line, after which Next continues with the next line. Any other error is that
// of the underlying reader.
func (r *Reader) Next() (Entry, error) {
	tooLong, err := r.read()
	if err != nil {
		return Entry{}, err
	}
	bad := func(message string) (Entry, error) { return Entry{}, &LineError{r.number, message} }
	if tooLong {
		return bad(fmt.Sprintf("the line is longer than %d MiB, so it is not of an audit log", maxLine>>20))
	}
	var entry Entry
	if err := json.Unmarshal(r.line, &entry); err != nil {
		if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && typeErr.Field != "" {
			return bad(fmt.Sprintf("the member %q has the wrong type", typeErr.Field))
		}
		if _, ok := errors.AsType[*time.ParseError](err); ok {
			return bad(`the member "time" is not a time such as 2026-11-25T21:49:05.123456Z`)
		}
		return bad("the line is not a JSON object: it may have been cut off")
	}
	switch {
	case entry.Version == 0:
		return bad(`the member "v" is missing, so the line is not of an audit log`)
	case entry.Event == "" || entry.Time.IsZero():
		return bad(`the member "event" or "time" is missing`)
	}
	return entry, nil
}

// read reads a line into r.line. It keeps no more than maxLine of it.
func (r *Reader) read() (tooLong bool, err error) {
	r.line = r.line[:0]
	for {
		part, err := r.from.ReadSlice('\n')
		if tooLong = tooLong || len(r.line)+len(part) > maxLine; !tooLong {
			r.line = append(r.line, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && (len(r.line) > 0 || tooLong):
		case err != nil:
			return false, err
		}
		r.number++
		return tooLong, nil
	}
}
