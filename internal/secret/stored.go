package secret

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cezzis/tokenbroker/internal/redact"
)

// historyForm is the version of the stored form, and the only one that is read.
const historyForm = 1

// What cannot be read must not be taken for nothing, or overwritten.
var (
	errForm  = errors.New("the stored secrets have a form that this version of the broker does not know: run the newer one")
	errSense = errors.New("the stored secrets make no sense")
)

type storedHistory struct {
	Form       int             `json:"v"`
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
}

type storedRequest struct {
	ID      string `json:"id"`
	Digest  string `json:"digest"`
	Version string `json:"version"`
	Done    bool   `json:"done,omitempty"`
	Refused bool   `json:"refused,omitempty"`
}

// Stored returns what [FromStored] makes the history of again: bytes that show
// the secrets, and so must be sealed before they leave the process.
func (h History) Stored() []byte {
	s := storedHistory{Form: historyForm, Generation: h.Generation, ID: h.ID, Ancestors: h.Ancestors}
	for _, r := range h.Versions {
		s.Versions = append(s.Versions, storedRecord{r.ID, r.State, r.Since, []byte(r.Value.Reveal()), r.CreatedAt, r.CreatedBy, r.RefusedAt})
	}
	for _, r := range h.Requests {
		s.Requests = append(s.Requests, storedRequest(r))
	}
	data, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("secret: texts and times that JSON cannot hold: %T", err))
	}
	return data
}

// FromStored makes a history of what [History.Stored] returned. Its errors show
// nothing of it.
func FromStored(data []byte) (History, error) {
	var form struct {
		Form int `json:"v"`
	}
	if json.Unmarshal(data, &form) != nil {
		return History{}, errSense
	}
	if form.Form != historyForm {
		return History{}, errForm
	}
	var s storedHistory
	if json.Unmarshal(data, &s) != nil || s.Generation == 0 || s.ID == "" {
		return History{}, errSense
	}
	h := History{Generation: s.Generation, ID: s.ID, Ancestors: s.Ancestors}
	for _, r := range s.Versions {
		h.Versions = append(h.Versions, Record{r.ID, r.State, r.Since, redact.New(string(r.Value)), r.CreatedAt, r.CreatedBy, r.RefusedAt})
	}
	for _, r := range s.Requests {
		h.Requests = append(h.Requests, Request(r))
	}
	if !h.sane() {
		return History{}, errSense
	}
	return h, nil
}

// sane reports whether the records can be what changes have made.
func (h History) sane() bool {
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
