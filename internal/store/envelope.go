package store

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// sealedMark begins every envelope and says of which kind it is.
const sealedMark = "TB1"

// An envelope is the mark, the id of the key, and what the AEAD makes: nonce,
// ciphertext and tag.
const sealedHead = len(sealedMark) + ringIDSize

// SealedOverhead is how many bytes sealing adds to a value.
const SealedOverhead = sealedHead + 12 + 16

// What keeps an envelope from being opened.
var (
	errNotSealed  = errors.New("it is not sealed")
	errUnknownKey = errors.New("it is sealed with a key that the ring does not have: put that key back into the ring")
	errRefused    = errors.New("it was altered, or is not what it is taken for")
)

// backupKey begins what a backup is bound to. No key of a store is like it.
const backupKey = "backup\x00"

// SealBackup seals what is to be kept outside of the store, bound to what it is of.
func (r *Ring) SealBackup(of string, value []byte) []byte { return r.seal(backupKey+of, 1, value) }

// OpenBackup opens what SealBackup of this ring, or an older one, has sealed. The
// error says in a sentence why it could not.
func (r *Ring) OpenBackup(of string, sealed []byte) ([]byte, error) {
	value, _, err := r.open(backupKey+of, 1, bytes.Clone(sealed))
	return value, err
}

func (r *Ring) seal(key string, number uint64, value []byte) []byte {
	envelope := make([]byte, 0, len(value)+SealedOverhead)
	envelope = append(envelope, sealedMark...)
	envelope = append(envelope, r.primary[:]...)
	return r.keys[r.primary].aead.Seal(envelope, nil, value, sealedContext(r.primary, key, number)) //nolint:gosec // this AEAD draws its nonce itself
}

// open opens an envelope in its own memory, and returns the id of the key.
func (r *Ring) open(key string, number uint64, envelope []byte) (value []byte, id ringID, err error) {
	head, found := bytes.CutPrefix(envelope, []byte(sealedMark))
	if !found || len(envelope) < SealedOverhead {
		return nil, id, errNotSealed
	}
	id = ringID(head[:ringIDSize])
	with, there := r.keys[id]
	if !there {
		return nil, id, errUnknownKey
	}
	sealed := head[ringIDSize:]
	value, err = with.aead.Open(sealed[:0], nil, sealed, sealedContext(id, key, number))
	if err != nil {
		return nil, id, errRefused
	}
	return value, id, nil
}

// sealedContext is what a value is bound to beside its key: it opens only with
// the same. The length keeps key and number apart.
func sealedContext(id ringID, key string, number uint64) []byte {
	data := make([]byte, 0, ringIDSize+4+len(key)+8)
	data = append(data, id[:]...)
	data = binary.BigEndian.AppendUint32(data, uint32(len(key))) //nolint:gosec // stores refuse longer keys than MaxKey
	data = append(data, key...)
	return binary.BigEndian.AppendUint64(data, number)
}
