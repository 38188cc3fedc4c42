package backoff

import (
	"encoding/json"
	"time"

	"github.com/cezzis/tokenbroker/internal/apierror"
	"github.com/cezzis/tokenbroker/internal/idp"
	"github.com/cezzis/tokenbroker/internal/store"
)

const (
	// Form is the version of the stored form. Code and Class are numbers of this form,
	// and replicas ignore failures of other forms.
	Form = 1
	// memory is how long replicas remember the number of tries after a failure ended.
	memory = 15 * time.Minute
	// rounding is added to the stored end, because stores count whole milliseconds.
	rounding = 2 * time.Millisecond
	// clockTolerance is how far the clocks of replicas may differ. A lifetime in the
	// store that differs by more from the sealed one is not believed.
	clockTolerance = 2 * time.Minute
)

// stored is a failure in the store, or its end. An end is not an empty value, because
// empty values are not sealed.
type stored struct {
	Form     int               `json:"v"`
	Code     apierror.Code     `json:"code"`
	Reason   string            `json:"reason"`
	Message  string            `json:"message"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Class    idp.Class         `json:"class"`
	Tries    int               `json:"tries"`
	Doubted  string            `json:"doubted,omitempty"`
	Over     bool              `json:"over,omitempty"` // the other members mean nothing
}

// Put returns the change that shares the failure with other replicas. It lives longer
// in the store than it is active.
func (f *Failure) Put(key string, fence uint64, now time.Time) store.Put {
	value := stored{
		Form: Form, Code: f.Err.Code, Reason: f.Err.Reason, Message: f.Err.Message, Metadata: f.Err.Metadata,
		Class: f.Class, Tries: f.Tries, Doubted: f.Doubted,
	}
	left := -rounding // a failure that has ended must not stop callers of other replicas
	if f.Until.After(now) {
		left = f.Until.Sub(now) + rounding
	}
	return store.Put{Key: key, Number: fence, Value: value.bytes(), TTL: left + memory}
}

// EndPut returns the change that ends a failure for other replicas. It lives for ttl,
// in which an older failure may still arrive.
func EndPut(key string, fence uint64, ttl time.Duration) store.Put {
	return store.Put{Key: key, Number: fence, Value: stored{Form: Form, Over: true}.bytes(), TTL: ttl}
}

func (s stored) bytes() []byte {
	data, err := json.Marshal(s)
	if err != nil {
		panic("backoff: strings and numbers that JSON cannot encode")
	}
	return data
}

// AdoptStored adopts a failure from the store, or its end, if it is newer. The end of
// the failure counts from answered, when the store had responded: a replica must not
// retry too early, because an IdP that throttles has to be obeyed.
func (s *Slot) AdoptStored(found store.Entry, answered time.Time) {
	var value stored
	if len(found.Value) == 0 || json.Unmarshal(found.Value, &value) != nil || value.Form != Form {
		return
	}
	if value.Over {
		s.Succeeded(found.Number)
		return
	}
	left := found.TTL - memory
	if found.Excess <= clockTolerance {
		left += found.Excess
	}
	s.Adopt(&Failure{
		Err:     &apierror.Error{Code: value.Code, Reason: value.Reason, Message: value.Message, Metadata: value.Metadata},
		Until:   answered.Add(left),
		Tries:   value.Tries,
		Class:   value.Class,
		At:      answered,
		Fence:   found.Number,
		Doubted: value.Doubted,
	})
}
