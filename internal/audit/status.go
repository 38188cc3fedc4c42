package audit

// Failing reports whether the last attempt to write failed. A nil Log does not fail.
func (l *Log) Failing() bool { return l != nil && l.failing.Load() }
