package caller

import (
	"encoding/binary"
	"errors"
	"time"
)

// A client can send HTTP/2 frames that cost the broker work without a request: it can
// open calls and reset them (CVE-2023-44487), or send settings, pings and empty frames.
// gRPC answers them all. So each connection has an allowance of such frames and is
// closed when the allowance is used up.

// allowance is the number of counted frames after which a connection is closed.
type allowance struct {
	burst     int
	perSecond int
}

// callerAllowance applies to connections with an identified caller. It is far more than
// a client needs even if all its calls exceed their deadline.
//
//nolint:gochecknoglobals // a constant that Go cannot express as such
var callerAllowance = allowance{burst: 20_000, perSecond: 10_000}

// unidentifiedAllowance lets a client open and cancel all calls that a connection may have
// before its caller is identified.
func unidentifiedAllowance(streams uint32) allowance {
	return allowance{burst: 2*int(streams) + 200, perSecond: 100}
}

// unidentifiedPause is how long the broker leaves further data unread after an unidentified
// client used up its allowance: otherwise a client that reconnects at once would lose
// nothing.
const unidentifiedPause = time.Second

var errTooManyFrames = errors.New("the client sent too many HTTP/2 frames outside of calls")

// frameUsage counts frames against an allowance. Its zero value is an unused one.
type frameUsage struct {
	used float64
	at   time.Time
}

// add counts frames and reports whether the allowance still suffices.
func (u *frameUsage) add(frames int, now time.Time, allowed allowance) bool {
	u.used = max(0, u.used-now.Sub(u.at).Seconds()*float64(allowed.perSecond)) + float64(frames)
	u.at = now
	return u.used <= float64(allowed.burst)
}

// Frames of HTTP/2 (RFC 9113 section 6).
const (
	frameHead          = 9
	prefaceLength      = 24
	frameData          = 0
	frameHeaders       = 1
	framePing          = 6
	frameWindowUpdate  = 8
	flagEndStream      = 1
	flagPadded         = 8
	longestPadding     = 256
	frameLengthAndType = 4
)

// frameScanner finds the frame headers in data from a client. Its zero value begins at
// the connection preface.
type frameScanner struct {
	begun bool
	skip  int // bytes until the next frame header
	head  [frameHead]byte
	have  int // bytes of the frame header
}

// scan counts the frames in data against the allowance of a caller's connection, or of
// an unidentified one.
func (s *frameScanner) scan(data []byte, caller bool) (counted int) {
	if !s.begun {
		s.begun, s.skip = true, prefaceLength
	}
	for len(data) > 0 {
		if s.skip > 0 {
			skipped := min(s.skip, len(data))
			s.skip -= skipped
			data = data[skipped:]
			continue
		}
		copied := copy(s.head[s.have:], data)
		s.have += copied
		data = data[copied:]
		if s.have < frameHead {
			return counted
		}
		length := int(binary.BigEndian.Uint32(s.head[:frameLengthAndType]) >> 8)
		if counts(s.head[3], s.head[4], length, caller) {
			counted++
		}
		s.have, s.skip = 0, length
	}
	return counted
}

// counts reports whether a frame counts against the allowance. Calls, their data and
// frames in proportion to responses are free for callers, because other limits apply to
// them.
func counts(kind, flags byte, length int, caller bool) bool {
	switch kind {
	case frameData:
		empty := length == 0 || flags&flagPadded != 0 && length <= longestPadding
		return empty && flags&flagEndStream == 0
	case frameHeaders, framePing, frameWindowUpdate:
		return !caller
	default:
		return true
	}
}

// http2Conn is a connection over which a client speaks HTTP/2.
type http2Conn struct {
	countedConn

	client   *connection
	allowed  allowance // until a caller is identified
	scanner  frameScanner
	usage    frameUsage
	exceeded func() // counts and logs
}

// Read implements net.Conn.
func (c *http2Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	caller := c.client.identified.Load()
	frames := c.scanner.scan(p[:n], caller)
	if frames == 0 {
		return n, err
	}
	allowed := c.allowed
	if caller {
		allowed = callerAllowance
	}
	if c.usage.add(frames, time.Now(), allowed) {
		return n, err
	}
	c.exceeded()
	if !caller {
		<-time.After(unidentifiedPause)
	}
	return 0, errTooManyFrames
}
