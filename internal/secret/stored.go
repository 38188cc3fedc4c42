package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// formatVersion is the only version of the stored format.
const formatVersion = 1

// The caller must not treat a history that cannot be read as missing, or overwrite
// it.
var (
	errFormat  = errors.New("the stored secrets have a format that this version of the broker does not support: run the newer version")
	errInvalid = errors.New("the stored secrets are not valid")
)

type storedHistory struct {
	Format     int             `json:"v"`
	Generation uint64          `json:"generation"`
	ID         string          `json:"id"`
	Ancestors  []string        `json:"ancestors,omitempty"`
	Versions   []storedRecord  `json:"versions"`
	Requests   []storedRequest `json:"requests,omitempty"`
}

type storedRecord struct {
	ID        string    `json:"id"`
	State     State     `json:"state"`
	Since     time.Time `json:"since"`
	Value     []byte    `json:"value,omitempty"`
	CreatedAt time.Time `json:"created"`
	CreatedBy string    `json:"by,omitempty"`
	RefusedAt time.Time `json:"refused,omitzero"`

	Publication storedPublication `json:"publication,omitzero"`
}

type storedPublication struct {
	Key     string    `json:"key,omitempty"`
	ShownAt time.Time `json:"shown,omitzero"`
	Usable  bool      `json:"usable,omitempty"`
	Urgent  bool      `json:"urgent,omitempty"`
}

type storedRequest struct {
	ID        string    `json:"id"`
	Digest    string    `json:"digest"`
	Version   string    `json:"version"`
	Base      string    `json:"base,omitempty"`
	BaseSince time.Time `json:"base_since,omitzero"`
	Done      bool      `json:"done,omitempty"`
	Refused   bool      `json:"refused,omitempty"`
}

// Stored encodes the history for [FromStored]. The result contains the secrets in the
// clear and must be sealed before it leaves the process.
func (h History) Stored() []byte {
	s := storedHistory{Format: formatVersion, Generation: h.Generation, ID: h.ID, Ancestors: h.Ancestors}
	for _, r := range h.Versions {
		s.Versions = append(s.Versions, storedRecord{r.ID, r.State, r.Since, []byte(r.Value.Reveal()), r.CreatedAt, r.CreatedBy, r.RefusedAt, storedPublication(r.Publication)})
	}
	for _, r := range h.Requests {
		s.Requests = append(s.Requests, storedRequest(r))
	}
	data, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("secret: encoding a history: %T", err)) // the error may quote a value
	}
	return data
}

// FromStored decodes the result of [History.Stored]. Its errors contain no part of
// data.
func FromStored(data []byte) (History, error) {
	var s storedHistory
	if json.Unmarshal(data, &s) != nil || s.Format != formatVersion {
		return History{}, unsupported(data)
	}
	if s.Generation == 0 || s.ID == "" {
		return History{}, errInvalid
	}
	h := History{Generation: s.Generation, ID: s.ID, Ancestors: s.Ancestors}
	for _, r := range s.Versions {
		h.Versions = append(h.Versions, Record{r.ID, r.State, r.Since, redact.New(string(r.Value)), r.CreatedAt, r.CreatedBy, r.RefusedAt, Publication(r.Publication)})
	}
	for _, r := range s.Requests {
		h.Requests = append(h.Requests, Request(r))
	}
	if !h.valid() {
		return History{}, errInvalid
	}
	return h, nil
}

// unsupported returns why data that is not of this format cannot be decoded. Other members
// of a later format may have other types.
func unsupported(data []byte) error {
	var format struct {
		Version int `json:"v"`
	}
	if json.Unmarshal(data, &format) != nil || format.Version == formatVersion {
		return errInvalid
	}
	return errFormat
}

// valid checks the invariants that every change preserves.
func (h History) valid() bool {
	ids, states := map[string]bool{}, map[State]int{}
	for _, r := range h.Versions {
		if r.ID == "" || ids[r.ID] || r.State < Pending || r.State > Retired || r.State == Retired && !r.Value.IsZero() {
			return false
		}
		ids[r.ID] = true
		states[r.State]++
	}
	return states[Pending] <= 1 && states[Current] <= 1 && states[Previous] <= 1
}
