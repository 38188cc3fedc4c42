package discovery

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"net/http"
	"strings"
)

// byteOrderMark is the byte order mark of UTF-8. Some editors and frameworks write it
// before JSON.
const byteOrderMark = "\ufeff"

var (
	// ErrCoding means that the content coding of a body is not supported.
	ErrCoding = errors.New("a body in an unsupported Content-Encoding: the broker reads one gzip or deflate coding, or none")
	// ErrCompressed means that a body cannot be decompressed.
	ErrCompressed = errors.New("a body that cannot be decompressed: it is incomplete, or not in the format of its Content-Encoding")
)

// ReadBody reads the body of a response, at most limit bytes; of a longer body it
// returns limit+1 bytes. It removes a gzip or deflate coding, because some servers and
// proxies compress without a request for it. The limit applies before and after
// decompression, so that a small body cannot become a large one. ReadBody also removes
// a byte order mark. The error is [ErrCoding], [ErrCompressed] or that of the
// connection.
func ReadBody(response *http.Response, limit int64) ([]byte, error) {
	size := min(max(response.ContentLength, 0), limit)
	buffer := bytes.NewBuffer(make([]byte, 0, size+bytes.MinRead)) // with room for the read that finds the end
	_, err := buffer.ReadFrom(io.LimitReader(response.Body, limit+1))
	body := buffer.Bytes()
	if err != nil || int64(len(body)) > limit {
		return body, err
	}
	return Decode(body, strings.Join(response.Header.Values("Content-Encoding"), ","), limit)
}

// Decode removes a content coding and a byte order mark from data, as [ReadBody]
// does. The coding may be empty.
func Decode(data []byte, coding string, limit int64) ([]byte, error) {
	var open func(io.Reader) (io.Reader, error)
	switch strings.ToLower(strings.TrimSpace(coding)) {
	case "", "identity":
	case "gzip", "x-gzip":
		open = func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }
	case "deflate":
		open = inflate(data)
	default:
		return nil, ErrCoding
	}
	if open != nil && len(data) > 0 {
		var err error
		if data, err = decompress(data, open, limit); err != nil {
			return nil, ErrCompressed
		}
	}
	return bytes.TrimPrefix(data, []byte(byteOrderMark)), nil
}

func decompress(data []byte, open func(io.Reader) (io.Reader, error), limit int64) ([]byte, error) {
	rest := bytes.NewReader(data)
	plain, err := open(rest)
	if err != nil {
		return nil, err
	}
	data, err = io.ReadAll(io.LimitReader(plain, limit+1))
	if err == nil && int64(len(data)) <= limit && rest.Len() > 0 {
		err = ErrCompressed // there is more after the compressed data
	}
	return data, err
}

// inflate returns a decompressor for the coding deflate. It means the zlib format (RFC
// 9110 section 8.4.1.2), but some servers send raw deflate data.
func inflate(data []byte) func(io.Reader) (io.Reader, error) {
	if hasZlibHeader(data) {
		return func(r io.Reader) (io.Reader, error) { return zlib.NewReader(r) }
	}
	return func(r io.Reader) (io.Reader, error) { return flate.NewReader(r), nil }
}

// hasZlibHeader checks the first two bytes as RFC 1950 section 2.2 defines them.
func hasZlibHeader(data []byte) bool {
	const deflate, divisor = 8, 31
	return len(data) > 1 && data[0]&0x0f == deflate && (int(data[0])<<8|int(data[1]))%divisor == 0
}
