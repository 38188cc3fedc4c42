package fleet

import (
	"context"
	"time"
)

// CacheTime is how long a view of the other replicas is used again, so that the number of
// readers does not matter to the store.
const CacheTime = time.Second

// readTimeout bounds the reading of the store for a view.
const readTimeout = 3 * time.Second

// Cached returns a function that returns the result of read, or the last result if it is
// younger than CacheTime. Callers that wait for a result share it, so it does not end with
// the context of one of them.
func Cached(read func(context.Context) View) func(context.Context) View {
	var (
		turn = make(chan struct{}, 1) // guards the others
		last View
		at   time.Time
	)
	return func(ctx context.Context) View {
		turn <- struct{}{}
		defer func() { <-turn }()
		if at.IsZero() || time.Since(at) >= CacheTime {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
			defer cancel()
			last, at = read(ctx), time.Now()
		}
		return last
	}
}
