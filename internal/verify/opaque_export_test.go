package verify

// Bounds of what is remembered of opaque tokens.
const (
	ActiveBytes   = activeBytes
	InactiveBytes = inactiveBytes
)

// Remembered counts what is remembered of opaque tokens, and the bytes that it is
// taken for.
func (v *Verifier) Remembered() (active, inactive int, activeBytes, inactiveBytes int64) {
	for _, o := range v.opaque { // there is one
		o.mu.Lock()
		defer o.mu.Unlock()
		active, inactive, activeBytes, inactiveBytes = len(o.active.byID), len(o.inactive.byID), o.active.bytes, o.inactive.bytes
	}
	return active, inactive, activeBytes, inactiveBytes
}
