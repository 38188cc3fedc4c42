package server_test

import (
	"crypto/tls"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	tokenbrokerv1 "github.com/cezzis/tokenbroker/gen/tokenbroker/v1"
	"github.com/cezzis/tokenbroker/internal/apitest"
)

// raw connects over TLS and speaks HTTP/2 as the test likes.
func (w *world) raw(config *tls.Config) *apitest.HTTP2 {
	w.t.Helper()
	config.NextProtos = []string{"h2"}
	conn := tls.Client(must(w.listener.DialContext(w.t.Context())), config)
	w.t.Cleanup(func() { _ = conn.Close() })
	return must(apitest.NewHTTP2(conn))
}

const method = tokenbrokerv1.TokenBrokerService_GetToken_FullMethodName

// useless are frames that cost the broker work and ask for nothing.
func useless() map[string]func(h *apitest.HTTP2) []byte {
	open := map[*apitest.HTTP2]uint32{}
	onOpenCall := func(h *apitest.HTTP2, frame func(stream uint32) []byte) []byte {
		if open[h] == 0 {
			open[h] = h.Stream()
			return apitest.Call(open[h], method)
		}
		return frame(open[h])
	}
	return map[string]func(h *apitest.HTTP2) []byte{
		"calls that are reset": func(h *apitest.HTTP2) []byte {
			stream := h.Stream()
			return append(apitest.Call(stream, method), apitest.ResetOf(stream)...)
		},
		"resets of calls that were answered": func(h *apitest.HTTP2) []byte {
			stream := h.Stream()
			call := append(apitest.Call(stream, method), apitest.Frame(apitest.Data, apitest.EndStream, stream, []byte{0, 0, 0, 0, 0})...)
			return append(call, apitest.ResetOf(stream)...)
		},
		"resets of calls that never were": func(h *apitest.HTTP2) []byte { return apitest.ResetOf(h.Stream()) },
		"settings":                        func(*apitest.HTTP2) []byte { return apitest.Frame(apitest.Settings, 0, 0, nil) },
		"priorities":                      func(*apitest.HTTP2) []byte { return apitest.Frame(apitest.Priority, 0, 1, make([]byte, 5)) },
		"unknown frames":                  func(*apitest.HTTP2) []byte { return apitest.Frame(0xee, 0, 0, nil) },
		"empty data": func(h *apitest.HTTP2) []byte {
			return onOpenCall(h, func(stream uint32) []byte { return apitest.Frame(apitest.Data, 0, stream, nil) })
		},
		"data that is padding": func(h *apitest.HTTP2) []byte {
			return onOpenCall(h, func(stream uint32) []byte { return apitest.Frame(apitest.Data, 8, stream, []byte{0}) })
		},
		"continuations": func(h *apitest.HTTP2) []byte {
			if open[h] == 0 {
				open[h] = h.Stream()
				return apitest.Frame(apitest.Headers, 0, open[h], nil)
			}
			return apitest.Frame(apitest.Continuation, 0, open[h], nil)
		},
	}
}

// strangersOnly are frames that only count while no caller is identified.
func strangersOnly() map[string]func(h *apitest.HTTP2) []byte {
	return map[string]func(h *apitest.HTTP2) []byte{
		"calls": func(h *apitest.HTTP2) []byte {
			stream := h.Stream()
			return append(apitest.Call(stream, method), apitest.Frame(apitest.Data, apitest.EndStream, stream, []byte{0, 0, 0, 0, 0})...)
		},
		"window updates":   func(*apitest.HTTP2) []byte { return apitest.Frame(apitest.WindowUpdate, 0, 0, []byte{0, 0, 0, 1}) },
		"answers to pings": func(*apitest.HTTP2) []byte { return apitest.Frame(apitest.Ping, 1, 0, make([]byte, 8)) },
	}
}

// flood sends up to most frames and reports how many there were when the connection
// was closed; most: it was not.
func flood(h *apitest.HTTP2, most int, frame func(h *apitest.HTTP2) []byte) (sent int) {
	for ; sent < most; sent++ {
		if h.Send(frame(h)) != nil {
			return sent
		}
	}
	return most
}

func (w *world) cutOffs() float64 {
	return w.count("tokenbroker_handshake_failures_total", map[string]string{"reason": "too_many_frames"})
}

func TestFrameFlood_unidentifiedConnection(t *testing.T) {
	kinds := useless()
	maps.Copy(kinds, strangersOnly())
	for name, frame := range kinds {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				other := withBearer{w.api(w.anonymous()), w.jwt(nil)}
				mustGet(t, other, "before the flood")
				const most = 100_000 // far beyond what buffers on the way hold
				if sent := flood(w.raw(w.anonymous()), most, frame); sent == most {
					t.Error("the connection stays open")
				}
				if n := w.cutOffs(); n != 1 {
					t.Errorf("%v closed connections are counted", n)
				}
				mustGet(t, other, "after the flood")
			})
		})
	}
}

func TestFrameFlood_callerCancelsCalls(t *testing.T) {
	for name, frame := range useless() {
		if name == "continuations" {
			continue // gRPC itself closes the connection
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				h := w.raw(w.with(w.ca, template(checkout)))
				if sent := flood(h, 10_000, frame); sent != 10_000 {
					t.Errorf("the connection was closed after %d frames", sent)
				}
				synctest.Wait()
				if n := w.cutOffs(); n != 0 {
					t.Errorf("%v closed connections are counted", n)
				}
				if sent := flood(h, 100_000, frame); sent == 100_000 {
					t.Error("the connection stays open")
				}
			})
		})
	}
}

func TestFrameFlood_allowedFrames(t *testing.T) {
	for name, frame := range strangersOnly() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				if sent := flood(w.raw(w.with(w.ca, template(checkout))), 30_000, frame); sent != 30_000 {
					t.Errorf("the connection was closed after %d frames", sent)
				}
			})
		})
	}
}

// A client that is identified by a JWT makes its first calls as a stranger. They may
// all pass their deadline.
func TestFrameFlood_deadlinesBeforeTheFirstResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		conn := w.connect(w.anonymous())
		api := withBearer{tokenbrokerv1.NewTokenBrokerServiceClient(conn), w.jwt(nil)}
		end := halfOpen(t, conn, 250)
		time.Sleep(time.Second)
		end()
		synctest.Wait()
		mustGet(t, api, "after the storm")
		if n := w.cutOffs(); n != 0 {
			t.Errorf("%v closed connections are counted", n)
		}
	})
}
