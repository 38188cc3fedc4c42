package broker

// Entries returns the number of cache entries besides those of the clients' defaults.
func (b *Broker) Entries() int { return b.entries.Len() }
