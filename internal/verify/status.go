package verify

import "time"

// KeyStatus describes the keys of an issuer.
type KeyStatus struct {
	Issuer string
	Keys   int
	// LoadedAt is when the keys were last fetched. Zero: never.
	LoadedAt time.Time
	// MaxStale is how long keys are used that cannot be fetched again.
	MaxStale time.Duration
	// Err is the error of the last fetch.
	Err error
}

// KeyStatus returns the status of the keys of all issuers.
func (v *Verifier) KeyStatus() []KeyStatus {
	all := make([]KeyStatus, 0, len(v.issuers))
	for _, i := range v.issuers {
		current := i.keys.state.Load()
		all = append(all, KeyStatus{i.cfg.Issuer, current.keys.Len(), current.loadedAt, i.cfg.MaxStale, current.err})
	}
	return all
}
