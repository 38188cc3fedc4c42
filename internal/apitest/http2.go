package apitest

import (
	"encoding/binary"
	"io"
	"net"
)

// HTTP2 is a client that can send arbitrary HTTP/2 frames.
type HTTP2 struct {
	net.Conn

	next uint32 // stream
}

// Frame types and flags (RFC 9113 section 6) that tests use.
const (
	Data         = 0
	Headers      = 1
	Priority     = 2
	Reset        = 3
	Settings     = 4
	Ping         = 6
	WindowUpdate = 8
	Continuation = 9

	EndStream  = 1
	EndHeaders = 4
)

// NewHTTP2 begins HTTP/2 on a connection, and reads and discards all received data.
func NewHTTP2(conn net.Conn) (*HTTP2, error) {
	h := &HTTP2{Conn: conn, next: 1}
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	if _, err := io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); err != nil {
		return nil, err
	}
	return h, h.Send(Frame(Settings, 0, 0, nil))
}

// Send writes frames at once.
func (h *HTTP2) Send(frames ...[]byte) error {
	var all []byte
	for _, frame := range frames {
		all = append(all, frame...)
	}
	_, err := h.Write(all)
	return err
}

// Stream returns the number of an unused stream.
func (h *HTTP2) Stream() uint32 {
	used := h.next
	h.next += 2
	return used
}

// Frame is one frame.
func Frame(kind, flags byte, stream uint32, payload []byte) []byte {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(payload))<<8|uint32(kind)) //nolint:gosec // tests send short frames
	head = append(head, flags)
	return append(binary.BigEndian.AppendUint32(head, stream), payload...)
}

// Call is the HEADERS frame that begins a gRPC call.
func Call(stream uint32, method string, fields ...string) []byte {
	var block []byte
	for i, all := 0, append([]string{":method", "POST", ":scheme", "http", ":path", method, ":authority", "broker", "content-type", "application/grpc", "te", "trailers"}, fields...); i < len(all); i += 2 {
		block = append(block, 0) // not indexed, with a new name (RFC 7541 section 6.2.2)
		for _, text := range all[i : i+2] {
			block = append(block, byte(len(text))) //nolint:gosec // shorter than 127
			block = append(block, text...)
		}
	}
	return Frame(Headers, EndHeaders, stream, block)
}

// ResetOf is the frame that cancels a call.
func ResetOf(stream uint32) []byte { return Frame(Reset, 0, stream, []byte{0, 0, 0, 8}) }
