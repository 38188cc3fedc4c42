package client

// Remembered is how many answers a Verifier remembers.
func Remembered(v *Verifier) int {
	n := 0
	for i := range v.cache.shards {
		shard := &v.cache.shards[i]
		shard.mu.Lock()
		n += len(shard.young) + len(shard.old)
		shard.mu.Unlock()
	}
	return n
}
