package client

// CachedEntries returns how many results a Verifier caches.
func CachedEntries(v *Verifier) int {
	n := 0
	for i := range v.cache.shards {
		shard := &v.cache.shards[i]
		shard.mu.Lock()
		n += len(shard.young) + len(shard.old)
		shard.mu.Unlock()
	}
	return n
}
