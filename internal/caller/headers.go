package caller

import (
	"encoding/base64"
	"fmt"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/cezzis/tokenbroker/internal/apierror"
)

// gRPC closes a connection, with all its calls, when a client sends more headers than
// gRPC reads. So gRPC reads more than a call may have, and only the call is refused.
const (
	// minReadHeaders is the least number of header bytes that gRPC reads.
	minReadHeaders = 64 << 10
	// readHeadersBeyond allows for the names, the overhead of each header and the
	// headers of HTTP/2 and gRPC themselves, in addition to the headers that a client
	// counts.
	readHeadersBeyond = 16 << 10
	// headerOverhead is the size that each header counts in addition to its name and
	// value (RFC 9113 section 6.5.2).
	headerOverhead = 32
)

// ReadHeaders returns how many header bytes gRPC must read per call.
func (l *Limits) ReadHeaders() uint32 {
	return max(minReadHeaders, l.HeaderSize+l.TokenSize) + readHeadersBeyond
}

// headerLimit bounds the headers of calls.
type headerLimit struct {
	most, token int    // bytes
	refused     func() // counts
}

// admits reports whether a call may have these headers. A token in authorization does
// not count, up to the maximum length of a token.
func (l *headerLimit) admits(header metadata.MD) bool {
	size := 0
	for name, values := range header {
		binary := strings.HasSuffix(name, "-bin")
		for _, value := range values {
			length := len(value)
			if binary {
				length = base64.RawStdEncoding.EncodedLen(length)
			}
			size += len(name) + length + headerOverhead
		}
	}
	if authorization := header["authorization"]; len(authorization) == 1 {
		size -= min(len(authorization[0]), l.token)
	}
	return size <= l.most
}

// tooLarge counts a call with too many headers and returns its error.
func (l *headerLimit) tooLarge() error {
	l.refused()
	return &apierror.Error{
		Code: apierror.ResourceExhausted, Reason: apierror.ReasonHeadersTooLarge,
		Message: fmt.Sprintf("the headers (metadata) of the call exceed %d bytes, not counting a token of up to %d bytes in authorization: "+
			"send fewer headers, or raise limits.header_kib or limits.token_kib in the broker's configuration", l.most, l.token),
	}
}
