package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// metric returns the value of a metric without labels.
func (s *server) metric(ctx context.Context, name string) (float64, error) {
	text, err := s.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	return parseNumber(text, name+" ")
}

// trips returns how many round trips the broker has made to Redis.
func (s *server) trips(ctx context.Context) (float64, error) {
	return s.metric(ctx, "tokenbroker_redis_trips_total")
}

// liveHeap returns the bytes of the broker's heap after a garbage collection, which the
// request for the heap profile forces.
func (s *server) liveHeap(ctx context.Context) (float64, error) {
	if _, err := s.get(ctx, "/debug/pprof/heap?gc=1"); err != nil {
		return 0, err
	}
	return s.metric(ctx, "go_memstats_heap_alloc_bytes")
}

// ask returns the response of the broker's ops listener.
func (s *server) get(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.ops+path, nil)
	if err != nil {
		return "", err
	}
	response, err := new(http.Client).Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answered %s", path, response.Status)
	}
	body, err := io.ReadAll(response.Body)
	return string(body), err
}
