package sealed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"
)

// A mark begins every envelope and names its kind: a value that is kept until it is
// overwritten, or a value with an expiry.
const (
	markForGood = "TB1"
	markUntil   = "TB2"
	markSize    = 3
)

// An envelope is the mark, the id of the key, the expiry of a value that has one
// (milliseconds since 1970), and the output of the AEAD: nonce, ciphertext and tag.
const (
	headSize     = markSize + ringIDSize
	endSize      = 8
	aeadOverhead = 12 + 16
)

// Overhead is how many bytes sealing adds to a value with an expiry, the most that it
// adds.
const Overhead = headSize + endSize + aeadOverhead

// The reasons why an envelope cannot be opened.
var (
	errNotSealed  = errors.New("it is not sealed")
	errUnknownKey = errors.New("it is sealed with a key that the ring does not have: put that key back into the ring")
	errRefused    = errors.New("it was altered, or belongs to another key")
)

// backupKey is the prefix of the context of a backup. No key of a store is like it.
const backupKey = "backup\x00"

// SealBackup seals data that is kept outside of the store, bound to its name.
func (r *Ring) SealBackup(of string, value []byte) []byte {
	return r.seal(backupKey+of, 1, time.Time{}, value)
}

// OpenBackup opens the output of SealBackup of this ring, or of an older one. The error
// is a sentence with the reason of the failure.
func (r *Ring) OpenBackup(of string, sealed []byte) ([]byte, error) {
	opened, err := r.open(backupKey+of, 1, bytes.Clone(sealed))
	return opened.value, err
}

// seal returns an envelope. A zero end: the value has no expiry.
func (r *Ring) seal(key string, number uint64, end time.Time, value []byte) []byte {
	envelope := make([]byte, 0, len(value)+Overhead)
	mark, sealedEnd := markForGood, []byte(nil)
	if !end.IsZero() {
		mark, sealedEnd = markUntil, binary.BigEndian.AppendUint64(nil, uint64(max(end.UnixMilli(), 0)))
	}
	envelope = append(envelope, mark...)
	envelope = append(envelope, r.primary[:]...)
	envelope = append(envelope, sealedEnd...)
	return r.keys[r.primary].aead.Seal(envelope, nil, value, sealedContext(r.primary, key, number, sealedEnd)) //nolint:gosec // this AEAD draws its nonce itself
}

// opened is the content of an envelope.
type opened struct {
	value []byte
	with  ringID    // the key that sealed it
	end   time.Time // by the clock of the replica that sealed it; zero: no expiry
}

// open opens an envelope in its own memory.
func (r *Ring) open(key string, number uint64, envelope []byte) (opened, error) {
	if len(envelope) < headSize+aeadOverhead {
		return opened{}, errNotSealed
	}
	mark, rest := string(envelope[:markSize]), envelope[headSize:]
	content := opened{with: ringID(envelope[markSize:headSize])}
	var sealedEnd []byte
	switch mark {
	case markForGood:
	case markUntil:
		if len(rest) < endSize+aeadOverhead {
			return opened{}, errNotSealed
		}
		sealedEnd, rest = rest[:endSize:endSize], rest[endSize:]
		content.end = time.UnixMilli(int64(binary.BigEndian.Uint64(sealedEnd))) //nolint:gosec // an end that overflows does not open, or is over
	default:
		return opened{}, errNotSealed
	}
	with, there := r.keys[content.with]
	if !there {
		return opened{}, errUnknownKey
	}
	var err error
	content.value, err = with.aead.Open(rest[:0], nil, rest, sealedContext(content.with, key, number, sealedEnd))
	if err != nil {
		return opened{}, errRefused
	}
	return content, nil
}

// sealedContext is the additional data of the AEAD: a value opens only with the same
// context. The length separates the parts, because only the last may be empty.
func sealedContext(id ringID, key string, number uint64, sealedEnd []byte) []byte {
	data := make([]byte, 0, ringIDSize+4+len(key)+8+endSize)
	data = append(data, id[:]...)
	data = binary.BigEndian.AppendUint32(data, uint32(len(key))) //nolint:gosec // stores refuse longer keys than MaxKey
	data = append(data, key...)
	data = binary.BigEndian.AppendUint64(data, number)
	return append(data, sealedEnd...)
}
