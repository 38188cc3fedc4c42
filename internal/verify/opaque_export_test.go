package verify

// Bounds of the caches of opaque tokens.
const (
	ActiveBytes   = activeBytes
	InactiveBytes = inactiveBytes
)

// CachedResults returns the number of cached introspection results and their total cost
// in bytes.
func (v *Verifier) CachedResults() (active, inactive int, activeBytes, inactiveBytes int64) {
	for _, o := range v.opaque { // exactly one
		o.mu.Lock()
		defer o.mu.Unlock()
		active, inactive, activeBytes, inactiveBytes = len(o.active.entries), len(o.inactive.entries), o.active.bytes, o.inactive.bytes
	}
	return active, inactive, activeBytes, inactiveBytes
}
