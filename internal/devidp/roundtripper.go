package devidp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
)

// RoundTripper returns a transport that calls the server in memory, whatever the host of
// a request is. Unlike kept connections, it works in a synctest bubble. A call returns
// when its context ends, as over a network, even if the server has not finished.
func (s *Server) RoundTripper() http.RoundTripper { return transport{s} }

type transport struct{ server *Server }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	inbound, err := receive(r)
	if err != nil {
		return nil, err
	}
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	if t.server.current().down {
		t.server.journal.count(inbound.URL.Path)
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	done := make(chan *response, 1)
	go func() { done <- t.serve(inbound) }()
	select {
	case <-r.Context().Done():
		return nil, context.Cause(r.Context())
	case resp := <-done:
		if resp == nil {
			return nil, errors.New("the server closed the connection without a response")
		}
		return resp.toHTTP(r), nil
	}
}

// serve returns nil if the handler aborts the connection.
func (t transport) serve(r *http.Request) (resp *response) {
	defer func() {
		if reason := recover(); reason == http.ErrAbortHandler { //nolint:errorlint // compared as net/http does
			resp = nil
		} else if reason != nil {
			panic(reason)
		}
	}()
	resp = &response{header: http.Header{}}
	t.server.ServeHTTP(resp, r)
	return resp
}

// receive converts an outgoing request to the incoming one. It reads the whole body,
// because a transport must not read it after RoundTrip has returned.
func receive(r *http.Request) (*http.Request, error) {
	inbound := r.Clone(r.Context())
	inbound.RequestURI = r.URL.RequestURI()
	inbound.RemoteAddr = "127.0.0.1:0"
	if inbound.Host == "" {
		inbound.Host = r.URL.Host
	}
	inbound.Body = http.NoBody
	if r.Body == nil {
		return inbound, nil
	}
	body, err := io.ReadAll(r.Body)
	if closeErr := r.Body.Close(); err == nil {
		err = closeErr
	}
	inbound.Body = io.NopCloser(bytes.NewReader(body))
	return inbound, err
}

// response is an http.ResponseWriter that keeps the response in memory.
type response struct {
	header http.Header
	sent   http.Header // copy of header when the status was written
	status int
	body   bytes.Buffer
}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status, w.sent = status, w.header.Clone()
	}
}

func (w *response) Write(data []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(data)
}

func (w *response) toHTTP(r *http.Request) *http.Response {
	w.WriteHeader(http.StatusOK)
	return &http.Response{
		Status:        strconv.Itoa(w.status) + " " + http.StatusText(w.status),
		StatusCode:    w.status,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        w.sent,
		Body:          io.NopCloser(&w.body),
		ContentLength: int64(w.body.Len()),
		Request:       r,
	}
}
